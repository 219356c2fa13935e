"""Images and labels of any size, resized to the square that a network takes."""

import numpy as np
from PIL import Image

from fsseg_jax.data.source import LabelledImage, Source
from fsseg_jax.episode import IGNORE


def square(whole: LabelledImage, size: int, fit: str = "stretch") -> LabelledImage:
    """Resizes an image to a square by Pillow's antialiased bilinear filter, and its label by the
    nearest pixel.

    Args:
        whole: image at its own size.
        size: side of the square.
        fit: "stretch", or "letterbox" to keep the aspect ratio: the image is placed in the upper
            left corner (see `fitted`), and the rest is black and ignored.

    Examples:
        >>> whole = LabelledImage(np.zeros((60, 80, 3), np.uint8), np.ones((60, 80), np.uint8))
        >>> square(whole, 32).label.shape
        (32, 32)
        >>> np.unique(square(whole, 32, "letterbox").label).tolist()  # 24 rows, and a border below
        [1, 255]
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
    """Height and width of an image of `shape` within the result of `square`.

    "letterbox" is PFENet's `Resize` (util/transform.py, lines 70 to 122): the longer side becomes
    `size`, the other keeps the aspect ratio, and both are floored to multiples of 8.
    """
    if fit != "letterbox":  # "own" concerns queries only: squares are stretched
        return size, size
    ratio, longer = size / max(shape), max(shape)
    height, width = (size if side == longer else int(side * ratio) for side in shape)
    return max(8, height // 8 * 8), max(8, width // 8 * 8)


def bordered(image: LabelledImage, border: str) -> LabelledImage:
    """An image whose pixels of label 255 stay "ignored" or become "background"."""
    if border == "ignored":
        return image
    label = image.label
    return image._replace(label=np.where(label == IGNORE, 0, label).astype(label.dtype))


def read_square(source: Source, index: int, size: int, border: str = "ignored") -> LabelledImage:
    """Reads the image number `index` as a square; see `bordered` and `square`."""
    return square(bordered(source.read(index), border), size)
