"""Supports that are marked in part: scribbles and clicks. What is not marked is 254.

If no support marks background, the border of the images is taken for it (`with_background`), as
methods compare the class with the background, and without one would find the class everywhere.
"""

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image
from scipy import ndimage

from fsseg_jax.data.images import open_picture
from fsseg_jax.data.masks import scribble
from fsseg_jax.data.source import LabelledImage
from fsseg_jax.episode import UNLABELLED
from fsseg_jax.errors import UserError, brief
from fsseg_jax.prediction.pictures import as_array, decoding, name_of, shows_none

# Without marks on the background, unmarked pixels this near to the border of the image, as a share
# of its sides, are background. Mean-IoU of 20 tasks of VOC, untrained PANet on VGG-16, 321 px, with
# 5 shots and with 1: scribbles 48.0, 34.1 and points 45.0, 7.7; marks on both give scribbles 48.6,
# 36.6 and points 49.5, 21.4, and no background 17.7. What is far from all marks (0.3 of a side) is
# better for scribbles (50.9, 36.1), which show how large the object is, and worse for points (38.0,
# 3.8). Whoever clicks on one image only should click on the background, too.
BORDER = 0.05

logger = logging.getLogger(__name__)


def read_scribbles(picture: Any, name: str) -> Integer[np.ndarray, "height width"]:
    """The numbers of a picture of scribbles, see `data.masks.scribble`.

    Args:
        picture: a path, a PIL image or an array.
        name: what to call it in errors.

    Raises:
        UserError: its file cannot be read, or it marks all of the image.
    """
    name = name_of(picture, name)
    if isinstance(picture, str | os.PathLike):
        with open_picture(picture) as file:
            return scribble(file, name)
    if isinstance(picture, Image.Image):
        with decoding(name):
            return scribble(picture, name)
    return scribble(as_array(picture, name), name)


def draw_points(
    points: Any, shape: tuple[int, int], width: float, name: str
) -> UInt8[np.ndarray, "height width"]:
    """The label of an image on which points are clicked: a disc around each.

    Args:
        points: one or more points: (x, y) in pixels on the class 1, or (x, y, n) on the class n,
            which is 0 for the background. Where discs overlap, the nearest point counts.
        shape: height and width of the image.
        width: of the discs, in pixels.
        name: what to call them in errors.

    Raises:
        UserError: they are not points, or one is outside of the image.
    """
    try:
        given = np.atleast_2d(np.asarray(points, np.float64))
    except (TypeError, ValueError, OverflowError):
        given = np.empty((0, 0))
    if given.ndim != 2 or given.shape[-1] not in (2, 3) or not len(given):
        raise UserError(
            f"{name} = {brief(points)}: points are (x, y) in pixels on the class, or (x, y, n) on "
            "the class n, and n = 0 is the background."
        )
    x, y = given[:, 0], given[:, 1]
    number = given[:, 2] if given.shape[1] == 3 else np.ones(len(given))
    for i in range(len(given)):
        if not (0 <= x[i] < shape[1] and 0 <= y[i] < shape[0]):
            raise UserError(
                f"{name} has the point ({x[i]:g}, {y[i]:g}), which is outside of its image of "
                f"{shape[1]} x {shape[0]} pixels: points are (x, y), x to the right and y down."
            )
        if number[i] not in range(UNLABELLED):
            raise UserError(
                f"{name} has a point of class {number[i]:g}: classes are numbered 1 ..."
                f"{UNLABELLED - 1}, and 0 is the background."
            )
    at = y.astype(int), x.astype(int)
    unmarked = np.ones(shape, bool)
    unmarked[at] = False
    clicked = np.zeros(shape, np.uint8)
    clicked[at] = number.astype(np.uint8)
    found: Any = ndimage.distance_transform_edt(unmarked, return_indices=True)  # pyright: ignore
    away, nearest = found
    return np.where(away <= width / 2, clicked[tuple(nearest)], UNLABELLED).astype(np.uint8)


def with_background(supports: Sequence[LabelledImage]) -> list[LabelledImage]:
    """Supports of which at least one shows background: if none marks it, what is not marked within
    `BORDER` of the border of its image becomes background. Images that show no class have no part
    in this."""
    if any((x.label == 0).any() and not shows_none(x.label) for x in supports):
        return list(supports)
    if not any((support.label == UNLABELLED).any() for support in supports):
        return list(supports)  # all of the images is the class, and nothing else can be background
    logger.info("no support marks background: the border of the images is taken for it")
    return [support._replace(label=_with_border(support.label)) for support in supports]


def _with_border(
    label: UInt8[np.ndarray, "height width"],
) -> UInt8[np.ndarray, "height width"]:
    rows, columns = (max(1, round(BORDER * side)) for side in label.shape)
    border = np.ones(label.shape, bool)
    border[rows:-rows, columns:-columns] = False
    return np.where(border & (label == UNLABELLED), 0, label).astype(np.uint8)
