"""Masks of every kind show the same, wherever they are given."""

import numpy as np
import pytest
from helpers import message_of
from helpers_data import write_image, write_mask
from PIL import Image

from fsseg_jax.data import masks
from fsseg_jax.data.masks import numbers, read_mask, warn_if_covering
from fsseg_jax.data.sources.folder import Folder
from fsseg_jax.prediction import support_folder
from fsseg_jax.prediction.supports import read_supports
from fsseg_jax.prediction.truth import Truth

SIZE = 40, 60
ROW, COLUMN = np.mgrid[: SIZE[0], : SIZE[1]]
DISTANCE = np.hypot(ROW - 18.2, COLUMN - 31.3)
INSIDE = DISTANCE < 12
SOFT = (255 * np.clip((13.4 - DISTANCE) / 2.8, 0, 1)).round().astype(np.uint8)
PHOTO = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
BORDERED = np.where(np.abs(DISTANCE - 12) < 1.5, 255, INSIDE * 8).astype(np.uint8)  # as VOC's
VOC = np.zeros((256, 3), np.uint8)
VOC[1:] = np.random.default_rng(1).integers(1, 256, (255, 3))


def grey(values, mode="L"):
    return Image.fromarray(np.asarray(values, np.uint8)).convert(mode)


def palette(indices, colours=VOC):
    picture = Image.fromarray(np.asarray(indices, np.uint8))
    picture.putpalette(colours.ravel().tolist())
    return picture


def cut_out(alpha):
    """What removers of backgrounds write: the photograph, transparent around the thing."""
    return Image.fromarray(np.dstack([PHOTO, alpha]))


KINDS = {  # a picture, the suffix of its file, and whether it is exact
    "0 and 255": (grey(INSIDE * 255), "png", INSIDE),
    "0 and 1": (grey(INSIDE), "png", INSIDE),
    "0 and 254": (grey(INSIDE * 254), "png", INSIDE),
    "0 and 128": (grey(INSIDE * 128), "png", INSIDE),
    "one bit": (Image.fromarray(INSIDE), "png", INSIDE),
    "16 bits": (Image.fromarray(INSIDE.astype(np.uint16) * 65535), "png", INSIDE),
    "16 bits of 1": (Image.fromarray(INSIDE.astype(np.uint16)), "png", INSIDE),
    "colour": (Image.fromarray(INSIDE[..., None] * np.array([0, 9, 200], np.uint8)), "png", INSIDE),
    "grey as RGB": (grey(INSIDE * 255, "RGB"), "png", INSIDE),
    "palette": (palette(INSIDE * 3), "png", INSIDE),
    "VOC": (palette(BORDERED), "png", np.where(BORDERED == 255, 255, INSIDE)),
    "VOC in grey": (grey(BORDERED), "png", np.where(BORDERED == 255, 255, INSIDE)),
    "cut-out": (cut_out(np.uint8(255 * INSIDE)), "png", INSIDE),
    "grey cut-out": (Image.fromarray(PHOTO[..., 0]).convert("LA"), "png", INSIDE),
    "soft cut-out": (cut_out(SOFT), "png", SOFT >= 128),
    "opaque RGBA": (grey(INSIDE * 255, "RGBA"), "png", INSIDE),
    "soft": (grey(SOFT), "png", SOFT >= 128),
    "soft RGB": (grey(SOFT, "RGB"), "png", SOFT >= 128),
    "two shades": (grey(np.select([SOFT > 200, SOFT > 40], [255, 90])), "png", SOFT > 200),
    "JPEG": (grey(INSIDE * 255), "jpg", INSIDE),
    "JPEG of 128": (grey(INSIDE * 128), "jpg", INSIDE),
    "soft JPEG": (grey(SOFT), "jpg", SOFT >= 128),
    "red JPEG": (
        Image.fromarray(INSIDE[..., None] * np.array([220, 9, 30], np.uint8)),
        "jpg",
        None,
    ),
}
KINDS["grey cut-out"][0].putalpha(grey(INSIDE * 255))


