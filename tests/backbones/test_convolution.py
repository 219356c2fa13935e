"""The convolution and its gradients are XLA's own, however they are computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, assert_trees_close
from jax.lax import conv_general_dilated

from fsseg_jax.backbones.convolution import CHANNELS_LAST, Conv, convolve, max_pool
from fsseg_jax.cpu.winograd import suits_winograd, winograd


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

    def score(x, kernel, function):
        return jnp.sum(jnp.sin(function(x, kernel, **settings)))

    def score_of_gradient(x, kernel, function):
        return jnp.sum(jax.grad(score)(x, kernel, function) ** 2)

    for scored in (score, score_of_gradient):
        gradients = jax.jit(jax.grad(scored, (0, 1)), static_argnums=2)
        ours, theirs = gradients(x, kernel, convolve), gradients(x, kernel, conv_general_dilated)
        assert_trees_close(ours, theirs, 1e-5)


@pytest.mark.parametrize(("dilation", "convolutions"), [(2, 2), (1, 3)])
def test_on_gpus_kernel_gradients_of_dilated_convolutions_are_products(
    monkeypatch, dilation, convolutions
):
    """XLA computes three convolutions, the result and its two gradients. If they are dilated, ours
    are two: cuDNN is slow at that of the kernel."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, 2, 9, 10, 3), np.float32)  # two batches of two images
    kernel = rng.standard_normal((3, 3, 3, 4), np.float32)

    def score(x, kernel, function):
        padding = [(dilation, dilation)] * 2
        settings = {"rhs_dilation": (dilation, dilation), "dimension_numbers": CHANNELS_LAST}
        one = functools.partial(function, window_strides=(1, 1), padding=padding, **settings)
        return jnp.sum(jnp.sin(jax.vmap(lambda x: one(x, kernel))(x)))

    gradients = jax.grad(score, (0, 1))
    program = jax.make_jaxpr(gradients, static_argnums=2)(x, kernel, convolve)
    assert str(program).count("conv_general_dilated[") == convolutions
    theirs = gradients(x, kernel, conv_general_dilated)
    assert_trees_close(gradients(x, kernel, convolve), theirs, 1e-5)


def test_layer_has_the_gradients_of_finite_differences_under_vmap_in_a_loop_and_in_bfloat16():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, 6, 7, 2), np.float32)  # three batches of one image
    layer = Conv(4, (3, 3), 2, 1)
    params = jax.jit(layer.init)(jax.random.key(0), x[0])

    def score(params, x, layer=layer):
        return jnp.mean(jnp.tanh(layer.apply(params, x)).astype(jnp.float32) ** 2)

    @functools.partial(jax.jit, static_argnums=1)
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

    zeros = jax.tree.map(np.zeros_like, params)
    total, _ = jax.lax.scan(add, zeros, x)
    np.testing.assert_allclose(total["params"]["kernel"] / 3, gradient, atol=1e-6)
    coarse = jax.grad(over_batch)(params, Conv(4, (3, 3), 2, 1, dtype=jnp.bfloat16))
    np.testing.assert_allclose(coarse["params"]["kernel"], gradient, atol=3e-3)


def test_unusual_convolutions_are_left_to_xla():
    x, kernel = np.ones((1, 4, 4, 4), np.float32), np.ones((3, 3, 2, 4), np.float32)
    settings = ((1, 1), "SAME", None, (1, 1), CHANNELS_LAST)
    ours = convolve(x, kernel, *settings, feature_group_count=2)
    theirs = conv_general_dilated(x, kernel, *settings, feature_group_count=2)
    np.testing.assert_array_equal(ours, theirs)


# ------------------------------------------------------------------------- by Winograd's products


def correlate(x, kernel, padding, dilation):
    """The convolution of 3 x 3 as its definition says, which is quick to differentiate."""
    padded = jnp.pad(x, [(0, 0), *padding, (0, 0)])
    height, width = (n - 2 * dilation for n in padded.shape[1:3])
    total = 0
    for row, column in np.ndindex(3, 3):
        down, right = row * dilation, column * dilation
        seen = padded[:, down : down + height, right : right + width]
        total += jnp.einsum("bhwc,cd->bhwd", seen, kernel[row, column])
    return total


