"""Augmentations are drawn as documented, and both pipelines apply them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from helpers_data import ALL, assert_same_picture, options
from ml_collections import ConfigDict
from PIL import Image

from fsseg_jax.data.pipelines import device, tfdata
from fsseg_jax.data.pipelines.augment import Geometry, draw_geometry, episode_geometry
from fsseg_jax.data.sampling import random_bits
from fsseg_jax.data.squares import read_square

SEED = 5


# ----------------------------------------------------------------------------- draws


def test_draws_have_the_documented_distributions():
    """By quantiles of scale, offset, angle and flip, derived from the map."""
    count, size = 4000, 200
    geometry = draw_geometry(SEED, np.arange(count), size, ALL)
    (a, b), (c, d) = np.moveaxis(geometry.matrix, 0, -1)
    flipped = a * d - b * c < 0
    np.testing.assert_allclose(a * d - b * c, np.where(flipped, -1, 1), atol=1e-5)  # no scaling
    np.testing.assert_array_equal(geometry.side, np.round(geometry.side))
    centre = geometry.matrix @ np.full(2, size / 2) + geometry.shift
    offset = np.round(centre - size / 2)
    np.testing.assert_allclose(offset, centre - size / 2, atol=1e-3)  # whole pixels
    uniform = {
        "scale": (geometry.side / size - 0.6) / 1.2,
        "angle": (np.degrees(np.arctan2(-b, d)) + 40) / 80,
    }
    free = np.abs(geometry.side - size) > 20
    for axis, name in enumerate("xy"):
        uniform[name] = offset[free, axis] / (geometry.side[free] - size)
    for name, values in uniform.items():
        for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
            share = (values < quantile).mean()
            deviation = np.sqrt(quantile * (1 - quantile) / len(values))
            assert abs(share - quantile) < 4 * deviation + 0.03, (name, quantile)  # whole pixels
        assert values.min() > -0.03
        assert values.max() < 1.03
    assert abs(flipped.mean() - 0.5) < 4 * np.sqrt(0.25 / count)
    independent = np.stack([*(uniform[name][free] for name in ("scale", "angle")), flipped[free]])
    assert np.abs(np.corrcoef(independent) - np.eye(3)).max() < 0.08


def test_draws_inside_a_compiled_function_are_the_same():
    number = np.arange(12).reshape(3, 4) * 10**8
    for settings in (ALL, options(), options(flip=True)):
        compiled = jax.jit(lambda n, settings=settings: draw_geometry(3, n, 97, settings, jnp))
        here = draw_geometry(3, number, 97, settings)
        for ours, theirs in zip(compiled(number), here, strict=True):
            assert ours.dtype == theirs.dtype == np.float32
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("query", [True, False])
def test_queries_are_augmented_if_asked_for(query):
    settings = ConfigDict({**ALL.to_dict(), "query": query})
    drawn = episode_geometry(SEED, np.arange(50), 3, 40, settings)
    compiled = jax.jit(lambda index: episode_geometry(SEED, index, 3, 40, settings, jnp))
    for here, there in zip(drawn, compiled(np.arange(50)), strict=True):
        np.testing.assert_allclose(here, there, atol=1e-4)
    plain = (
        (drawn.side == 40) & (drawn.matrix == np.eye(2)).all((-2, -1)) & (drawn.shift == 0).all(-1)
    )
    assert not plain[:, :2].any()
    assert plain[:, 2].all() != query


def test_queries_may_be_flipped_and_turned_alone():
    settings = ConfigDict({**ALL.to_dict(), "crop_query": False})
    drawn = episode_geometry(SEED, np.arange(50), 3, 40, settings)
    whole = episode_geometry(SEED, np.arange(50), 3, 40, ALL)
    for here, there in zip(drawn, whole, strict=True):
        np.testing.assert_array_equal(here[:, :2], there[:, :2])
    np.testing.assert_array_equal(drawn.matrix, whole.matrix)
    assert (drawn.side[:, 2] == 40).all()
    assert not (whole.side[:, 2] == 40).all()
    centre = drawn.matrix[:, 2] @ np.array([20.0, 20.0]) + drawn.shift[:, 2]
    np.testing.assert_allclose(centre, 20, atol=1e-4)  # of the whole image


# ----------------------------------------------------------------------------- images

OUTSIDE = np.full(3, round(255 * (0.485 + 0.456 + 0.406) / 3))  # ImageNet's mean brightness


def in_tensorflow(image, label, size, settings):
    """Augments by the tf.data pipeline's function."""
    run = tf.function(
        lambda *geometry: tfdata.augment(image, label[..., None], Geometry(*geometry), size)
    )
    return lambda geometry: [x.numpy() for x in run(*map(tf.constant, geometry))]


