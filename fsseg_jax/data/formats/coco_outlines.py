"""Outlines of COCO's objects as run lengths, validated, which pycocotools does not do."""

import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int
from pycocotools import mask

from fsseg_jax.errors import UserError

LONGEST_SIDE = 2**16 - 1  # of an image, as run lengths are 32-bit
MOST_PIXELS = LONGEST_SIDE**2
LONGEST_NUMBER = 9  # digits of a run length, of which the first ones may be superfluous
FARTHEST = 1e5  # largest coordinate of a corner, as pycocotools walks along every edge
NUMBERS = {int, float}  # booleans are integers, too
# Pixels, of a polygon and of all polygons of an image: pycocotools holds 60 bytes for each of the
# former, and walks along each of the latter.
LONGEST_OUTLINE, LONGEST_OUTLINES = 1e7, 1e8


def outline(entry: Mapping[str, Any], height: int, width: int, where: str) -> dict[str, Any]:
    """An annotation's mask as compressed run lengths: its segmentation or, without one, its box.

    Raises:
        UserError: the segmentation or box is invalid.
    """
    segmentation, box = entry.get("segmentation"), entry.get("bbox")
    boxed = segmentation in (None, [], [[]]) and box is not None
    field, content = "segmentation", "polygons or run lengths"
    if boxed:
        field, content = f"bbox = {reprlib.repr(box)}", "x, y, width and height in pixels"
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
    if not isinstance(box, list) or len(box) != 4 or not set(map(type, box)) <= NUMBERS:
        raise ValueError("it is not a list of four numbers")
    left, top, box_width, box_height = map(float, box)
    corners = np.array([left, top, left + box_width, top + box_height])
    if not np.isfinite(corners).all():
        raise ValueError("a number is not finite")
    left, top, right, bottom = np.rint(corners).clip(0, LONGEST_SIDE).astype(int)
    right, bottom = min(right, width), min(bottom, height)
    if not (left < right and top < bottom):
        raise ValueError(f"it shows nothing of its image of {width} x {height} pixels")
    box = np.array([[left, top, right - left, bottom - top]], np.float64)
    return mask.frPyObjects(box, height, width)[0]


def outline_length(entry: Mapping[str, Any]) -> float:
    """The length of an annotation's polygons, horizontally and vertically, in pixels."""
    polygons = entry.get("segmentation")
    return sum(map(_length, polygons)) if isinstance(polygons, list) else 0


def _length(polygon: list[float]) -> float:
    corners = np.array(polygon).reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).sum())


def _compress(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A mask as pycocotools's compressed run lengths.

    Raises:
        TypeError, ValueError, OverflowError: the segmentation is invalid.
    """
    if isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                raise ValueError("a polygon is the x and y of at least three corners")
            if not set(map(type, polygon)) <= NUMBERS:
                raise ValueError("a corner is not a number")
            if not (farthest := max(map(abs, polygon))) < FARTHEST:
                raise ValueError("a corner is far outside")
            if 2 * farthest * len(polygon) > LONGEST_OUTLINE and _length(polygon) > LONGEST_OUTLINE:
                raise ValueError("a polygon's outline is too long")
        return mask.merge(mask.frPyObjects(segmentation, height, width))
    if not isinstance(segmentation, dict):
        kind = "empty" if segmentation == [] else f"of type {type(segmentation).__name__}"
        raise ValueError(f"it is {kind}")
    if segmentation.get("size") != [height, width]:
        size = reprlib.repr(segmentation.get("size"))
        raise ValueError(f"its size is {size}, not {[height, width]}")
    runs = segmentation.get("counts")
    runs = decompress(runs).tolist() if isinstance(runs, str) else runs
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise ValueError("its counts are not run lengths")
    if sum(runs) != height * width:
        raise ValueError(f"its counts cover {sum(runs)} pixels, not {height * width}")
    return mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)


def decompress(counts: str) -> Int[np.ndarray, " run"]:
    """Decodes COCO's compressed run lengths: base-32 numbers, the lowest digit first.

    Bit 5 of a digit means that another follows, and bit 4 of the last one that the number is
    negative. From the fourth run on, numbers are differences from the run before the last.

    Raises:
        ValueError: they are none, or are not those of an image.
    """
    digits = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((digits & 32) == 0)
    starts = np.concatenate([[0], ends + 1])[:-1]
    lengths = ends - starts + 1
    if ((digits < 0) | (digits >= 64)).any() or (lengths > LONGEST_NUMBER).any():
        raise ValueError("its counts are not run lengths")
    digits = digits[: lengths.sum()]
    places = 5 * (np.arange(digits.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((digits & 31) << places, starts) if ends.size else digits
    runs -= (digits[ends] >> 4 & 1) << 5 * lengths
    if (np.abs(runs) > MOST_PIXELS).any():
        raise ValueError("its counts are not run lengths")
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    if (runs < 0).any():
        raise ValueError("its counts are not run lengths")
    return runs
