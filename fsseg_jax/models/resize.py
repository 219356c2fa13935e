"""Bilinear resizing as a linear map, separable in rows and columns.

`resize(x, (h, w)) = R_h x R_w^T` with one small matrix per axis, in either corner convention of
PyTorch's `F.interpolate` (without antialiasing). Its transpose pulls a mask back to feature
resolution, which is how features are pooled at mask resolution without being up-sampled.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from fsseg_jax.backbones.extent import inside, true_shape
from fsseg_jax.episode import AnyArray


def interpolation_matrix(
    n_in: int, n_out: int, align_corners: bool
) -> Float[np.ndarray, "n_out n_in"]:
    """The matrix of bilinear interpolation along one axis; its rows sum to 1.

    Args:
        n_in, n_out: lengths before and after, at least 1.
        align_corners: True if the centres of the first and last pixels map to each other,
            False ("half-pixel") if the outer edges do.
    """
    out = np.arange(n_out, dtype=np.float64)
    if align_corners:
        position = out * ((n_in - 1) / (n_out - 1) if n_out > 1 else 0.0)
    else:
        position = np.maximum((out + 0.5) * n_in / n_out - 0.5, 0.0)
    left = np.minimum(position.astype(int), n_in - 1)
    right = np.minimum(left + 1, n_in - 1)
    weight = position - left
    matrix = np.zeros((n_out, n_in))
    np.add.at(matrix, (out.astype(int), left), 1 - weight)
    np.add.at(matrix, (out.astype(int), right), weight)
    return matrix.astype(np.float32)


def _separable(
    x: Float[AnyArray, "*batch h w"],
    rows: Float[AnyArray, "height h"],
    columns: Float[AnyArray, "width w"],
) -> Float[Array, "*batch height width"]:
    # Full precision: accelerators round factors to 10 bits or fewer by default, which would show
    # in masks and logits, and these products are small.
    return jnp.einsum("Hh,...hw,Ww->...HW", rows, x, columns, precision=jax.lax.Precision.HIGHEST)


def resize(
    x: Float[AnyArray, "*batch h w channel"], shape: tuple[int, ...], align_corners: bool
) -> Float[Array, "*batch height width channel"]:
    """Resizes the last two spatial axes to `shape`, as `F.interpolate(mode="bilinear")` does.

    Within an `extent`, the image's part of x becomes the image's part of the result.

    Examples:
        >>> x = jnp.array([[0.0, 1.0]])[..., None]
        >>> resize(x, (1, 3), align_corners=True)[..., 0].tolist()
        [[0.0, 0.5, 1.0]]
    """
    source, target = inside(x), true_shape(shape)
    if not (isinstance(source, tuple) and isinstance(target, tuple)):
        return resize_into(x, target, shape, align_corners, source)
    rows = interpolation_matrix(x.shape[-3], shape[0], align_corners)
    columns = interpolation_matrix(x.shape[-2], shape[1], align_corners)
    planes = _separable(jnp.moveaxis(x, -1, -3), rows, columns)
    return jnp.moveaxis(planes, -3, -1)


def resize_into(
    x: Float[AnyArray, "*batch h w channel"],
    shape: Int[AnyArray, "2"] | tuple[int, ...],
    canvas: tuple[int, ...],
    align_corners: bool,
    source: Int[AnyArray, "2"] | tuple[int, ...] | None = None,
) -> Float[Array, "*batch height width channel"]:
    """`resize` between shapes that are known at run time only.

    Args:
        x: the map to resize.
        shape: height and width to resize to.
        canvas: height and width of the result. It is cut off where `shape` is larger, and
            undefined beyond `shape` where `shape` is smaller.
        align_corners: see `interpolation_matrix`.
        source: height and width of the upper left part of x to resize; None for all of x.
    """

    def matrix(n_in: Any, n_out: Any, before: int, after: int) -> Float[Array, "after before"]:
        # Integers until the last division, so that positions are exact.
        out = jnp.arange(after)
        if align_corners:
            numerator, denominator = out * (n_in - 1), jnp.maximum(n_out - 1, 1)
        else:
            numerator, denominator = (2 * out + 1) * n_in - n_out, jnp.asarray(2 * n_out)
        numerator = jnp.clip(numerator, 0, (n_in - 1) * denominator)
        left = (numerator // denominator)[:, None]
        weight = ((numerator % denominator) / denominator)[:, None]
        column = jnp.arange(before)
        return jnp.where(column == left, 1 - weight, jnp.where(column == left + 1, weight, 0.0))

    source = x.shape[-3:-1] if source is None else source
    rows = matrix(source[0], shape[0], x.shape[-3], canvas[0])
    columns = matrix(source[1], shape[1], x.shape[-2], canvas[1])
    planes = _separable(jnp.moveaxis(x, -1, -3), rows, columns)
    return jnp.moveaxis(planes, -3, -1)


def resize_masks(
    masks: Shaped[AnyArray, "*batch height width"], shape: tuple[int, ...], align_corners: bool
) -> Float[Array, "*batch h w"]:
    """`resize` of masks without channel axis: values in 0..1.

    A mask so thin or small that it falls between the sampled positions (a scribble, a point, a
    distant bird) would vanish. Such a mask is given by `pull_back` instead.

    Examples:
        >>> mask = jnp.zeros((9, 9)).at[1, 1].set(1.0)  # one pixel, which sampling would miss
        >>> bool((resize_masks(mask, (3, 3), align_corners=True) > 0).any())
        True
    """
    masks = masks.astype(jnp.float32)
    resized = resize(masks[..., None], shape, align_corners)[..., 0]
    areas = pull_back(masks, shape, align_corners)
    areas /= jnp.maximum(areas.max((-2, -1), keepdims=True), 1e-6)
    vanished = resized.max((-2, -1), keepdims=True) == 0
    return jnp.where(vanished, areas, resized)


def pull_back(
    mask: Float[AnyArray, "*batch height width"], shape: tuple[int, ...], align_corners: bool
) -> Float[Array, "*batch h w"]:
    """The transpose of `resize` from `shape` to the mask's size: weights at feature resolution.

    For every feature map F of size `shape`: sum(resize(F) * mask) == sum(F * pull_back(mask)).

    Examples:
        >>> features, mask = jnp.arange(4.0).reshape(2, 2), jnp.zeros((6, 6)).at[:, :3].set(1.0)
        >>> large = resize(features[..., None], (6, 6), align_corners=True)[..., 0]
        >>> small = pull_back(mask, (2, 2), align_corners=True)
        >>> round(float((large * mask).sum()), 3), round(float((features * small).sum()), 3)
        (21.6, 21.6)
    """
    rows = interpolation_matrix(shape[0], mask.shape[-2], align_corners)
    columns = interpolation_matrix(shape[1], mask.shape[-1], align_corners)
    return _separable(mask, rows.T, columns.T)


def adaptive_pool(
    x: Float[AnyArray, "*batch h w channel"], shape: tuple[int, ...]
) -> Float[Array, "*batch height width channel"]:
    """Averages over windows, as PyTorch's `F.adaptive_avg_pool2d`: from floor(i n / m) to
    ceil((i + 1) n / m), which overlap where m does not divide n.

    Within an `extent`, the image's part of x becomes the image's part of the result.
    """

    def matrix(n_in: Any, n_out: Any, before: int, after: int) -> Float[Any, "after before"]:
        i, column = np.arange(after)[:, None], np.arange(before)
        window = (column >= i * n_in // n_out) & (column < -(-(i + 1) * n_in // n_out))
        window &= column < n_in
        return (window / window.sum(axis=1, keepdims=True).clip(1)).astype(np.float32)

    source, target = inside(x), true_shape(shape)
    rows = matrix(source[0], target[0], x.shape[-3], shape[0])
    columns = matrix(source[1], target[1], x.shape[-2], shape[1])
    return jnp.moveaxis(_separable(jnp.moveaxis(x, -1, -3), rows, columns), -3, -1)


def nearest(pixels: int, positions: int, align_corners: bool) -> Int[Array, " positions"]:
    """The pixel at the centre of each of so many positions along an axis of `pixels`."""
    out = jnp.arange(positions)
    if align_corners:
        return jnp.round(out * ((pixels - 1) / max(positions - 1, 1))).astype(int)
    return jnp.minimum(((out + 0.5) * pixels / positions).astype(int), pixels - 1)
