"""Images, masks and boxes in the forms that users have: files, PIL images or arrays."""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer, Shaped, UInt8
from PIL import Image

from fsseg_jax.data.images import eight_bits, open_picture, rgb, upright
from fsseg_jax.episode import IGNORE, UNLABELLED
from fsseg_jax.errors import UserError, brief
from fsseg_jax.prediction.memory import room_for

CLASSES = UNLABELLED - 1  # the largest class number in masks
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
            return _decoded(file, _name(picture, name))
    if isinstance(picture, Image.Image):
        with _decoding(name):
            return _decoded(picture, name)
    array = _array(picture, name)
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


def as_label(picture: Any, name: str) -> UInt8[np.ndarray, "height width"]:
    """A mask as class numbers: 0 for the background, 1, 2 ... for classes, 255 for ignored pixels.

    True, colours other than black, and 255 where it is the only value besides 0, mean class 1; all
    other numbers, whether grey values or palette indices, are class numbers.

    Args:
        picture: the path of a PNG, a PIL image, or an array of booleans or integers of shape
            (height, width).
        name: what to call it in errors.

    Raises:
        UserError: it is none of these, its file cannot be read, or a number is not a class number.
    """
    values, _ = _values(picture, name)
    return _numbered(values, _name(picture, name))


def as_labels(
    pictures: Sequence[Any], names: Sequence[str]
) -> list[UInt8[np.ndarray, "height width"]]:
    """Masks of several images, as `as_label` reads them, but for soft edges.

    If their values cannot be class numbers, because one is missing between them or they are too
    large, then a greyscale file or PIL image of which most that is not black is white is a mask
    with soft edges: as in `read_mask`, all of it that is not black is class 1.

    Raises:
        UserError: see `as_label`.
    """
    labels, soft = [], []
    for picture, name in zip(pictures, names, strict=True):
        values, grey = _values(picture, name)
        soft.append(values > 0 if grey and _mostly_white(values) else None)
        try:
            labels.append(_numbered(values, _name(picture, name)))
        except UserError:
            if soft[-1] is None:
                raise
            labels.append(soft[-1].astype(np.uint8))
    if missing_number(labels):
        pairs = zip(labels, soft, strict=True)
        labels = [label if x is None else x.astype(np.uint8) for label, x in pairs]
    return labels


def missing_number(labels: Sequence[UInt8[np.ndarray, "_ _"]]) -> int | None:
    """The first number that is missing between those of the classes that labels show."""
    numbers = {number for label in labels for number in classes_in(label)}
    return min({*range(1, max(numbers, default=0))} - numbers, default=None)


def classes_in(label: UInt8[np.ndarray, "height width"]) -> list[int]:
    """The numbers of the classes that a label shows."""
    return np.setdiff1d(label, [0, IGNORE]).tolist()


def _array(values: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except (TypeError, ValueError, OverflowError):  # such as lists of several lengths
        raise UserError(
            f"{name} is of type {type(values).__name__}: give a path, a PIL image, or an array."
        ) from None


def _name(picture: Any, name: str) -> str:
    return os.fspath(picture) if isinstance(picture, str | os.PathLike) else name


def _values(picture: Any, name: str) -> tuple[Shaped[np.ndarray, "height width"], bool]:
    """Booleans or numbers of a mask, and whether they are the grey values of a picture."""
    if isinstance(picture, str | os.PathLike):
        with open_picture(picture) as file:
            return _values(file, _name(picture, name))
    grey = False
    if isinstance(picture, Image.Image):
        with _decoding(name):
            picture = upright(picture)
        if picture.mode in ("RGB", "RGBA", "CMYK", "YCbCr"):
            picture = (np.asarray(picture.convert("RGB")) > 0).any(axis=-1)
        else:
            grey = picture.mode.startswith(("L", "I"))
            picture = picture.getchannel(0) if picture.mode in ("LA", "PA") else picture
    label = _array(picture, name)
    if label.ndim != 2 or not (label.dtype == bool or np.issubdtype(label.dtype, np.integer)):
        raise UserError(
            f"{name} is an array of {label.dtype} and shape {label.shape}: a mask is a path, a PIL "
            "image, or an array of booleans or class numbers and shape (height, width)."
        )
    return label, grey


def _mostly_white(values: Integer[np.ndarray, "height width"]) -> bool:
    white = 255 if values.max(initial=0) < 256 else 2**16 - 1
    return bool(2 * np.count_nonzero(values == white) > np.count_nonzero(values))


def _numbered(
    label: Shaped[np.ndarray, "height width"], name: str
) -> UInt8[np.ndarray, "height width"]:
    """Booleans or numbers as class numbers; see `as_label`."""
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
def _decoding(name: str) -> Iterator[None]:
    """Guards the decoding of a PIL image, which may have been opened without being read."""
    try:
        with _ONE_BY_ONE:
            yield
    except UserError:
        raise
    except Exception as error:  # each of Pillow's formats raises its own
        raise UserError(f"{name} cannot be read ({error}): replace the image.") from None
