"""Masks that editors have changed are read by their numbers or colours; overlays name classes."""

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from fsseg_jax.evaluation.report import overlay
from fsseg_jax.prediction.drawing import (
    PALETTE,
    is_whole,
    load_mask,
    save_mask,
    small_overlay,
    thumbnail,
)

COLOURS = np.frombuffer(PALETTE, np.uint8).reshape(-1, 3)


@pytest.fixture
def label():
    label = np.random.default_rng(0).integers(0, 4, (20, 30)).astype(np.uint8)
    label[0, 0] = 3
    return label


def test_a_mask_is_sealed_until_a_pixel_changes(tmp_path, label):
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        save_mask(label, file, more="text")
    mask = load_mask(path, 3)
    np.testing.assert_array_equal(mask.label, label)
    assert mask.sealed
    assert mask.text == {"more": "text"}
    with Image.open(path) as picture:
        picture.load()
        picture.putpixel((3, 4), (int(label[4, 3]) + 1) % 4)
        held = PngImagePlugin.PngInfo()  # some editors keep texts
        for name, text in picture.text.items():
            held.add_text(name, text)
        picture.save(path, pnginfo=held)
    assert not load_mask(path, 3).sealed


@pytest.mark.parametrize("how", ["numbers", "colours", "blurred colours", "alpha", "other palette"])
def test_what_editors_save_shows_the_same_classes(tmp_path, label, how):
    picture = Image.fromarray(label)
    if how == "other palette":
        picture = Image.fromarray(COLOURS[label]).quantize(16)
    elif how != "numbers":
        noise = np.random.default_rng(1).integers(-9, 10, (*label.shape, 3))
        colours = COLOURS[label].astype(int) + noise * (how == "blurred colours")
        picture = Image.fromarray(colours.clip(0, 255).astype(np.uint8))
        if how == "alpha":
            picture.putalpha(255)
    picture.save(tmp_path / "a.png")
    mask = load_mask(tmp_path / "a.png", 3)
    np.testing.assert_array_equal(mask.label, label)
    assert not mask.sealed


def test_large_overlays_name_the_classes_that_they_show_and_small_ones_hide_nothing():
    image = np.full((600, 800, 3), 128, np.uint8)
    label = np.zeros((600, 800), np.uint8)
    label[50:100, 300:700] = 2
    plain = overlay(image, label)
    names = ("left out", "dog")
    shown = small_overlay(image, label, 800, names)
    changed = (shown != plain).any(axis=-1)
    rows, columns = np.nonzero(changed)
    assert changed.any()
    assert rows.min() > 500
    assert columns.max() < 200
    assert (shown == COLOURS[2]).all(axis=-1)[changed].any()
    assert not (shown == COLOURS[1]).all(axis=-1).any()
    longer = small_overlay(image, label, 800, ("left out", "Пёс по имени Шарик"))
    assert np.nonzero((longer != plain).any(axis=-1))[1].max() > columns.max()
    small = small_overlay(image, label, 60, names)
    np.testing.assert_array_equal(small, small_overlay(image, label, 60))
    np.testing.assert_array_equal(small_overlay(image, label, 800), plain)


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\x85b", "a\0b", "a\u2028b", "a\tb"])
def test_what_cannot_be_drawn_of_a_name_is_drawn_as_a_space(name):
    image, label = np.zeros((600, 800, 3), np.uint8), np.ones((600, 800), np.uint8)
    expected = small_overlay(image, label, 800, ("a b",))
    np.testing.assert_array_equal(small_overlay(image, label, 800, (name,)), expected)


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_pictures_that_are_cut_off_or_damaged_are_not_whole(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    assert not is_whole(path)
    Image.fromarray(np.random.default_rng(0).integers(0, 3, (40, 50), np.uint8)).save(path)
    assert is_whole(path)
    content = path.read_bytes()
    for size in (0, 1, 60, len(content) // 2, len(content) - 20):
        path.write_bytes(content[:size])
        assert not is_whole(path)
    if kind == "png":  # a JPEG has no checksums
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
        assert not is_whole(path)


def test_thumbnails_are_small():
    assert len(thumbnail(np.zeros((1200, 1600, 3), np.uint8))) < 10_000