def on_device(image, label, size, settings):
    """Augments by the device pipeline's functions, from a square of the image's own size."""
    assert image.shape[0] == image.shape[1]
    pixels = jnp.asarray(np.concatenate([image, label[..., None]], axis=-1))
    if settings.rotation:
        largest = round(size * settings.scale[1])
        run = jax.jit(lambda geometry: device.rotated(pixels, geometry, size, largest))
    else:
        run = jax.jit(lambda geometry: device.upright(pixels, geometry, size))

    def results(geometry):
        image, codes = run(geometry)
        return np.asarray(image), np.asarray(codes)[..., 0]

    return results


@pytest.fixture(params=[in_tensorflow, on_device])
def augmented(request):
    """A function that augments an image as number `numbers`."""

    def results(image, label, numbers, size, settings):
        run = request.param(image, label, size, settings)
        for number in numbers:
            geometry = draw_geometry(SEED, np.array([number]), size, settings)
            yield run(Geometry(*(field[0] for field in geometry)))

    return results


@pytest.fixture
def labelled(make_source):
    """A square image and its label."""
    return read_square(make_source(images=1), 0, 50)


@pytest.mark.parametrize("size", [24, 40, 97])
def test_without_options_images_are_resized_as_pillow_does(augmented, labelled, size):
    image, label = labelled
    ((square, square_label),) = augmented(image, label, [0], size, options())
    assert square.dtype == square_label.dtype == np.uint8
    expected = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    assert_same_picture(square, np.asarray(expected))
    expected = np.asarray(Image.fromarray(label).resize((size, size), Image.Resampling.NEAREST))
    position = (np.arange(size) + 0.5) * 50 / size
    sure = np.abs(position - np.round(position)) > 1e-6  # not between two pixels of the file
    np.testing.assert_array_equal(square_label[sure][:, sure], expected[sure][:, sure])


def test_every_label_value_survives(augmented):
    label = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.zeros((16, 16, 3), np.uint8)
    ((_, result),) = augmented(image, label, [0], 16, options())
    np.testing.assert_array_equal(result, label)


def test_a_flip_is_the_mirror_half_the_time(augmented, labelled):
    ((plain, plain_label),) = augmented(*labelled, [0], 31, options())
    flips = 0
    for result, result_label in augmented(*labelled, range(200), 31, options(flip=True)):
        flipped = (result[:, ::-1] == plain).all()
        assert flipped or (result == plain).all()
        mirrored = result_label[:, ::-1] if flipped else result_label
        np.testing.assert_array_equal(mirrored, plain_label)
        flips += flipped
    assert 70 < flips < 130  # four standard deviations


@pytest.mark.parametrize("scale", [1.5, 2.0])
def test_enlarged_images_are_cropped_at_random(augmented, labelled, scale):
    image, _ = labelled
    size, side = 20, int(20 * scale)
    label = np.zeros(image.shape[:2], np.uint8)
    square = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(square), (size, size), (0, 1))
    windows = np.moveaxis(windows, 2, -1).astype(int)  # by row and column of the corner
    found = []
    for result, result_label in augmented(
        image, label, range(60), size, options(scale=[scale] * 2)
    ):
        errors = np.abs(windows - result).max((2, 3, 4))
        corner = np.unravel_index(errors.argmin(), errors.shape)
        assert errors[corner] <= 2
        assert not result_label.any()
        found.append(corner)
    for axis in (0, 1):
        corners = [corner[axis] for corner in found]
        assert min(corners) < 0.15 * (side - size)
        assert max(corners) > 0.85 * (side - size)
    assert np.abs(np.corrcoef(np.transpose(found))[0, 1]) < 0.5


