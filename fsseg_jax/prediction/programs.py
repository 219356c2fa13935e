"""The compiled functions of a segmenter."""

import functools
import threading
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, UInt8

from fsseg_jax.devices import map_over_devices, put, split
from fsseg_jax.episode import normalise
from fsseg_jax.models import Method
from fsseg_jax.prediction.forward import (
    Segmented,
    encode_supports,
    segment,
    segment_encoded,
    summarise,
)
from fsseg_jax.prediction.memory import on_devices


class Programs:
    """Functions of a method, each compiled when it is first called for arrays of some shapes.

    Args:
        mesh: the devices over which batches of queries are split.
        image_size: side of the squares, for errors.
    """

    def __init__(self, model: Method, mesh: Mesh, image_size: int) -> None:
        self.mesh, self._size, self._model = mesh, image_size, model
        self.encode = jax.jit(functools.partial(encode_supports, model))
        self.summarise = jax.jit(functools.partial(summarise, model))
        self.segment_encoded = jax.jit(functools.partial(_segment_one, model))
        self.likeness = jax.jit(functools.partial(model.apply, method="likeness"))
        # Programs for several devices must reach all of them in the same order.
        self._one_by_one = threading.Lock()

    def segment_at_once(
        self,
        variables: Any,
        summary: Any,
        labels: UInt8[Array, "way shot size size"],
        pixels: UInt8[np.ndarray, "query side side 3"],
        room: int,
    ) -> Segmented:
        """Logits and likenesses of squares; the batch is filled up to `room` by repeating some."""
        what = f"{room} images at once, of {self._size} pixels a side,"
        with on_devices(what, "lower batch_size, or image_size"):
            placed = put(pixels[np.arange(room) % len(pixels)], split(self.mesh))
            with self._one_by_one:
                segmented = self.segment(variables, summary, labels, placed)
            return jax.device_get(segmented)

    @functools.cached_property
    def segment(self) -> Any:
        """Logits and likenesses of a batch of squares, split over the devices."""

        def one(variables: Any, summary: Any, labels: Array, query: Array) -> Segmented:
            batch = segment(self._model, variables, summary, labels, query[None])
            return jax.tree.map(lambda x: x[0], batch)

        def all_of(variables: Any, summary: Any, labels: Array, queries: Array) -> Segmented:
            together = len(queries) // self.mesh.size
            mapped = map_over_devices(one, self.mesh, 1, together, gathered=False)
            return mapped(variables, summary, labels, queries)

        return jax.jit(all_of)


def _segment_one(
    model: Method,
    variables: Any,
    summary: Any,
    labels: UInt8[Array, "way shot height width"],
    query: Any,
    image: UInt8[Array, "height width 3"],
) -> Segmented:
    """What `segment_encoded` gives for a single query."""
    queries = jax.tree.map(lambda x: x[None], query)
    images = normalise(image[None])
    batch = segment_encoded(model, variables, summary, labels, queries, images)
    return jax.tree.map(lambda x: x[0], batch)
