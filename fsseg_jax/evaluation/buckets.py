"""Queries as large as they are: those of about one size share a canvas and a compiled function."""

from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from fsseg_jax.backbones.extent import fits

GRID = 32  # canvases are multiples of it, so that those of other photographs are often the same


def group(shapes: Int[np.ndarray, "query 2"], count: int) -> list[Int[np.ndarray, " part"]]:
    """The rows of `shapes` in at most `count` parts whose canvases have few pixels to spare.

    Begins with a part for each size, and joins the two that cost the least until there are few
    enough.

    Args:
        shapes: heights and widths.
        count: at least 1.
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


def canvas_for(largest: Int[np.ndarray, "2"], avoid: int) -> tuple[int, int]:
    """A canvas for photographs of up to this height and width.

    Args:
        largest: height and width.
        avoid: the side of the supports' squares, whose feature maps must not have the same sizes:
            see `extent`.
    """
    height, width = (int(-(-side // GRID) * GRID) for side in largest)
    while not fits((height, width), avoid):
        width += GRID
    return height, width


def resized(
    image: UInt8[np.ndarray, "height width 3"], shape: Int[np.ndarray, "2"]
) -> UInt8[np.ndarray, "h w 3"]:
    """A photograph at another size: bilinear with antialiasing, as PIL does it."""
    height, width = shape.tolist()
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def place(canvas: np.ndarray, part: Any) -> None:
    """Puts a picture into the upper left corner of a canvas."""
    canvas[: part.shape[0], : part.shape[1]] = part
