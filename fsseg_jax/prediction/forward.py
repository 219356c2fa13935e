"""The pure function from supports and queries to logits, for any method."""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Integer, Num, UInt8

from fsseg_jax.episode import IGNORE, UNLABELLED, AnyArray, normalise
from fsseg_jax.errors import UserError
from fsseg_jax.models import Method, init_variables
from fsseg_jax.models.method import join_ways
from fsseg_jax.models.resize import resize
from fsseg_jax.prediction.arrays import check_arrays, is_array


class Segmented(NamedTuple):
    """A query's logits at the model's resolution, and how much what was found of each class is
    like the supports (`Method.likeness`). There may be axes in front."""

    logits: Float[AnyArray, "*query h w class"]
    likeness: Float[AnyArray, "*query way"] | None


def forward(
    model: Method,
    variables: Any,
    support_images: Num[AnyArray, "way shot height width 3"],
    support_labels: Integer[AnyArray, "way shot height width"],
    query_images: Num[AnyArray, "query query_height query_width 3"],
) -> Float[Array, "query query_height query_width class"]:
    """Logits of queries, as a pure, jitted function that composes with `jit`, `vmap` and `grad`.

    If the variables depend on the numbers of ways or shots and were trained for others, the model
    segments way by way and joins the results as in MFNet sec. IV-C, or shot by shot and averages
    the probabilities.

    Shapes and types are always checked; values only of arrays in the host's memory, because those
    of others are not known within `jit`, and fetching them would wait for an accelerator.

    Args:
        support_images: N ways by K shots, RGB in 0..255, uint8 or float, of any size that the model
            accepts.
        support_labels: 0 for the background, n for the class of way n, 255 for ignored pixels, 254
            for pixels without an annotation.
        query_images: RGB in 0..255, like the supports.

    Returns:
        one channel per class, the background first, at the size of the queries.

    Raises:
        UserError: arrays do not fit each other or have wrong values, or the variables are for
            numbers of ways or shots into which the episode cannot be divided.

    Examples:
        >>> import jax
        >>> import numpy as np
        >>> from fsseg_jax.config import load_config
        >>> from fsseg_jax.models import create_model, init_variables
        >>> model = create_model(load_config("quickstart"))
        >>> variables = init_variables(model, jax.random.key(0), ways=1, shots=2)
        >>> images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
        >>> labels = np.zeros((2, 32, 32), np.uint8)
        >>> labels[:, 8:20, 8:20] = 1
        >>> forward(model, variables, images[None, :2], labels[None], images[2:]).shape
        (1, 32, 32, 2)
    """
    if not isinstance(model, Method):
        raise UserError(f"model is of type {type(model).__name__}: give a method.")
    leaves = jax.tree.leaves(variables)
    if not isinstance(variables, Mapping) or not all(map(is_array, leaves)):
        raise UserError(f"variables of type {type(variables).__name__}: give those of the model.")
    check_arrays(support_images, support_labels, query_images)
    return _forward(model, variables, support_images, support_labels, query_images)


@functools.partial(jax.jit, static_argnums=0)
def _forward(
    model: Method, variables: Any, support_images: Any, support_labels: Any, query_images: Any
) -> Array:
    passes(model, variables, *support_labels.shape[:2])  # whether they are the model's, first
    if support_labels.dtype != jnp.uint8:  # what has no number in it is ignored
        whole = support_labels.astype(int)
        support_labels = jnp.where((whole >= 0) & (whole < IGNORE), whole, IGNORE)
    features = encode_supports(model, variables, support_images)
    labels = support_labels.astype(jnp.uint8)
    summary = summarise(model, variables, features, labels)
    logits = segment(model, variables, summary, labels, query_images).logits
    return resize(logits, query_images.shape[1:3], model.align_corners)


def encode_supports(
    model: Method, variables: Any, images: Num[Array, "way shot height width 3"]
) -> Any:
    """Features of supports, with the leading axes way and shot."""
    flat = normalise(images.reshape(-1, *images.shape[2:]))
    features = model.apply(variables, flat, method="encode")
    return jax.tree.map(lambda x: x.reshape(*images.shape[:2], *x.shape[1:]), features)


def summarise(
    model: Method,
    variables: Any,
    features: Any,
    labels: UInt8[Array, "way shot height width"],
) -> Any:
    """What `segment` takes of the supports: `Method.summarise` of each of the `passes`."""

    def of(depth: int, supports: tuple[Any, Array]) -> Any:
        if depth == 0:
            return model.apply(variables, *supports, method="summarise")
        return _each(functools.partial(of, depth - 1), supports)

    one_way, one_shot = passes(model, variables, *labels.shape[:2])
    return of(one_way + one_shot, _divided(features, labels, one_way, one_shot))


