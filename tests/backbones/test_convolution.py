"""The convolution's gradients are XLA's own, however it is asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsseg_jax.backbones.convolution import CHANNELS_LAST, Conv, convolve, max_pool


@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation"),
    [
        *((3, 1, 1, 1), (3, 1, 2, 2), (3, 2, 1, 1), (7, 2, 3, 1), (1, 2, 0, 1), (5, 3, 1, 2)),
        *((4, 2, "SAME", 2), (3, 1, "VALID", 1)),
    ],
)
def test_gradients_are_those_of_the_plain_convolution(size, stride, padding, dilation):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 13, 18, 3), np.float32)
    kernel = rng.standard_normal((size, size, 3, 4), np.float32)
    settings = {
        "window_strides": (stride, stride),
        "padding": padding if isinstance(padding, str) else [(padding, padding)] * 2,
        "rhs_dilation": (dilation, dilation),
        "dimension_numbers": CHANNELS_LAST,
    }

    def gradients(function):
        def score(x, kernel):
            return jnp.sum(jnp.sin(function(x, kernel, **settings)))

        return jax.grad(score, (0, 1))(x, kernel)

    def gradients_of_gradients(function):
        def score(x, kernel):
            inner = jax.grad(lambda x: jnp.sum(jnp.sin(function(x, kernel, **settings))))(x)
            return jnp.sum(inner**2)

        return jax.grad(score, (0, 1))(x, kernel)

    for differentiate in (gradients, gradients_of_gradients):
        for ours, theirs in zip(
            differentiate(convolve), differentiate(jax.lax.conv_general_dilated), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_layer_has_the_gradients_of_finite_differences_under_vmap_in_a_loop_and_in_bfloat16():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, 6, 7, 2), np.float32)  # three batches of one photograph
    layer = Conv(4, (3, 3), 2, 1)
    params = layer.init(jax.random.key(0), x[0])

    def score(params, x, layer=layer):
        return jnp.mean(jnp.tanh(layer.apply(params, x)).astype(jnp.float32) ** 2)

    def over_batch(params, layer=layer):
        return jax.vmap(lambda x: score(params, x, layer))(x).mean()

    gradient = jax.grad(over_batch)(params)["params"]["kernel"]
    direction = rng.standard_normal(gradient.shape, np.float32)

    def moved(step):
        kernel = params["params"]["kernel"] + step * direction
        return float(over_batch({"params": {**params["params"], "kernel": kernel}}))

    difference = (moved(1e-2) - moved(-1e-2)) / 2e-2
    np.testing.assert_allclose(jnp.vdot(gradient, direction), difference, rtol=5e-3)

    def add(total, x):
        return jax.tree.map(jnp.add, total, jax.grad(score)(params, x)), None

    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), x)
    np.testing.assert_allclose(total["params"]["kernel"] / 3, gradient, atol=1e-6)
    coarse = jax.grad(over_batch)(params, Conv(4, (3, 3), 2, 1, dtype=jnp.bfloat16))
    np.testing.assert_allclose(coarse["params"]["kernel"], gradient, atol=3e-3)


def test_unusual_convolutions_are_left_to_xla():
    x, kernel = np.ones((1, 4, 4, 4), np.float32), np.ones((3, 3, 2, 4), np.float32)
    settings = ((1, 1), "SAME", None, (1, 1), CHANNELS_LAST)
    ours = convolve(x, kernel, *settings, feature_group_count=2)
    theirs = jax.lax.conv_general_dilated(x, kernel, *settings, feature_group_count=2)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(7, 10), (8, 9)])
def test_pooling_and_its_gradient_are_those_of_windows(stride, shape):
    """Of whole numbers, so that there are ties, which go to the first position."""
    rng = np.random.default_rng(2)
    x = rng.integers(-3, 3, (2, 3, *shape, 2)).astype(np.float32)
    result, transpose = jax.vjp(lambda x: max_pool(x, stride), x)
    height, width = ((n - 1) // stride + 1 for n in shape)
    assert result.shape == (2, 3, height, width, 2)
    cotangent = rng.standard_normal(result.shape).astype(np.float32)
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-np.inf)
    gradient = np.zeros_like(padded)
    for *at, row, column, channel in np.ndindex(*result.shape):
        rows = slice(stride * row, stride * row + 3)
        window = padded[(*at, rows, slice(stride * column, stride * column + 3), channel)]
        assert result[(*at, row, column, channel)] == window.max()
        down, right = divmod(int(window.argmax()), 3)
        position = (*at, stride * row + down, stride * column + right, channel)
        gradient[position] += cotangent[(*at, row, column, channel)]
    np.testing.assert_allclose(transpose(cotangent)[0], gradient[:, :, 1:-1, 1:-1], atol=1e-5)
