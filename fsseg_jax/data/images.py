"""Reads images and labels from files; a UserError names a missing or broken file."""

import contextlib
import functools
import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Integer, Shaped, UInt8
from PIL import ExifTags, Image

from fsseg_jax.data.remote import is_url, read_url
from fsseg_jax.errors import UserError

MOST_PIXELS = 178_956_970  # of an image: Pillow refuses more as a decompression bomb

HEIC = (".heic", ".heif")  # endings of the names of files of this format

_TURN = Image.Transpose
_UPRIGHT = {  # what makes images of EXIF's orientations upright
    **{2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM},
    **{5: _TURN.TRANSPOSE, 6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90},
}
_QUARTER_TURNS = (_TURN.TRANSPOSE, _TURN.ROTATE_270, _TURN.TRANSVERSE, _TURN.ROTATE_90)

# A path, a URL, or the contents of a file, which errors name by its `repr`.
File = str | os.PathLike | io.BytesIO


@functools.cache
def _heic_is_known() -> bool:
    """Whether Pillow can read HEIC, which it has no code for itself."""
    try:
        import pillow_heif  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _read_heic(path: str | os.PathLike) -> None:
    if not _heic_is_known():
        raise UserError(
            f"{path} is HEIC, which needs pillow-heif: pip install 'fsseg_jax[heic]', or convert "
            "it to JPEG."
        )


@contextlib.contextmanager
def open_picture(path: File) -> Iterator[Image.Image]:
    """Opens an image within a context.

    Raises:
        UserError: the file is missing or broken, even if only decoding its pixels shows it; or it
            is a pipe, which would wait for its other end, or PostScript, which is a program.
    """
    if isinstance(path, str | os.PathLike) and os.fspath(path).lower().endswith(HEIC):
        _read_heic(path)
    if isinstance(path, str | os.PathLike) and os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path} cannot be read (it is not a file): give an image.")
    try:
        with Image.open(read_url(str(path)) if is_url(path) else path) as file:
            if file.format == "EPS":
                raise UserError(f"{path} is PostScript, which is not read: convert it to PNG.")
            if file.format == "TIFF":
                # Files with a name are mapped into memory, where Pillow (seen in 12.3) mixes up the
                # pixels of those that are uncompressed and stored on their side.
                file.filename = ""
            yield file
    except UserError:
        raise
    except Exception as error:  # each of Pillow's formats raises its own
        reason = str(error) or type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}): replace the file.") from None


def read_image(path: File) -> UInt8[np.ndarray, "height width 3"]:
    """Reads an image as RGB, upright by its EXIF orientation, with transparency on white."""
    with open_picture(path) as file:
        return rgb(file)


def rgb(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """Converts an image of any mode as `read_image` does.

    Raises:
        ValueError: the scale of its values is unknown; see `eight_bits`.
    """
    image = upright(image)
    if image.mode.startswith("I"):  # 16 bits per pixel, which Pillow would clip to 8
        image = Image.fromarray(eight_bits(np.asarray(image)))
    elif image.mode == "F":
        raise ValueError("it has floating-point values, whose scale is unknown")
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def upright(image: Image.Image) -> Image.Image:
    """An image as its EXIF orientation says.

    Pillow's `exif_transpose` also writes the other entries of EXIF anew, and fails at odd ones.
    """
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> Any:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # broken EXIF says nothing about the pixels
        return None
    return value if isinstance(value, int) else None


def eight_bits(values: Integer[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """The upper 8 of 16 bits.

    Raises:
        ValueError: the values have more than 16 bits, or so few that nothing would be seen.
    """
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if low < 0 or 0 < high < 256 or high >= 2**16:
        raise ValueError(
            f"it has values in {low}..{high}, but the scale of 16 bits is 0..65535: bring them to "
            "0..255, and convert it to 8 bits"
        )
    return (values >> 8).astype(np.uint8)


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


def image_size(path: File) -> tuple[int, int]:
    """Height and width of an image as `read_image` returns it, without decoding its pixels."""
    with open_picture(path) as file:
        # Pillow has turned the size of a TIFF file already.
        turned = file.format != "TIFF" and _UPRIGHT.get(_orientation(file)) in _QUARTER_TURNS
        width, height = file.size
        return (width, height) if turned else (height, width)


def check_size(label: Shaped[np.ndarray, "height width"], label_name: str, image: File) -> None:
    """Raises UserError unless a label has the size of its image."""
    check_shape(label.shape, label_name, image)


def check_shape(shape: tuple[int, ...], label_name: str, image: File) -> None:
    """As `check_size`, for the height and width of a label that is yet to be made."""
    height, width = image_size(image)
    if shape != (height, width):
        raise UserError(
            f"{label_name} is {shape[1]} x {shape[0]} pixels, but its image "
            f"{image} is {width} x {height}: they must have the same size."
        )
