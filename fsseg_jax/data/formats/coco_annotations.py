"""Reads COCO's JSON files once, with little memory, and caches them in a compact form."""

import array
import contextlib
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ijson
import numpy as np
from jaxtyping import Int, Integer, Shaped, UInt8
from numpy.typing import DTypeLike
from pycocotools import mask
from tqdm import tqdm

from fsseg_jax.data.cache import cache_folder, fingerprint
from fsseg_jax.episode import IGNORE
from fsseg_jax.errors import UserError

# Cached arrays: of images and categories, then of annotations, sorted by image and, within an
# image, in painting order (`counts` joins the run lengths of all annotations).
ARRAYS = (
    *("image_ids", "sizes", "file_names", "category_ids", "category_names"),
    *("photograph", "category", "crowd", "start", "stop", "counts"),
)
LONGEST_SIDE = 2**16 - 1  # of an image, as run lengths are 32-bit
FARTHEST = 1e5  # largest coordinate of a corner, as pycocotools walks along every edge

logger = logging.getLogger(__name__)


class CocoAnnotations:
    """The objects in the images of a JSON file in COCO's format.

    The file is streamed, never held in memory as a whole. Its contents, with run-length encoded
    masks, are kept in the user's cache folder until the file changes, and memory-mapped from
    there. An annotation with a `bbox` and no segmentation, or an empty one, fills its box.

    Args:
        path: path of a JSON object with the lists `images`, `annotations` and `categories`.

    Attributes:
        file_names: file names of the images, in the file's order.
        image_ids: the images' ids in the file.
        sizes: (height, width) of each image, in pixels.
        categories: category names by category id, in ascending order of the ids.

    Raises:
        UserError: the file is missing, broken or not in COCO's format, an id is unknown or
            occurs twice, or a segmentation or box is invalid.
    """

    file_names: tuple[str, ...]
    image_ids: Int[np.ndarray, " images"]
    sizes: Int[np.ndarray, "images 2"]
    categories: dict[int, str]

    def __init__(self, path: str | os.PathLike) -> None:
        path = pathlib.Path(path)
        if not path.is_file():
            raise UserError(f"{path} is missing: it must be a JSON file of COCO's format.")
        kept = _kept(path, cache_folder("coco") / fingerprint([path]))
        self.file_names = tuple(kept["file_names"].tolist())
        self.image_ids, self.sizes = kept["image_ids"], kept["sizes"]
        names = kept["category_names"].tolist()
        self.categories = dict(zip(kept["category_ids"].tolist(), names, strict=True))
        self._kept = kept
        self._first = np.searchsorted(kept["photograph"], np.arange(len(self.file_names) + 1))

    def rows_with_objects(self) -> Int[np.ndarray, " rows"]:
        """The images that have an annotation other than a crowd."""
        return np.unique(self._kept["photograph"][~self._kept["crowd"]])

    def pairs(self) -> Int[np.ndarray, "pairs 2"]:
        """All (image, category id) pairs that have annotations, including crowds."""
        pairs = np.stack([self._kept["photograph"], self._kept["category"]], axis=1)
        return np.unique(pairs, axis=0)

    def label(
        self,
        row: int,
        number_of: Mapping[int, int],
        dtype: DTypeLike = np.uint8,
        crowds_are_ignored: bool = True,
    ) -> Integer[np.ndarray, "height width"]:
        """Paints the class ids of an image: smaller objects over larger ones, over crowds.

        Args:
            number_of: class ids by category id; other categories are background.
            crowds_are_ignored: whether crowds are ignored instead of belonging to their category.
        """
        category, crowd = (self._of_image(row, name).tolist() for name in ("category", "crowd"))
        values = [
            IGNORE
            if is_crowd and crowds_are_ignored and number in number_of
            else number_of.get(number)
            for number, is_crowd in zip(category, crowd, strict=True)
        ]
        return self._paint(row, values, dtype)

    def instances(self, row: int, category: int | None = None) -> UInt8[np.ndarray, "height width"]:
        """Numbers the 254 largest objects of an image from 1, the largest first, without crowds.

        If given, `category` is the only category to include.
        """
        counts = ~self._of_image(row, "crowd")
        if category is not None:
            counts &= self._of_image(row, "category") == category
        number = np.cumsum(counts)
        number[number >= IGNORE] = 0
        values = [n if c else None for n, c in zip(number.tolist(), counts.tolist(), strict=True)]
        return self._paint(row, values, np.uint8)

    def _of_image(self, row: int, name: str) -> Shaped[np.ndarray, " annotations"]:
        """The entries of an annotation array that belong to an image, in painting order."""
        return self._kept[name][slice(*self._first[row : row + 2])]

    def _paint(
        self, row: int, values: Iterable[int | None], dtype: DTypeLike
    ) -> Integer[np.ndarray, "height width"]:
        """Paints the annotations of an image, in order, except those whose value is None."""
        size = self.sizes[row].tolist()
        canvas = np.zeros(size, dtype, order="F")  # the layout of pycocotools's masks
        starts, stops = self._of_image(row, "start"), self._of_image(row, "stop")
        for start, stop, value in zip(starts, stops, values, strict=True):
            if value is not None:
                runs = {"size": size, "counts": self._kept["counts"][start:stop].tobytes()}
                np.copyto(canvas, value, where=mask.decode(runs).view(bool))
        return np.ascontiguousarray(canvas)


