"""Pooling, cosine and cross-entropy are what PyTorch computes the long way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsseg_jax.episode import IGNORE
from fsseg_jax.models.layers import (
    JoinedConvolution,
    convolution,
    cosine_similarity,
    cross_entropy,
    masked_average_pool,
)

CORNERS = pytest.mark.parametrize("align_corners", [False, True])
EPSILON = 1e-5


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def value_and_gradients(function, weight, *arguments):
    """What `function` gives, and the gradients of its sum weighted by `weight`."""

    @jax.jit
    def compiled(*arguments):
        value, pull = jax.vjp(function, *arguments)
        return value, pull(jnp.asarray(weight, jnp.float32))

    value, gradients = compiled(*arguments)
    return np.asarray(value), [np.asarray(gradient) for gradient in gradients]


def up_sampled(torch, x, shape, align_corners):
    """(n, h, w, c) features at `shape`, as (n, c, height, width)."""
    planes = torch.as_tensor(x).movedim(-1, 1)
    return torch.nn.functional.interpolate(
        planes, shape, mode="bilinear", align_corners=align_corners
    )


# ----------------------------------------------------------------------------- pooling


@CORNERS
@pytest.mark.parametrize("shape", [(33, 45), (6, 7), (3, 4)])
def test_pooling_matches_pooling_of_up_sampled_features(shape, align_corners):
    torch = pytest.importorskip("torch")
    features = random(3, 6, 7, 5)
    mask = np.zeros((3, *shape), np.float32)
    mask[0, : shape[0] // 2, 1:] = 1  # a rectangle that touches the border
    mask[1] = np.random.default_rng(1).random(shape) < 0.3  # scattered pixels
    mask[2, -1, -1] = 1  # a single pixel

    large = up_sampled(torch, features, shape, align_corners)
    weight = torch.tensor(mask)[:, None]
    expected = (large * weight).sum((2, 3)) / (weight.sum((2, 3)) + EPSILON)

    masks = np.stack([mask, 1 - mask], axis=1)
    result = masked_average_pool(features, masks, EPSILON, align_corners)
    other = (large * (1 - weight)).sum((2, 3)) / ((1 - weight).sum((2, 3)) + EPSILON)
    expected = torch.stack([expected, other], dim=1)
    np.testing.assert_allclose(result, expected, atol=1e-5, rtol=0)


def test_full_mask_gives_the_mean_of_the_features():
    """Where every feature is stretched by the same whole number, none counts more."""
    features = random(4, 4, 3)
    result = masked_average_pool(features, jnp.ones((1, 4, 4)), EPSILON, False)
    np.testing.assert_allclose(result[0], features.mean((0, 1)), atol=1e-5)


@CORNERS
def test_empty_mask_gives_zeros_and_no_gradient(align_corners):
    def pool(features):
        return masked_average_pool(features, jnp.zeros((1, 20, 24)), EPSILON, align_corners)[0]

    result, [gradient] = value_and_gradients(pool, np.ones(4), random(5, 6, 4))
    np.testing.assert_array_equal(result, np.zeros(4))
    np.testing.assert_array_equal(gradient, np.zeros((5, 6, 4)))


# ----------------------------------------------------------------------------- cosine


def test_cosine_matches_pytorch():
    torch = pytest.importorskip("torch")
    features, vectors = random(2, 4, 5, 6), random(2, 3, 6, seed=1)
    features[0, 0, 0] = 0  # zero vectors on both sides
    vectors[1, 2] = 0
    features[0, 1] *= 1e-3
    features[1, 1] *= 1e3
    expected = torch.nn.functional.cosine_similarity(
        torch.tensor(features)[:, :, :, None], torch.tensor(vectors)[:, None, None], dim=-1
    )
    result = np.asarray(cosine_similarity(features, vectors))
    assert result.shape == (2, 4, 5, 3)
    np.testing.assert_allclose(result, expected, atol=1e-5, rtol=0)
    assert not result[0, 0, 0].any()
    assert not result[1, :, :, 2].any()


def test_cosine_gradient_matches_pytorch():
    torch = pytest.importorskip("torch")
    features, vectors, weight = random(4, 5, 6), random(3, 6, seed=1), random(4, 5, 3, seed=2)
    leaves = [torch.tensor(x, requires_grad=True) for x in (features, vectors)]
    similarity = torch.nn.functional.cosine_similarity(leaves[0][:, :, None], leaves[1], dim=-1)
    (similarity * torch.tensor(weight)).sum().backward()

    _, gradients = value_and_gradients(cosine_similarity, weight, features, vectors)
    for result, leaf in zip(gradients, leaves, strict=True):
        np.testing.assert_allclose(result, leaf.grad, atol=1e-5, rtol=0)


def test_cosine_has_finite_gradients_at_zero_vectors():
    """A class that a prediction lacks has a zero prototype; training must survive it."""
    features, vectors = random(3, 4, 6), random(2, 6, seed=1)
    features[1, 1] = 0
    vectors[1] = 0
    weight = random(3, 4, 2, seed=2)
    _, [to_features, to_vectors] = value_and_gradients(cosine_similarity, weight, features, vectors)
    assert np.isfinite(to_features).all()
    assert np.isfinite(to_vectors).all()
    # A zero vector has no direction, so it pulls the features nowhere.
    _, [alone, _] = value_and_gradients(cosine_similarity, weight[..., :1], features, vectors[:1])
    np.testing.assert_allclose(to_features, alone, rtol=1e-5, atol=1e-5)


# ----------------------------------------------------------------------------- cross-entropy


def labels(shape, classes, seed=0):
    label = np.random.default_rng(seed).integers(0, classes, shape).astype(np.uint8)
    label[..., :3] = IGNORE
    return label


@CORNERS
def test_cross_entropy_matches_pytorch(align_corners):
    torch = pytest.importorskip("torch")
    logits, label = 5 * random(3, 5, 6, 4), labels((3, 21, 30), 4)
    label[1, :15] = IGNORE  # episodes count a different number of pixels

    leaf = torch.tensor(logits, requires_grad=True)
    large = up_sampled(torch, leaf, label.shape[1:], align_corners)
    target = torch.tensor(label).long()
    expected = torch.stack(
        [
            torch.nn.functional.cross_entropy(one[None], target[i : i + 1], ignore_index=255)
            for i, one in enumerate(large)
        ]
    )
    expected.sum().backward()

    result, [gradient] = value_and_gradients(
        lambda x: cross_entropy(x, label, align_corners), np.ones(3), logits
    )
    np.testing.assert_allclose(result, expected.detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, leaf.grad, atol=1e-5, rtol=0)


def test_ignored_pixels_count_for_nothing():
    """Logits that only ignored pixels see have no say: neither value nor gradient."""
    label = labels((12, 12), 2)
    label[:, 6:] = IGNORE
    logits = random(12, 12, 2)  # at the label's resolution: no pixel sees its neighbours
    changed = logits.copy()
    changed[:, 6:] = 100 * random(12, 6, 2, seed=1)

    loss = jax.jit(jax.value_and_grad(lambda x: cross_entropy(x, label, False)))
    (value, gradient), (changed_value, changed_gradient) = loss(logits), loss(changed)
    assert value == changed_value > 0
    assert not np.asarray(gradient)[:, 6:].any()
    np.testing.assert_array_equal(gradient, changed_gradient)


@CORNERS
def test_cross_entropy_of_nothing_is_zero(align_corners):
    label = np.full((2, 20, 24), IGNORE, np.uint8)
    label[1, 5:9, 5:9] = 1
    losses, [gradient] = value_and_gradients(
        lambda x: cross_entropy(x, label, align_corners), np.ones(2), random(2, 5, 6, 3)
    )
    assert losses[0] == 0
    assert losses[1] > 0
    assert not gradient[0].any()
    assert np.isfinite(gradient).all()
    assert gradient[1].any()


# ----------------------------------------------------------------------------- joined maps


@pytest.mark.parametrize("dilation", [1, 2, 6])
@pytest.mark.parametrize("size", [(5, 11), (2, 12), (13, 14)])
def test_joined_convolution_is_the_convolution_of_the_joined_maps(size, dilation):
    """One query, a map of each shot, and a vector of each way and shot."""
    x, extra, vector = random(*size, 3), random(4, *size, 2, seed=1), random(2, 4, 5, seed=2)
    maps = np.broadcast_to(x, (2, 4, *x.shape)), np.broadcast_to(extra, (2, *extra.shape))
    tiled = np.broadcast_to(vector[..., None, None, :], (2, 4, *size, 5))
    beside = np.concatenate([*maps, tiled], axis=-1)
    joined, plain = JoinedConvolution(6, dilation=dilation), convolution(6, dilation=dilation)

    @jax.jit
    def both(beside, x, extra, vector):
        key = jax.random.key(0)
        params, others = joined.init(key, x, extra, vector), plain.init(key, beside)
        kernel, bias = params["params"]["kernel"], params["params"]["bias"] + random(6, seed=3)
        whole, part = ({"params": {"kernel": k, "bias": bias}} for k in (kernel, kernel[:, :, :3]))
        results = joined.apply(whole, x, extra, vector), plain.apply(whole, beside)
        return params, others, (*results, joined.apply(part, x), plain.apply(part, x))

    params, others, (result, expected, alone, expected_alone) = both(beside, x, extra, vector)
    jax.tree.map(np.testing.assert_array_equal, params, others)
    assert result.shape == (2, 4, *size, 6)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    np.testing.assert_allclose(alone, expected_alone, atol=1e-5)
