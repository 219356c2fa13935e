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
            sizes[0] = min_area  # what is of no part is left as it is
            result[sizes[parts] < min_area] = 0
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
        full = np.zeros(label.shape, np.uint8, order="F")
        full[place] = inside
        runs = coco_mask.encode(full)
        score = float(result.scores[number])
        if result.probabilities is not None:
            of_class = result.probabilities[place][..., number]
            score = float(of_class.mean(where=inside, dtype=np.float64))
        objects.append(
            {
                "category_id": number,
                "segmentation": {"size": [*label.shape], "counts": runs["counts"].decode()},
                "bbox": coco_mask.toBbox(runs).tolist(),
                "area": int(coco_mask.area(runs)),
                "iscrowd": 0,
                "score": round(score, DIGITS),
            }
        )
    return objects
