"""Small masks at the resolution of features, unmarked pixels, and symmetries of methods."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, is_close

from fsseg_jax.episode import BATCH_AXIS, Episode
from fsseg_jax.models import METHODS
from fsseg_jax.models.method import support_labels
from fsseg_jax.models.panet import PANet
from fsseg_jax.models.resize import resize_masks

# ----------------------------------------------------------------------------- masks


def interpolated(masks, shape, align_corners):
    """Bilinear samples of masks at the positions of features, axis by axis."""
    for axis, n_out in ((-2, shape[0]), (-1, shape[1])):
        n_in = masks.shape[axis]
        if align_corners:
            position = np.linspace(0, n_in - 1, n_out)
        else:
            position = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
        weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(n_in)))
        masks = np.moveaxis(np.moveaxis(masks, axis, -1) @ weights.T, -1, axis)
    return masks


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size", "features"), [((17, 17), (5, 5)), ((32, 24), (8, 6))])
def test_no_pixel_vanishes_between_the_positions_of_features(size, features, align_corners):
    """Masks of one pixel are interpolated if that retains them, and otherwise assigned to the
    positions around the pixel."""
    masks = np.eye(np.prod(size), dtype=np.float32).reshape(-1, *size)
    result = np.asarray(resize_masks(masks, features, align_corners))
    expected = interpolated(masks, features, align_corners)
    expected[expected < 1e-6] = 0
    seen = expected.any((1, 2))
    assert 0 < seen.mean() < 0.9
    np.testing.assert_allclose(result[seen], expected[seen], atol=1e-5)
    lost = result[~seen]
    np.testing.assert_allclose(lost.max((1, 2)), 1, atol=1e-6)
    assert lost.min() >= 0
    for mask, pixel in zip(lost, np.argwhere(masks.any(0))[~seen], strict=True):
        if align_corners:
            position = pixel * (np.subtract(features, 1) / np.subtract(size, 1))
        else:
            position = (pixel + 0.5) * features / np.array(size) - 0.5
        distance = np.abs(np.argwhere(mask > 1e-6) - np.clip(position, 0, None))
        assert (distance < 1 + 1e-6).all()
        peak = np.unravel_index(mask.argmax(), mask.shape)
        assert (np.abs(peak - position) <= 0.5 + 1e-6).all()


@pytest.mark.parametrize("align_corners", [False, True])
def test_masks_that_survive_and_empty_ones_are_as_interpolated(align_corners):
    row, column = np.mgrid[:33, :41]
    masks = [np.hypot(row - 16, column - 6 * n) < 2 + 3 * n for n in range(5)]
    masks = np.stack([*masks, np.zeros((33, 41))])
    lost = np.zeros((1, 33, 41))
    lost[0, 2, 2] = 1  # does not change what becomes of the others
    result = np.asarray(resize_masks(np.concatenate([masks, lost]), (9, 11), align_corners))
    expected = interpolated(masks.astype(float), (9, 11), align_corners)
    survives = expected.any((1, 2))
    assert survives.sum() >= 4
    np.testing.assert_allclose(result[:-1][survives], expected[survives], atol=1e-5)
    assert not result[-2].any()
    assert result[-1].any()


# ----------------------------------------------------------------------------- methods


def test_unmarked_pixels_are_ignored_by_what_learns_from_a_support():
    label = np.array([[[[0, 1, 2, 254, 255]]], [[[0, 1, 2, 254, 255]]]], np.uint8)
    expected = [[[[0, 1, 0, 255, 255]]], [[[0, 0, 1, 255, 255]]]]
    np.testing.assert_array_equal(support_labels(label), expected)


def features_of(method, x):
    return {"support": x, "query": x} if method == "mfnet" else x


def compiled(method, mean=0.1, deviation=0.2, **options):
    """A function from support labels and features to the logits and the loss in training."""
    small = {"width": 8, "heads": 2, "dropout": 0.0, "refinement": False, "scales": 2}
    small["metric_positives"] = "none"
    fields = METHODS[method].__dataclass_fields__
    options |= {name: value for name, value in small.items() if name in fields}
    model = METHODS[method](backbone=None, **options)
    rng = np.random.default_rng(0)
    supports = rng.standard_normal((2, 2, 6, 7, 8), np.float32)
    query = jnp.asarray(rng.standard_normal((6, 7, 8), np.float32))
    image = rng.standard_normal((36, 42, 3), np.float32)
    truth = jnp.asarray(rng.integers(0, 3, (36, 42), np.uint8))

    def segment(function, label, support, **arguments):
        pair = features_of(method, support), label, features_of(method, query), image
        return function(*pair, train=True, method="segment", **arguments)

    # Drawn, because compiling the initialisation takes long.
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    shapes = jax.eval_shape(
        functools.partial(segment, functools.partial(model.init, keys)), partly_marked(), supports
    )
    variables = jax.tree.map(lambda x: rng.normal(mean, deviation, x.shape).astype(x.dtype), shapes)

    def run(label, support):
        apply = functools.partial(model.apply, variables)
        output, _ = segment(
            apply, label, support, rngs={"dropout": keys["dropout"]}, mutable=["batch_stats"]
        )
        episode = Episode(None, label, image, truth, jnp.arange(2), None)
        loss, _ = model.loss(output, episode, jax.random.key(2), jnp.float32(10))
        return output.logits, loss

    batched = jax.jit(jax.vmap(run, axis_name=BATCH_AXIS))
    return lambda label, order=...: [
        np.asarray(x)[0] for x in batched(label[None], supports[order][None])
    ]


def partly_marked():
    return np.random.default_rng(0).choice(
        np.array([0, 1, 2, 254, 255], np.uint8), (2, 2, 36, 42), p=[0.2, 0.15, 0.15, 0.4, 0.1]
    )


# Whether the logits depend on what is background in a support, and whether the loss does.
BACKGROUND_COUNTS = {
    "panet": (True, True),
    "canet": (False, False),
    "sst": (True, True),
    "ltafnet": (False, True),
    "mfnet": (False, False),
}


@pytest.mark.parametrize("method", METHODS)
def test_unmarked_pixels_are_neither_the_class_nor_background(method):
    """They are treated as ignored pixels are, unless these count as background."""
    options = {"ignored_is_background": False} if method == "panet" else {}
    run = compiled(method, **options)
    label = partly_marked()
    expected = run(label)
    assert all(np.isfinite(x).all() for x in expected)
    for result, value in zip(run(np.where(label == 254, 255, label)), expected, strict=True):
        np.testing.assert_array_equal(result, value)
    as_background = run(np.where(label == 254, 0, label))
    changed = [(x != y).any() for x, y in zip(as_background, expected, strict=True)]
    assert tuple(changed) == BACKGROUND_COUNTS[method]
    own = np.arange(1, 3, dtype=np.uint8)[:, None, None, None]
    as_class = run(np.where(label == 254, own, label))
    assert all((x != y).any() for x, y in zip(as_class, expected, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_order_of_shots_does_not_matter_and_that_of_ways_permutes_the_logits(method):
    """MFNet's ways are equal if each has a decoder's pass of its own."""
    options = {"binary_branches": True} if method == "mfnet" else {}
    run = compiled(method, 0.0, 0.15, **options)
    label, swap = partly_marked(), np.arange(256, dtype=np.uint8)
    swap[[1, 2]] = [2, 1]
    logits, loss = run(label)
    shots = [[0], [1]], [[1, 0], [0, 1]]  # another order for each way
    other_order, other_loss = run(label[shots], shots)
    assert_close(other_order, logits, 1e-5)
    assert_close(other_loss, loss, 1e-5)
    assert not is_close(run(label, shots)[0], logits, 1e-2)  # the pairs matter
    other_ways, _ = run(swap[label[::-1]], slice(None, None, -1))
    assert_close(other_ways, logits[..., [0, 2, 1]], 1e-5)
    assert not is_close(other_ways, logits, 1e-2)


def test_panet_averages_marked_pixels_alone():
    """It treats 255 as background, as published, but not unmarked pixels."""
    label = partly_marked()
    rng = np.random.default_rng(0)
    support = rng.standard_normal((2, 2, 6, 7, 8), np.float32)
    query = rng.standard_normal((6, 7, 8), np.float32)
    model = PANet(backbone=None)
    logits = model.apply(
        {}, support, label, query, np.zeros((36, 42, 3), np.float32), method="segment"
    ).logits
    large = np.asarray(jax.image.resize(support, (2, 2, 36, 42, 8), "bilinear"))
    background, foreground = [], [[], []]
    for way, shot in np.ndindex(2, 2):
        pixels, values = large[way, shot], label[way, shot]
        background.append(pixels[(values == 0) | (values == 255)].mean(axis=0))
        foreground[way].append(pixels[values == way + 1].mean(axis=0))
    prototypes = [np.mean(background, axis=0), *(np.mean(shots, axis=0) for shots in foreground)]
    for number, prototype in enumerate(prototypes):
        norms = np.linalg.norm(query, axis=-1) * np.linalg.norm(prototype)
        np.testing.assert_allclose(logits[..., number], 20 * (query @ prototype) / norms, atol=1e-3)
