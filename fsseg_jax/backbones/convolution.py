"""The convolution and the max-pooling of every network here, with gradients that are fast on CPUs.

XLA computes a kernel's gradient as a convolution whose window is a whole feature map: on a CPU at
a fifth of the forward pass's speed, and inside a compiled loop almost not at all, as the gradient
by the input too (https://github.com/jax-ml/jax/issues/12868). Here the first is a few matrix
products, and the second a convolution with the kernel turned round. Convolutions of 1 x 1 are
products from the start. Accelerators keep XLA's own.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

CHANNELS_LAST = jax.lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def convolve(
    lhs: Float[Array, "batch height width c"],
    rhs: Float[Array, "size size c d"],
    window_strides: Sequence[int],
    padding: Any,
    lhs_dilation: Any = None,
    rhs_dilation: Sequence[int] = (1, 1),
    dimension_numbers: Any = CHANNELS_LAST,
    feature_group_count: int = 1,
    **options: Any,
) -> Float[Array, "batch h w d"]:
    """`jax.lax.conv_general_dilated` of channels-last maps, whose arguments it takes.

    On a CPU only reverse-mode differentiation passes through it.
    """
    if isinstance(padding, str):
        window = [d * (n - 1) + 1 for n, d in zip(rhs.shape[:2], rhs_dilation, strict=True)]
        padding = jax.lax.padtype_to_pads(lhs.shape[1:3], window, window_strides, padding)
    plain = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        **options,
    )
    ordinary = (
        feature_group_count == 1
        and set(lhs_dilation or (1,)) == {1}
        and dimension_numbers == CHANNELS_LAST
    )
    if jax.default_backend() != "cpu" or not ordinary:
        return plain(lhs, rhs)
    if rhs.shape[:2] == (1, 1) and not np.any(padding):
        rows, columns = window_strides
        return jnp.einsum("...c,cd->...d", lhs[:, ::rows, ::columns], rhs[0, 0], **options)

    @jax.custom_vjp
    def convolution(x: Array, kernel: Array) -> Array:
        return plain(x, kernel)

    def forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
        return plain(x, kernel), (x, kernel)

    def backward(residuals: tuple[Array, Array], y: Array) -> tuple[Array, Array]:
        x, kernel = residuals
        shape = kernel.shape[:2]
        gradient = kernel_gradient(x, y, shape, window_strides, padding, rhs_dilation)
        return input_gradient(x, kernel, y), gradient.astype(kernel.dtype)

    def input_gradient(x: Array, kernel: Array, y: Array) -> Array:
        turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
        spread, pads = y, []
        for axis, stride in enumerate(window_strides, start=1):
            between = [(0, 0, stride - 1) if i == axis else (0, 0, 0) for i in range(4)]
            spread = jax.lax.pad(spread, jnp.zeros((), y.dtype), between)
            reach = rhs_dilation[axis - 1] * (kernel.shape[axis - 1] - 1)
            before = reach - padding[axis - 1][0]
            pads.append((before, x.shape[axis] + reach - spread.shape[axis] - before))
        # Itself, and not the plain one, for whoever differentiates the gradient (SST does).
        return convolve(spread, turned, (1, 1), pads, None, rhs_dilation, **options)

    convolution.defvjp(forward, backward)
    return convolution(lhs, rhs)


def kernel_gradient(
    x: Float[Array, "batch height width c"],
    y: Float[Array, "batch h w d"],
    shape: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> Float[Array, "rows columns c d"]:
    """The gradient of sum(convolution(x, kernel) * y) by the kernel, by matrix products.

    Args:
        x: what is convolved.
        y: the cotangent of the result.
        shape: rows and columns of the kernel.
        strides, padding, dilation: of the convolution, by axis.
    """
    batch, height, width, after = y.shape
    padded = jnp.pad(x, [(0, 0), *padding, (0, 0)])

    def seen(array: Array, axis: int, position: int, count: int) -> Array:
        """What one row or column of the kernel is multiplied with."""
        first, step = position * dilation[axis - 1], strides[axis - 1]
        last = first + step * (count - 1) + 1
        return jax.lax.slice_in_dim(array, first, last, step, axis)

    # All columns of the kernel side by side: larger products, and only as many copies of x.
    beside = [seen(padded, 2, column, width) for column in range(shape[1])]
    beside = jnp.concatenate(beside, axis=-1)
    cotangent = y.reshape(batch * height * width, after)
    rows = []
    for row in range(shape[0]):
        inputs = seen(beside, 1, row, height).reshape(batch * height * width, -1)
        product = jax.lax.dot_general(
            inputs, cotangent, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
        rows.append(product.reshape(shape[1], x.shape[-1], after))
    return jnp.stack(rows)


Conv = functools.partial(nn.Conv, conv_general_dilated=convolve)


def max_pool(x: Float[Array, "*batch height width c"], stride: int) -> Float[Array, "*batch h w c"]:
    """The maximum of each 3 x 3 window, padded by 1, as PyTorch's `MaxPool2d(3, stride, 1)`.

    A maximum of maxima by column and by row, which are selections: the gradient goes to the first
    of equal values, row by row, and is a third of the work of XLA's scatter.
    """

    def along(x: Array, axis: int) -> Array:
        count = (x.shape[axis] - 1) // stride + 1
        around = [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)]
        padded = jnp.pad(x, around, constant_values=-jnp.inf)
        best, *others = (
            jax.lax.slice_in_dim(padded, first, first + stride * (count - 1) + 1, stride, axis)
            for first in range(3)
        )
        for other in others:
            best = jnp.where(other > best, other, best)
        return best

    return along(along(x, x.ndim - 2), x.ndim - 3)
