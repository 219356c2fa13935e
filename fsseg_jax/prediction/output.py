"""The folder that `predict` writes: masks, overlays, and a table of all of them (`table`).

A journal gets a line for each image once its mask and overlay are written, so that a stopped run
can continue. Folders in it may be links, such as `masks` to another disk.
"""

import collections
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import UInt8
from PIL import Image
from pycocotools import mask as coco_mask

from fsseg_jax.errors import UserError, brief
from fsseg_jax.evaluation.report import WAY_COLOURS, overlay
from fsseg_jax.files import remove_partial, replacing, write_text, writing
from fsseg_jax.prediction.journal import Journal
from fsseg_jax.prediction.result import Result
from fsseg_jax.prediction.segmenter import Segmenter

MASKS, OVERLAYS = SAVED = "masks", "overlays"
MADE_BY, SKIPPED = "made_by.json", "skipped.txt"
SPREAD = "spread over folders"  # in `made_by.json`, where files are
CROWDED = 10_000  # images in a folder; file systems and viewers are slow with more
FOLDERS = 4096  # of files that are spread: 250 in each of a million
LONG_SIDE = 1600  # pixels of an overlay: sharp on a screen, at a fraction of the image's file size
# Of masks: black background, classes as in the overlays. All 256 colours, so that a pixel is a
# byte.
PALETTE = bytes([0, 0, 0, *itertools.chain(*itertools.islice(itertools.cycle(WAY_COLOURS), 255))])


class Query(NamedTuple):
    """An image to segment. There may be millions: it is small."""

    path: str  # or its URL
    name: str  # its path below the folder of queries, with slashes
    size: int  # bytes; 0 if nobody knows
    changed: int  # time of the last change, in nanoseconds, or another number of its version


def made_by(segmenter: Segmenter, classes: Sequence[str], supports: str) -> dict[str, Any]:
    """What predictions depend on besides the images, as JSON; `supports` is a digest of these."""
    digest = hashlib.sha256()
    arrays = flatten_dict(jax.device_get(segmenter.variables), sep="/")
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    fields = flatten_dict(segmenter.config.to_dict(), sep=".")
    own = ("method", "backbone", "dtype", "image_size", "eval.fit")
    settings = {name: x for name, x in fields.items() if name in own or name.startswith("model.")}
    facts = {"classes": classes, "supports": supports, "weights": digest.hexdigest()[:16]}
    return json.loads(json.dumps(settings | facts))  # as it will be read back


