"""Scores a model on lists of episodes: each photograph is encoded once, episodes use the cache.

Then an evaluation: the lists of the protocol, and the files that tell the result.
"""

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, UInt8, UInt32
from ml_collections import ConfigDict
from tqdm import tqdm

from fsseg_jax.data.annotations import annotated, annotation_of, choose
from fsseg_jax.data.source import LabelledImage, Source
from fsseg_jax.data.squares import square
from fsseg_jax.devices import put, replicated, split
from fsseg_jax.episode import AnyArray, EpisodeIds, episode_label
from fsseg_jax.evaluation import crf
from fsseg_jax.evaluation.buckets import place
from fsseg_jax.evaluation.parts import Store
from fsseg_jax.evaluation.reading import Reader
from fsseg_jax.evaluation.report import Example
from fsseg_jax.evaluation.scorer import (
    Cache,
    Counts,
    Queries,
    Rows,
    Scorer,
    View,
    border_counts,
)
from fsseg_jax.models import Method

CANVAS = 64  # what heights and widths are rounded up to where evaluators are to be alike


class Evaluator:
    """Scores variables of one model on one list of episodes.

    Reads the photographs that the episodes need when it is made. Results do not depend on
    `eval.batch_size`: every photograph and every episode is computed on its own.

    Args:
        model: a method.
        source: the photographs.
        episodes: what to score.
        mesh: the devices.
        config: says how: `image_size`, `support_annotation`, `eval`.
        bits: choose the objects that get boxes, see `annotations.choose`; by default those of
            `eval.seed`.
        room: for how many photographs and queries at least; evaluators with the same room share
            what has been compiled, but for queries at their own size.
    """

    def __init__(
        self,
        model: Method,
        source: Source,
        episodes: EpisodeIds,
        mesh: Mesh,
        config: ConfigDict,
        bits: UInt32[AnyArray, "episode way shot"] | None = None,
        room: tuple[int, ...] = (0, 0),
    ) -> None:
        self.model, self.source, self.mesh, self.episodes = model, source, mesh, episodes
        self.options, self.size = config.eval, config.image_size
        if self.options.crf.iterations:
            crf.check_installed()
        self.annotation = annotation_of(config)
        self.scorer = Scorer(
            model=model,
            mesh=mesh,
            size=self.size,
            border=self.options.border,
            thresholds=bool(self.options.threshold),
            annotation=self.annotation.kind,
            feature_dtype=self.options.feature_dtype,
            together=self.options.together,
        )

        read = Reader(source, config, self.annotation)
        self.used, queries = np.unique(episodes.images), np.unique(episodes.query)
        self.squares = read.squares(self.used, set(episodes.supports.ravel().tolist()), room[0])
        shapes = self.squares.shapes[np.searchsorted(self.used, queries)]
        self.buckets = read.queries(queries, shapes, room[1])
        ways, shots = episodes.supports.shape[1:]
        if bits is None:
            bits = choose(self.options.seed, np.arange(len(episodes)), ways, shots)
        # Where each query stands: in which bucket, and in which of its rows.
        standing = {
            int(index): (number, row)
            for number, bucket in enumerate(self.buckets)
            for row, index in enumerate(bucket.images)
        }
        places = np.array([standing[index] for index in episodes.query.tolist()], np.int32)
        self.bucket_of = places[:, 0]
        self.rows = Rows(
            classes=episodes.classes,
            supports=np.searchsorted(self.used, episodes.supports).astype(np.int32),
            query=np.searchsorted(self.used, episodes.query).astype(np.int32),
            turn=places[:, 1],
            bits=bits,
        )

    def encode(self, variables: Any, store: Store | None = None) -> list[Cache]:
        """Encodes all photographs, and puts what the episodes need on the devices.

        Args:
            variables: of the model, on the mesh.
            store: has photographs that are encoded already, and is given those that it asks for.

        Returns:
            what the episodes of each bucket need.
        """
        key = (self.squares.images.shape[1:3], 1.0)
        features = self._encode_all(variables, self.squares.images, self.used, store, key)
        squares = (self.squares.images, self.squares.labels, self.squares.marks)
        images, labels, marks = put(squares, replicated(self.mesh))
        caches = []
        for bucket in self.buckets:
            views = []
            for scale, view in zip(sorted(self.options.scales), bucket.queries.views, strict=True):
                if view is not None:
                    key = (view.images.shape[1:3], scale)
                    encoded = self._encode_all(
                        variables, view.images, bucket.images, store, key, view.shape
                    )
                    placed = put((view.images, view.shape), replicated(self.mesh))
                    view = View(encoded, *placed)
                views.append(view)
            host = dataclasses.replace(bucket.queries, views=())
            placed = put(host, replicated(self.mesh))
            queries = dataclasses.replace(placed, views=tuple(views))
            caches.append(Cache(features, images, labels, marks, queries))
        return caches

    def _encode_all(
        self,
        variables: Any,
        images: UInt8[AnyArray, "photograph height width 3"],
        photographs: Int[np.ndarray, " photograph"],
        store: Store | None,
        key: Any,
        shapes: Int[AnyArray, "photograph 2"] | None = None,
    ) -> Any:
        """Features of photographs at one size, on the mesh, row by row as `photographs`.

        Args:
            variables: of the model.
            images: the photographs.
            photographs: their numbers.
            store: see `encode`.
            key: of this size in the store.
            shapes: of the photographs where they stand on canvases.
        """
        size = self.mesh.size * self.options.together
        height, width = images.shape[1:3]
        words = (
            "encoding" if images is self.squares.images else f"encoding at {width} x {height} px"
        )
        known = np.zeros(len(photographs), bool)
        if store is not None:
            known = store.has(key, photographs)
        encoded = self.scorer.room(variables, len(images), images.shape[1:3])
        with _bar(words, len(photographs), "photo") as progress:
            for kept in (True, False):
                rows = np.flatnonzero(known == kept)
                for start in range(0, len(rows), size):
                    chunk = rows[start : start + size]
                    padded = np.resize(chunk, size)
                    if kept and store is not None:
                        part = put(store.get(key, photographs[padded]), replicated(self.mesh))
                    else:
                        given = images[padded], None if shapes is None else shapes[padded]
                        part = self.scorer.encode(variables, *put(given, split(self.mesh)))
                        if store is not None:
                            store.put(key, photographs[chunk], part)
                    encoded = self.scorer.insert(encoded, put(padded, replicated(self.mesh)), part)
                    jax.block_until_ready(encoded)  # so that the progress shown is true
                    progress.update(len(chunk))
        return encoded

    def score(self, variables: Any, caches: Sequence[Cache], model: Method | None = None) -> Counts:
        """Scores every episode from encoded photographs.

        Args:
            variables: of the model.
            caches: see `encode`.
            model: another method that has the same variables and encodes photographs alike.
        """
        scorer = self.scorer if model is None else dataclasses.replace(self.scorer, model=model)
        if self.options.crf.iterations:
            return self._score_refined(scorer, variables, caches)
        count = len(self.episodes)
        step = -(-self.options.batch_size // self.mesh.size) * self.mesh.size
        parts, order = [], []
        with _bar("scoring", count, "episode") as progress:
            for number, cache in enumerate(caches):
                of_bucket = np.flatnonzero(self.bucket_of == number)
                for start in range(0, len(of_bucket), step):
                    rows = of_bucket[start : start + step]
                    order.append(rows)
                    rows = np.resize(rows, step)  # the first repeat
                    placed = put(self.rows.take(rows), split(self.mesh))
                    parts.append(scorer.score(variables, cache, placed))
                    # The devices have the next rows before these are waited for.
                    parts[-2:-1] = jax.device_get(parts[-2:-1])
                    progress.update(len(order[-1]))
        parts = [
            jax.tree.map(operator.itemgetter(slice(len(rows))), part)
            for rows, part in zip(order, jax.device_get(parts), strict=True)
        ]
        back = np.argsort(np.concatenate(order))
        return jax.tree.map(lambda *part: np.concatenate(part)[back], *parts)

    def _score_refined(self, scorer: Scorer, variables: Any, caches: Sequence[Cache]) -> Counts:
        """`score` of predictions that DenseCRF has refined, one by one on the host."""
        ways = self.episodes.classes.shape[1]
        sizes = [self._label(row).shape for row in range(len(self.episodes))]
        canvas = np.max(sizes, axis=0)
        count = jax.jit(lambda found, label, inside: border_counts(found, label, ways, inside))
        counts = []
        with _bar("scoring with DenseCRF", len(self.episodes), "episode") as progress:
            for row in range(len(self.episodes)):
                # On canvases of one size, as any other size would be compiled anew.
                pictures = np.zeros((3, *canvas), np.uint8)
                prediction = self.predict(variables, caches, row, scorer)
                inside = np.zeros(prediction.shape, np.uint8)
                rows, columns = self._shape(row)
                inside[:rows, :columns] = 1
                for number, part in enumerate((prediction, self._label(row), inside)):
                    place(pictures[number], part)
                counts.append(count(pictures[0], pictures[1], pictures[2] > 0))
                progress.update()
        return Counts(jax.tree.map(lambda *x: np.stack(x), *jax.device_get(counts)), None, {})

    def _queries(self, row: int) -> Queries:
        return self.buckets[self.bucket_of[row]].queries

    def _shape(self, row: int) -> tuple[int, int]:
        """How much of the query's label is photograph."""
        height, width = self._queries(row).shape[self.rows.turn[row]].tolist()
        return height, width

    def _label(self, row: int) -> UInt8[np.ndarray, "height width"]:
        """The query's label of episode number `row` at the scoring size."""
        rows, queries = self.rows.take(row), self._queries(row)
        if queries.label is None:
            return np.asarray(episode_label(self.squares.labels[rows.query], rows.classes))
        height, width = self._shape(row)
        whole = np.asarray(episode_label(queries.label[rows.turn], rows.classes))
        return whole[:height, :width]

    def predict(
        self, variables: Any, caches: Sequence[Cache], row: int, scorer: Scorer | None = None
    ) -> UInt8[np.ndarray, "height width"]:
        """The predicted label of episode number `row` at the scoring size, in episode numbering."""
        rows = self.rows.take(row)
        placed = put(rows, replicated(self.mesh))
        scorer = scorer or self.scorer
        prediction, probabilities = scorer.predict(variables, caches[self.bucket_of[row]], placed)
        height, width = self._label(row).shape
        if self.options.crf.iterations:
            image = self.squares.images[rows.query]
            if self._queries(row).label is not None:
                image = self.source.read(int(self.episodes.query[row])).image
            probabilities = np.asarray(probabilities)[:height, :width]
            return crf.refine(probabilities, image, self.options.crf)
        return np.asarray(prediction, np.uint8)[:height, :width]

    def example(
        self, variables: Any, caches: Sequence[Cache], row: int, title: str, iou: float
    ) -> Example:
        """Episode number `row` with its prediction, for the report."""
        rows, ids = self.rows.take(row), self.episodes.take(row)
        support_label = np.asarray(episode_label(self.squares.labels[rows.supports], ids.classes))
        if self.squares.marks is not None:
            marks = self.squares.marks[rows.supports]
            marked = annotated(support_label, marks, rows.bits, self.annotation.kind)
            support_label = np.asarray(marked)
        prediction = self.predict(variables, caches, row)
        if self._queries(row).label is not None:  # back to the square that is shown
            blank = np.zeros((*prediction.shape, 3), np.uint8)
            prediction = square(LabelledImage(blank, prediction), self.size, self.options.fit).label
        names = self.source.class_names
        return Example(
            title=title,
            iou=iou,
            classes=tuple(names[int(c)] for c in ids.classes),
            support_ids=tuple(tuple(self.source.ids[i] for i in shots) for shots in ids.supports),
            query_id=self.source.ids[ids.query],
            support_image=self.squares.images[rows.supports],
            support_label=support_label,
            query_image=self.squares.images[rows.query],
            query_label=np.asarray(episode_label(self.squares.labels[rows.query], ids.classes)),
            prediction=prediction,
        )


def _bar(description: str, total: int, unit: str) -> tqdm:
    """A progress bar that is cleared when it is done if it stands below another one."""
    return tqdm(desc=description, total=total, unit=unit, delay=1, leave=None)
