"""Layers and losses that several methods share."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from fsseg_jax.episode import IGNORE
from fsseg_jax.models.resize import pull_back, resize


def masked_average_pool(
    features: Float[Array, "*batch h w channel"],
    masks: Float[Array, "*batch mask height width"],
    epsilon: float,
    align_corners: bool,
) -> Float[Array, "*batch mask channel"]:
    """Means of the features, up-sampled to the masks, where a mask is 1 (PANet eq. 1).

    The features are not up-sampled: the masks are pulled back to their resolution instead, which
    gives the same numbers at a fraction of the work. All masks of a photograph share one pass
    over its features.

    Args:
        features: feature maps.
        masks: values in 0..1, at any resolution.
        epsilon: added to the mask's area in pixels, so that an empty mask gives zeros.
        align_corners: corner convention of the up-sampling.
    """
    weights = pull_back(masks, features.shape[-3:-1], align_corners)
    total = jnp.einsum(
        "...hwc,...mhw->...mc", features, weights, precision=jax.lax.Precision.HIGHEST
    )
    return total / (masks.sum((-2, -1))[..., None] + epsilon)


def cosine_similarity(
    features: Float[Array, "*batch h w channel"], vectors: Float[Array, "*batch n channel"]
) -> Float[Array, "*batch h w n"]:
    """Cosine of every feature with every vector, 0 where either is zero.

    Squared norms are clamped inside the root, so that zero vectors have a gradient too (1e-16 is
    the square of the epsilon of PyTorch's `F.cosine_similarity`).
    """

    def inverse_norm(x: Float[Array, "*batch channel"]) -> Float[Array, "*batch"]:
        return jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1), 1e-16))

    product = jnp.einsum(
        "...hwc,...nc->...hwn", features, vectors, precision=jax.lax.Precision.HIGHEST
    )
    return product * inverse_norm(features)[..., None] * inverse_norm(vectors)[..., None, None, :]


def cross_entropy(
    logits: Float[Array, "*batch h w class"],
    label: Int[Array, "*batch height width"],
    align_corners: bool,
) -> Float[Array, "*batch"]:
    """Softmax cross-entropy of logits up-sampled to the label, its mean over counted pixels.

    Pixels of label 255 count for nothing; a label of nothing else gives 0.
    """
    counted = label != IGNORE
    logits = resize(logits, label.shape[-2:], align_corners)
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(counted, label, 0).astype(jnp.int32)
    )
    total = jnp.sum(losses * counted, axis=(-2, -1))
    return total / jnp.maximum(counted.sum((-2, -1)), 1)
