"""Images, masks and boxes in the forms that users have: files, PIL images or arrays."""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from fsseg_jax.data.images import eight_bits, open_picture, rgb
from fsseg_jax.data.masks import as_classes, numbers
from fsseg_jax.episode import IGNORE, UNLABELLED
from fsseg_jax.errors import UserError, brief
from fsseg_jax.evaluation.report import overlay
from fsseg_jax.prediction.memory import room_for

# Pillow decodes an image when its pixels are first read, which is not thread-safe.
_ONE_BY_ONE = threading.Lock()


def is_image(images: Any) -> bool:
    """Whether `images` is one image, not several."""
    one = isinstance(images, str | bytes | os.PathLike | Image.Image)
    return one or getattr(images, "ndim", None) in (2, 3)


def as_image(picture: Any, name: str) -> UInt8[np.ndarray, "height width 3"]:
    """An image as upright RGB.

    Args:
        picture: a path, a PIL image, or an array: uint8 or uint16, of (height, width) or (height,
            width, channel) with 1, 3 or 4 channels. Of 16 bits the upper 8 count, in files too.
        name: what to call it in errors.

    Raises:
        UserError: it is none of these, its file cannot be read, or the scale of its values is
            another one.
    """
    if isinstance(picture, str | os.PathLike):
        with open_picture(picture) as file:
            return _decoded(file, name_of(picture, name))
    if isinstance(picture, Image.Image):
        with decoding(name):
            return _decoded(picture, name)
    array = as_array(picture, name)
    kind = f"an array of {array.dtype} and shape {array.shape}"
    if array.dtype == np.uint16:
        try:
            array = eight_bits(array)
        except ValueError as error:
            raise UserError(f"{name} cannot be read ({error}).") from None
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))
    if array.dtype != np.uint8 or not fits or not array.size:
        remedy = ""
        if array.dtype.kind in "fiu" and array.dtype != np.uint8:
            remedy = " (bring the values to 0..255, and use .astype(np.uint8))"
        elif array.ndim == 3 and array.shape[0] in (1, 3, 4):
            remedy = " (channels come last: use np.moveaxis(image, 0, -1))"
        raise UserError(
            f"{name} is {kind}: an image is a path, a PIL image, or an array of uint8 in "
            f"0..255 and shape (height, width, 3){remedy}."
        )
    return rgb(Image.fromarray(array))


def _decoded(picture: Image.Image, name: str) -> UInt8[np.ndarray, "height width 3"]:
    """A PIL image as upright RGB, decoded when there is memory for it."""
    if not all(picture.size):
        raise UserError(f"{name} has no pixels: give an image that has some.")
    with room_for(name, *picture.size):
        return rgb(picture)


def as_labels(
    pictures: Sequence[Any], names: Sequence[str]
) -> tuple[list[UInt8[np.ndarray, "height width"]], tuple[int, ...]]:
    """Masks of several images as labels of the classes 1, 2 ..., and the number of each in them.

    0 is the background, 254 not marked, 255 ignored. `data.masks` says what masks show.

    Args:
        pictures: paths, PIL images, or arrays of booleans or integers of shape (height, width), or
            of colours.
        names: what to call them in errors.

    Raises:
        UserError: one is none of these, its file cannot be read, or it has numbers of no class.
    """
    pairs = [*zip(pictures, names, strict=True)]
    found = [mask_numbers(picture, name) for picture, name in pairs]
    return as_classes(found, [name_of(picture, name) for picture, name in pairs])


def mask_numbers(picture: Any, name: str) -> Integer[np.ndarray, "height width"]:
    """What `data.masks.numbers` reads of a mask, which may be a path, too."""
    if isinstance(picture, str | os.PathLike):
        with open_picture(picture) as file:
            return numbers(file, name_of(picture, name))
    if isinstance(picture, Image.Image):
        with decoding(name):
            return numbers(picture, name)
    return numbers(as_array(picture, name), name)


def classes_in(label: UInt8[np.ndarray, "height width"]) -> list[int]:
    """The numbers of the classes that a label shows."""
    return np.setdiff1d(label, [0, UNLABELLED, IGNORE]).tolist()


def shows_none(label: UInt8[np.ndarray, "height width"]) -> bool:
    """Whether a label says that no class is in its image: what is known of it is background."""
    return bool(np.isin(label, [0, IGNORE]).all() and (label == 0).any())


def as_array(values: Any, name: str) -> np.ndarray:
    """An array; raises UserError if it cannot be one."""
    try:
        return np.asarray(values)
    except (TypeError, ValueError, OverflowError):  # such as lists of several lengths
        raise UserError(
            f"{name} is of type {type(values).__name__}: give a path, a PIL image, or an array."
        ) from None


def name_of(picture: Any, name: str) -> str:
    """What to call a picture in errors: its path if it has one, or `name`."""
    return os.fspath(picture) if isinstance(picture, str | os.PathLike) else name


def overlaid(image: Any, mask: Any) -> Image.Image:
    """A picture of a mask over its image; see `Segmenter.overlay`."""
    pixels, label = as_image(image, "image"), mask_numbers(mask, "mask")
    if label.shape != pixels.shape[:2]:
        raise UserError(
            f"mask has the shape {label.shape}, but image {pixels.shape[:2]}: give the mask of "
            "this image."
        )
    return Image.fromarray(overlay(pixels, label.astype(np.uint8)))


def boxes_label(boxes: Any, shape: tuple[int, int], name: str) -> UInt8[np.ndarray, "height width"]:
    """The label of an image whose objects are annotated with boxes: 1 inside of them.

    Args:
        boxes: one or more boxes, (left, top, right, bottom) in pixels, the last two exclusive.
        shape: height and width of the image.
        name: what to call them in errors.

    Raises:
        UserError: they are not boxes, or one of them is empty or outside of the image.
    """
    label = np.zeros(shape, np.uint8)
    for left, top, right, bottom in _corners(boxes, name):
        rows, columns = slice(max(top, 0), max(bottom, 0)), slice(max(left, 0), max(right, 0))
        if left >= right or top >= bottom or not label[rows, columns].size:
            raise UserError(
                f"{name} has the box {(left, top, right, bottom)}, which is empty or outside of "
                f"the image of {shape[1]} x {shape[0]} pixels: boxes are (left, top, right, "
                "bottom)."
            )
        label[rows, columns] = 1
    return label


def _corners(boxes: Any, name: str) -> list[list[int]]:
    """Whole pixels of one box, or of several."""
    try:
        corners = np.asarray(boxes, np.float64)
    except (TypeError, ValueError, OverflowError):
        corners = np.empty(0)
    if corners.shape[-1:] != (4,) or corners.ndim > 2 or not np.isfinite(corners).all():
        raise UserError(f"{name} = {brief(boxes)}: boxes are (left, top, right, bottom) in pixels.")
    if not corners.size:
        raise UserError(f"{name} is empty: give a box around the class, or leave the image out.")
    return np.rint(corners.reshape(-1, 4)).clip(-(2**31), 2**31 - 1).astype(int).tolist()


@contextlib.contextmanager
def decoding(name: str) -> Iterator[None]:
    """Guards the decoding of a PIL image, which may have been opened without being read."""
    try:
        with _ONE_BY_ONE:
            yield
    except UserError:
        raise
    except Exception as error:  # each of Pillow's formats raises its own
        raise UserError(f"{name} cannot be read ({error}): replace the image.") from None
