"""Images and masks of any kind are read as documented."""

import os
import struct

import numpy as np
import pytest
from helpers import message_of
from helpers_data import SIZE
from PIL import ExifTags, Image

from fsseg_jax.data import images
from fsseg_jax.data.images import image_size, read_image


@pytest.mark.parametrize("values", [0.5, -1, 2**16])
def test_values_of_more_than_16_bits_are_named(tmp_path, values):
    """Which conversion would cut off."""
    path = tmp_path / "1.tif"
    kind = np.float32 if isinstance(values, float) else np.int32
    Image.fromarray(np.full(SIZE, values, kind)).save(path)
    assert str(path) in message_of(read_image, path)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA", "I;16", "RGB keyed"])
def test_images_of_any_kind_become_rgb(tmp_path, mode):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (*SIZE, 4), dtype=np.uint8)
    path = tmp_path / ("1.jpg" if mode == "CMYK" else "1.png")
    options = {}
    if mode == "L":
        picture = Image.fromarray(values[..., 0])
        expected = values[..., [0, 0, 0]]
    elif mode == "1":
        picture = Image.fromarray(values[..., 0] > 99)
        expected = np.where(values[..., [0, 0, 0]] > 99, 255, 0)
    elif mode == "P":
        picture = Image.fromarray(values[..., 0])
        palette = rng.integers(0, 256, (256, 3), dtype=np.uint8)
        picture.putpalette(palette.ravel().tolist())
        expected = palette[values[..., 0]]
    elif mode == "CMYK":
        flat = np.broadcast_to(np.array([200, 100, 50, 40], np.uint8), values.shape)
        picture = Image.fromarray(flat, "CMYK")
        options = {"quality": 100}
        ink = (255 - flat.astype(int)) / 255
        expected = ink[..., :3] * ink[..., 3:] * 255
    elif mode == "I;16":
        picture = Image.fromarray(values[..., 0].astype(np.uint16) * 256 + values[..., 1])
        expected = values[..., [0, 0, 0]]
    elif mode == "RGB keyed":
        values[3:5, 6:8, :3] = (9, 8, 7)
        picture = Image.fromarray(values[..., :3])
        options = {"transparency": (9, 8, 7)}
        expected = values[..., :3].copy()
        expected[3:5, 6:8] = 255
    else:
        values[0, :2, 3] = (0, 255)
        picture = Image.fromarray(values if mode == "RGBA" else values[..., 2:])
        colour = values[..., :3] if mode == "RGBA" else values[..., [2, 2, 2]]
        alpha = values[..., 3:] / 255
        expected = alpha * colour + (1 - alpha) * 255
    picture.save(path, **options)
    with Image.open(path) as saved:
        assert saved.mode == mode.split()[0]
    image = read_image(path)
    assert (image.dtype, image.shape) == (np.uint8, (*SIZE, 3))
    np.testing.assert_allclose(image, expected, atol=3 if mode == "CMYK" else 1)
    if mode not in ("CMYK", "RGBA", "LA"):
        np.testing.assert_array_equal(image, expected)


UPRIGHT = np.arange(24, dtype=np.uint8).reshape(4, 6)
# How an upright image is stored for each of EXIF's orientations.
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT),
    7: UPRIGHT[::-1, ::-1].T,
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_images_are_upright_and_as_large_as_is_said(tmp_path, suffix, orientation):
    path = tmp_path / f"1.{suffix}"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(STORED[orientation]).save(path, exif=exif, lossless=True)
    read = read_image(path)
    np.testing.assert_array_equal(read[..., 0], UPRIGHT)
    assert image_size(path) == read.shape[:2]


def exif_of(*entries):
    """EXIF with entries of (tag, type, count, value), as their format has them."""
    parts = [struct.pack("<HHII", *entry) for entry in entries]
    head = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(parts))
    return head + b"".join(parts) + bytes(4)


BYTE, ASCII, SHORT, LONG, UNDEFINED, FLOAT = 1, 2, 3, 4, 7, 11


@pytest.mark.parametrize(
    ("kind", "count", "value"),
    [
        *((SHORT, 1, value) for value in (0, 9, 2**16 - 1)),
        (ASCII, 1, ord("6")),
        (BYTE, 1, 6),
        (UNDEFINED, 1, 6),
        (FLOAT, 1, 0x40C00000),
    ],
)
def test_orientations_that_are_none_are_ignored(tmp_path, kind, count, value):
    exif = exif_of((ExifTags.Base.Orientation, kind, count, value))
    Image.fromarray(UPRIGHT).save(tmp_path / "1.png", exif=exif)
    read = read_image(tmp_path / "1.png")
    np.testing.assert_array_equal(read[..., 0], UPRIGHT)
    assert image_size(tmp_path / "1.png") == UPRIGHT.shape


def test_odd_entries_of_exif_do_not_matter(tmp_path):
    """Those that Pillow reads, but cannot write."""
    odd = (0x0132, ASCII, 1, 0x7FFFFFF0), (0x8769, LONG, 1, 3), (0x9C9B, UNDEFINED, 2, 1)
    exif = exif_of((ExifTags.Base.Orientation, SHORT, 1, 6), *odd)
    Image.fromarray(np.rot90(UPRIGHT)).save(tmp_path / "1.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "1.png")[..., 0], UPRIGHT)
    assert image_size(tmp_path / "1.png") == UPRIGHT.shape


def test_what_a_format_of_pillow_raises_is_told(tmp_path, monkeypatch):
    path = tmp_path / "1.png"
    Image.fromarray(UPRIGHT).save(path)
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "load", lambda self: 1 / 0)
        patch.setattr("PIL.ImageFile.ImageFile.load", lambda self: 1 / 0)
        assert f"{path} cannot be read (division by zero)" in message_of(read_image, path)


def test_pipes_and_postscript_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "pipe.png cannot be read (it is not a file)" in message_of(
        read_image, tmp_path / "pipe.png"
    )
    Image.fromarray(UPRIGHT).save(tmp_path / "1.png", "eps")
    assert "1.png is PostScript" in message_of(read_image, tmp_path / "1.png")


def test_heic_is_read_or_the_remedy_told(tmp_path, monkeypatch):
    path = tmp_path / "1.HEIC"
    path.write_bytes(b"no picture")
    assert "cannot be read" in message_of(read_image, path) or not images._heic_is_known()
    monkeypatch.setattr(images, "_heic_is_known", lambda: False)
    assert "pip install 'fsseg_jax[heic]'" in message_of(read_image, path)
