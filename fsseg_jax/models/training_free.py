"""Segmentation by features of a pretrained backbone, without training: more than one mean a class.

A class is described by all positions of its supports. What they say about a query is read in two
ways, whose logits are added:

- **Density**: how many positions of the class are near, by a von Mises-Fisher kernel on the unit
  sphere. With one position a class, this is PANet's cosine similarity (its eq. 3).
- **Discriminant**: a linear classifier (regularised linear discriminant analysis, Friedman, 1989),
  which weighs channels by how well they separate the classes.

Priors of all classes are equal: a class counts the same however much area its masks have.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fsseg_jax.episode import AnyArray

TINY = 1e-9  # added to densities and areas, so that a class without positions is finite


class Bank(NamedTuple):
    """What is kept of the supports; positions are unit vectors after the centre is subtracted."""

    centre: Float[Array, " channel"]
    positions: Float[Array, "image position channel"]
    weights: Float[Array, "image position class"]  # of each class 1 in total, or 0
    directions: Float[Array, "class channel"]  # of the discriminant
    offsets: Float[Array, " class"]


def unit(x: Float[AnyArray, "*batch channel"]) -> Float[Array, "*batch channel"]:
    """Vectors of length 1; zeros stay."""
    return jnp.asarray(x) * jax.lax.rsqrt(
        jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-16)
    )


def fit(
    features: Float[AnyArray, "image h w channel"],
    areas: Float[AnyArray, "image h w class"],
    ridge: float,
) -> Bank:
    """The bank of supports, which costs about one product of channel x channel for each position.

    Args:
        features: of the supports of all classes.
        areas: how much of each position a class has, in any unit; positions whose areas are 0
            count for nothing.
        ridge: added to the covariance of the discriminant, as a multiple of its mean variance.
    """
    x, areas = _halved(unit(features), areas)
    weights = areas / (areas.sum(axis=(0, 1)) + TINY)
    means = jnp.einsum("ipk,ipc->kc", weights, x, precision="highest")
    shown = weights.sum(axis=(0, 1)) > 0.5
    share = shown / jnp.maximum(shown.sum(), 1)  # of a class in means over classes
    centre = share @ means
    x, means = x - centre, (means - centre) * shown[:, None]
    # The covariance within classes.
    second = jnp.einsum("ip,ipc,ipd->cd", weights @ share, x, x, precision="highest")
    covariance = second - jnp.einsum("k,kc,kd->cd", share, means, means, precision="highest")
    variance = jnp.maximum(jnp.trace(covariance) / len(covariance), TINY)
    regularised = covariance + ridge * variance * jnp.eye(len(covariance))
    directions = jax.scipy.linalg.solve(regularised, means.T, assume_a="pos").T
    offsets = -jnp.sum(directions * means, axis=-1) / 2
    return Bank(centre, unit(x), weights, directions, offsets)


def logits(
    bank: Bank, query: Float[AnyArray, "h w channel"], sharpness: float, discriminant_weight: float
) -> Float[Array, "h w class"]:
    """Logits of a query: its log-densities, and a multiple of the discriminant."""
    query = unit(query) - bank.centre
    linear = jnp.einsum("hwc,kc->hwk", query, bank.directions, precision="highest") + bank.offsets
    return density(bank, query, sharpness) + discriminant_weight * linear


def density(
    bank: Bank, query: Float[AnyArray, "h w channel"], sharpness: float
) -> Float[Array, "h w class"]:
    r"""The logarithm of each class's density, $\log \sum_i w_i e^{\kappa (\cos_i - 1)}$.

    Args:
        query: unit vectors from which the centre is subtracted.
        sharpness: kappa.
    """
    y = unit(query)

    def add(total: Array, image: tuple[Array, Array]) -> tuple[Array, None]:
        positions, weights = image
        cosines = jnp.einsum("hwc,pc->hwp", y, positions, precision="highest")
        return total + jnp.exp(sharpness * (cosines - 1)) @ weights, None

    # Image by image: the similarities to many supports would not fit into memory.
    zeros = jnp.zeros((*y.shape[:2], bank.weights.shape[-1]))
    total, _ = jax.lax.scan(add, zeros, (bank.positions, bank.weights))
    return jnp.log(total + TINY)


def _halved(
    features: Float[AnyArray, "image h w channel"], areas: Float[AnyArray, "image h w class"]
) -> tuple[Float[Array, "image position channel"], Float[Array, "image position class"]]:
    """Means of 2 x 2 positions, weighted by their areas, and the sums of these: neighbours resemble
    each other, and a quarter of the positions is a quarter of the work."""

    def sums(x: AnyArray) -> Array:
        x = jnp.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)])
        blocks = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).sum(axis=(2, 4))
        return blocks.reshape(len(x), -1, x.shape[-1])

    area = areas.sum(axis=-1, keepdims=True)
    return sums(features * area) / (sums(area) + TINY), sums(areas)