def through_fit(image, mask, tmp_path):
    (support,), _ = read_supports(image, mask, None)
    return support.label


def through_array(image, mask, tmp_path):
    with Image.open(mask) as picture:
        picture = picture.convert("RGBA") if picture.mode == "LA" else picture
        return through_fit(image, np.asarray(picture), tmp_path)


def through_picture(image, mask, tmp_path):
    with Image.open(mask) as picture:
        return through_fit(image, picture, tmp_path)


def through_command_line(image, mask, tmp_path):
    (support,) = support_folder.read_supports(tmp_path).images
    return support.label


def through_training(image, mask, tmp_path):
    return Folder(tmp_path, "", 1).read(0).label


def through_truth(image, mask, tmp_path):
    names = {tmp_path / "mug" / "1.bmp": "1"}
    return Truth(tmp_path, names, ["mug"]).read(tmp_path / "mug" / "1.bmp")


ENTRIES = (through_fit, through_array, through_picture, through_command_line, through_training)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_shows_the_same_wherever_it_is_given(tmp_path, kind):
    picture, suffix, expected = KINDS[kind]
    folder = tmp_path / "mug"
    folder.mkdir()
    image = folder / "1.bmp"
    Image.fromarray(PHOTO).save(image)
    mask = folder / ("1.png" if suffix == "png" else "1_mask.jpg")
    picture.save(mask, **({"quality": 75} if suffix == "jpg" else {}))
    # Arrays do not say how they were compressed, which only matters where nothing is white, and
    # 254 is what they do not mark.
    as_arrays = kind not in ("JPEG of 128", "0 and 254")
    entries = [x for x in ENTRIES if as_arrays or x is not through_array]
    results = {entry.__name__: entry(image, mask, tmp_path) for entry in entries}
    if suffix == "png":
        results["truth"] = through_truth(image, mask, tmp_path)
    first = results["through_fit"]
    if suffix == "jpg":  # of what is compressed, the outline is known to a pixel
        sure = np.abs(DISTANCE - 12) > 1.5
        np.testing.assert_array_equal(first[sure], INSIDE[sure])
    else:
        np.testing.assert_array_equal(first, expected)
    for name, result in results.items():
        np.testing.assert_array_equal(result, first, err_msg=name)


def test_an_image_that_is_a_cut_out_may_be_its_own_mask(tmp_path):
    path = tmp_path / "1.png"
    cut_out(np.uint8(255 * INSIDE)).save(path)
    np.testing.assert_array_equal(through_fit(path, path, tmp_path), INSIDE)
    np.testing.assert_array_equal(through_command_line(path, path, tmp_path), INSIDE)
    (tmp_path / "mug").mkdir()
    path.rename(tmp_path / "mug" / "1.png")
    supports = support_folder.read_supports(tmp_path)
    assert supports.classes == ("mug",)
    np.testing.assert_array_equal(supports.images[0].label, INSIDE)
    assert supports.files == {tmp_path / "mug" / "1.png"}


def test_labels_of_several_classes_keep_them_apart_in_ascending_order(tmp_path):
    label = np.where(COLUMN > 40, 15, BORDERED).astype(np.uint8)
    palette(label).save(tmp_path / "1.png")
    for mask in (tmp_path / "1.png", label, grey(label)):
        (support,), shown = read_supports(PHOTO, mask, None)
        assert shown == (8, 15)
        expected = np.select([label == 8, label == 15, label == 255], [1, 2, 255])
        np.testing.assert_array_equal(support.label, expected)
    # In a folder that names the class, all of it is the class.
    expected = np.where(label == 255, 255, label > 0)
    np.testing.assert_array_equal(read_mask(tmp_path / "1.png"), expected)


def test_a_border_of_255_is_no_white_object_however_thin_what_it_surrounds():
    label = np.zeros((20, 20), np.uint8)
    label[5:12, 5:12] = 255
    label[8, 8] = 12
    np.testing.assert_array_equal(numbers(label, ""), label)
    trimap = np.zeros((20, 20), np.uint8)
    trimap[2:18, 2:18], trimap[4:16, 4:16] = 90, 255
    np.testing.assert_array_equal(numbers(trimap, ""), trimap == 255)


