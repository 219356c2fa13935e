"""The convolution and the max-pooling of all networks, which respect an image's `extent`."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fsseg_jax.backbones.extent import masked
from fsseg_jax.backbones.gradients import CHANNELS_LAST, convolution
from fsseg_jax.episode import AnyArray


def convolve(
    lhs: Float[AnyArray, "batch height width c"],
    rhs: Float[AnyArray, "rows columns c_of_group d"],
    window_strides: Sequence[int],
    padding: Any,
    lhs_dilation: Any = None,
    rhs_dilation: Sequence[int] = (1, 1),
    dimension_numbers: Any = CHANNELS_LAST,
    **options: Any,
) -> Float[Array, "batch h w d"]:
    """`jax.lax.conv_general_dilated` of channels-last maps, with the same arguments.

    On CPUs, and on GPUs if it is dilated, only reverse-mode differentiation is supported. Maps are
    zero outside of an `extent`, as padding is.
    """
    lhs, rhs = jnp.asarray(lhs), jnp.asarray(rhs)
    groups = options.pop("feature_group_count", 1)
    if max(rhs.shape[:2]) > 1:
        lhs = masked(lhs)
    if isinstance(padding, str):
        window = [d * (n - 1) + 1 for n, d in zip(rhs.shape[:2], rhs_dilation, strict=True)]
        padding = jax.lax.padtype_to_pads(lhs.shape[1:3], window, window_strides, padding)
    ordinary = groups == 1 and set(lhs_dilation or (1,)) == {1}
    ordinary = ordinary and dimension_numbers == CHANNELS_LAST
    dilated = max(rhs.shape[:2]) > 1 and max(rhs_dilation) > 1
    if ordinary and jax.default_backend() in (("cpu", "gpu") if dilated else ("cpu",)):
        return convolution(lhs, rhs, window_strides, padding, rhs_dilation, **options)
    return jax.lax.conv_general_dilated(
        *(lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation),
        dimension_numbers=dimension_numbers,
        feature_group_count=groups,
        **options,
    )


Conv = functools.partial(nn.Conv, conv_general_dilated=convolve)


def max_pool(
    x: Float[AnyArray, "*batch height width c"], stride: int
) -> Float[Array, "*batch h w c"]:
    """The maximum of each 3 x 3 window, padded by 1, as PyTorch's `MaxPool2d(3, stride, 1)`.

    It takes the maximum along columns and then along rows, by selections: the gradient goes to the
    first of equal values in row order, and costs a third of XLA's scatter.
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
    # Zeros again, so that all values are finite.
    return masked(along(along(x, x.ndim - 2), x.ndim - 3))
