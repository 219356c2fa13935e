"""Segmentation by features of a pretrained backbone, without training: many vectors a class.

A class is described by all positions of its supports (blocks of 2 x 2 of them). What they say about
a query is read in three ways, whose logits are added:

- **Density**: the share of the class's area that is near, by a von Mises-Fisher kernel on the unit
  sphere. With one position a class, it is PANet's cosine similarity (its eq. 3) of centred
  features, with kappa for alpha, up to a constant.
- **Matching**: PANet's cosine similarity to prototypes in which positions of the supports are
  replaced by those of the query that match them forward and backward. A position of a support finds
  the most similar one of the query; that takes its place if it finds a position of the same class
  among all supports in turn. The thing in the query looks like itself more than like a few
  supports; and where little matches, the supports' mean remains.
- **Discriminant**: a linear classifier, which weighs channels by how well they separate the
  classes: linear discriminant analysis whose covariance is regularised by a multiple of the
  identity (after Friedman, 1989; it is not normalised, so that a larger multiple makes these logits
  smaller, too).

Features have a large part in common, which would make all cosines similar: the mean of the classes'
means is subtracted first. Classes count the same however much area their masks have.

Whether an image shows a class at all is another question, since what is most like the class in it
need not be much like it. `likeness` answers it by one vector for all that was found.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fsseg_jax.episode import AnyArray

TINY = 1e-9  # added to areas, so that a class without positions has means of 0
# The least variance of a channel: positions that are all alike have none. Those of unit vectors
# have about 1 / channels.
LEAST_VARIANCE = 1e-6
Activation = Callable[[Array], Array]

ABSENT = -1e4  # log-density of a class without positions: it is finite, and never predicted

# Differences of similar vectors: they would be lost in the accelerators' faster products.
product = functools.partial(jnp.einsum, precision="highest")


class Bank(NamedTuple):
    """What the supports are reduced to. Classes are the background and the ways; a position is a
    unit vector, after the centre is subtracted."""

    centre: Float[Array, " channel"]  # the mean of the classes' means
    means: Float[Array, "class channel"]  # after the centre is subtracted
    positions: Float[Array, "image position channel"]
    weights: Float[Array, "image position class"]  # sum to 1 in each class that is shown
    directions: Float[Array, "class channel"]  # of the discriminant
    offsets: Float[Array, " class"]  # of the discriminant
    descriptors: Float[Array, "class channel"]  # unit vectors of features as they are


def unit(x: Float[AnyArray, "*batch channel"]) -> Float[Array, "*batch channel"]:
    """Vectors of length 1; zeros stay. Lengths are clamped as `layers.cosine_similarity` does."""
    return jnp.asarray(x) * jax.lax.rsqrt(
        jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-16)
    )


def fit(
    features: Float[AnyArray, "image h w channel"],
    areas: Float[AnyArray, "image h w class"],
    ridge: float,
    activation: Activation = lambda x: x,
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
        activation: of the features, where the backbone has left it out; for `likeness` only.

    Examples:
        >>> features = jax.random.normal(jax.random.key(0), (2, 8, 8, 16))  # of two supports
        >>> areas = jnp.zeros((2, 8, 8, 2)).at[:, :, :4, 0].set(1.0).at[:, :, 4:, 1].set(1.0)
        >>> bank = fit(features, areas, ridge=3.0)
        >>> bank.means.shape, bank.positions.shape  # blocks of 2 x 2 positions
        ((2, 16), (2, 16, 16))
    """
    sums = product("ihwk,ihwc->ikc", areas, activation(jnp.asarray(features)))
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
    descriptors = unit(unit(sums).sum(axis=0))
    return Bank(centre, means, unit(x), weights, directions, offsets, descriptors)


class Compared(NamedTuple):
    """A query's positions beside those of all supports; indices count through all of them."""

    density: Float[Array, "h w class"]
    nearest_support: Int[Array, "h w"]  # the support's position that is most similar to each
    nearest_query: Int[Array, "image position"]  # and the query's that is to each of the supports'


def logits(
    bank: Bank,
    features: Float[AnyArray, "h w channel"],
    sharpness: float,
    matching_weight: float,
    discriminant_weight: float,
) -> Float[Array, "h w class"]:
    """Logits of a query: its log-density, and the weighted ones of matching and discriminant.

    Examples:
        >>> left = jax.nn.one_hot(jnp.arange(8) // 4, 2)[None, None]  # two kinds of positions
        >>> features = jnp.tile(left, (1, 8, 1, 1))
        >>> bank = fit(features, areas=features, ridge=3.0)
        >>> found = logits(bank, features[0, :, ::-1], 10.0, 10.0, 0.5)  # mirrored
        >>> found.argmax(axis=-1)[0].tolist()
        [1, 1, 1, 1, 0, 0, 0, 0]
    """
    y = unit(features) - bank.centre
    compared = compare(bank, y, sharpness)
    found = compared.density
    if matching_weight:
        found += matching_weight * matching(bank, y, compared)
    if discriminant_weight:
        linear = product("hwc,kc->hwk", y, bank.directions) + bank.offsets
        found += discriminant_weight * linear
    return found