def test_what_touches_no_white_is_no_shade_of_it():
    label = np.zeros((20, 20), np.uint8)
    label[2:12, 2:12], label[15:18, 15:18] = 255, 15
    for mask in (label, grey(label), palette(label)):
        np.testing.assert_array_equal(numbers(mask, ""), label)
    inside = np.pad(np.full((16, 16), 255, np.uint8), 2, constant_values=90)
    indices = palette(np.pad(inside, 3))  # of a palette, numbers are no shades
    np.testing.assert_array_equal(numbers(indices, ""), np.pad(inside, 3))
    assert numbers(grey(np.pad(inside, 3)), "").max() == 1


def test_black_index_0_of_a_label_may_be_transparent(tmp_path):
    label = np.where(COLUMN > 40, 2, INSIDE).astype(np.uint8)
    palette(label).save(tmp_path / "1.png", transparency=0)
    for mask in (tmp_path / "1.png", label):
        (support,), shown = read_supports(PHOTO, mask, None)
        assert shown == (1, 2)
        np.testing.assert_array_equal(support.label, label)
    palette(INSIDE * 2).save(tmp_path / "2.png", transparency=0)  # one class either way
    np.testing.assert_array_equal(read_mask(tmp_path / "2.png"), INSIDE)
    photograph = grey(np.where(INSIDE, PHOTO[..., 0] | 1, 0)).convert("P")
    photograph.save(tmp_path / "3.png", transparency=0)
    np.testing.assert_array_equal(through_fit(PHOTO, tmp_path / "3.png", tmp_path), INSIDE)


def test_many_shades_without_white_are_told():
    shades = np.arange(0, 240).reshape(1, -1).astype(np.uint8)
    shades[0, 1] = 0
    message = message_of(read_supports, np.zeros((1, 240, 3), np.uint8), shades, None)
    assert message.startswith("masks[0] shows")
    assert "mask > 127" in message


@pytest.mark.parametrize("black", [(), (0, 1)])
def test_palettes_whose_colours_and_indices_disagree_are_named(tmp_path, black):
    """Index 0 shows the class by its colour, or index 1 the background."""
    colours = np.full((256, 3), 200, np.uint8)
    colours[list(black)] = 0
    palette(INSIDE, colours).save(tmp_path / "1.png")
    for message in (
        message_of(read_mask, tmp_path / "1.png"),
        message_of(read_supports, PHOTO, tmp_path / "1.png", None),
    ):
        assert message.startswith(f"{tmp_path / '1.png'} is a palette mask whose background is amb")


def test_masks_of_floating_point_numbers_are_named(tmp_path):
    Image.fromarray(np.full(SIZE, 0.5, np.float32)).save(tmp_path / "1.tif")
    assert str(tmp_path / "1.tif") in message_of(read_mask, tmp_path / "1.tif")


def test_masks_are_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(INSIDE.astype(np.uint8))).save(tmp_path / "1.png", exif=exif)
    np.testing.assert_array_equal(read_mask(tmp_path / "1.png"), INSIDE)


def test_a_mask_that_covers_nearly_all_is_warned_of_once(tmp_path, log):
    masks._covering.clear()
    everything = np.ones(SIZE, bool)
    for place in ("cat", "dog"):
        write_image(tmp_path / place / "1.jpg", SIZE)
        box = (0, 0, 38, 60) if place == "cat" else (0, 0, 9, 9)
        write_mask(tmp_path / place / "1.png", box, SIZE)
    for _ in range(2):
        support_folder.read_supports(tmp_path)
    (told,) = log.messages
    assert told.startswith(f"{tmp_path / 'cat' / '1.png'} covers 95 % of its image")
    log.clear()
    for _ in range(2):
        read_supports([PHOTO, PHOTO], [INSIDE, everything], None)
    (told,) = log.messages
    assert told.startswith("masks[1] covers 100 % of its image")
    warn_if_covering(np.where(everything, 254, 0), "marks")
    assert len(log.messages) == 1
