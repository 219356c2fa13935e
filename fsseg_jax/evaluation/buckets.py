"""Queries at their own size: those of about the same size share canvases and a function."""

from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from fsseg_jax.backbones.extent import fits

GRID = 32  # sizes of canvases are multiples of this, so that they often recur


def group(shapes: Int[np.ndarray, "query 2"], count: int) -> list[Int[np.ndarray, " _"]]:
    """Divides images into at most `count` parts whose canvases waste few pixels; returns rows.

    Starts with a part for each size, and repeatedly joins the two parts that add the fewest pixels.

    Args:
        count: maximum number of parts, at least 1.
    """
    sizes, part_of = np.unique(-(-shapes // GRID), axis=0, return_inverse=True)
    part_of = part_of.ravel()
    members = np.bincount(part_of)
    while len(sizes) > count:
        area = members * sizes.prod(axis=1)
        joined = np.maximum(sizes[:, None], sizes).prod(axis=-1) * (members[:, None] + members)
        spare = np.where(np.eye(len(sizes), dtype=bool), np.inf, joined - area[:, None] - area)
        kept, gone = sorted(np.unravel_index(np.argmin(spare), spare.shape))
        sizes[kept] = np.maximum(sizes[kept], sizes[gone])
        members[kept] += members[gone]
        part_of = np.where(part_of == gone, kept, part_of)
        part_of -= part_of > gone
        sizes, members = np.delete(sizes, gone, axis=0), np.delete(members, gone)
    return [np.flatnonzero(part_of == number) for number in range(len(sizes))]


def canvas_for(largest: Int[np.ndarray, "2"], avoid: int, patch: int = 1) -> tuple[int, int]:
    """The size of a canvas for images of up to some height and width.

    Args:
        avoid: side of the supports' squares, whose feature maps must have other sizes: see
            `extent`.
        patch: see `Method.patch`.
    """
    height, width = (int(-(-side // GRID) * GRID) for side in largest)
    while not fits((height, width), avoid, patch):
        width += GRID
    return height, width


def resized(
    image: UInt8[np.ndarray, "height width 3"], shape: Int[np.ndarray, "2"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Resizes an image, bilinearly with antialiasing, with PIL."""
    height, width = shape.tolist()
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def place(canvas: np.ndarray, part: Any) -> None:
    """Copies an image into the upper left corner of a canvas."""
    canvas[: part.shape[0], : part.shape[1]] = part
