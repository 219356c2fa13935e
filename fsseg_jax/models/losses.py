"""Losses: cross-entropy at the label's resolution, MFNet's focal loss and its metric loss."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray, UInt8

from fsseg_jax.episode import IGNORE, AnyArray
from fsseg_jax.models.resize import resize


def cross_entropy(
    logits: Float[AnyArray, "*batch h w class"],
    label: Integer[AnyArray, "*batch height width"],
    align_corners: bool,
) -> Float[Array, "*batch"]:
    """Mean cross-entropy over pixels whose label is not 255, of logits resized to the label.

    It is 0 if there are no such pixels.

    Examples:
        >>> label = jnp.array([[0, 1, 255], [0, 1, 255]])
        >>> loss = cross_entropy(jnp.zeros((2, 3, 2)), label, align_corners=True)
        >>> round(loss.item(), 3)  # even odds: log 2
        0.693
    """
    counted = label != IGNORE
    logits = resize(logits, label.shape[-2:], align_corners)
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(counted, label, 0).astype(jnp.int32)
    )
    total = jnp.sum(losses * counted, axis=(-2, -1))
    return total / jnp.maximum(counted.sum((-2, -1)), 1)


def focal_loss(
    logits: Float[AnyArray, "height width class"],
    label: UInt8[AnyArray, "height width"],
    gamma: float,
) -> Float[Array, ""]:
    r"""Focal loss with larger weights for rarer classes (MFNet eq. 1).

    $$L = -\frac{1}{M} \sum_i w_{y_i} (1 - p_{i, y_i})^\gamma \log p_{i, y_i}, \qquad
    w_n = \frac{1}{\log(1.1 + M_n / M)}$$

    over the M pixels that are not ignored, $M_n$ of them of class n. The background is a class. Eq.
    1 divides by the number of classes too, which is left to the caller.

    Args:
        logits: logits at the label's resolution.
        label: class indices or 255.
        gamma: the exponent.

    Examples:
        >>> label = jnp.array([[0, 0, 0, 1]], jnp.uint8)
        >>> sure = jax.nn.one_hot(label, 2) * 10
        >>> round(float(focal_loss(sure, label, gamma=2.0)), 3)
        0.0
        >>> bool(focal_loss(sure, 1 - label, gamma=2.0) > 1)
        True
    """
    counted = label != IGNORE
    truth = jax.nn.one_hot(jnp.where(counted, label, 0), logits.shape[-1]) * counted[..., None]
    total = jnp.maximum(counted.sum(), 1)
    weight = 1 / jnp.log(1.1 + truth.sum((0, 1)) / total)
    log_probability = jax.nn.log_softmax(logits)
    # 1 - p, clamped because the power has no finite gradient at 0 where gamma is below 1.
    rest = jnp.maximum(-jnp.expm1(log_probability), 1e-7)
    modulated = rest**gamma * log_probability
    return -jnp.sum(weight * truth * modulated) / total


def metric_loss(
    logits: Float[AnyArray, "h w class"],
    embedding: Float[AnyArray, "h w c"],
    label: UInt8[AnyArray, "h w"],
    key: PRNGKeyArray,
    *,
    positives: str,
    anchors: int,
    margin: float,
) -> Float[Array, ""]:
    r"""Triplet loss on hard pixels (MFNet eq. 6, with the mean over valid triplets for its sum).

    $\max(0, \|f_a - f_p\|^2 - \|f_a - f_n\|^2 + \alpha)$ with embeddings f. Anchors a are
    drawn uniformly from the correctly classified foreground positions of all classes. The positive
    p is one of the missed positions of the anchor's class, the negative n, drawn uniformly, one
    wrongly assigned to it. An anchor whose class lacks either does not count.

    Args:
        logits: logits, whose maximum says which positions are correct, missed or wrong.
        embedding: the embedding f.
        label: class indices or 255.
        key: key of the draws.
        positives: "spatial" draws positives with weight 1 / (1 + distance in positions), where the
            paper says that closer ones are more likely; "random" draws uniformly; "feature" takes
            the farthest embedding, and the nearest as the negative.
        anchors: number of anchors.
        margin: the margin alpha.

    Examples:
        >>> logits, label = jax.nn.one_hot(jnp.uint8([[1, 0, 1, 0]]), 2), jnp.uint8([[1, 1, 0, 0]])
        >>> embedding = jnp.array([[[0.0], [3.0], [1.0], [0.0]]])  # right, missed, wrong, right
        >>> options = {"positives": "spatial", "anchors": 4, "margin": 0.5}
        >>> metric_loss(logits, embedding, label, jax.random.key(0), **options).item()  # 9 - 1 + .5
        8.5
    """
    columns = label.shape[1]
    label, embedding = label.ravel(), embedding.reshape(-1, embedding.shape[-1])
    predicted = jnp.argmax(logits, axis=-1).ravel()
    counted = label != IGNORE
    right = counted & (label == predicted) & (label > 0)
    anchor_key, positive_key, negative_key = jax.random.split(key, 3)
    anchor = draw(anchor_key, jnp.broadcast_to(jnp.log(right), (anchors, right.size)))
    own = label[anchor][:, None]
    missed = counted & (label == own) & (predicted != own)
    wrong = counted & (label != own) & (predicted == own)
    valid = right[anchor] & missed.any(axis=1) & wrong.any(axis=1)

    def squared_distance(other: Int[AnyArray, " anchor"]) -> Float[Array, " anchor"]:
        return jnp.sum((embedding[anchor] - embedding[other]) ** 2, axis=-1)

    if positives == "feature":
        every = jax.vmap(lambda a: jnp.sum((embedding[a] - embedding) ** 2, axis=-1))(anchor)
        positive = jnp.argmax(jnp.where(missed, every, -jnp.inf), axis=1)
        negative = jnp.argmin(jnp.where(wrong, every, jnp.inf), axis=1)
    else:
        far = jnp.log1p(_distances(anchor, label.size, columns)) if positives == "spatial" else 0
        positive = draw(positive_key, jnp.log(missed) - far)  # minus infinity where none is missed
        negative = draw(negative_key, jnp.log(wrong))
    losses = nn.relu(squared_distance(positive) - squared_distance(negative) + margin)
    return jnp.sum(losses * valid) / jnp.maximum(valid.sum(), 1)


def _distances(
    anchor: Int[AnyArray, " anchor"], count: int, columns: int
) -> Float[Array, "anchor position"]:
    """Distances of anchors to all positions of a map of so many columns, in positions."""
    position = jnp.arange(count)
    down = position // columns - (anchor // columns)[:, None]
    across = position % columns - (anchor % columns)[:, None]
    return jnp.sqrt(down**2 + across**2)


def draw(key: PRNGKeyArray, log_weight: Float[AnyArray, "row n"]) -> Int[Array, " row"]:
    """Draws one index per row with the given log-weights; any index if all weights are 0."""
    return jax.random.categorical(key, jnp.maximum(log_weight, -1e30))
