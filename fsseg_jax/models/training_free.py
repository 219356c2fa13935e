"""Segmentation by features of a pretrained backbone, without training: many vectors a class.

A class is described by all positions of its supports (blocks of 2 x 2 of them). What they say about
a query is read in two ways, whose logits are added:

- **Density**: the share of the class's area that is near, by a von Mises-Fisher kernel on the unit
  sphere. With one position a class, it is PANet's cosine similarity (its eq. 3) of centred
  features, with kappa for alpha, up to a constant.
- **Discriminant**: a linear classifier, which weighs channels by how well they separate the
  classes: linear discriminant analysis whose covariance is regularised by a multiple of the
  identity (after Friedman, 1989; it is not normalised, so that a larger multiple makes these logits
  smaller, too).

Features have a large part in common, which would make all cosines similar: the mean of the classes'
means is subtracted first. Classes count the same however much area their masks have.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fsseg_jax.episode import AnyArray

TINY = 1e-9  # added to areas, so that a class without positions has means of 0
# The least variance of a channel: positions that are all alike have none. Those of unit vectors
# have about 1 / channels.
LEAST_VARIANCE = 1e-6
ABSENT = -1e4  # log-density of a class without positions: it is finite, and never predicted

# Differences of similar vectors: they would be lost in the accelerators' faster products.
product = functools.partial(jnp.einsum, precision="highest")


class Bank(NamedTuple):
    """What the supports are reduced to. Classes are the background and the ways; a position is a
    unit vector, after the centre is subtracted."""

    centre: Float[Array, " channel"]  # the mean of the classes' means
    positions: Float[Array, "image position channel"]
    weights: Float[Array, "image position class"]  # sum to 1 in each class that is shown
    directions: Float[Array, "class channel"]  # of the discriminant
    offsets: Float[Array, " class"]  # of the discriminant


def unit(x: Float[AnyArray, "*batch channel"]) -> Float[Array, "*batch channel"]:
    """Vectors of length 1; zeros stay. Lengths are clamped as `layers.cosine_similarity` does."""
    return jnp.asarray(x) * jax.lax.rsqrt(
        jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-16)
    )


def fit(
    features: Float[AnyArray, "image h w channel"],
    areas: Float[AnyArray, "image h w class"],
    ridge: float,
) -> Bank:
    r"""The bank of supports; most of the work is the covariance, channel x channel a position.

    With the mean $m_k$ of class k after the centre is subtracted, and $S$ the regularised
    covariance within the classes, the discriminant of a query's position $y$ is

    $$y^\top S^{-1} m_k - \tfrac{1}{2} m_k^\top S^{-1} m_k.$$

    Args:
        features: of the supports of all classes.
        areas: how much of each position a class has, in pixels, say; positions whose areas are 0
            count for nothing.
        ridge: times the mean variance, it is added to the diagonal of the covariance.
    """
    x, areas = _block_means(unit(features), areas)
    weights = areas / (areas.sum(axis=(0, 1)) + TINY)
    means = product("ipk,ipc->kc", weights, x)
    is_shown = areas.sum(axis=(0, 1)) > TINY
    class_weights = is_shown / jnp.maximum(is_shown.sum(), 1)
    centre = product("k,kc->c", class_weights, means)
    x, means = x - centre, (means - centre) * is_shown[:, None]
    # Within the classes: the second moment without that of the means, for any centre.
    position_weights = product("ipk,k->ip", weights, class_weights)
    moment = product("ip,ipc,ipd->cd", position_weights, x, x)
    covariance = moment - product("k,kc,kd->cd", class_weights, means, means)
    variance = jnp.maximum(jnp.trace(covariance) / len(covariance), LEAST_VARIANCE)
    regularised = covariance + ridge * variance * jnp.eye(len(covariance))
    directions = jax.scipy.linalg.solve(regularised, means.T, assume_a="pos").T
    offsets = -jnp.sum(directions * means, axis=-1) / 2
    return Bank(centre, unit(x), weights, directions, offsets)


def logits(
    bank: Bank,
    features: Float[AnyArray, "h w channel"],
    sharpness: float,
    discriminant_weight: float,
) -> Float[Array, "h w class"]:
    """Logits of a query: its log-density, and `discriminant_weight` times the discriminant."""
    y = unit(features) - bank.centre
    found = density(bank, y, sharpness)
    if not discriminant_weight:
        return found
    linear = product("hwc,kc->hwk", y, bank.directions) + bank.offsets
    return found + discriminant_weight * linear


def density(
    bank: Bank, query: Float[AnyArray, "h w channel"], sharpness: float
) -> Float[Array, "h w class"]:
    r"""The logarithm of each class's density, $\log \sum_i w_i e^{\kappa (\cos_i - 1)}$; `ABSENT`
    for a class without positions.

    Args:
        query: unit vectors from which the centre is subtracted.
        sharpness: kappa, at most 40: beyond, what is far would not be a number.
    """
    y = unit(query)

    def add(total: Float[Array, "h w class"], image: tuple[Array, Array]) -> tuple[Array, None]:
        positions, weights = image
        exponents = sharpness * (product("hwc,pc->hwp", y, positions) - 1)
        largest = exponents.max(axis=-1, keepdims=True)
        sums = product("hwp,pk->hwk", jnp.exp(exponents - largest), weights)
        logs = jnp.log(jnp.where(sums > 0, sums, 1.0)) + largest  # 0 has no logarithm, nor gradient
        return jnp.logaddexp(total, jnp.where(sums > 0, logs, ABSENT)), None

    # Image by image: the similarities to many supports would not fit into memory.
    nothing = jnp.full((*y.shape[:2], bank.weights.shape[-1]), ABSENT)
    total, _ = jax.lax.scan(add, nothing, (bank.positions, bank.weights))
    return total


def _block_means(
    features: Float[AnyArray, "image h w channel"], areas: Float[AnyArray, "image h w class"]
) -> tuple[Float[Array, "image position channel"], Float[Array, "image position class"]]:
    """Features averaged over blocks of 2 x 2 positions, weighted by their areas, and the areas'
    sums: neighbours resemble each other, and a quarter of the positions is a quarter of the work.
    """

    def sums(x: AnyArray) -> Array:
        x = jnp.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)])
        blocks = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).sum(axis=(2, 4))
        return blocks.reshape(len(x), -1, x.shape[-1])

    area = areas.sum(axis=-1, keepdims=True)
    return sums(features * area) / (sums(area) + TINY), sums(areas)
