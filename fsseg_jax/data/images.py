"""Reading images, labels and masks from files, with errors that name the file."""

import contextlib
import io
import os
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image, ImageOps

from fsseg_jax.errors import UserError

# A picture: where it is, or what is in its file, which errors call by its `repr`.
File = str | os.PathLike | io.BytesIO


@contextlib.contextmanager
def open_picture(path: File) -> Iterator[Image.Image]:
    """A picture that is open while the context is.

    Raises:
        UserError: the file is absent or broken, be it found out now or when pixels are decoded.
    """
    try:
        with Image.open(path) as file:
            yield file
    except UserError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read ({error}): replace the file.") from None


def read_image(path: File) -> UInt8[np.ndarray, "height width 3"]:
    """Reads a photograph as RGB, upright (as its EXIF orientation says), on white where it is
    transparent.

    Raises:
        UserError: the file is absent or broken.
    """
    with open_picture(path) as file:
        return rgb(file)


def rgb(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of a picture of any mode, as `read_image` gives them."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip to 8
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def read_label(path: File) -> UInt8[np.ndarray, "height width"]:
    """Reads a PNG of class ids (or object numbers): a palette's indices or grey values."""
    with open_picture(path) as file:
        if file.mode not in ("P", "L"):
            raise UserError(
                f"{path} is an image of mode {file.mode}, not of class ids: labels are 8-bit "
                "palette or greyscale PNGs."
            )
        return np.asarray(file)


def read_mask(path: str | os.PathLike, above: int = 0) -> Bool[np.ndarray, "height width"]:
    """Reads where a mask, a PNG of any kind, is not black; transparency does not matter.

    Args:
        path: of the mask.
        above: what grey value, or what value of red, green or blue, still is none of the class.

    Raises:
        UserError: the file is absent or broken.
    """
    with open_picture(path) as file:
        mask = ImageOps.exif_transpose(file)
        if mask.mode == "1":
            mask = mask.convert("L")
        elif mask.mode != "L" and not mask.mode.startswith("I"):
            mask = mask.convert("RGB")
        values = np.asarray(mask)
    return values > above if values.ndim == 2 else (values > above).any(axis=-1)


def image_size(path: File) -> tuple[int, int]:
    """Height and width of a photograph as `read_image` gives it, without decoding it.

    Raises:
        UserError: the file is absent or broken.
    """
    with open_picture(path) as file:
        turned = file.getexif().get(0x0112, 1) > 4  # EXIF's orientations by a quarter
        width, height = file.size
        return (width, height) if turned else (height, width)


def check_size(label: Shaped[np.ndarray, "height width"], label_name: str, image: File) -> None:
    """Raises UserError unless a label has the size of its photograph."""
    height, width = image_size(image)
    if label.shape != (height, width):
        raise UserError(
            f"{label_name} is {label.shape[1]} x {label.shape[0]} pixels, but its photograph "
            f"{image} is {width} x {height}: they must be of one size."
        )
