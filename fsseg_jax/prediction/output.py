"""The folder that `predict` writes: masks, overlays, and one file in COCO's format for all of them.

A journal gets a line for each image once its mask and overlay are written, so that a stopped run
can continue. Folders in it may be links, such as `masks` to another disk.
"""

import contextlib
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
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
from fsseg_jax.prediction.journal import Journal, output_names
from fsseg_jax.prediction.result import Result
from fsseg_jax.prediction.segmenter import Segmenter

MASKS, OVERLAYS = "masks", "overlays"
PREDICTIONS, MADE_BY = "predictions.json", "made_by.json"
LONG_SIDE = 1600  # pixels of an overlay: sharp on a screen, at a fraction of the image's file size
# Of masks: black background, classes as in the overlays. All 256 colours, so that a pixel is a
# byte.
PALETTE = bytes([0, 0, 0, *itertools.chain(*itertools.islice(itertools.cycle(WAY_COLOURS), 255))])


class Query(NamedTuple):
    """An image to segment."""

    path: pathlib.Path
    name: str  # its path below the folder of queries, with slashes
    size: int  # bytes
    changed: int  # time of the last change, in nanoseconds


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

    Raises:
        UserError: the folder holds something else or predictions made by something else, it cannot
            be written to (in all methods), or another process is writing to it.
    """

    def __init__(self, folder: pathlib.Path, made_by: Mapping[str, Any]) -> None:
        self.folder = folder
        self._check(made_by)
        self._journal = Journal(folder, len(made_by["classes"]))
        links = (path for path in (folder / MASKS, folder / OVERLAYS) if path.is_symlink())
        for place in (folder, *links):
            remove_partial(place)
        self._outputs = {name: entry.output for name, entry in self._journal.entries.items()}
        self._taken = {output.casefold() for output in self._outputs.values()}

    def __enter__(self) -> "Predictions":
        return self

    def __exit__(self, *_: Any) -> None:
        # What a full disk did not take has been told, and is done again.
        with contextlib.suppress(OSError):
            self._journal.file.close()

    def choose_names(self, queries: Iterable[Query]) -> None:
        """Chooses names for the masks and overlays of images; call before other methods.

        They are named after their images, with the image's suffix only where the name without it is
        taken. Names do not change when images are added.
        """
        for query in queries:
            if query.name in self._outputs:
                continue
            names = output_names(query.name)
            free = next(name for name in names if name.casefold() not in self._taken)
            self._taken.add(free.casefold())
            self._outputs[query.name] = free

    def output(self, query: Query) -> str:
        """The name of an image's mask and overlay."""
        return self._outputs[query.name]

    def mask_file(self, query: Query) -> pathlib.Path:
        """The path of an image's mask, written or not."""
        return self.folder / MASKS / f"{self.output(query)}.png"

    def overlay_file(self, query: Query) -> pathlib.Path:
        """The path of an image's overlay, written or not."""
        return self.folder / OVERLAYS / f"{self.output(query)}.jpg"

    def done(self, query: Query) -> bool:
        """Whether an image is done, and has not changed since."""
        entry = self._journal.entries.get(query.name)
        return (
            entry is not None
            and (entry.size, entry.changed) == (query.size, query.changed)
            and self.mask_file(query).is_file()
            and self.overlay_file(query).is_file()
        )

    def write(
        self,
        query: Query,
        image: UInt8[np.ndarray, "height width 3"],
        result: Result,
    ) -> dict[str, Any]:
        """Writes the mask and the overlay of an image, and returns the record for `note`.

        Several threads may call it at once.
        """
        label = result.mask
        with replacing(self.mask_file(query)) as file:
            save_mask(label, file)
        with replacing(self.overlay_file(query)) as file:
            Image.fromarray(small_overlay(image, label, LONG_SIDE)).save(file, "jpeg", quality=90)
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

    def write_coco(self, queries: Iterable[Query], classes: Sequence[str]) -> None:
        """Writes `predictions.json` for the images that are done."""
        # Encoded masks can exceed memory: they are read and written one image at a time.
        done = [query.name for query in queries if self.done(query)]
        images = (_image(id_, self._journal.record(name)) for id_, name in enumerate(done, 1))
        objects = (
            {"image_id": id_, **found}
            for id_, name in enumerate(done, 1)
            for found in self._journal.record(name)["objects"]
        )
        lists = {
            "images": images,
            "categories": ({"id": n, "name": name} for n, name in enumerate(classes, 1)),
            "annotations": ({"id": n, **found} for n, found in enumerate(objects, 1)),
        }
        with replacing(self.folder / PREDICTIONS) as file:
            file.write(b'{"info": {"description": "predictions of fsseg_jax"}')
            for name, items in lists.items():
                file.write(f',\n"{name}": ['.encode())
                for number, item in enumerate(items):
                    file.write((",\n" if number else "\n").encode() + json.dumps(item).encode())
                file.write(b"]")
            file.write(b"}\n")

    def _check(self, made_by: Mapping[str, Any]) -> None:
        """Writes `made_by` into a new folder, or compares it with that of an old one."""
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
            write_text(file, json.dumps(made_by, indent=2))
            return
        try:
            before = dict(json.loads(file.read_bytes()))
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


def _image(number: int, record: Mapping[str, Any]) -> dict[str, Any]:
    """An image in COCO's format, with the file of its mask and how sure it is."""
    fields = {name: record[name] for name in ("height", "width", "confidence")}
    mask_file = f"{MASKS}/{record['output']}.png"
    return {"id": number, "file_name": record["photograph"], "mask_file": mask_file, **fields}


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