def compare(bank: Bank, query: Float[AnyArray, "h w channel"], sharpness: float) -> Compared:
    r"""The logarithm of each class's density, $\log \sum_i w_i e^{\kappa (\cos_i - 1)}$, which is
    `ABSENT` for a class without positions; and which positions are most similar.

    Args:
        query: unit vectors from which the centre is subtracted.
        sharpness: kappa, at most 40: beyond, what is far would not be a number.
    """
    y = unit(query)
    per_image = bank.positions.shape[1]

    def add(
        total: tuple[Array, Array, Array], image: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array, Array], Array]:
        density, largest_yet, nearest = total
        positions, weights, first = image
        cosines = product("hwc,pc->hwp", y, positions)
        exponents = sharpness * (cosines - 1)
        largest = exponents.max(axis=-1, keepdims=True)
        sums = product("hwp,pk->hwk", jnp.exp(exponents - largest), weights)
        logs = jnp.log(jnp.where(sums > 0, sums, 1.0)) + largest  # 0 has no logarithm, nor gradient
        density = jnp.logaddexp(density, jnp.where(sums > 0, logs, ABSENT))
        # Positions without an area are of nothing.
        cosines = jnp.where(weights.sum(axis=-1) > 0, cosines, -jnp.inf)
        largest = cosines.max(axis=-1)
        here = first + cosines.argmax(axis=-1)
        nearest = jnp.where(largest > largest_yet, here, nearest)
        largest_yet = jnp.maximum(largest, largest_yet)
        return (density, largest_yet, nearest), cosines.reshape(-1, per_image).argmax(axis=0)

    # Image by image: the similarities to many supports would not fit into memory.
    size = y.shape[:2]
    nothing = jnp.full((*size, bank.weights.shape[-1]), ABSENT)
    start = nothing, jnp.full(size, -jnp.inf), jnp.zeros(size, int)
    firsts = per_image * jnp.arange(len(bank.positions))
    parts = bank.positions, bank.weights, firsts
    (density, _, nearest_support), nearest_query = jax.lax.scan(add, start, parts)
    return Compared(density, nearest_support, nearest_query)


def matching(
    bank: Bank, query: Float[AnyArray, "h w channel"], compared: Compared
) -> Float[Array, "h w class"]:
    r"""Cosine similarities to prototypes that follow the query as far as it matches.

    A support's position $i$ is of the class $k$ that it is the greatest part of, and has the weight
    $w_i$ in it. It finds the query's position $f(i)$. The set $R_k$ are those of the class whose
    $f(i)$ finds a position of the same class in turn. With the mean $m_k$ of the supports, the
    prototype is

    $$\Big(1 - \sum_{i \in R_k} w_i\Big) m_k + \sum_{i \in R_k} w_i\, y_{f(i)}.$$

    The mean of the prototypes is subtracted, as that of the supports' means is from all else.
    """
    y = query.reshape(-1, query.shape[-1])
    weights = bank.weights.reshape(-1, bank.weights.shape[-1])
    own, finds = weights.argmax(axis=-1), compared.nearest_query.ravel()
    returns = own == own[compared.nearest_support.ravel()[finds]]
    shares = jax.nn.one_hot(own, weights.shape[-1]) * weights * returns[:, None]
    prototypes = (1 - shares.sum(axis=0)[:, None]) * bank.means
    prototypes += product("pk,pc->kc", shares, y[finds])
    is_shown = weights.sum(axis=0)[:, None] > 0
    centre = jnp.mean(prototypes, axis=0, where=is_shown)
    prototypes = jnp.where(is_shown, unit(prototypes - centre), 0.0)
    return product("hwc,kc->hwk", unit(query - centre), prototypes)


def likeness(
    bank: Bank,
    features: Float[AnyArray, "h w channel"],
    logits: Float[AnyArray, "h w class"],
    among: Bool[AnyArray, "h w"] | None = None,
    activation: Activation = lambda x: x,
) -> Float[Array, " way"]:
    r"""How much what was found of each class is like the supports: a cosine.

    With the sum $F_i$ of the features of support i over the class, and that of the query over what
    was found, $F_q$,

    $$\cos\Big(F_q, \sum_i \frac{F_i}{|F_i|}\Big).$$

    Unlike logits, it does not depend on what else the images show. No common part is subtracted:
    on VOC, that would tell images with the class from others less well, as would features without
    the activation (docs/figures.md).

    Args:
        features, logits: of the query. Found is where a class is the most probable, or where it is
            the nearest to being so.
        among: positions that count; by default all.
        activation: as in `fit`.
    """
    scores = jnp.moveaxis(logits, -1, 0)
    own = jnp.eye(len(scores), dtype=bool)[:, :, None, None]
    margins = (scores - jnp.where(own, -jnp.inf, scores).max(axis=1))[1:]
    if among is not None:
        margins = jnp.where(among, margins, -jnp.inf)
    found = margins >= jnp.minimum(margins.max(axis=(1, 2), keepdims=True), 0)
    sums = product("khw,hwc->kc", found.astype(jnp.float32), activation(jnp.asarray(features)))
    return jnp.sum(unit(sums) * bank.descriptors[1:], axis=-1)


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
