"""The folder that `predict` writes: masks, overlays, and a table of all of them (`table`).

A journal gets a line for each image once its mask and overlay are written, so that a stopped run
can continue. Folders in it may be links, such as `masks` to another disk.
"""

import collections
import contextlib
import hashlib
import json
import os
import pathlib
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import UInt8
from PIL import Image
from pycocotools import mask as coco_mask

from fsseg_jax.errors import UserError, brief
from fsseg_jax.files import lock, remove_partial, replacing, write_bytes, write_text, writing
from fsseg_jax.prediction.contact_sheet import SHEET
from fsseg_jax.prediction.drawing import (
    LONG_SIDE,
    is_whole,
    load_mask,
    save_mask,
    small_overlay,
    thumbnail,
)
from fsseg_jax.prediction.instances import cleaned, objects_of
from fsseg_jax.prediction.journal import FORGOTTEN, Journal, forget, has_runs, open_journal
from fsseg_jax.prediction.result import DIGITS, Result
from fsseg_jax.prediction.segmenter import Segmenter
from fsseg_jax.prediction.table import PREDICTIONS, remove_parts

MASKS, OVERLAYS = SAVED = "masks", "overlays"
MADE_BY, SKIPPED = "made_by.json", "skipped.txt"
SPREAD = "spread over folders"  # in `made_by.json`, where files are
CROWDED = 10_000  # images in a folder; file systems and viewers are slow with more
FOLDERS = 4096  # of files that are spread: 250 in each of a million
THUMBNAILS = "thumbnails"  # of the overlays, written with them
ALONE = "in one process, without --ray"  # how --accept is given
# How masks are refined, in `made_by.json`; see `refinement`.
INSTANCES, MIN_AREA, FILL_HOLES = "instances", "min_area", "fill_holes"


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
    settings["predict.threshold"] = fields["predict.threshold"]
    # Only what is asked for: folders of earlier versions have none of it.
    if fields["predict.flip"]:
        settings["predict.flip"] = True
    if tuple(fields["eval.scales"]) != (1.0,):
        settings["eval.scales"] = sorted(fields["eval.scales"])
    if fields["eval.crf.iterations"]:
        settings |= {name: x for name, x in fields.items() if name.startswith("eval.crf.")}
    facts = {"classes": classes, "supports": supports, "weights": digest.hexdigest()[:16]}
    return json.loads(json.dumps(settings | facts))  # as it will be read back


def refinement(instances: bool, min_area: int, fill_holes: bool) -> dict[str, Any]:
    """What `made_by.json` says of options about the objects in masks: those that are set."""
    options = {INSTANCES: instances, MIN_AREA: min_area, FILL_HOLES: fill_holes}
    return {name: value for name, value in options.items() if value}


