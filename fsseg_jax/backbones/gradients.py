"""A convolution whose gradients are computed faster than XLA computes them, on CPUs and GPUs.

XLA computes the gradient with respect to the kernel as a convolution whose window is a whole
feature map: on a CPU at a fifth of the forward pass's speed, and far slower still inside a compiled
loop, as it does the gradient with respect to the input (https://github.com/jax-ml/jax/issues/12868;
seen in jax 0.10.2 and 0.12.0). On a GPU, cuDNN has fast kernels for it, but not for dilated
convolutions: on an H100 those take 2 to 11 times as long (docs/speed.md). Here the gradient with
respect to the kernel is a few matrix products, and that with respect to the input a convolution
with the flipped kernel. On CPUs convolutions of 1 x 1 are matrix products from the start, and wide
ones of 3 x 3 use `winograd`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fsseg_jax.cpu.winograd import suits_winograd, winograd

CHANNELS_LAST = jax.lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def convolution(
    lhs: Float[Array, "batch height width c"],
    rhs: Float[Array, "rows columns c d"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    **options: Any,
) -> Float[Array, "batch h w d"]:
    """`jax.lax.conv_general_dilated` of channels-last maps.

    Only reverse-mode differentiation is supported. Strides, padding and dilation are given for each
    axis; other options are those of `jax.lax.conv_general_dilated`.
    """
    if rhs.shape[:2] == (1, 1) and not np.any(padding):
        rows, columns = strides
        return jnp.einsum("...c,cd->...d", lhs[:, ::rows, ::columns], rhs[0, 0], **options)

    plain = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        rhs_dilation=dilation,
        dimension_numbers=CHANNELS_LAST,
        **options,
    )
    fast = plain
    if jax.default_backend() == "cpu" and suits_winograd(lhs, rhs, strides, dilation):
        pads = tuple(map(tuple, padding))
        fast = functools.partial(winograd, padding=pads, dilation=dilation[0])

    @jax.custom_vjp
    def convolve(x: Array, kernel: Array) -> Array:
        return fast(x, kernel)

    def forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
        return fast(x, kernel), (x, kernel)

    def backward(residuals: tuple[Array, Array], y: Array) -> tuple[Array, Array]:
        x, kernel = residuals
        if fast is plain:
            gradient = kernel_gradient(x, y, kernel.shape[:2], strides, padding, dilation)
        else:
            (gradient,) = jax.vjp(functools.partial(fast, x), kernel)[1](y)
        spread, pads = transposed(y, x.shape, kernel.shape, strides, padding, dilation)
        flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
        # `convolution`, and not the plain one, for code that differentiates the gradient (SST's).
        by_input = convolution(spread, flipped, (1, 1), pads, dilation, **options)
        return by_input, gradient.astype(kernel.dtype)

    convolve.defvjp(forward, backward)
    return convolve(lhs, rhs)


def transposed(
    y: Float[Array, "batch h w d"],
    x_shape: Sequence[int],
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> tuple[Float[Array, "batch height width d"], list[tuple[int, int]]]:
    """The input and the padding of the convolution that gives the gradient with respect to x: the
    cotangent `y` of the result, with zeros between its positions where there are strides."""
    pads = []
    for axis, stride in enumerate(strides, start=1):
        between = [(0, 0, stride - 1) if i == axis else (0, 0, 0) for i in range(4)]
        y = jax.lax.pad(y, jnp.zeros((), y.dtype), between)
        reach = dilation[axis - 1] * (kernel_shape[axis - 1] - 1)
        before = reach - padding[axis - 1][0]
        pads.append((before, x_shape[axis] + reach - y.shape[axis] - before))
    return y, pads


def kernel_gradient(
    x: Float[Array, "batch height width c"],
    y: Float[Array, "batch h w d"],
    shape: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> Float[Array, "rows columns c d"]:
    """The gradient of sum(convolution(x, kernel) * y) with respect to a kernel whose rows and
    columns are `shape`, as matrix products."""
    batch, height, width, after = y.shape
    padded = jnp.pad(x, [(0, 0), *padding, (0, 0)])

    def seen(array: Array, axis: int, position: int, count: int) -> Array:
        """The positions that one row or column of the kernel is multiplied with."""
        first, step = position * dilation[axis - 1], strides[axis - 1]
        last = first + step * (count - 1) + 1
        return jax.lax.slice_in_dim(array, first, last, step, axis)

    # The columns of the kernel are side by side: the products are larger, and x is copied only once
    # per column.
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
