"""The compiled functions of an evaluation: they encode images and score episodes."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Integer, UInt8, UInt32

from fsseg_jax.backbones.extent import extent, inside
from fsseg_jax.data.annotations import annotated
from fsseg_jax.devices import map_over_devices, replicated
from fsseg_jax.episode import IGNORE, AnyArray, episode_label, normalise
from fsseg_jax.evaluation.metrics import pixel_counts
from fsseg_jax.models import Method
from fsseg_jax.models.resize import resize, resize_into

# Thresholds on the probability of an object against the background, for `eval.threshold`.
THRESHOLDS = tuple(round(0.05 * number, 2) for number in range(1, 20))


@struct.dataclass
class Rows:
    """Episodes, as row numbers in the arrays of the evaluator."""

    classes: Int[AnyArray, "*batch way"]
    supports: Int[AnyArray, "*batch way shot"]  # rows of the images
    query: Int[AnyArray, "*batch"]
    turn: Int[AnyArray, "*batch"]  # row of the query in its bucket
    bits: UInt32[AnyArray, "*batch way shot"]  # choose the object that gets a box

    def take(self, rows: Any) -> "Rows":
        """The episodes at `rows`: a slice or an array of positions."""
        return jax.tree.map(lambda field: field[rows], self)


@struct.dataclass
class View:
    """Queries at one scale: squares, or images in the upper left corners of canvases."""

    features: Any  # encoded images
    images: UInt8[AnyArray, "query height width 3"]
    shape: Int[AnyArray, "query 2"] | None  # sizes of images on canvases


@struct.dataclass
class Queries:
    """Queries that one compiled function scores."""

    # One for each of `eval.scales`; None where the squares of `Cache` serve.
    views: tuple[View | None, ...]
    # At the images' own sizes, on canvases; None to score at the size of the squares.
    label: Integer[AnyArray, "query height width"] | None
    shape: Int[AnyArray, "query 2"]  # size of the image on its label
    extent: Int[AnyArray, "query 2"]  # size of the network's square, or of the view, on the label


@struct.dataclass
class Cache:
    """The data of the episodes of a bucket, on the devices."""

    features: Any  # encoded images
    images: UInt8[Array, "image size size 3"]
    labels: Integer[Array, "image size size"]
    marks: UInt8[Array, "image size size"] | None  # for annotations other than dense masks
    queries: Queries


@struct.dataclass
class Counts:
    """Pixel counts of episodes (see `metrics.pixel_counts`), and what the method measures."""

    # For both meanings of the label 255: "ignored" and "background".
    borders: Mapping[str, Int[AnyArray, "*episode class 3"]]
    # At each of `THRESHOLDS`, for `eval.border`.
    thresholds: Int[AnyArray, "*episode threshold class 3"] | None
    measured: Mapping[str, Float[AnyArray, "*episode"]]


@dataclasses.dataclass(frozen=True)
class Scorer:
    """The compiled functions of an evaluation.

    Equal scorers share compiled functions: several evaluations of a model, or parts of one, only
    compile for new shapes.
    """

    model: Method
    mesh: Mesh
    border: str  # see `eval.border`
    thresholds: bool  # whether to count at `THRESHOLDS`
    annotation: str  # of supports, see `annotations.KINDS`
    feature_dtype: str
    together: int  # see `eval.together`

    @functools.partial(jax.jit, static_argnums=0)
    def encode(
        self,
        variables: Any,
        images: UInt8[Array, "batch height width 3"],
        shapes: Int[Array, "batch 2"] | None = None,
    ) -> Any:
        """Features of images, on every device.

        Args:
            shapes: heights and widths of images that are on canvases.
        """

        def one(variables: Any, image: Array, shape: Array | None) -> Any:
            with _on_canvas(image, shape, self.model.patch):
                features = self.model.apply(variables, normalise(image), method="encode")
            return jax.tree.map(lambda x: x.astype(self.feature_dtype), features)

        mapped = map_over_devices(one, self.mesh, batched=2, together=self.together)
        return mapped(variables, images, shapes)

    @functools.partial(jax.jit, static_argnums=(0, 2, 3))
    def room(self, variables: Any, count: int, size: tuple[int, int]) -> Any:
        """Zeros to be replaced by the features of `count` images, on every device."""
        images = jax.ShapeDtypeStruct((self.mesh.size * self.together, *size, 3), jnp.uint8)
        features = jax.eval_shape(self.encode, variables, images)
        zeros = jax.tree.map(lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype), features)
        return jax.lax.with_sharding_constraint(zeros, replicated(self.mesh))

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def insert(self, encoded: Any, rows: Int[Array, " chunk"], part: Any) -> Any:
        """Replaces the features in some rows."""
        return jax.tree.map(lambda whole, new: whole.at[rows].set(new), encoded, part)

    def _segment(self, variables: Any, cache: Cache, rows: Rows) -> "Segmented":
        def at(values: Any, row: AnyArray) -> Any:
            return jax.tree.map(lambda x: x[row].astype(jnp.float32), values)

        queries, turn, corners = cache.queries, rows.turn, self.model.align_corners
        support_label = episode_label(cache.labels[rows.supports], rows.classes)
        if cache.marks is not None:
            marks = cache.marks[rows.supports]
            support_label = annotated(support_label, marks, rows.bits, self.annotation, jnp)
        supports = at(cache.features, rows.supports)
        summary = self.model.apply(variables, supports, support_label, method="summarise")
        square = View(cache.features, cache.images, None)
        label = cache.labels[rows.query] if queries.label is None else queries.label[turn]
        label = episode_label(label, rows.classes)
        results, measured = [], []
        for view in queries.views:
            row = rows.query if view is None else turn
            view = view or square
            image, shape = view.images[row], None if view.shape is None else view.shape[row]
            features = at(view.features, row)
            with _on_canvas(image, shape, self.model.patch):
                output: Any = self.model.apply(
                    variables, summary, support_label, features, normalise(image), method="segment"
                )
                logits = output.logits.astype(jnp.float32)
                source = None if shape is None else inside(logits)
            if queries.label is None:
                results.append(resize(logits, label.shape, corners))
            else:
                size = queries.extent[turn]
                results.append(resize_into(logits, size, label.shape, corners, source))
            measured.append(output.measured)
        if len(results) > 1:
            results = [jnp.log(sum(map(jax.nn.softmax, results)) / len(results) + 1e-7)]
        mean = jax.tree.map(lambda *values: sum(values) / len(values), *measured)
        # Measure on the square: it has a label at the network's size in any case.
        whole = episode_label(cache.labels[rows.query], rows.classes)
        known = supports, support_label, at(cache.features, rows.query), whole
        mean |= self.model.apply(variables, *known, method="measure")
        own = queries.shape[turn]
        down, across = jnp.arange(label.shape[0]) < own[0], jnp.arange(label.shape[1]) < own[1]
        return Segmented(results[0], label, down[:, None] & across, mean)

    @functools.partial(jax.jit, static_argnums=0)
    def predict(
        self, variables: Any, cache: Cache, rows: Rows
    ) -> tuple[Int[Array, "height width"], Float[Array, "height width class"]]:
        """The prediction for an episode, and its probabilities, on every device."""
        logits = self._segment(variables, cache, rows).logits
        result = jnp.argmax(logits, axis=-1), jax.nn.softmax(logits)
        return jax.lax.with_sharding_constraint(result, replicated(self.mesh))

    @functools.partial(jax.jit, static_argnums=0)
    def score(self, variables: Any, cache: Cache, rows: Rows) -> Counts:
        """Pixel counts of some episodes, and what the method measures in each of them."""

        def one(variables: Any, cache: Cache, rows: Rows) -> Counts:
            logits, label, counted, measured = self._segment(variables, cache, rows)
            ways = rows.classes.shape[0]
            prediction = jnp.argmax(logits, axis=-1)
            kept = {"ignored": counted & (label != IGNORE), "background": counted}
            borders = {k: pixel_counts(prediction, label, ways, kept[k]) for k in kept}
            thresholds = None
            if self.thresholds:
                objects = logits[..., 1:]
                sure = jax.nn.sigmoid(objects.max(axis=-1) - logits[..., 0])
                thresholds = jax.lax.map(
                    lambda threshold: pixel_counts(
                        jnp.where(sure > threshold, 1 + objects.argmax(axis=-1), 0),
                        label,
                        ways,
                        kept[self.border],
                    ),
                    jnp.array(THRESHOLDS),
                )
            return Counts(borders, thresholds, measured)

        mapped = map_over_devices(one, self.mesh, batched=1, together=self.together)
        return mapped(variables, cache, rows)


class Segmented(NamedTuple):
    """The query of an episode at the scoring size."""

    # With several scales, the logarithms of their mean probabilities.
    logits: Float[Array, "height width class"]
    label: UInt8[Array, "height width"]
    counted: Bool[Array, "height width"]  # inside the image, border included
    measured: dict[str, Float[Array, ""]]


def _on_canvas(
    image: UInt8[Array, "height width 3"], shape: Int[Array, "2"] | None, patch: int
) -> contextlib.AbstractContextManager:
    """Restricts networks to an image of size `shape` in the corner of its canvas."""
    return contextlib.nullcontext() if shape is None else extent(image.shape[:2], shape, patch)
