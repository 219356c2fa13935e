"""The layers of MFNet (Zhang et al., TCSVT 2022): attention over scales, and the decoder."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from fsseg_jax.backbones.convolution import max_pool
from fsseg_jax.backbones.extent import average
from fsseg_jax.backbones.rematerialise import rematerialisable
from fsseg_jax.episode import AnyArray
from fsseg_jax.models.layers import (
    ASPP,
    JoinedConvolution,
    ResidualBlock,
    classifier,
    convolution,
)
from fsseg_jax.models.resize import resize


class ScaleBranch(nn.Module):
    """Attention score and transformed features of one scale (fig. 3b), shared by the ways."""

    options: Mapping[str, Any]
    width: int
    attention: bool  # if not, all scores are 0, and their softmax over scales makes a mean
    rematerialise: bool = False

    @rematerialisable
    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "*map h w c"], vector: Float[AnyArray, "row c"] | None = None
    ) -> tuple[Float[Array, "row h w 1"], Float[Array, "row h w channel"]]:
        """Score and features of each map x; or, with vectors, of the one map x to which each vector
        is concatenated at every position."""
        joined_convolution = functools.partial(JoinedConvolution, self.width, **self.options)
        # The names are those in saved models, where the transformation came last.
        transform = joined_convolution(size=1, name="Conv_3" if self.attention else "Conv_0")
        transformed = ResidualBlock(self.options)(transform(x, vector=vector))
        if not self.attention:
            return jnp.zeros((*transformed.shape[:-1], 1)), transformed
        y = nn.relu(joined_convolution(name="Conv_0")(x, vector=vector))
        y = nn.relu(convolution(self.width, name="Conv_1", **self.options)(y))
        return convolution(1, 1, name="Conv_2", **self.options)(y), transformed


class ShotScore(nn.Module):
    """A score of the comparison with each support, as in CANet's sec. 4.3."""

    options: Mapping[str, Any]
    width: int

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "*map h w c"], vector: Float[AnyArray, "row c"] | None = None
    ) -> Float[Array, " row"]:
        """Scores of each map, or of one map with each vector; see `ScaleBranch`."""
        joined = JoinedConvolution(self.width, name="Conv_0", **self.options)
        y = max_pool(nn.relu(joined(x, vector=vector)), stride=2)  # as in CANet
        y = convolution(1, name="Conv_1", **self.options)(y)
        return average(y.astype(jnp.float32))[..., 0]


class Hierarchy(nn.Module):
    """Merges scales one after another, the largest first, and concatenates the results.

    As the feature enrichment module of PFENet (Tian et al., TPAMI 2020): each scale after the first
    adds ReLU of a 1 x 1 convolution of itself and the previous result, and a residual block
    follows. All results, at the first scale's size, are concatenated, and a 1 x 1 convolution with
    ReLU makes `width` channels of them.
    """

    options: Mapping[str, Any]
    width: int
    rematerialise: bool = False

    @rematerialisable
    @nn.compact
    def __call__(
        self, features: Sequence[Float[AnyArray, "way _ _ channel"]], align_corners: bool
    ) -> Float[Array, "way h w channel"]:
        """One map for each way, at the size of the first scale."""
        size, levels = features[0].shape[-3:-1], []
        for x in features:
            if levels:
                previous = resize(levels[-1], x.shape[-3:-1], align_corners).astype(x.dtype)
                both = jnp.concatenate([x, previous], axis=-1)
                x = x + nn.relu(convolution(self.width, 1, **self.options)(both))
            levels.append(ResidualBlock(self.options)(x))
        large = [resize(x, size, align_corners).astype(x.dtype) for x in levels]
        return nn.relu(convolution(self.width, 1, **self.options)(jnp.concatenate(large, axis=-1)))


class Decoder(nn.Module):
    """1 x 1 convolution to the embedding, residual block or ASPP, 1 x 1 convolution to classes."""

    options: Mapping[str, Any]
    width: int
    aspp: bool = False
    rematerialise: bool = False

    @rematerialisable
    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "*batch h w c"], classes: int
    ) -> tuple[Float[Array, "*batch h w classes"], Float[Array, "*batch h w channel"]]:
        """Logits, and the embedding that the metric loss works on (sec. III-D)."""
        embedding = convolution(self.width, 1, **self.options)(x)
        block = ASPP(self.options, self.width) if self.aspp else ResidualBlock(self.options)
        logits = classifier(classes, self.options["dtype"])(block(embedding))
        return logits.astype(jnp.float32), embedding.astype(jnp.float32)
