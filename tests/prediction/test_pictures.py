"""Images, masks and boxes are what they look like, in whatever form they are given."""

from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fsseg_jax.errors import UserError
from fsseg_jax.prediction.pictures import as_image, as_labels, boxes_label

HEIGHT, WIDTH = 5, 7
# What EXIF's orientations say has to be done to the stored pixels.
ORIENTATIONS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],
    8: lambda x: np.rot90(x),
}


def draw(*shape, high=256, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, high, (HEIGHT, WIDTH, *shape), dtype)


def as_label(picture, name):
    (label,), _ = as_labels([picture], [name])
    return label


def save(tmp_path, array, name="picture.png", **options):
    path = tmp_path / name
    Image.fromarray(array).save(path, **options)
    return path


def forms(path):
    """A picture as its path, as text, and as Pillow opens it: not decoded yet."""
    return path, str(path), Image.open(path)


# ----------------------------------------------------------------------------- images


def check_image(picture, expected, tolerance=0):
    result = as_image(picture, "images[0]")
    assert result.dtype == np.uint8
    assert result.shape == expected.shape
    assert np.abs(result.astype(int) - expected.astype(int)).max() <= tolerance


def test_colours_are_kept_and_grey_has_three_equal_channels(tmp_path):
    array, grey = draw(3), draw()
    for picture in (*forms(save(tmp_path, array)), jnp.asarray(array), array[:, ::-1][:, ::-1]):
        check_image(picture, array)
    for picture in (*forms(save(tmp_path, grey)), grey, grey[..., None], jnp.asarray(grey)):
        check_image(picture, np.stack([grey] * 3, axis=-1))


def test_what_is_transparent_lies_on_white(tmp_path):
    array = draw(4)
    array[0, 0, 3], array[0, 1, 3] = 0, 255
    alpha = array[..., 3:] / 255
    expected = array[..., :3] * alpha + 255 * (1 - alpha)
    for picture in (*forms(save(tmp_path, array)), array):
        check_image(picture, np.round(expected), tolerance=1)
    assert as_image(array, "")[0, 0].tolist() == [255, 255, 255]
    assert as_image(array, "")[0, 1].tolist() == array[0, 1, :3].tolist()


