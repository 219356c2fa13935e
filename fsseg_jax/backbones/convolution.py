"""The convolution of every network here: Flax's, with a kernel's gradient that suits a CPU.

XLA computes that gradient as a convolution whose window is a whole feature map. On a CPU this
reaches a fifth of the forward pass's speed, and inside a compiled loop almost nothing
(https://github.com/jax-ml/jax/issues/12868). As matrix products, one for each row of the kernel,
it is two to ten times as fast, also in a loop. Accelerators keep XLA's own.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
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

    @jax.custom_vjp
    def convolution(x: Array, kernel: Array) -> Array:
        return plain(x, kernel)

    def forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
        return plain(x, kernel), (x, kernel)

    def backward(residuals: tuple[Array, Array], y: Array) -> tuple[Array, Array]:
        x, kernel = residuals
        transpose = jax.linear_transpose(lambda x: plain(x, kernel), x)
        shape = kernel.shape[:2]
        gradient = kernel_gradient(x, y, shape, window_strides, padding, rhs_dilation)
        return *transpose(y), gradient.astype(kernel.dtype)

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
