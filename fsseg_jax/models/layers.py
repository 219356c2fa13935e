"""Layers that several methods share."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, Shaped

from fsseg_jax.backbones.convolution import Conv, convolve
from fsseg_jax.backbones.extent import average, inside, is_open, masked
from fsseg_jax.backbones.rematerialise import rematerialisable
from fsseg_jax.episode import AnyArray
from fsseg_jax.models.resize import pull_back, resize_masks


def masked_average_pool(
    features: Float[AnyArray, "*batch h w channel"],
    masks: Float[AnyArray, "*batch mask height width"],
    epsilon: float,
    align_corners: bool,
) -> Float[Array, "*batch mask channel"]:
    r"""Means over masks of features up-sampled to the masks' resolution (the fraction of PANet
    eq. 1).

    $\sum_x M(x) F(x) / (\sum_x M(x) + \epsilon)$. Instead of up-sampling the features, the masks
    are pulled back to the features' resolution, which gives the same numbers at a fraction of the
    cost. All masks of an image share one pass over its features.

    Args:
        features: feature maps.
        masks: values in 0..1, at any resolution.
        epsilon: added to the area of a mask in pixels, so that an empty mask gives zeros.
        align_corners: corner convention of the up-sampling.

    Examples:
        >>> features = jnp.arange(8.0).reshape(2, 2, 2)  # 2 x 2 positions, 2 channels
        >>> left = jnp.array([[[1.0, 0.0], [1.0, 0.0]]])
        >>> masked_average_pool(features, left, 0.0, align_corners=False).tolist()
        [[2.0, 3.0]]
    """
    weights = pull_back(masks, features.shape[-3:-1], align_corners)
    total = jnp.einsum(
        "...hwc,...mhw->...mc", features, weights, precision=jax.lax.Precision.HIGHEST
    )
    return total / (masks.sum((-2, -1))[..., None] + epsilon)


def pool(
    features: Float[AnyArray, "*batch h w channel"],
    mask: Shaped[AnyArray, "*batch height width"],
    epsilon: float,
    align_corners: bool,
) -> Float[Array, "*batch channel"]:
    """Mean of features over a mask that is first resized to them (CANet sec. 4.1).

    Arguments are those of `masked_average_pool`, with one mask per feature map.

    Examples:
        >>> features = jnp.arange(8.0).reshape(2, 2, 2)
        >>> mask = jnp.zeros((4, 4)).at[:, :2].set(1.0)  # at another resolution
        >>> pool(features, mask, 0.0, align_corners=False).tolist()
        [2.0, 3.0]
    """
    small = resize_masks(mask, features.shape[-3:-1], align_corners)[..., None, :, :]
    return masked_average_pool(features, small, epsilon, align_corners)[..., 0, :]


def cosine_similarity(
    features: Float[AnyArray, "*batch h w channel"], vectors: Float[AnyArray, "*batch n channel"]
) -> Float[Array, "*batch h w n"]:
    """Cosine similarity of every feature to every vector; 0 if either is zero.

    Squared norms are clamped inside the root, so that the gradient of zero vectors is finite
    (1e-16 is the square of the epsilon of PyTorch's `F.cosine_similarity`).

    Examples:
        >>> features = jnp.array([[[3.0, 4.0], [0.0, 2.0]]])
        >>> cosine_similarity(features, jnp.array([[0.0, 2.0], [3.0, 4.0]])).shape
        (1, 2, 2)
    """

    def inverse_norm(x: Float[AnyArray, "*batch channel"]) -> Float[Array, "*batch"]:
        return jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1), 1e-16))

    product = jnp.einsum(
        "...hwc,...nc->...hwn", features, vectors, precision=jax.lax.Precision.HIGHEST
    )
    return product * inverse_norm(features)[..., None] * inverse_norm(vectors)[..., None, None, :]


# PyTorch's default for convolutions: the initialisation of papers that mention none.
TORCH_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def convolution(
    width: int, size: int = 3, dilation: int = 1, stride: int = 1, **options: Any
) -> nn.Conv:
    """A convolution that keeps the resolution (or divides it by `stride`), padded as in PyTorch.

    Examples:
        >>> layer = convolution(16, dilation=2)
        >>> layer.init_with_output(jax.random.key(0), jnp.zeros((8, 8, 4)))[0].shape
        (8, 8, 16)
    """
    padding = dilation * (size - 1) // 2
    return Conv(
        width,
        (size, size),
        stride,
        padding,
        kernel_dilation=dilation,
        **{"kernel_init": TORCH_INIT, **options},
    )


def classifier(classes: int, dtype: DTypeLike) -> nn.Conv:
    """The last 1 x 1 convolution; its weights are small, so that training starts at even odds.

    Examples:
        >>> layer = classifier(2, jnp.float32)
        >>> layer.init_with_output(jax.random.key(0), jnp.zeros((8, 8, 4)))[0].shape
        (8, 8, 2)
    """
    return convolution(classes, 1, kernel_init=nn.initializers.normal(0.01), dtype=dtype)


def channel_dropout(rate: float) -> nn.Dropout:
    """Dropout of whole channels of a feature map (PyTorch's `Dropout2d`)."""
    return nn.Dropout(rate, broadcast_dims=(-3, -2))


def halve(x: Float[AnyArray, "*batch height width c"]) -> Float[Array, "*batch h w c"]:
    """2 x 2 max-pooling of stride 2; a side of n becomes ceil(n / 2), as in strided convolutions
    (PyTorch's `MaxPool2d(2, ceil_mode=True)`)."""
    return masked(nn.max_pool(masked(x, -jnp.inf), (2, 2), (2, 2), "SAME"))


class JoinedConvolution(nn.Module):
    """A convolution of a map concatenated with another map and a vector, without concatenation.

    It is the sum of the convolutions of the parts, so that what several ways or shots share is
    convolved once. A vector is constant over positions, and so is its convolution except near the
    borders: a few positions are enough. Parameters are those of one convolution of all channels,
    in the order of the arguments.

    Examples:
        >>> features, vectors = jnp.zeros((8, 8, 4)), jnp.zeros((3, 6))  # a query, three ways
        >>> layer = JoinedConvolution(16)
        >>> result, _ = layer.init_with_output(jax.random.key(0), features[None], vector=vectors)
        >>> result.shape
        (3, 8, 8, 16)
    """

    width: int
    size: int = 3
    dilation: int = 1
    kernel_init: Any = TORCH_INIT
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[AnyArray, "*#batch h w c"],
        extra: Float[AnyArray, "*#batch h w e"] | None = None,
        vector: Float[AnyArray, "*#batch v"] | None = None,
    ) -> Float[Array, "... h w width"]:
        """The convolution; leading axes broadcast."""
        given = [part for part in (x, extra, vector) if part is not None]
        ends = np.cumsum([part.shape[-1] for part in given])
        shape = (self.size, self.size, int(ends[-1]), self.width)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.width,)).astype(self.dtype)
        kernels = iter(jnp.split(kernel, ends[:-1], axis=2))
        result = bias + self._convolve(x, next(kernels))
        if extra is not None:
            result += self._convolve(extra, next(kernels))
        if vector is not None:
            tile = self._tile_within_extent if is_open() else self._tile
            result += tile(vector, next(kernels), x)
        return result

    def _tile(self, vector: AnyArray, kernel: Array, like: AnyArray) -> Array:
        """The convolution of a map of the size of `like` that holds a vector at every position."""
        height, width = like.shape[-3:-1]
        reach = self.dilation * (self.size // 2)
        rows, columns = (representatives(length, reach) for length in (height, width))
        small = (*vector.shape[:-1], max(rows) + 1, max(columns) + 1, vector.shape[-1])
        constant = jnp.broadcast_to(vector[..., None, None, :], small)
        convolved = self._convolve(constant, kernel)
        return convolved[..., rows, :, :][..., columns, :]

    def _tile_within_extent(self, vector: AnyArray, kernel: Array, like: AnyArray) -> Array:
        """The same for maps whose extent is known at run time only: the products with each
        element of the kernel, where that element falls on the map."""
        offset = self.dilation * (np.arange(self.size) - self.size // 2)
        seen = [np.arange(length)[:, None] + offset for length in like.shape[-3:-1]]
        rows, columns = (
            jnp.asarray((position >= 0) & (position < length), self.dtype)
            for position, length in zip(seen, inside(like), strict=True)
        )
        products = jnp.einsum("...v,abvc->...abc", vector.astype(self.dtype), kernel)
        return jnp.einsum("ha,wb,...abc->...hwc", rows, columns, products)

    def _convolve(self, x: AnyArray, kernel: Array) -> Array:
        padding = [(self.dilation * (self.size // 2),) * 2] * 2
        maps = x.astype(self.dtype).reshape(-1, *x.shape[-3:])
        maps = convolve(maps, kernel, (1, 1), padding, rhs_dilation=(self.dilation,) * 2)
        return maps.reshape(*x.shape[:-1], self.width)


def representatives(length: int, reach: int) -> np.ndarray:
    """For each position of a row, a position on a row of 2 * reach + 1 as far from any end within
    `reach`, or the middle. Shorter rows stay as they are."""
    position = np.arange(length)
    if length <= 2 * reach:
        return position
    from_end = length - 1 - position
    return np.where(from_end < reach, 2 * reach - from_end, np.minimum(position, reach))


class ResidualBlock(nn.Module):
    """`x + F([x, extra])` with F = ReLU, 3 x 3, ReLU, 3 x 3 (CANet eq. 1).

    Examples:
        >>> block = ResidualBlock({"dtype": jnp.float32})
        >>> features, previous = jnp.zeros((8, 8, 4)), jnp.zeros((8, 8, 2))
        >>> block.init_with_output(jax.random.key(0), features, previous)[0].shape
        (8, 8, 4)
    """

    options: Mapping[str, Any]  # arguments of the convolutions
    rematerialise: bool = False

    @rematerialisable
    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*batch h w c"],
        extra: Float[Array, "*batch h w e"] | None = None,
    ) -> Float[Array, "*batch h w c"]:
        """One block; `extra` enters F only."""
        width = x.shape[-1]
        first = JoinedConvolution(width, name="Conv_0", **self.options)
        y = first(nn.relu(x), None if extra is None else nn.relu(extra))
        return x + convolution(width, name="Conv_1", **self.options)(nn.relu(y))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al., 2017), with CANet's dropout and no batch-norm.

    The image's average, a 1 x 1 and three dilated 3 x 3 convolutions, concatenated, and a 1 x 1
    convolution of the result. The branches are those of CANet's published code; its sec. 4.2
    counts four.

    Examples:
        >>> layer = ASPP({"dtype": jnp.float32}, width=8)
        >>> jax.jit(layer.init_with_output)(jax.random.key(0), jnp.zeros((8, 8, 4)))[0].shape
        (8, 8, 8)
    """

    options: Mapping[str, Any]  # arguments of the convolutions
    width: int = 256
    dilations: tuple[int, ...] = (6, 12, 18)
    dropout: float = 0.0  # channel dropout
    rematerialise: bool = False

    @rematerialisable
    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch h w c"], train: bool = False
    ) -> Float[Array, "*batch h w width"]:
        """Features with a wide receptive field."""

        def branch(x: Array, size: int, dilation: int = 1) -> Array:
            x = nn.relu(convolution(self.width, size, dilation, **self.options)(x))
            return channel_dropout(self.dropout)(x, deterministic=not train)

        image = branch(average(x, keepdims=True), 1)
        branches = [jnp.broadcast_to(image, (*x.shape[:-1], self.width)), branch(x, 1)]
        branches += [branch(x, 3, dilation) for dilation in self.dilations]
        return branch(jnp.concatenate(branches, axis=-1), 1)
