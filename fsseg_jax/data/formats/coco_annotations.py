"""Reads COCO's JSON files once, with little memory, and caches them in a compact form."""

import array
import collections
import logging
import math
import os
import pathlib
import reprlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ijson
import numpy as np
from jaxtyping import Int, Integer, Shaped, UInt8
from numpy.typing import DTypeLike
from pycocotools import mask

from fsseg_jax.data.cache import cache_folder, fingerprint, load_array, save_array
from fsseg_jax.data.formats.coco_outlines import (
    LONGEST_OUTLINES,
    LONGEST_SIDE,
    outline,
    outline_length,
)
from fsseg_jax.data.formats.json_guard import GuardedFile
from fsseg_jax.data.images import MOST_PIXELS
from fsseg_jax.data.listing import check_name
from fsseg_jax.episode import IGNORE
from fsseg_jax.errors import UserError
from fsseg_jax.files import temporary_folder
from fsseg_jax.progress import progress, tracked_file

# Cached arrays: of images and categories, then of annotations, sorted by image and, within an
# image, in painting order (`counts` joins the run lengths of all annotations).
ARRAYS = (
    *("image_ids", "sizes", "file_names", "category_ids", "category_names"),
    *("photograph", "category", "crowd", "start", "stop", "counts"),
)
LONGEST_NAME = 4096  # characters of a category's name, as all are held at this length

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
        arrays = ((name, load_array(folder / f"{name}.npy")) for name in ARRAYS)
        return {name: array for name, array in arrays if array is not None}

    kept = opened()
    if len(kept) == len(ARRAYS):
        return kept
    arrays = _convert(path)
    temporary = None
    try:
        temporary = temporary_folder(folder)
        for name in ARRAYS:
            with (temporary / f"{name}.npy").open("wb") as file:
                save_array(file, arrays[name])
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
    except OSError as error:
        logger.warning("the contents of %s cannot be cached in %s: %s", path, folder, error)
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
        return arrays
    return arrays | opened()


def _read_images(path: pathlib.Path) -> tuple[dict[int, int], list[str], list[list[int]]]:
    """The rows of images by their ids, and their names and sizes by row."""
    row_of, file_names, sizes = {}, [], []
    for where, entry in _section(path, "images"):
        row_of[_new_id(entry, row_of, where)] = len(row_of)
        file_names.append(_field(entry, "file_name", str, where))
        check_name(file_names[-1], f"{where}.file_name")
        size = [_field(entry, side, int, where) for side in ("height", "width")]
        if not 1 <= min(size) <= max(size) <= LONGEST_SIDE or math.prod(size) > MOST_PIXELS:
            raise UserError(
                f"{where} is {size[1]} x {size[0]} pixels: sides are 1..{LONGEST_SIDE} pixels, and "
                f"images have at most {MOST_PIXELS} pixels."
            )
        sizes.append(size)
    return row_of, file_names, sizes


def _read_categories(path: pathlib.Path) -> dict[int, str]:
    """The names of categories by their ids."""
    categories = {}
    for where, entry in _section(path, "categories"):
        name = _field(entry, "name", str, where)
        if len(name) > LONGEST_NAME or "\0" in name:
            raise UserError(f"{where}.name = {reprlib.repr(name)}: give the category a short name.")
        categories[_new_id(entry, categories, where)] = name
    return categories


def _convert(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Converts an annotation file to its ARRAYS."""
    row_of, file_names, sizes = _read_images(path)
    categories = _read_categories(path)
    image, category, area, crowd, length = (array.array("q") for _ in range(5))
    counts, invisible, outlines = bytearray(), [], collections.defaultdict(float)
    for where, entry in _section(path, "annotations"):
        for name, known in (("image", row_of), ("category", categories)):
            if (number := _field(entry, f"{name}_id", int, where)) not in known:
                raise UserError(f"{where}.{name}_id = {number}, but no {name} has this id.")
        if (is_crowd := entry.get("iscrowd", 0)) not in (0, 1):
            raise UserError(f"{where}.iscrowd = {reprlib.repr(is_crowd)}, but it must be 0 or 1.")
        row = row_of[entry["image_id"]]
        height, width = sizes[row]
        runs = outline(entry, height, width, where)
        outlines[row] += outline_length(entry)
        if outlines[row] > LONGEST_OUTLINES:
            raise UserError(
                f"{where}.segmentation: with it, the polygons of its image are more than "
                f"{LONGEST_OUTLINES:.0e} pixels long: remove those that are not of the image."
            )
        image.append(row)
        category.append(entry["category_id"])
        area.append(int(mask.area(runs)))
        crowd.append(int(is_crowd))
        if not area[-1]:
            invisible.append(where)
        length.append(len(runs["counts"]))
        counts += runs["counts"]

    if invisible:
        logger.warning(
            "%d annotations cover no pixel of their image, the first is %s: they mark nothing.",
            *(len(invisible), invisible[0]),
        )
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
            progress(f"{section} of {path.name}", path.stat().st_size, "B") as read,
        ):
            stream = GuardedFile(tracked_file(file, "read", read), path)
            # Without use_float, ijson crashes on numbers of thousands of digits.
            for number, entry in enumerate(ijson.items(stream, f"{section}.item", use_float=True)):
                yield f"{path}: {section}[{number}]", entry
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): replace the file.") from None
    except (ijson.JSONError, UnicodeDecodeError) as error:
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
    if type(value) is not kind:  # True is an int, too
        must_be = "an integer" if kind is int else "a string"
        raise UserError(f"{where}.{name} = {reprlib.repr(value)}, but it must be {must_be}.")
    return value


def _new_id(entry: Any, known: Mapping[int, Any], where: str) -> int:
    """The id of an entry; raises UserError if it is already known."""
    number = _field(entry, "id", int, where)
    if number in known:
        raise UserError(f"{where}.id = {number} occurs twice: ids must be unique.")
    return number


def is_coco(path: pathlib.Path) -> bool:
    """Whether a JSON file is COCO's rather than LabelMe's, by the first key that only one of the
    formats has, as the file may be too large to read whole.

    Raises:
        UserError: the file cannot be read, or is not JSON.
    """
    coco, labelme = {"images", "annotations", "categories"}, {"shapes", "imagePath", "imageData"}
    try:
        with path.open("rb") as file:
            events = ijson.basic_parse(GuardedFile(file, path), use_float=True)
            keys = (value for event, value in events if event == "map_key")
            return next((key in coco for key in keys if key in coco | labelme), False)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): replace the file.") from None
    except (ijson.JSONError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0].strip()
        raise UserError(f"{path} is not valid JSON ({reason}): replace the file.") from None
