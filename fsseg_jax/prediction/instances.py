"""Objects of a mask: its connected parts, without small ones and without holes.

Pixels that touch at a side or a corner are connected; a hole is background that the pixels of one
class enclose, and that leads outside over no side of a pixel.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from pycocotools import mask as coco_mask
from scipy import ndimage

from fsseg_jax.prediction.result import DIGITS, Result

EIGHT = np.ones((3, 3), bool)  # neighbours at sides and corners


def cleaned(
    mask: UInt8[np.ndarray, "height width"], min_area: int = 0, fill_holes: bool = False
) -> UInt8[np.ndarray, "height width"]:
    """A mask whose parts of fewer than `min_area` pixels became background, and then, on request,
    whose holes became part of the class around them.

    In this order, because a speck of another class within an object leaves a hole.
    """
    result = mask.copy()
    for number in classes_of(mask):
        if min_area > 1:
            parts, _ = ndimage.label(mask == number, EIGHT)
            sizes = np.bincount(parts.ravel())
            small = sizes < min_area
            small[0] = False  # what is of no part is left as it is
            result[small[parts]] = 0
    return _filled(result) if fill_holes else result


def _filled(mask: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    """A mask without holes."""
    result = mask.copy()
    parts, _ = ndimage.label(mask == 0)  # neighbours at sides only
    for number, place in enumerate(ndimage.find_objects(parts), 1):
        edges = [(part.start, part.stop) for part in place or ()]
        if any(a == 0 or b == side for (a, b), side in zip(edges, mask.shape, strict=True)):
            continue  # it leads outside
        around = tuple(slice(a - 1, b + 1) for a, b in edges)
        inside = parts[around] == number
        classes = np.unique(mask[around][ndimage.binary_dilation(inside) & ~inside])
        if len(classes) == 1:
            result[around][inside] = classes[0]
    return result


def parts_of(
    mask: UInt8[np.ndarray, "height width"],
) -> Iterator[tuple[int, tuple[slice, ...], Bool[np.ndarray, "h w"]]]:
    """The connected parts of each class, by class and largest first: the class, the rectangle
    around a part, and where the part is within this."""
    for number in classes_of(mask):
        parts, _ = ndimage.label(mask == number, EIGHT)
        places = ndimage.find_objects(parts)
        found = [(place, parts[place] == i) for i, place in enumerate(places, 1) if place]
        for place, inside in sorted(found, key=lambda part: -int(part[1].sum())):
            yield number, place, inside


def classes_of(mask: UInt8[np.ndarray, "height width"]) -> list[int]:
    """The numbers of the classes of a predicted mask, in which 0 is the background."""
    return (np.flatnonzero(np.bincount(mask.ravel())[1:]) + 1).tolist()


def placed(
    inside: Bool[np.ndarray, "h w"], place: tuple[slice, ...], shape: tuple[int, ...]
) -> dict[str, Any]:
    """COCO's fields for the pixels `inside` of a rectangle of an image, at the cost of the
    rectangle: `segmentation`, a run-length encoding down the columns of the image; `bbox`; `area`.
    """
    top, left = (part.indices(side)[0] for part, side in zip(place, shape, strict=True))
    height, width = inside.shape
    padded = np.zeros((width, height + 2), np.int8)  # rows are columns of the image
    padded[:, 1:-1] = inside.T
    columns, rows = np.nonzero(np.diff(padded))  # where pixels begin to be in it, and cease
    changes = (left + columns) * shape[0] + top + rows
    # What ceases at the end of a column and begins at the top of the next goes on.
    again = np.flatnonzero(changes[1:-1:2] == changes[2::2])
    changes = np.delete(changes, [*(2 * again + 1), *(2 * again + 2)])
    end = shape[0] * shape[1]
    counts = np.diff(changes, prepend=0, append=[end] if changes[-1:] != end else [])
    runs = coco_mask.frPyObjects({"size": [*shape], "counts": counts.tolist()}, *shape)
    x, y = (np.flatnonzero(inside.any(axis=axis)) for axis in (0, 1))
    box = [left + x[0], top + y[0], x[-1] - x[0] + 1, y[-1] - y[0] + 1]
    return {
        "segmentation": {"size": [*shape], "counts": runs["counts"].decode()},
        "bbox": [float(side) for side in box],
        "area": int(inside.sum()),
    }


def objects_of(
    label: UInt8[np.ndarray, "height width"], result: Result, instances: bool = False
) -> list[dict[str, Any]]:
    """Annotations in COCO's format without their ids: one for each class that occurs, or, with
    `instances`, for each connected part of one.

    The score of an object is the mean probability of its class over its pixels; without
    probabilities in the result, that of the class (`Result.scores`).
    """
    whole = ((n, (slice(None), slice(None)), label == n) for n in classes_of(label))
    objects = []
    for number, place, inside in parts_of(label) if instances else whole:
        score = float(result.scores[number])
        if result.probabilities is not None:
            of_class = result.probabilities[place][..., number]
            score = float(of_class.mean(where=inside, dtype=np.float64))
        objects.append(
            {
                "category_id": number,
                **placed(inside, place, label.shape),
                "iscrowd": 0,
                "score": round(score, DIGITS),
            }
        )
    return objects
