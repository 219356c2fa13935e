"""The convolution and the max-pooling of every network here, with gradients that are fast on CPUs.

XLA computes a kernel's gradient as a convolution whose window is a whole feature map: on a CPU at
a fifth of the forward pass's speed, and inside a compiled loop almost not at all, as the gradient
by the input too (https://github.com/jax-ml/jax/issues/12868; so in jax 0.10.2 and 0.12.0). Here the
first is a few matrix products, and the second a convolution with the kernel turned round.
Convolutions of 1 x 1 are products from the start, and wide ones of 3 x 3 need less than half of the
multiplications (`winograd`). Accelerators keep XLA's own.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from fsseg_jax.backbones.extent import masked

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

    On a CPU only reverse-mode differentiation passes through it. Beyond an `extent` maps are zero,
    as padding is.
    """
    if max(rhs.shape[:2]) > 1:
        lhs = masked(lhs)
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

    fast = plain
    if suits_winograd(lhs, rhs, window_strides, rhs_dilation):
        pads = tuple(map(tuple, padding))
        fast = functools.partial(winograd, padding=pads, dilation=rhs_dilation[0])

    @jax.custom_vjp
    def convolution(x: Array, kernel: Array) -> Array:
        return fast(x, kernel)

    def forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
        return fast(x, kernel), (x, kernel)

    def backward(residuals: tuple[Array, Array], y: Array) -> tuple[Array, Array]:
        x, kernel = residuals
        if fast is plain:
            shape = kernel.shape[:2]
            gradient = kernel_gradient(x, y, shape, window_strides, padding, rhs_dilation)
        else:
            (gradient,) = jax.vjp(functools.partial(fast, x), kernel)[1](y)
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


def suits_winograd(
    x: Float[Array, "batch height width c"],
    kernel: Float[Array, "rows columns c d"],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> bool:
    """Whether `winograd` can compute a convolution, and takes less time than XLA's own.

    Measured on two cores with AVX-512: 0.6 to 0.9 of the time from 256 channels on, and more than
    all of it below, where preparing the maps outweighs the products.
    """
    return (
        kernel.shape[:2] == (3, 3)
        and x.dtype == kernel.dtype == jnp.float32
        and tuple(strides) == (1, 1)
        and dilation[0] == dilation[1]
        and min(kernel.shape[2:]) >= 256
        and min(x.shape[1:3]) >= 16 * dilation[0]  # smaller maps are mostly tiles' overlap
    )


@functools.partial(jax.jit, static_argnames=("padding", "dilation"))  # traced once for a shape
def winograd(
    x: Float[Array, "batch height width c"],
    kernel: Float[Array, "3 3 c d"],
    padding: tuple[tuple[int, int], tuple[int, int]],
    dilation: int,
) -> Float[Array, "batch h w d"]:
    """A convolution by Winograd's F(2 x 2, 3 x 3): 16 products for four positions instead of 36.

    Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016), sec. 4.1. The
    result is as exact as that of sums in another order: divisions are by 2 alone.

    Args:
        x: what is convolved.
        kernel: of the convolution.
        padding: by axis.
        dilation: of the kernel; the positions that a dilated one sees together are maps of their
            own.
    """

    def inputs(x: Array, axis: int) -> list[Array]:
        """Of each tile of 4, which overlap by 2, the four combinations."""
        count = x.shape[axis] // 2 - 1
        a, b, c, d = (
            jax.lax.slice_in_dim(x, first, first + 2 * count - 1, 2, axis) for first in range(4)
        )
        return [a - c, b + c, c - b, b - d]

    def kernels(kernel: Array) -> list[Array]:
        a, b, c = kernel
        return [a, (a + b + c) / 2, (a - b + c) / 2, c]

    def outputs(a: Array, b: Array, c: Array, d: Array) -> list[Array]:
        return [a + b + c, b - c - d]

    shape = [n + sum(pads) - 2 * dilation for n, pads in zip(x.shape[1:3], padding, strict=True)]
    whole = [2 * dilation * (-(-n // (2 * dilation)) + 1) for n in shape]  # of the padded map
    after = [n - m - low for n, m, (low, _) in zip(whole, x.shape[1:3], padding, strict=True)]
    pads = [(low, high) for (low, _), high in zip(padding, after, strict=True)]
    x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
    x = rearrange(x, "b (h p) (w q) c -> (b p q) h w c", p=dilation, q=dilation)
    products = [
        [jnp.einsum("bhwc,cd->bhwd", v, u) for v, u in zip(inputs(row, 2), us, strict=True)]
        for row, us in zip(inputs(x, 1), (kernels(row) for row in kernels(kernel)), strict=True)
    ]
    columns = [outputs(*row) for row in products]
    tiles = [outputs(*column) for column in zip(*columns, strict=True)]  # by column, then row
    tiles = jnp.stack([jnp.stack(column, axis=2) for column in tiles], axis=4)
    y = rearrange(tiles, "(b p q) h i w j d -> b (h i p) (w j q) d", p=dilation, q=dilation)
    return y[:, : shape[0], : shape[1]]


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

    x = masked(x, -jnp.inf)
    return masked(along(along(x, x.ndim - 2), x.ndim - 3))  # zeros again: all stays finite