@pytest.mark.parametrize(
    ("shape", "padding", "dilation"),
    [
        ((7, 10), ((0, 0), (2, 1)), 1),
        ((3, 4), ((0, 0), (0, 3)), 1),
        ((11, 6), ((0, 3), (1, 0)), 2),
        ((14, 13), ((3, 0), (3, 4)), 3),
    ],
)
def test_winograd_is_the_convolution_at_any_size_padding_and_dilation(shape, padding, dilation):
    rng = np.random.default_rng(4)
    x = rng.standard_normal((2, *shape, 5), np.float32)
    kernel = rng.standard_normal((3, 3, 5, 7), np.float32)
    result = winograd(x, kernel, padding, dilation)
    expected = jax.jit(correlate, static_argnums=(2, 3))(x, kernel, padding, dilation)
    assert_close(result, expected, 1e-6)


def test_winograd_is_only_for_wide_convolutions_of_three_in_float32():
    def suits(shape=(16, 20), size=3, dtype="float32", strides=(1, 1), dilation=(1, 1), **wide):
        before, after = wide.get("before", 256), wide.get("after", 300)
        x = jnp.zeros((1, *shape, before), dtype)
        kernel = jnp.zeros((size, size, before, after), dtype)
        return suits_winograd(x, kernel, strides, dilation)

    assert suits()
    assert suits(shape=(32, 40), dilation=(2, 2))
    assert not suits(size=1)
    assert not suits(size=5)
    assert not suits(dtype="bfloat16")
    assert not suits(strides=(2, 2))
    assert not suits(dilation=(1, 2))
    assert not suits(before=255)
    assert not suits(after=255)
    assert not suits(shape=(20, 15))
    assert not suits(shape=(32, 31), dilation=(2, 2))


@pytest.mark.parametrize(
    ("shape", "padding", "dilation"),
    [((16, 19), [(1, 1), (2, 1)], 1), ((33, 32), [(2, 2), (1, 4)], 2)],
)
def test_wide_convolutions_and_their_gradients_are_those_of_the_definition(
    shape, padding, dilation, find_operations
):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2 // dilation, *shape, 256), np.float32)
    kernel = rng.standard_normal((3, 3, 256, 260), np.float32) / 48
    settings = ((1, 1), padding, None, (dilation, dilation), CHANNELS_LAST)

    def ours(x, kernel):
        return convolve(x, kernel, *settings)

    def theirs(x, kernel):
        return correlate(x, kernel, padding, dilation)

    def results(x, kernel, function):
        """The convolution, the gradients of a score of it, and those of a score of these."""

        def score(x, kernel):
            y = function(x, kernel)
            return jnp.sum(jnp.sin(y)), y

        def of_gradients(x, kernel):
            gradients, y = jax.grad(score, (0, 1), has_aux=True)(x, kernel)
            return jnp.sum(jnp.cos(gradients[0])), (gradients, y)

        return jax.grad(of_gradients, (0, 1), has_aux=True)(x, kernel)

    run = jax.jit(results, static_argnums=2)
    assert not find_operations(run.trace(x, kernel, ours).jaxpr.jaxpr, "conv_general_dilated")
    computed = run(x, kernel, ours)
    assert_trees_close(computed, run(x, kernel, theirs), 1e-5)
    _, (_, y) = computed
    assert_close(y, conv_general_dilated(x, kernel, *settings), 1e-5)


# ------------------------------------------------------------------------------------- max-pooling


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(7, 10), (8, 9)])
def test_pooling_and_its_gradient_are_those_of_windows(stride, shape):
    """Of whole numbers, so that there are ties, which go to the first position."""
    rng = np.random.default_rng(2)
    x = rng.integers(-3, 3, (2, 3, *shape, 2)).astype(np.float32)
    height, width = ((n - 1) // stride + 1 for n in shape)
    cotangent = rng.standard_normal((2, 3, height, width, 2), np.float32)

    @jax.jit
    def pool(x, cotangent):
        result, transpose = jax.vjp(lambda x: max_pool(x, stride), x)
        return result, *transpose(cotangent)

    result, transposed = map(np.asarray, pool(x, cotangent))
    assert result.shape == cotangent.shape
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-np.inf)
    gradient = np.zeros_like(padded)
    for *at, row, column, channel in np.ndindex(*result.shape):
        rows = slice(stride * row, stride * row + 3)
        window = padded[(*at, rows, slice(stride * column, stride * column + 3), channel)]
        assert result[(*at, row, column, channel)] == window.max()
        down, right = divmod(int(window.argmax()), 3)
        position = (*at, stride * row + down, stride * column + right, channel)
        gradient[position] += cotangent[(*at, row, column, channel)]
    np.testing.assert_allclose(transposed, gradient[:, :, 1:-1, 1:-1], atol=1e-5)