def segment(
    model: Method,
    variables: Any,
    summary: Any,
    labels: UInt8[Array, "way shot height width"],
    queries: Num[Array, "query query_height query_width 3"],
) -> Segmented:
    """Logits of queries at the model's own resolution, and likenesses if the model gives any.

    Args:
        summary: output of `summarise` with the same labels.
    """
    images = normalise(queries)
    encoded = model.apply(variables, images, method="encode")
    return segment_encoded(model, variables, summary, labels, encoded, images)


def segment_encoded(
    model: Method,
    variables: Any,
    summary: Any,
    labels: UInt8[Array, "way shot height width"],
    query_features: Any,
    images: Float[AnyArray, "query query_height query_width 3"],
) -> Segmented:
    """`segment` of normalised queries whose features are known."""
    shots = labels.shape[1]
    one_way, one_shot = passes(model, variables, *labels.shape[:2])
    supports = summary, _divided(None, labels, one_way, one_shot)[1]

    def pass_(supports: tuple[Any, Array], query: tuple[Any, Array]) -> Array:
        output: Any = model.apply(variables, *supports, *query, method="segment")
        return output.logits.astype(jnp.float32)

    def by_shots(supports: tuple[Any, Array], query: tuple[Any, Array]) -> Array:
        if not one_shot:
            return pass_(supports, query)
        logits = _each(lambda single: pass_(single, query), supports)
        return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - jnp.log(shots)

    def by_ways(query: tuple[Any, Array]) -> Array:
        if not one_way:
            return by_shots(supports, query)
        return join_ways(_each(lambda single: by_shots(single, query), supports))

    def whole(query: tuple[Any, Array]) -> Segmented:
        logits = by_ways(query)
        if one_way or one_shot:  # each of the passes has found something else
            return Segmented(logits, None)
        given = summary, query[0], logits
        likeness: Any = model.apply(variables, *given, method="likeness")
        return Segmented(logits, likeness)

    return _each(whole, (query_features, images))


def _divided(
    features: Any, labels: UInt8[Array, "way shot height width"], one_way: bool, one_shot: bool
) -> tuple[Any, Array]:
    """Supports of each of the `passes`, whose axes (way, shot) come in front, if there are any."""
    supports = features, labels
    if one_way:  # in a binary pass, the other ways are background
        way = jnp.arange(1, len(labels) + 1)[:, None, None, None]
        marked = (labels == IGNORE) | (labels == UNLABELLED)
        binary = jnp.where(marked, labels, labels == way).astype(jnp.uint8)
        supports = jax.tree.map(lambda x: x[:, None], (features, binary))
    if one_shot:
        shot = 1 + one_way
        supports = jax.tree.map(
            lambda x: jnp.expand_dims(jnp.moveaxis(x, shot, shot - 1), shot + 1), supports
        )
    return supports


def _each(function: Callable[[Any], Any], rows: Any) -> Any:
    """Applies `function` to each row: to all at once, but on CPUs to one after another.

    A CPU gains nothing from batching. Besides, with `jax.vmap` over ways, shots and queries arrays
    would have more axes than some versions of jaxlib support, and an exported program runs without
    `avoid_corruption`.
    """
    if jax.default_backend() == "cpu":
        return jax.lax.map(function, rows)
    return jax.vmap(function)(rows)


def passes(model: Method, variables: Any, ways: int, shots: int) -> tuple[bool, bool]:
    """Whether an episode must be segmented way by way, and shot by shot."""
    have = {name: getattr(x, "shape", None) for name, x in flatten_dict(variables).items()}
    for one_way, one_shot in itertools.product((False, True), repeat=2):
        given = 1 if one_way else ways, 1 if one_shot else shots
        # Flax makes modules hashable.
        needed = _needed(model, *given)  # pyright: ignore[reportArgumentType]
        if needed.items() <= have.items():
            return one_way, one_shot
    if not needed.keys() & have.keys():
        raise UserError(f"variables: they are not those of a {type(model).__name__}.")
    raise UserError(
        f"{ways} ways with {shots} shots: the parameters of this {type(model).__name__} are for "
        "another number of ways; use as many as it was trained with."
    )


@functools.cache
def _needed(model: Method, ways: int, shots: int) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Shapes of the variables that a model for so many ways and shots has."""
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), ways, shots))
    return {name: x.shape for name, x in flatten_dict(shapes).items()}
