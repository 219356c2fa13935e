"""What an evaluation compiles: encoding photographs, and scoring episodes of encoded ones."""

import dataclasses
import functools
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Integer, UInt8, UInt32

from fsseg_jax.data.annotations import annotated
from fsseg_jax.devices import map_over_devices, replicated
from fsseg_jax.episode import episode_label, normalise
from fsseg_jax.evaluation.metrics import pixel_counts
from fsseg_jax.models import Method
from fsseg_jax.models.resize import resize, resize_into


@flax.struct.dataclass
class Rows:
    """Episodes by the rows of what the evaluator keeps, B of them."""

    classes: Int[Array, "batch way"]
    supports: Int[Array, "batch way shot"]  # rows of the photographs
    query: Int[Array, " batch"]
    turn: Int[Array, " batch"]  # the query's row among all queries
    bits: UInt32[Array, "batch way shot"]  # which object gets a box

    def take(self, rows: Any) -> "Rows":
        """The episodes at `rows`: a slice or an array of positions."""
        return jax.tree.map(lambda field: field[rows], self)


@flax.struct.dataclass
class Truth:
    """Labels of the queries at their own sizes, on one canvas whose rest is label 255."""

    label: Integer[Array, "query height width"]
    shape: Int[Array, "query 2"]
    extent: Int[Array, "query 2"]  # of the network's square on the photograph


@flax.struct.dataclass
class Cache:
    """All that the episodes need, on the devices."""

    features: Any  # of the photographs, encoded
    images: UInt8[Array, "photograph size size 3"]
    labels: Integer[Array, "photograph size size"]
    marks: UInt8[Array, "photograph size size"] | None  # where supports are not outlined densely
    # Of the queries at each of `eval.scales` but 1: features and photographs.
    scaled: tuple[tuple[Any, UInt8[Array, "query side side 3"]], ...]
    truth: Truth | None  # where masks are compared at the photographs' own size


@dataclasses.dataclass(frozen=True)
class Scorer:
    """The compiled functions of an evaluation.

    Equal ones share what has been compiled: evaluations of one model, and the parts of one of
    them, compile only what has other shapes.
    """

    model: Method
    mesh: Mesh
    size: int  # side of the network's square
    sides: tuple[int, ...]  # of the query at each of `eval.scales`
    annotation: str  # how supports are outlined, see `annotations.KINDS`
    feature_dtype: str
    together: int  # see `eval.together`

    @functools.partial(jax.jit, static_argnums=0)
    def encode(self, variables: Any, images: UInt8[Array, "batch side side 3"]) -> Any:
        """Features of photographs, on every device."""

        def one(variables: Any, image: UInt8[Array, "side side 3"]) -> Any:
            features = self.model.apply(variables, normalise(image), method="encode")
            return jax.tree.map(lambda x: x.astype(self.feature_dtype), features)

        mapped = map_over_devices(one, self.mesh, batched=1, together=self.together)
        return mapped(variables, images)

    @functools.partial(jax.jit, static_argnums=(0, 2, 3))
    def room(self, variables: Any, count: int, side: int) -> Any:
        """Zeros where features of `count` photographs will stand, on every device."""
        step = self.mesh.size * self.together
        images = jax.ShapeDtypeStruct((step, side, side, 3), jnp.uint8)
        features = jax.eval_shape(self.encode, variables, images)
        zeros = jax.tree.map(lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype), features)
        return jax.lax.with_sharding_constraint(zeros, replicated(self.mesh))

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def insert(self, encoded: Any, rows: Int[Array, " chunk"], part: Any) -> Any:
        """Features with those of some rows replaced."""
        return jax.tree.map(lambda whole, new: whole.at[rows].set(new), encoded, part)

    def _logits(
        self, variables: Any, cache: Cache, rows: Rows
    ) -> tuple[Float[Array, "height width class"], Integer[Array, "height width"], Any]:
        """The prediction of one episode at the scoring size, its label, and what was measured.

        Logits, or of several scales the logarithms of their mean probabilities.
        """

        def at(values: Any, row: Array) -> Any:
            return jax.tree.map(lambda x: x[row].astype(jnp.float32), values)

        support_label = episode_label(cache.labels[rows.supports], rows.classes)
        if cache.marks is not None:
            marks = cache.marks[rows.supports]
            support_label = annotated(support_label, marks, rows.bits, self.annotation, jnp)
        supports = at(cache.features, rows.supports)
        scaled = iter(cache.scaled)
        results, measured = [], []
        for side in self.sides:
            features, image, row = cache.features, cache.images, rows.query
            if side != self.size:
                features, image = next(scaled)
                row = rows.turn
            output = self.model.apply(
                variables,
                supports,
                support_label,
                at(features, row),
                normalise(image[row]),
                method="segment",
            )
            results.append(self._resize(output.logits.astype(jnp.float32), cache.truth, rows.turn))
            measured.append(output.measured)
        if len(results) > 1:
            results = [jnp.log(sum(map(jax.nn.softmax, results)) / len(results) + 1e-7)]
        label = cache.labels[rows.query] if cache.truth is None else cache.truth.label[rows.turn]
        mean = jax.tree.map(lambda *values: sum(values) / len(values), *measured)
        return results[0], episode_label(label, rows.classes), mean

    def _resize(
        self, logits: Float[Array, "h w class"], truth: Truth | None, turn: Int[Array, ""]
    ) -> Float[Array, "height width class"]:
        """Logits at the scoring size."""
        corners = self.model.align_corners
        if truth is None:
            return resize(logits, (self.size, self.size), corners)
        return resize_into(logits, truth.extent[turn], truth.label.shape[1:], corners)

    @functools.partial(jax.jit, static_argnums=0)
    def predict(
        self, variables: Any, cache: Cache, rows: Rows
    ) -> tuple[Int[Array, "height width"], Float[Array, "height width class"]]:
        """The prediction for one episode, and its probabilities, on every device."""
        logits, *_ = self._logits(variables, cache, rows)
        result = jnp.argmax(logits, axis=-1), jax.nn.softmax(logits)
        return jax.lax.with_sharding_constraint(result, replicated(self.mesh))

    @functools.partial(jax.jit, static_argnums=0)
    def score(
        self, variables: Any, cache: Cache, rows: Rows
    ) -> tuple[Int[Array, "batch class 3"], dict[str, Array]]:
        """Pixel counts of some episodes, and what the method measured of each of them."""

        def one(variables: Any, cache: Cache, rows: Rows) -> tuple[Array, dict[str, Array]]:
            logits, label, measured = self._logits(variables, cache, rows)
            ways = rows.classes.shape[0]
            return pixel_counts(jnp.argmax(logits, axis=-1), label, ways), measured

        mapped = map_over_devices(one, self.mesh, batched=1, together=self.together)
        return mapped(variables, cache, rows)