# ----------------------------------------------------------------------------- reading the file


def _kept(path: pathlib.Path, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Memory-maps the ARRAYS of an annotation file from `folder`, converting it first if needed."""

    def opened() -> dict[str, np.ndarray]:
        return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}

    with contextlib.suppress(OSError, ValueError, EOFError):  # missing or damaged
        return opened()
    arrays = _convert(path)
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent)
        for name in ARRAYS:
            np.save(os.path.join(temporary, f"{name}.npy"), arrays[name])
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
        return opened()
    except OSError as error:
        logger.warning("the contents of %s cannot be cached: %s", path, error)
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
        return arrays


def _convert(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Converts an annotation file to its ARRAYS."""
    file_names, sizes, row_of, categories = [], [], {}, {}
    for where, entry in _section(path, "images"):
        row_of[_new_id(entry, row_of, where)] = len(row_of)
        file_names.append(_field(entry, "file_name", str, where))
        size = [_field(entry, side, int, where) for side in ("height", "width")]
        if not 1 <= min(size) <= max(size) <= LONGEST_SIDE:
            raise UserError(
                f"{where} is {size[1]} x {size[0]} pixels: sides are 1..{LONGEST_SIDE} pixels."
            )
        sizes.append(size)
    for where, entry in _section(path, "categories"):
        categories[_new_id(entry, categories, where)] = _field(entry, "name", str, where)

    image, category, area, crowd, length = (array.array("q") for _ in range(5))
    counts = bytearray()
    for where, entry in _section(path, "annotations"):
        for name, known in (("image", row_of), ("category", categories)):
            if (number := _field(entry, f"{name}_id", int, where)) not in known:
                raise UserError(f"{where}.{name}_id = {number}, but no {name} has this id.")
        if (is_crowd := entry.get("iscrowd", 0)) not in (0, 1):
            raise UserError(f"{where}.iscrowd = {is_crowd!r}, but it must be 0 or 1.")
        row = row_of[entry["image_id"]]
        height, width = sizes[row]
        runs = _outline(entry, height, width, where)
        image.append(row)
        category.append(entry["category_id"])
        area.append(int(mask.area(runs)))
        crowd.append(is_crowd)
        length.append(len(runs["counts"]))
        counts += runs["counts"]

    image, category, area, crowd, length = map(np.asarray, (image, category, area, crowd, length))
    stop = np.cumsum(length)
    order = np.lexsort((-area, -crowd, image))  # stable: equal areas keep the file's order
    return {
        "image_ids": np.array(list(row_of)),
        "sizes": np.array(sizes),
        "file_names": np.array(file_names),
        "category_ids": np.array(sorted(categories)),
        "category_names": np.array([categories[category] for category in sorted(categories)]),
        "photograph": image[order],
        "category": category[order],
        "crowd": crowd[order].astype(bool),
        "start": (stop - length)[order],
        "stop": stop[order],
        "counts": np.frombuffer(counts, np.uint8),
    }


def _section(path: pathlib.Path, section: str) -> Iterator[tuple[str, Any]]:
    """Yields the entries of a list in the file, each with its name for errors."""
    number = -1
    try:
        with (
            path.open("rb") as file,
            tqdm.wrapattr(
                file, "read", path.stat().st_size, desc=f"{section} of {path.name}", delay=1
            ) as stream,
        ):
            for number, entry in enumerate(ijson.items(stream, f"{section}.item", use_float=True)):
                yield f"{path}: {section}[{number}]", entry
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): replace the file.") from None
    except ijson.JSONError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is broken JSON ({reason}): replace the file.") from None
    if number < 0:
        raise UserError(
            f"{path} has no {section}: it must be a JSON file of COCO's format, with the lists "
            "images, annotations and categories."
        )