def test_of_sixteen_bits_the_upper_eight_count(tmp_path):
    grey, colours = (draw(*shape, high=2**16, dtype=np.uint16) for shape in ((), (3,)))
    path = save(tmp_path, grey)
    assert Image.open(path).mode.startswith("I")
    for picture in (*forms(path), grey, jnp.asarray(grey)):
        check_image(picture, np.stack([grey // 256] * 3, axis=-1))
    check_image(colours, colours // 256)


def test_printing_colours_become_those_of_screens(tmp_path):
    array = draw(4)
    path = tmp_path / "picture.tif"
    Image.fromarray(array, mode="CMYK").save(path)
    assert Image.open(path).mode == "CMYK"
    ink, black = array[..., :3].astype(float), array[..., 3:].astype(float)
    expected = np.round((255 - ink) * (255 - black) / 255)
    for picture in forms(path):
        check_image(picture, expected, tolerance=1)


def save_palette(path, indices, colours):
    image = Image.fromarray(indices).convert("P")
    image.putpalette(colours.ravel().tolist())
    image.putdata(indices.ravel().tolist())
    image.save(path)
    assert Image.open(path).mode == "P"
    return path


def test_palettes_mean_their_colours(tmp_path):
    indices, colours = draw(high=4), draw(3, seed=1)[0, :4]
    for picture in forms(save_palette(tmp_path / "picture.png", indices, colours)):
        check_image(picture, colours[indices])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_images_and_masks_are_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = ORIENTATIONS[orientation]
    image, mask = draw(3), draw(high=3)
    for picture in forms(save(tmp_path, image, exif=exif)):
        check_image(picture, turn(image))
    for picture in forms(save(tmp_path, mask, name="mask.png", exif=exif)):
        np.testing.assert_array_equal(as_label(picture, ""), turn(mask))


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (np.zeros((4, 5, 3)), r"float64 and shape \(4, 5, 3\)"),
        (np.zeros((4, 5, 2), np.uint8), r"uint8 and shape \(4, 5, 2\)"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"uint8 and shape \(2, 4, 5, 3\)"),
        (np.zeros((0, 5, 3), np.uint8), r"uint8 and shape \(0, 5, 3\)"),
        (np.zeros((4, 5), bool), r"bool and shape \(4, 5\)"),
        (None, r"object and shape \(\)"),
        (b"photograph", r"\|S10 and shape \(\)"),
    ],
)
def test_what_is_no_image_is_told(array, kind):
    with pytest.raises(UserError, match=rf"^images\[3\] is an array of {kind}: an image is"):
        as_image(array, "images[3]")


@pytest.mark.parametrize(
    ("array", "remedy"),
    [
        (np.zeros((4, 5, 3)), r"bring the values to 0\.\.255, and use \.astype\(np\.uint8\)"),
        (np.full((4, 5, 3), np.nan, np.float32), r"bring the values to 0\.\.255"),
        (np.zeros((4, 5, 3), np.int64), r"bring the values to 0\.\.255"),
        (np.zeros((3, 40, 50), np.uint8), r"np\.moveaxis\(image, 0, -1\)"),
        (
            draw(3).astype(np.uint16),
            r"values in \d+\.\.\d+, but the scale of 16 bits is 0\.\.65535",
        ),
    ],
)
def test_what_to_do_with_other_arrays_is_told(array, remedy):
    with pytest.raises(UserError, match=rf"^images\[0\] .*{remedy}"):
        as_image(array, "images[0]")


def test_numbers_of_another_scale_are_told_in_files_as_in_arrays(tmp_path):
    dark = draw().astype(np.uint16)
    for picture in forms(save(tmp_path, dark)):
        with pytest.raises(UserError, match=r"the scale of 16 bits is 0\.\.65535"):
            as_image(picture, "")
    black = dark * 0
    for picture in (*forms(save(tmp_path, black)), black):
        check_image(picture, np.zeros((HEIGHT, WIDTH, 3)))
    for values in (draw().astype(np.int32) << 16, -draw().astype(np.int32)):
        with pytest.raises(UserError, match="the scale of 16 bits"):
            as_image(Image.fromarray(values), "")
    for picture in forms(save(tmp_path, draw().astype(np.float32) / 255, "picture.tif")):
        with pytest.raises(UserError, match="floating-point values, whose scale is unknown"):
            as_image(picture, "")


@pytest.mark.parametrize("take", [as_image, as_label])
def test_broken_pictures_are_told_by_name(tmp_path, take):
    path = tmp_path / "truncated.png"
    save(tmp_path, np.random.default_rng(0).integers(0, 9, (60, 60), np.uint8), name=path.name)
    path.write_bytes(path.read_bytes()[:-200])
    nothing, text = tmp_path / "absent.png", tmp_path / "text.png"
    text.write_text("no picture")
    for broken in (path, nothing, text):
        with pytest.raises(UserError, match=rf"{broken.name} cannot be read \(.*replace the"):
            take(broken, "pictures[2]")
    # Pillow finds out only when the pixels are needed.
    with pytest.raises(UserError, match=r"^pictures\[2\] cannot be read \(.*replace the image"):
        take(Image.open(path), "pictures[2]")


def test_threads_may_ask_for_one_picture_that_is_not_decoded_yet(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (400, 500, 3), np.uint8)
    path = save(tmp_path, array, name="large.png")
    for _ in range(3):
        picture = Image.open(path)
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda p: as_image(p, ""), [picture] * 8))
        for result in results:
            np.testing.assert_array_equal(result, array)


# ----------------------------------------------------------------------------- masks


def check_label(picture, expected):
    result = as_label(picture, "masks[0]")
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, expected)


def test_truth_values_mean_class_1(tmp_path):
    mask = draw(high=2) > 0
    path = save(tmp_path, mask)
    assert Image.open(path).mode == "1"
    for picture in (*forms(path), mask, jnp.asarray(mask), mask.astype(np.int64)):
        check_label(picture, mask)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_masks_of_black_and_white_mean_class_1(tmp_path, dtype):
    white = np.iinfo(dtype).max
    mask = draw(high=2)
    array = mask.astype(dtype) * white
    for picture in (*forms(save(tmp_path, array)), array):
        check_label(picture, mask)
    check_label(np.full((3, 4), white, dtype), np.ones((3, 4)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint16])
def test_numbers_mean_classes_in_their_order(dtype):
    array = np.random.default_rng(0).choice(np.array([0, 1, 2, 253, 254, 255], dtype), (50, 70))
    labels, numbers = as_labels([array, array % 254], ["", ""])
    assert numbers == (1, 2, 253)
    expected = np.where(array == 253, 3, array)
    np.testing.assert_array_equal(labels[0], expected)
    np.testing.assert_array_equal(labels[1], np.where(array > 253, array % 254, expected))


