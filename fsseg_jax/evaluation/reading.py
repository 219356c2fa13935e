"""Reads the images of an evaluation at the sizes that its options ask for."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Integer, UInt8
from ml_collections import ConfigDict

from fsseg_jax.data.annotations import Annotation, square_marks
from fsseg_jax.data.parallel import parallel_map
from fsseg_jax.data.source import Source
from fsseg_jax.data.squares import fitted, square
from fsseg_jax.episode import IGNORE
from fsseg_jax.evaluation.buckets import canvas_for, group, place, resized
from fsseg_jax.evaluation.parts import scaled_side
from fsseg_jax.evaluation.scorer import Queries, View

CANVAS = 64  # sizes of labels are rounded up to multiples if evaluators are to share functions


class Squares(NamedTuple):
    """Images as squares for the network."""

    images: UInt8[np.ndarray, "image size size 3"]
    labels: Integer[np.ndarray, "image size size"]
    marks: UInt8[np.ndarray, "image size size"] | None  # for annotations other than masks
    shapes: Int[np.ndarray, "image 2"]  # the images' own sizes


class Bucket(NamedTuple):
    """Queries that one compiled function scores, on the host and not encoded yet."""

    images: Int[np.ndarray, " query"]
    queries: Queries


class Reader:
    """Reads images of a source, in parallel.

    Args:
        config: the configuration, of which `image_size` and `eval` are used.
        patch: that of the method, see `Method.patch`.
    """

    def __init__(
        self, source: Source, config: ConfigDict, annotation: Annotation, patch: int = 1
    ) -> None:
        self.source, self.options, self.size = source, config.eval, config.image_size
        self.patch = patch
        self.annotation = annotation

    def squares(self, used: Int[np.ndarray, " image"], supports: set[int], room: int) -> Squares:
        """Reads images as squares.

        Args:
            supports: numbers of those that are supports.
            room: minimum number of rows of the result.
        """
        marked = self.annotation.kind != "dense"
        count = max(len(used), room), self.size, self.size
        images, labels = np.zeros((*count, 3), np.uint8), np.zeros(count, self.source.label_type)
        marks = np.zeros(count, np.uint8) if marked else None
        shapes = np.ones((len(used), 2), np.int32)

        def read(row: int) -> None:
            index = int(used[row])
            image = self.source.read(index)
            shapes[row] = image.label.shape
            images[row], labels[row] = square(image, self.size, self.options.fit)
            if marks is not None and index in supports:
                marks[row] = square_marks(
                    self.source, index, labels[row], self.annotation, self.options.fit
                )

        parallel_map(read, range(len(used)), "reading")
        return Squares(images, labels, marks, shapes)

    def queries(
        self, queries: Int[np.ndarray, " query"], shapes: Int[np.ndarray, "query 2"], room: int
    ) -> list[Bucket]:
        """Reads queries at the sizes and scales that squares do not serve, in buckets.

        Args:
            room: minimum number of rows of the result.
        """
        options, scales = self.options, sorted(self.options.scales)
        if options.fit == "own":
            buckets = group(shapes, options.buckets)
            return [self._own(queries[rows], shapes[rows], scales) for rows in buckets]
        sides = [scaled_side(self.size, scale, self.patch) for scale in scales]
        turns = max(len(queries), room)
        resized_to = [
            None if side == self.size else np.zeros((turns, side, side, 3), np.uint8)
            for side in sides
        ]
        padded = np.ones((turns, 2), np.int32)
        label = None
        if options.scored_at == "photograph":
            padded[: len(queries)] = shapes
            largest = padded.max(axis=0)
            if room:  # the images of other evaluators mostly have about the same size
                largest = -(-largest // CANVAS) * CANVAS
            label = np.full((turns, *largest), IGNORE, self.source.label_type)
        else:
            padded[: len(queries)] = [
                fitted((height, width), self.size, options.fit) for height, width in shapes.tolist()
            ]
        extent = padded
        if options.fit == "letterbox":
            extent = np.repeat(padded.max(axis=1, keepdims=True), 2, axis=1)

        def read(turn: int) -> None:
            image = self.source.read(int(queries[turn]))
            for images, side in zip(resized_to, sides, strict=True):
                if images is not None:
                    images[turn] = square(image, side, options.fit).image
            if label is not None:
                place(label[turn], image.label)

        if label is not None or any(images is not None for images in resized_to):
            parallel_map(read, range(len(queries)), "reading queries")
        views = (None if images is None else View(None, images, None) for images in resized_to)
        return [Bucket(queries, Queries(tuple(views), label, padded, extent))]

    def _own(
        self,
        queries: Int[np.ndarray, " query"],
        shapes: Int[np.ndarray, "query 2"],
        scales: Sequence[float],
    ) -> Bucket:
        """Reads queries of about the same size at scales of it, with one canvas size per scale."""
        sizes = [np.maximum(np.rint(shapes * scale), 8).astype(np.int32) for scale in scales]
        canvases = [canvas_for(size.max(axis=0), self.size, self.patch) for size in sizes]
        blanks = [np.zeros((len(queries), *canvas, 3), np.uint8) for canvas in canvases]
        label = np.full((len(queries), *shapes.max(axis=0)), IGNORE, self.source.label_type)

        def read(turn: int) -> None:
            image = self.source.read(int(queries[turn]))
            place(label[turn], image.label)
            for images, size in zip(blanks, sizes, strict=True):
                place(images[turn], resized(image.image, size[turn]))

        parallel_map(read, range(len(queries)), "reading queries")
        views = (View(None, images, size) for images, size in zip(blanks, sizes, strict=True))
        return Bucket(queries, Queries(tuple(views), label, shapes, shapes))
