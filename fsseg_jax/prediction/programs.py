"""The compiled functions of a segmenter."""

import functools
import threading
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from fsseg_jax.devices import map_over_devices, put, split
from fsseg_jax.models import Method
from fsseg_jax.prediction.forward import encode_supports, segment, summarise
from fsseg_jax.prediction.leaving_out import predict_encoded
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
        self.predict_encoded = jax.jit(functools.partial(predict_encoded, model))
        # Programs for several devices must reach all of them in the same order.
        self._one_by_one = threading.Lock()

    def logits_at_once(
        self,
        variables: Any,
        summary: Any,
        labels: UInt8[Array, "way shot size size"],
        pixels: UInt8[np.ndarray, "query side side 3"],
        room: int,
    ) -> Float[np.ndarray, "room _ _ class"]:
        """Logits of squares; the batch is filled up to `room` by repeating some."""
        what = f"{room} images at once, of {self._size} pixels a side,"
        with on_devices(what, "lower batch_size, or image_size"):
            placed = put(pixels[np.arange(room) % len(pixels)], split(self.mesh))
            with self._one_by_one:
                logits = self.logits(variables, summary, labels, placed)
            return np.asarray(logits)

    @functools.cached_property
    def logits(self) -> Any:
        """Logits of a batch of squares, split over the devices."""

        def one(variables: Any, summary: Any, labels: Array, query: Array) -> Array:
            return segment(self._model, variables, summary, labels, query[None])[0]

        def all_of(variables: Any, summary: Any, labels: Array, queries: Array) -> Array:
            together = len(queries) // self.mesh.size
            mapped = map_over_devices(one, self.mesh, 1, together, gathered=False)
            return mapped(variables, summary, labels, queries)

        return jax.jit(all_of)
