"""Masks and overlays as files, and masks back from whatever an editor has made of them."""

import functools
import io
import itertools
import os
import pathlib
import zlib
from collections.abc import Sequence
from typing import IO, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from fsseg_jax.data.images import open_picture
from fsseg_jax.evaluation.report import WAY_COLOURS, overlay

LONG_SIDE = 1600  # pixels of an overlay: sharp on a screen, at a fraction of the image's file size
THUMBNAIL = 320  # pixels of a thumbnail
# Of masks: black background, classes as in the overlays. All 256 colours, so that a pixel is a
# byte.
PALETTE = bytes([0, 0, 0, *itertools.chain(*itertools.islice(itertools.cycle(WAY_COLOURS), 255))])
SEAL = "fsseg_jax"  # the text in a mask's file that holds a checksum of its pixels


class ReadMask(NamedTuple):
    """A mask as it was found."""

    label: UInt8[np.ndarray, "height width"]
    sealed: bool  # whether it is as `save_mask` wrote it
    text: dict[str, str]  # what was saved with it


def save_mask(label: UInt8[np.ndarray, "height width"], file: IO[bytes], **text: str) -> None:
    """Writes a mask as a PNG with the colours of overlays, sealed with a checksum of its pixels,
    which shows whether somebody has painted in it since; perhaps with more text."""
    picture = Image.fromarray(label)
    picture.putpalette(PALETTE)
    held = PngImagePlugin.PngInfo()
    for name, value in {**text, SEAL: _checksum(label)}.items():
        held.add_text(name, value)
    picture.save(file, "png", pnginfo=held)


def load_mask(path: pathlib.Path, classes: int) -> ReadMask:
    """Reads a mask that `save_mask` wrote, or an editor after it: by its numbers, where they are
    kept, or by the nearest colour of a class.

    Raises:
        UserError: the file cannot be read.
    """
    with open_picture(path) as picture:
        picture.load()
        text = {k: v for k, v in getattr(picture, "text", {}).items() if isinstance(v, str)}
        ours = picture.mode == "P" and bytes(picture.getpalette() or ())[:18] == PALETTE[:18]
        if ours or picture.mode in ("L", "1"):
            label = np.asarray(picture.convert("L") if picture.mode == "1" else picture)
            if classes == 1 and {*np.unique(label).tolist()} <= {0, 255}:
                label = label // 255  # black and white
        else:
            label = _nearest(np.asarray(picture.convert("RGB")), classes)
    label = label.astype(np.uint8)
    return ReadMask(label, text.pop(SEAL, None) == _checksum(label), text)


def _nearest(
    colours: UInt8[np.ndarray, "height width 3"], classes: int
) -> UInt8[np.ndarray, "height width"]:
    """The class of the nearest colour; the background's is black."""
    known = np.frombuffer(PALETTE, np.uint8).reshape(-1, 3)[: min(classes, len(WAY_COLOURS)) + 1]
    flat, inverse = np.unique(colours.reshape(-1, 3), axis=0, return_inverse=True)
    distances = np.square(flat[:, None].astype(int) - known.astype(int)).sum(axis=-1)
    return distances.argmin(axis=1).astype(np.uint8)[inverse].reshape(colours.shape[:2])


def _checksum(label: UInt8[np.ndarray, "height width"]) -> str:
    return f"{zlib.crc32(repr(label.shape).encode() + np.ascontiguousarray(label).tobytes()):08x}"


def small_overlay(
    image: UInt8[np.ndarray, "height width 3"],
    label: UInt8[np.ndarray, "height width"],
    long_side: int,
    classes: Sequence[str] = (),
) -> UInt8[np.ndarray, "h w 3"]:
    """An image with its label over it, at most `long_side` pixels long; with the names and colours
    of the classes that it shows, if there is room for them."""
    small = Image.fromarray(image)
    small.thumbnail((long_side, long_side))
    small_label = Image.fromarray(label).resize(small.size, Image.Resampling.NEAREST)
    shown = overlay(np.asarray(small), np.asarray(small_label))
    numbers = {*np.unique(label).tolist()}
    names = {n: name for n, name in enumerate(classes, 1) if n in numbers}
    return _with_legend(shown, names) if names else shown


def thumbnail(picture: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """A small JPEG of a picture."""
    small, file = Image.fromarray(picture), io.BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(file, "jpeg", quality=75)
    return file.getvalue()


def is_whole(path: pathlib.Path) -> bool:
    """Whether a picture's file is there, complete and, if it is a PNG, undamaged."""
    try:
        with Image.open(path) as picture:
            kind = picture.format
            picture.verify()  # the checksums of a PNG; of a JPEG it looks at nothing
        with path.open("rb") as file:
            file.seek(-2, os.SEEK_END)
            return kind != "JPEG" or file.read() == b"\xff\xd9"  # the mark of its end
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def _with_legend(
    picture: UInt8[np.ndarray, "height width 3"], names: dict[int, str]
) -> UInt8[np.ndarray, "height width 3"]:
    """A picture with names and colours in its lower left corner, unless they would hide more than
    a third of its width or height."""
    size = max(11, max(picture.shape) // 50)
    font, gap = _font(size), size // 2
    # Line breaks and the like cannot be drawn.
    plain = {n: "".join(c if c.isprintable() else " " for c in x) for n, x in names.items()}
    shown = {n: name if len(name) <= 40 else f"{name[:39]}…" for n, name in plain.items()}
    wide = max(round(font.getlength(name)) for name in shown.values()) + size + 3 * gap
    high = len(shown) * (size + gap) + gap
    if 3 * high > picture.shape[0] or 3 * wide > picture.shape[1]:
        return picture
    whole = Image.fromarray(picture)
    draw, top = ImageDraw.Draw(whole, "RGBA"), whole.height - high
    draw.rectangle((0, top, wide, whole.height), fill=(0, 0, 0, 170))
    for row, (number, name) in enumerate(shown.items()):
        y = top + gap + row * (size + gap)
        colour = WAY_COLOURS[(number - 1) % len(WAY_COLOURS)]
        draw.rectangle((gap, y, gap + size, y + size), fill=colour)
        place = 2 * gap + size, y + size / 2
        draw.text(place, name, fill=(255, 255, 255), font=font, anchor="lm")
    return np.asarray(whole)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Of matplotlib, which is needed anyway: it has most alphabets, Pillow's own only one.
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