def _field(entry: Any, name: str, kind: type, where: str) -> Any:
    """A field of an entry; raises UserError unless it is of this kind."""
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, kind) or (isinstance(value, int) and not -(2**63) <= value < 2**63):
        must_be = "an integer" if kind is int else "a string"
        raise UserError(f"{where}.{name} = {value!r}, but it must be {must_be}.")
    return value


def _new_id(entry: Any, known: Mapping[int, Any], where: str) -> int:
    """The id of an entry; raises UserError if it is already known."""
    number = _field(entry, "id", int, where)
    if number in known:
        raise UserError(f"{where}.id = {number} occurs twice: ids must be unique.")
    return number


def _outline(entry: Mapping[str, Any], height: int, width: int, where: str) -> dict[str, Any]:
    """An annotation's mask as compressed run lengths: its segmentation or, without one, its box.

    Raises:
        UserError: the segmentation or box is invalid.
    """
    segmentation, box = entry.get("segmentation"), entry.get("bbox")
    boxed = segmentation in (None, [], [[]]) and box is not None
    field, content = "segmentation", "polygons or run lengths"
    if boxed:
        field, content = f"bbox = {box!r}", "x, y, width and height in pixels"
    try:
        compress = _compress_box if boxed else _compress
        return compress(box if boxed else segmentation, height, width)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{where}.{field} cannot be read ({error}): it must be {content}, as COCO has them."
        ) from None


def _compress_box(box: Any, height: int, width: int) -> dict[str, Any]:
    """A box (x, y, width, height) as pycocotools's compressed run lengths.

    Raises:
        TypeError, ValueError, OverflowError: the box is invalid.
    """
    numbers = isinstance(box, list) and [x for x in box if isinstance(x, int | float)]
    if not numbers or len(box) != 4 or numbers != box:
        raise ValueError("it is not a list of four numbers")
    left, top, box_width, box_height = map(float, box)
    corners = np.array([left, top, left + box_width, top + box_height])
    if not np.isfinite(corners).all():
        raise ValueError("a number is not finite")
    left, top, right, bottom = np.rint(corners).clip(0, LONGEST_SIDE).astype(int)
    inside = np.zeros((height, width), np.uint8, order="F")
    inside[top:bottom, left:right] = 1
    if not inside.any():
        raise ValueError(f"it shows nothing of its image of {width} x {height} pixels")
    return mask.encode(inside)


def _compress(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A mask as pycocotools's compressed run lengths, validated, which pycocotools does not do.

    Raises:
        TypeError, ValueError, OverflowError: the segmentation is invalid.
    """
    if isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                raise ValueError("a polygon is the x and y of at least three corners")
            if not max(map(abs, polygon)) < FARTHEST:
                raise ValueError("a corner is far outside")
        return mask.merge(mask.frPyObjects(segmentation, height, width))
    if not isinstance(segmentation, dict):
        kind = "empty" if segmentation == [] else f"of type {type(segmentation).__name__}"
        raise ValueError(f"it is {kind}")
    if segmentation.get("size") != [height, width]:
        raise ValueError(f"its size is {segmentation.get('size')}, not {[height, width]}")
    runs = segmentation.get("counts")
    runs = _decompress(runs) if isinstance(runs, str) else runs
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise ValueError("its counts are not run lengths")
    if sum(runs) != height * width:
        raise ValueError(f"its counts cover {sum(runs)} pixels, not {height * width}")
    return mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)


def _decompress(counts: str) -> list[int]:
    """Decodes COCO's compressed run lengths: base-32 numbers, the lowest digit first.

    Bit 5 of a digit means that another follows, and bit 4 of the last one that the number is
    negative. From the fourth run on, numbers are differences from the run before the last.
    """
    runs, value, bits = [], 0, 0
    for byte in counts.encode():
        digit = byte - 48
        value |= (digit & 31) << bits
        bits += 5
        if not digit & 32:
            value -= (digit >> 4 & 1) << bits
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, bits = 0, 0
    return runs