def read_made_by(folder: pathlib.Path) -> dict[str, Any]:
    """What the predictions in a folder were made by.

    Raises:
        UserError: the file cannot be read, or is none of ours.
    """
    file = folder / MADE_BY
    try:
        facts = dict(json.loads(file.read_bytes()))
        classes = facts["classes"]
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ValueError("classes are not names")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be read ({error}): choose another --out, or remove {folder}."
        ) from None
    return facts


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
        renew: whether an old folder may have been made with other supports: all of it is done
            again then.

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
        renew: bool = False,
    ) -> None:
        self.folder, self.save, self.made_by = folder, tuple(save), made_by
        self._spread = self._check(made_by, spread, renew)
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

    def thumbnail_file(self, query: Query) -> pathlib.Path:
        """The path of an overlay's thumbnail, written or not."""
        return self.folder / self._place(THUMBNAILS, self.output(query), "jpg")

    @property
    def instances(self) -> bool:
        """Whether each connected part of a class is an object, rather than all of it."""
        return bool(self.made_by.get(INSTANCES))

    def _place(self, kind: str, output: str, suffix: str) -> str:
        spread = f"{zlib.crc32(os.fsencode(output)) % FOLDERS:03x}/" if self._spread else ""
        return f"{kind}/{spread}{output}.{suffix}"

    def _files(self, query: Query) -> list[pathlib.Path]:
        """What is saved of an image besides its line in the journal."""
        files = {MASKS: [self.mask_file], OVERLAYS: [self.overlay_file, self.thumbnail_file]}
        return [path(query) for kind in self.save for path in files[kind]]

    def noted(self, query: Query) -> bool:
        """Whether the journal has an image, and it has not changed since."""
        entry = self._journal.entries.get(query.name)
        return entry is not None and (entry.size, entry.changed) == (query.size, query.changed)

    def done(self, query: Query) -> bool:
        """Whether an image is noted, and what is saved of it is there and whole."""
        return self.noted(query) and all(map(is_whole, self._files(query)))

    def write(
        self,
        query: Query,
        image: UInt8[np.ndarray, "height width 3"] | None,
        result: Result,
        as_it_is: bool = False,
    ) -> dict[str, Any]:
        """Writes the mask and the overlay of an image, and returns the record for `note`.

        With `as_it_is` the mask is a person's, and not cleaned.

        The image itself is needed for an overlay alone. Several threads may call it at once.
        """
        facts, label = self.made_by, result.mask
        if not as_it_is:
            label = cleaned(label, facts.get(MIN_AREA, 0), facts.get(FILL_HOLES, False))
        if MASKS in self.save:
            if self.painted(query):  # since `accept`, which seals what it keeps
                raise UserError(
                    f"{self.mask_file(query)} was corrected, but would be predicted again: add "
                    f"--accept ({ALONE}) to keep it, or remove it."
                )
            with replacing(self.mask_file(query)) as file:
                save_mask(label, file)
        if image is not None:
            shown = small_overlay(image, label, LONG_SIDE, facts["classes"])
            write_bytes(self.thumbnail_file(query), thumbnail(shown))
            with replacing(self.overlay_file(query)) as file:
                Image.fromarray(shown).save(file, "jpeg", quality=90)
        height, width = label.shape
        return {
            "photograph": query.name,
            "size": query.size,
            "changed": query.changed,
            "output": self.output(query),
            "height": height,
            "width": width,
            "confidence": round(result.confidence, DIGITS),
            "objects": objects_of(label, result, self.instances),
        }

    def painted(self, query: Query) -> bool:
        """Whether the mask of an image is there, but is not as it was written."""
        file = self.mask_file(query)
        try:
            # Not `file.is_file()`, which fails at names that are too long.
            return os.path.isfile(file) and not load_mask(file, len(self.made_by["classes"])).sealed
        except UserError:
            return False  # not even a mask, such as of a disk that was full

    def note(self, record: Mapping[str, Any]) -> None:
        """Enters an image that `write` has written into the journal."""
        self._journal.append(record)

    def remove(self, query: Query) -> None:
        """Removes the mask and the overlay of an earlier image of this name, if there are any."""
        with writing(self.folder):
            made = self.overlay_file(query), self.thumbnail_file(query)
            mask = () if self.painted(query) else (self.mask_file(query),)
            for file in (*made, *mask):
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
                if OVERLAYS in self.save:
                    record["overlay_file"] = self._place(OVERLAYS, record["output"], "jpg")
                    record["thumbnail_file"] = self._place(THUMBNAILS, record["output"], "jpg")
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

    def recorded(self, query: Query) -> UInt8[np.ndarray, "height width"] | None:
        """The mask of an image that the journal tells, if it tells a good one."""
        entry = self._journal.entries.get(query.name)
        if entry is None or entry.size == FORGOTTEN:
            return None
        record = self._journal.record(query.name)
        if not has_runs(record):
            return None
        label = np.zeros((record["height"], record["width"]), np.uint8)
        runs: dict[int, list[Any]] = {}  # of each class, which may have thousands of objects
        for found in record["objects"]:
            runs.setdefault(found["category_id"], []).append(found["segmentation"])
        for number, parts in runs.items():
            label[coco_mask.decode(coco_mask.merge(parts)) > 0] = number
        return label

    def stale(self, queries: Iterable[Query]) -> list[str]:
        """Names of images whose results are still here, but that are not queries any more."""
        return sorted(self._journal.entries.keys() - {query.name for query in queries})

    def _check(self, made_by: Mapping[str, Any], spread: bool, renew: bool) -> bool:
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
        before = read_made_by(self.folder)
        spread = before.pop(SPREAD, False) is True
        names = dict.fromkeys([*made_by, *before])
        other = [
            f"{name if name in made_by else brief(name)} = {brief(before.get(name))}, "
            f"not {brief(made_by.get(name))}"
            for name in names
            if made_by.get(name) != before.get(name)
        ]
        differing = {name for name in names if made_by.get(name) != before.get(name)}
        if renew and differing and differing <= {"supports", "classes"}:
            self._renew({**made_by, **({SPREAD: True} if spread else {})})
        elif other:
            if differing <= {"supports", "classes"}:
                remedy = f"add --accept ({ALONE}) to predict all with them, {remedy}"
            raise UserError(
                f"--out = {self.folder} holds predictions made with {'; '.join(other[:5])}: "
                f"{remedy}."
            )
        return spread

    def _renew(self, made_by: Mapping[str, Any]) -> None:
        """Makes all images of an old folder be done again, with the names that they have."""
        with writing(self.folder), open_journal(self.folder) as journal:
            lock(journal.fileno(), self.folder)
            forget(self.folder)
            for name in (PREDICTIONS, SHEET):  # they are of before, as the parts
                (self.folder / name).unlink(missing_ok=True)
            remove_parts(self.folder)
            # Last: from here on the folder is that of the new supports.
            write_text(self.folder / MADE_BY, json.dumps(made_by, indent=2))


def is_crowded(queries: Iterable[Query]) -> bool:
    """Whether a folder has so many images that what is made of them should be spread."""
    folders = collections.Counter(os.path.dirname(query.name) for query in queries)
    return max(folders.values(), default=0) > CROWDED