class Predictions:
    """The folder of predictions, new or continued; a context.

    Args:
        folder: the folder, which is made if it does not exist.
        made_by: see `made_by`.
        save: which of `masks` and `overlays` to write.
        spread: of a new folder, whether to spread files over subfolders, of which there are
            `FOLDERS`, since folders of a million files are slow, and some file systems have none.
        part: of which of several processes; only the first, 0, checks and cleans the folder.
        read: whether to read what is done; see `Journal`.

    Raises:
        UserError: the folder holds something else or predictions made by something else, it cannot
            be written to (in all methods), or another process is writing to it.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        made_by: Mapping[str, Any],
        save: Collection[str] = SAVED,
        spread: bool = False,
        part: int = 0,
        read: bool = True,
    ) -> None:
        self.folder, self.save = folder, tuple(save)
        self._spread = self._check(made_by, spread)
        self._journal = Journal(folder, len(made_by["classes"]), part, read)
        links = (path for path in (folder / MASKS, folder / OVERLAYS) if path.is_symlink())
        for place in (folder, *links) if not part else ():
            remove_partial(place)

    def __enter__(self) -> "Predictions":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Closes the journal."""
        # What a full disk did not take has been told, and is done again.
        with contextlib.suppress(OSError):
            self._journal.file.close()

    def choose_names(self, queries: Iterable[Query]) -> None:
        """Chooses names for the masks and overlays of images; call before other methods.

        They are named after their images, with the image's suffix only where the name without it is
        taken. Names do not change when images are added.
        """
        for query in queries:
            self._journal.output(query.name)

    def output(self, query: Query) -> str:
        """The name of an image's mask and overlay."""
        return self._journal.output(query.name)

    def give_name(self, query: Query, output: str) -> None:
        """Gives an image the name that another process has chosen for it."""
        self._journal.own(query.name, output)

    def mask_file(self, query: Query) -> pathlib.Path:
        """The path of an image's mask, written or not."""
        return self.folder / self._place(MASKS, self.output(query), "png")

    def overlay_file(self, query: Query) -> pathlib.Path:
        """The path of an image's overlay, written or not."""
        return self.folder / self._place(OVERLAYS, self.output(query), "jpg")

    def _place(self, kind: str, output: str, suffix: str) -> str:
        spread = f"{zlib.crc32(os.fsencode(output)) % FOLDERS:03x}/" if self._spread else ""
        return f"{kind}/{spread}{output}.{suffix}"

    def _files(self, query: Query) -> list[pathlib.Path]:
        """What is saved of an image besides its line in the journal."""
        files = {MASKS: self.mask_file, OVERLAYS: self.overlay_file}
        return [files[kind](query) for kind in self.save]

    def noted(self, query: Query) -> bool:
        """Whether the journal has an image, and it has not changed since."""
        entry = self._journal.entries.get(query.name)
        return entry is not None and (entry.size, entry.changed) == (query.size, query.changed)

    def done(self, query: Query) -> bool:
        """Whether an image is noted, and what is saved of it is there."""
        return self.noted(query) and all(path.is_file() for path in self._files(query))

    def write(
        self,
        query: Query,
        image: UInt8[np.ndarray, "height width 3"] | None,
        result: Result,
    ) -> dict[str, Any]:
        """Writes the mask and the overlay of an image, and returns the record for `note`.

        The image itself is needed for an overlay alone. Several threads may call it at once.
        """
        label = result.mask
        if MASKS in self.save:
            with replacing(self.mask_file(query)) as file:
                save_mask(label, file)
        if image is not None:
            with replacing(self.overlay_file(query)) as file:
                shown = small_overlay(image, label, LONG_SIDE)
                Image.fromarray(shown).save(file, "jpeg", quality=90)
        height, width = label.shape
        return {
            "photograph": query.name,
            "size": query.size,
            "changed": query.changed,
            "output": self.output(query),
            "height": height,
            "width": width,
            "confidence": result.confidence,
            "objects": _objects(label, result.scores),
        }

    def note(self, record: Mapping[str, Any]) -> None:
        """Enters an image that `write` has written into the journal."""
        self._journal.append(record)

    def remove(self, query: Query) -> None:
        """Removes the mask and the overlay of an earlier image of this name, if there are any."""
        with writing(self.folder):
            for file in (self.mask_file(query), self.overlay_file(query)):
                file.unlink(missing_ok=True)
        self._journal.entries.pop(query.name, None)

    def collect(self, skipped: Iterable[str] = ()) -> None:
        """Takes over what other processes have noted, when they have ended.

        Args:
            skipped: the names of images that could not be read, even if they were noted once.
        """
        self._journal.collect()
        for name in skipped:
            self._journal.entries.pop(name, None)

    def records(self, queries: Iterable[Query]) -> Iterator[dict[str, Any]]:
        """What the journal says about each image that is done, one at a time: all may exceed
        memory."""
        for query in queries:
            if self.noted(query):
                record = self._journal.record(query.name)
                if MASKS in self.save:
                    record["mask_file"] = self._place(MASKS, record["output"], "png")
                yield record

    def write_skipped(self, skipped: Mapping[str, str]) -> None:
        """Writes `skipped.txt`, with a line of the name and the reason for each image that could
        not be read; or removes it if there are none."""
        file = self.folder / SKIPPED
        if skipped:
            lines = (f"{name}\t{' '.join(skipped[name].split())}\n" for name in sorted(skipped))
            write_text(file, "".join(lines))
        else:
            with writing(file):
                file.unlink(missing_ok=True)

    def _check(self, made_by: Mapping[str, Any], spread: bool) -> bool:
        """Writes `made_by` into a new folder, or compares it with that of an old one; returns
        whether files are spread over subfolders, which does not change."""
        file = self.folder / MADE_BY
        remedy = f"choose another --out, or remove {self.folder}"
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            known = file.is_file()
            others = [path for path in self.folder.iterdir() if not path.name.startswith(".")]
        if not known:
            if others:
                raise UserError(
                    f"--out = {self.folder} holds {min(others).name} but no predictions: choose a "
                    "new or an empty folder."
                )
            kept = {**made_by, **({SPREAD: True} if spread else {})}
            write_text(file, json.dumps(kept, indent=2))
            return spread
        try:
            before = dict(json.loads(file.read_bytes()))
            spread = before.pop(SPREAD, False) is True
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{file} cannot be read ({error}): {remedy}.") from None
        names = dict.fromkeys([*made_by, *before])
        other = [
            f"{name if name in made_by else brief(name)} = {brief(before.get(name))}, "
            f"not {brief(made_by.get(name))}"
            for name in names
            if made_by.get(name) != before.get(name)
        ]
        if other:
            raise UserError(
                f"--out = {self.folder} holds predictions made with {'; '.join(other[:5])}: "
                f"{remedy}."
            )
        return spread


def is_crowded(queries: Iterable[Query]) -> bool:
    """Whether a folder has so many images that what is made of them should be spread."""
    folders = collections.Counter(os.path.dirname(query.name) for query in queries)
    return max(folders.values(), default=0) > CROWDED


def save_mask(label: UInt8[np.ndarray, "height width"], file: IO[bytes]) -> None:
    """Writes a mask as a PNG with the colours of overlays."""
    picture = Image.fromarray(label)
    picture.putpalette(PALETTE)
    picture.save(file, "png")


def small_overlay(
    image: UInt8[np.ndarray, "height width 3"],
    label: UInt8[np.ndarray, "height width"],
    long_side: int,
) -> UInt8[np.ndarray, "h w 3"]:
    """An image with its label over it, at most `long_side` pixels long."""
    small = Image.fromarray(image)
    small.thumbnail((long_side, long_side))
    small_label = Image.fromarray(label).resize(small.size, Image.Resampling.NEAREST)
    return overlay(np.asarray(small), np.asarray(small_label))


def _objects(
    label: UInt8[np.ndarray, "height width"], scores: Sequence[float]
) -> list[dict[str, Any]]:
    """Annotations in COCO's format without their ids, one for each class that occurs."""
    objects = []
    for number in (np.flatnonzero(np.bincount(label.ravel())[1:]) + 1).tolist():
        inside = label == number
        runs = coco_mask.encode(np.asfortranarray(inside.view(np.uint8)))
        objects.append(
            {
                "category_id": number,
                "segmentation": {"size": [*label.shape], "counts": runs["counts"].decode()},
                "bbox": coco_mask.toBbox(runs).tolist(),
                "area": int(coco_mask.area(runs)),
                "iscrowd": 0,
                "score": float(scores[number]),
            }
        )
    return objects