def test_outside_is_ignored_and_of_mean_brightness(augmented, labelled):
    image, label = labelled
    label = np.where(label == 255, 0, label)
    places = set()
    for result, result_label in augmented(image, label, range(20), 32, options(scale=(0.5, 0.5))):
        outside = result_label == 255
        assert outside.sum() == 32 * 32 - 16 * 16
        rows, columns = np.nonzero(~outside)
        assert (np.ptp(rows), np.ptp(columns)) == (15, 15)  # a square
        assert (result[outside] == OUTSIDE).all()
        inside = result[~outside].reshape(16, 16, 3)
        expected = Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR)
        assert_same_picture(inside, np.asarray(expected))
        places.add((rows.min(), columns.min()))
    assert len(places) > 10


@pytest.mark.parametrize("rotation", [0.0, 40.0])
def test_image_and_label_share_the_geometry(augmented, rotation):
    """Inside of objects, colours and labels still correspond."""
    colours = np.array([[0, 0, 0], [250, 0, 0], [0, 250, 0], [0, 0, 250]], np.uint8)
    label = np.zeros((90, 90), np.uint8)
    label[10:50, 5:30], label[20:80, 40:60], label[60:85, 5:35] = 1, 2, 3
    seen = np.zeros(256, int)
    settings = options(flip=True, scale=(0.6, 1.8), rotation=rotation)
    for result, result_label in augmented(colours[label], label, range(30), 64, settings):
        neighbours = np.lib.stride_tricks.sliding_window_view(result_label, (5, 5))
        uniform = (neighbours == neighbours[..., :1, :1]).all((-2, -1))
        values = result_label[2:-2, 2:-2][uniform]
        expected = np.where((values == 255)[:, None], OUTSIDE, colours[values % 255])
        assert np.abs(result[2:-2, 2:-2][uniform].astype(int) - expected).max() <= 3
        seen += np.bincount(values, minlength=256)
    assert (seen[[0, 1, 2, 3, 255]] > 1000).all()


def by_documented_steps(label, number, size):
    """Resizes, rotates about the window's centre, crops and flips step by step in NumPy."""
    bits = [int(random_bits(SEED, np.array([number]), 1000 + draw)[0]) for draw in range(5)]
    draws = [(b >> 8) / 2**24 for b in bits]
    height, width = label.shape
    side = round(size * (0.6 + 1.2 * draws[0]))
    left, top = (round((side - size) * draw) for draw in draws[1:3])
    turn = np.radians(40 * (2 * draws[3] - 1))
    expected = np.full((size, size), 255, np.uint8)
    for row, column in np.ndindex(size, size):
        x, y = column + 0.5 - size / 2, row + 0.5 - size / 2  # from the window's centre
        if draws[4] < 0.5:
            x = -x
        x, y = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
        x, y = x + size / 2 + left, y + size / 2 + top  # in the square
        x, y = int(np.floor(x * width / side)), int(np.floor(y * height / side))
        if 0 <= x < width and 0 <= y < height:
            expected[row, column] = label[y, x]
    return expected


def test_label_is_sampled_where_the_documented_steps_lead(augmented):
    label = np.random.default_rng(0).integers(0, 21, (10, 10)).astype(np.uint8)
    label = label.repeat(6, axis=0).repeat(6, axis=1)
    image = np.zeros((60, 60, 3), np.uint8)
    for number, (_, result) in enumerate(augmented(image, label, range(20), 40, ALL)):
        assert (result != by_documented_steps(label, number, 40)).mean() < 0.005


def test_images_that_are_not_square_are_made_so(make_source):
    """For tf.data only, as the device holds squares."""
    for number in range(4):
        image, label = make_source(images=4).read(number)
        assert image.shape[0] != image.shape[1]
        run = in_tensorflow(image, label, 40, ALL)
        for n in range(3):
            geometry = draw_geometry(SEED, np.array([n]), 40, ALL)
            result, result_label = run(Geometry(*(field[0] for field in geometry)))
            assert (result_label != by_documented_steps(label, n, 40)).mean() < 0.005
            assert result.shape == (40, 40, 3)