def test_numbers_in_files_mean_themselves(tmp_path):
    array = np.random.default_rng(0).choice(np.array([0, 1, 2, 3], np.uint8), (HEIGHT, WIDTH))
    array[0, 0], array[0, 1:4] = 255, (1, 2, 3)
    colours = draw(3, seed=1)
    colours[0, 0] = 0
    path = save_palette(tmp_path / "palette.png", array, colours)
    for picture in (*forms(path), *forms(save(tmp_path, array))):
        check_label(picture, array)


@pytest.mark.parametrize("channels", [3, 4])
def test_any_colour_but_black_means_class_1(tmp_path, channels):
    array = np.zeros((HEIGHT, WIDTH, channels), np.uint8)
    array[..., 3:] = 255
    array[1, 2], array[3, 4, 0], array[4, 0, 2] = 255, 9, 1
    expected = np.zeros((HEIGHT, WIDTH))
    expected[[1, 3, 4], [2, 4, 0]] = 1
    for picture in (*forms(save(tmp_path, array)), array):
        check_label(picture, expected)


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.zeros((4, 5)), r"is an array of float64 and shape \(4, 5\): a mask is a path"),
        (np.zeros((4, 5, 2), np.uint8), r"is an array of uint8 and shape \(4, 5, 2\): a mask is"),
        (np.zeros((1, 4, 5), bool), r"is an array of bool and shape \(1, 4, 5\): a mask is"),
        (np.array([[0, 256]]), r"has the value 256: classes are numbered 1..253"),
        (np.array([[-1, 1]]), r"has the value -1: classes are numbered"),
        (np.array([[1, 1000]]), r"has the value 1000: classes are numbered"),
        (None, r"is an array of object and shape \(\): a mask is"),
    ],
)
def test_what_is_no_mask_is_told(array, sentence):
    with pytest.raises(UserError, match=rf"^masks\[1\] {sentence}"):
        as_label(array, "masks[1]")


# ----------------------------------------------------------------------------- boxes


def inside(boxes):
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return sum((x0 <= x) & (x < x1) & (y0 <= y) & (y < y1) for x0, y0, x1, y1 in boxes) > 0


@pytest.mark.parametrize(
    "boxes",
    [
        (1, 2, 4, 5),
        [(1, 2, 4, 5)],
        [(0, 0, 2, 2), (1, 1, 5, 3)],
        (-3, -4, 3, 2),  # as far as the image goes
        (3, 1, 100, 90),
        np.array([[2, 0, 3, 1], [6, 4, 7, 5]]),
        (1.4, 1.6, 3.9, 5.2),  # rounded
    ],
)
def test_a_box_is_the_class_inside_of_it(boxes):
    expected = inside(np.round(np.reshape(boxes, (-1, 4))))
    assert expected.any()
    label = boxes_label(boxes, (HEIGHT, WIDTH), "boxes[0]")
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, expected)


@pytest.mark.parametrize(
    ("boxes", "sentence"),
    [
        ((4, 2, 1, 5), r"the box \(4, 2, 1, 5\), which is empty or outside of the image of 7 x"),
        ((1, 2, 1, 5), "which is empty or outside"),
        ((7, 0, 9, 3), r"has the box \(7, 0, 9, 3\), which is empty or outside"),
        ((-9, -9, 0, 0), "which is empty or outside"),
        ([(0, 0, 2, 2), (0, 5, 2, 6)], r"has the box \(0, 5, 2, 6\)"),
        ((1, 2, 3), r"= \(1, 2, 3\): boxes are \(left, top, right, bottom\)"),
        ("1 2 3 4", "= '1 2 3 4': boxes are"),
        ((0, 0, float("nan"), 4), "= .*nan.*: boxes are"),
        ([(1, 2, 3, 4), (1, 2)], "boxes are"),
        (np.zeros((0, 4)), "is empty: give a box"),
        ([], "boxes are"),
        (None, "= None: boxes are"),
    ],
)
def test_what_is_no_box_is_told(boxes, sentence):
    with pytest.raises(UserError, match=rf"^boxes\[2\].*{sentence}"):
        boxes_label(boxes, (HEIGHT, WIDTH), "boxes[2]")
