"""Images and masks as users have them: files, Pillow's images or arrays."""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps

from fsseg_jax.data.images import open_picture, read_image, rgb
from fsseg_jax.episode import IGNORE, UNLABELLED
from fsseg_jax.errors import UserError

CLASSES = UNLABELLED - 1  # that masks can number
# Pillow decodes a picture when its pixels are first asked for, and not for two threads at once.
_ONE_BY_ONE = threading.Lock()


def is_image(images: Any) -> bool:
    """Whether something is one image, not several."""
    one = isinstance(images, str | bytes | os.PathLike | Image.Image)
    return one or getattr(images, "ndim", None) in (2, 3)


def as_image(picture: Any, name: str) -> UInt8[np.ndarray, "height width 3"]:
    """An image as RGB, upright.

    Args:
        picture: a path, one of Pillow's images, or an array: uint8 or uint16, of (height, width)
            or (height, width, channel) with 1, 3 or 4 channels.
        name: what to call it in errors.

    Raises:
        UserError: it is none of these, or its file cannot be read.
    """
    if isinstance(picture, str | os.PathLike):
        return read_image(picture)
    if isinstance(picture, Image.Image):
        with _decoding(name):
            return rgb(picture)
    array = np.asarray(picture)
    kind = f"an array of {array.dtype} and shape {array.shape}"
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))
    if array.dtype != np.uint8 or not fits or not array.size:
        raise UserError(
            f"{name} is {kind}: an image is a path, a PIL image, or an array of uint8 in "
            "0..255 and shape (height, width, 3)."
        )
    return rgb(Image.fromarray(array))


def as_label(picture: Any, name: str) -> UInt8[np.ndarray, "height width"]:
    """A mask as class numbers: 0 background, 1 and on the classes, 255 ignored.

    Truth values, colours other than black, and 255 where that is the only value but 0, mean class
    1; other numbers, be they grey values or a palette's, mean themselves.

    Args:
        picture: a path of a PNG, one of Pillow's images, or an array of truth values or integers
            of shape (height, width).
        name: what to call it in errors.

    Raises:
        UserError: it is none of these, its file cannot be read, or a number is none of a class.
    """
    if isinstance(picture, str | os.PathLike):
        with open_picture(picture) as file:
            return as_label(file, os.fspath(picture))
    if isinstance(picture, Image.Image):
        with _decoding(name):
            picture = ImageOps.exif_transpose(picture)
        if picture.mode in ("RGB", "RGBA", "CMYK", "YCbCr"):
            picture = (np.asarray(picture.convert("RGB")) > 0).any(axis=-1)
        elif picture.mode in ("LA", "PA"):
            picture = picture.getchannel(0)
    label = np.asarray(picture)
    if label.ndim != 2 or not (label.dtype == bool or np.issubdtype(label.dtype, np.integer)):
        raise UserError(
            f"{name} is an array of {label.dtype} and shape {label.shape}: a mask is a path, a PIL "
            "image, or an array of truth values or class numbers and shape (height, width)."
        )
    values = np.unique(label).tolist()
    if values[-1:] in ([IGNORE], [2**16 - 1]) and set(values) <= {0, values[-1]}:
        label = label > 0
    elif wrong := [value for value in values if value != IGNORE and not 0 <= value <= CLASSES]:
        raise UserError(
            f"{name} has the value {wrong[0]}: classes are numbered 1..{CLASSES}, 0 is the "
            f"background and {IGNORE} ignored."
        )
    return label.astype(np.uint8)


def boxes_label(boxes: Any, shape: tuple[int, int], name: str) -> UInt8[np.ndarray, "height width"]:
    """The label of an image whose objects are outlined by boxes: 1 inside of them.

    Args:
        boxes: one box or several, (left, top, right, bottom) in pixels, the last two exclusive.
        shape: height and width of the image.
        name: what to call them in errors.

    Raises:
        UserError: they are no boxes, or one of them is empty or outside of the image.
    """
    label = np.zeros(shape, np.uint8)
    for left, top, right, bottom in _corners(boxes, name):
        rows, columns = slice(max(top, 0), max(bottom, 0)), slice(max(left, 0), max(right, 0))
        if left >= right or top >= bottom or not label[rows, columns].size:
            raise UserError(
                f"{name} has the box {(left, top, right, bottom)}, which shows nothing of the "
                f"image of {shape[1]} x {shape[0]} pixels: boxes are (left, top, right, "
                "bottom)."
            )
        label[rows, columns] = 1
    return label


def _corners(boxes: Any, name: str) -> Sequence[Int[np.ndarray, "4"]]:
    try:
        corners = np.asarray(boxes, np.float64)
    except (TypeError, ValueError):
        corners = np.empty(0)
    if corners.shape[-1:] != (4,) or corners.ndim > 2 or not np.isfinite(corners).all():
        raise UserError(f"{name} = {boxes!r}: boxes are (left, top, right, bottom) in pixels.")
    if not corners.size:
        raise UserError(f"{name} holds no box: outline the class, or leave the image out.")
    return np.rint(corners.reshape(-1, 4)).clip(-(2**31), 2**31 - 1).astype(int).tolist()


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[None]:
    """While one of Pillow's images is decoded: it may have been opened without being read."""
    try:
        with _ONE_BY_ONE:
            yield
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{name} cannot be read ({error}): replace the picture.") from None
