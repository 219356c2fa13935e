"""Images and labels of any size, resized to the square that a network takes."""

import numpy as np
from PIL import Image

from fsseg_jax.data.source import LabelledImage, Source
from fsseg_jax.episode import IGNORE


def square(whole: LabelledImage, size: int, fit: str = "stretch") -> LabelledImage:
    """A photograph resized to a square: bilinear with antialiasing, as PIL does it, and its label
    to the nearest pixel.

    Args:
        whole: the image at its own size.
        size: side of the square.
        fit: "stretch", or "letterbox" to keep its proportions: the photograph stands in the upper
            left corner (see `fitted`), and the rest is black and ignored.
    """
    height, width = shape = fitted(whole.label.shape, size, fit)
    image = Image.fromarray(whole.image).resize((width, height), Image.Resampling.BILINEAR)
    label = Image.fromarray(whole.label).resize((width, height), Image.Resampling.NEAREST)
    border = [(0, size - side) for side in shape]
    return LabelledImage(
        np.pad(np.asarray(image), [*border, (0, 0)]),
        np.pad(np.asarray(label), border, constant_values=IGNORE),
    )


def fitted(shape: tuple[int, int], size: int, fit: str) -> tuple[int, int]:
    """Height and width of a photograph of `shape` in the square that `square` makes of it.

    "letterbox" is PFENet's `Resize` (util/transform.py, lines 70 to 122): the longer side becomes
    `size`, the other one follows, and then both are floored to multiples of 8.
    """
    if fit != "letterbox":  # "own" is about queries: all that become squares are stretched
        return size, size
    ratio, longer = size / max(shape), max(shape)
    height, width = (size if side == longer else int(side * ratio) for side in shape)
    return max(8, height // 8 * 8), max(8, width // 8 * 8)


def bordered(image: LabelledImage, border: str) -> LabelledImage:
    """A photograph whose pixels of label 255 stay "ignored", or are "background"."""
    if border == "ignored":
        return image
    label = image.label
    return image._replace(label=np.where(label == IGNORE, 0, label).astype(label.dtype))


def read_square(source: Source, index: int, size: int, border: str = "ignored") -> LabelledImage:
    """The photograph number `index` as a square; see `bordered` and `square`."""
    return square(bordered(source.read(index), border), size)
