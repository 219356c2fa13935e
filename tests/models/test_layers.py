"""Pooling, cosine and cross-entropy are what PyTorch computes the long way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random, up_sampled, value_and_gradients

from fsseg_jax.models.layers import (
    JoinedConvolution,
    convolution,
    cosine_similarity,
    masked_average_pool,
)

CORNERS = pytest.mark.parametrize("align_corners", [False, True])
EPSILON = 1e-5


# ----------------------------------------------------------------------------- pooling


@CORNERS
@pytest.mark.parametrize("shape", [(33, 45), (6, 7), (3, 4)])
def test_pooling_matches_pooling_of_up_sampled_features(torch, shape, align_corners):
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


@CORNERS
def test_empty_mask_gives_zeros_and_no_gradient(align_corners):
    def pool(features):
        return masked_average_pool(features, jnp.zeros((1, 20, 24)), EPSILON, align_corners)[0]

    result, [gradient] = value_and_gradients(pool, np.ones(4), random(5, 6, 4))
    np.testing.assert_array_equal(result, np.zeros(4))
    np.testing.assert_array_equal(gradient, np.zeros((5, 6, 4)))


# ----------------------------------------------------------------------------- cosine


def test_cosine_matches_pytorch(torch):
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


def test_cosine_gradient_matches_pytorch(torch):
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
