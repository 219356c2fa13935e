"""Reads images, labels and masks from files; a UserError names a missing or broken file."""

import contextlib
import io
import os
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Integer, Shaped, UInt8
from PIL import Image, ImageOps

from fsseg_jax.errors import UserError

# A path, or the contents of a file, which errors name by its `repr`.
File = str | os.PathLike | io.BytesIO


@contextlib.contextmanager
def open_picture(path: File) -> Iterator[Image.Image]:
    """Opens an image within a context.

    Raises:
        UserError: the file is missing or broken, even if only decoding its pixels shows it.
    """
    try:
        with Image.open(path) as file:
            yield file
    except UserError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read ({error}): replace the file.") from None


def read_image(path: File) -> UInt8[np.ndarray, "height width 3"]:
    """Reads an image as RGB, upright by its EXIF orientation, with transparency on white."""
    with open_picture(path) as file:
        return rgb(file)


def rgb(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """Converts an image of any mode as `read_image` does."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits per pixel, which Pillow would clip to 8
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def read_label(
    path: File, modes: tuple[str, ...] = ("P", "L")
) -> Integer[np.ndarray, "height width"]:
    """Reads a PNG of class ids or instance numbers: a palette's indices or grey values."""
    with open_picture(path) as file:
        if file.mode not in modes:
            raise UserError(
                f"{path} is an image of mode {file.mode}, not of class ids: labels are 8-bit "
                "palette or greyscale PNGs."
            )
        return np.asarray(file)


def read_mask(path: str | os.PathLike, above: int = 0) -> Bool[np.ndarray, "height width"]:
    """Reads a mask from a PNG of any mode: True where it is not black, ignoring transparency.

    `above` is the largest grey, red, green or blue value that still counts as black.
    """
    with open_picture(path) as file:
        mask = ImageOps.exif_transpose(file)
        if mask.mode == "1":
            mask = mask.convert("L")
        elif mask.mode != "L" and not mask.mode.startswith("I"):
            mask = mask.convert("RGB")
        values = np.asarray(mask)
    return values > above if values.ndim == 2 else np.any(values > above, axis=-1)


def image_size(path: File) -> tuple[int, int]:
    """Height and width of an image as `read_image` returns it, without decoding its pixels."""
    with open_picture(path) as file:
        turned = file.getexif().get(0x0112, 1) > 4  # EXIF orientations with a quarter turn
        width, height = file.size
        return (width, height) if turned else (height, width)


def check_size(label: Shaped[np.ndarray, "height width"], label_name: str, image: File) -> None:
    """Raises UserError unless a label has the size of its image."""
    height, width = image_size(image)
    if label.shape != (height, width):
        raise UserError(
            f"{label_name} is {label.shape[1]} x {label.shape[0]} pixels, but its image "
            f"{image} is {width} x {height}: they must have the same size."
        )
