"""Scores a model on a list of episodes: images are encoded once, and episodes use the cache."""

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, UInt8, UInt32
from ml_collections import ConfigDict

from fsseg_jax.data.annotations import annotated, annotation_of, choose
from fsseg_jax.data.source import LabelledImage, Source
from fsseg_jax.data.squares import square
from fsseg_jax.devices import put, replicated, split
from fsseg_jax.episode import IGNORE, AnyArray, EpisodeIds, episode_label
from fsseg_jax.evaluation import crf
from fsseg_jax.evaluation.encoding import Images, encode_images
from fsseg_jax.evaluation.metrics import label_counts
from fsseg_jax.evaluation.parts import Store
from fsseg_jax.evaluation.reading import Bucket, Reader
from fsseg_jax.evaluation.report import Example
from fsseg_jax.evaluation.scorer import Cache, Counts, Queries, Rows, Scorer, View
from fsseg_jax.models import Method
from fsseg_jax.progress import progress


class Evaluator:
    """Scores variables of a model on a list of episodes.

    The constructor reads the images that the episodes need. Results do not depend on
    `eval.batch_size`: every image and every episode is computed on its own.

    Args:
        config: the configuration, of which `image_size`, `support_annotation` and `eval` are used.
        bits: choose the objects that get boxes, see `annotations.choose`; by default drawn from
            `eval.seed`.
        room: minimum numbers of images and queries to allocate memory for; evaluators with the same
            room share compiled functions, except for queries at their own size.

    Examples:
        >>> from fsseg_jax.config import load_config, override
        >>> from fsseg_jax.data import open_source
        >>> from fsseg_jax.devices import make_mesh
        >>> from fsseg_jax.evaluation.protocol import draw_episodes
        >>> from fsseg_jax.models import create_model, init_variables
        >>> small = ["image_size=32", "data.shapes.val=96", "data.min_pixels=1"]
        >>> config = override(load_config("quickstart"), [f"--config.{field}" for field in small])
        >>> source, model = open_source(config.data, "test"), create_model(config)
        >>> episodes = draw_episodes(config, source, "novel", seed=0, count=4)
        >>> mesh = make_mesh(devices=1)
        >>> variables = put(init_variables(model, jax.random.key(0), 1, 1), replicated(mesh))
        >>> evaluator = Evaluator(model, source, episodes, mesh, config)
        >>> counts = evaluator.score(variables, evaluator.encode(variables))
        >>> counts.borders["ignored"].shape  # see `pixel_counts`
        (4, 2, 3)
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
            border=self.options.border,
            thresholds=bool(self.options.threshold),
            annotation=self.annotation.kind,
            feature_dtype=self.options.feature_dtype,
            together=self.options.together,
        )

        read = Reader(source, config, self.annotation, model.patch)
        self.used, queries = np.unique(episodes.images), np.unique(episodes.query)
        self.squares = read.squares(self.used, set(episodes.supports.ravel().tolist()), room[0])
        shapes = self.squares.shapes[np.searchsorted(self.used, queries)]
        self.buckets = read.queries(queries, shapes, room[1])
        if bits is None:
            ways, shots = episodes.supports.shape[1:]
            bits = choose(self.options.seed, np.arange(len(episodes)), ways, shots)
        self.bucket_of, turn = self._places()
        self.rows = Rows(
            classes=episodes.classes,
            supports=np.searchsorted(self.used, episodes.supports).astype(np.int32),
            query=np.searchsorted(self.used, episodes.query).astype(np.int32),
            turn=turn,
            bits=bits,
        )

    def _places(self) -> tuple[Int[np.ndarray, " episode"], Int[np.ndarray, " episode"]]:
        """The bucket of each episode's query, and the row of the query in it."""
        places = {
            int(index): (number, row)
            for number, bucket in enumerate(self.buckets)
            for row, index in enumerate(bucket.images)
        }
        found = np.array([places[index] for index in self.episodes.query.tolist()], np.int32)
        return found[:, 0], found[:, 1]

    def encode(self, variables: Any, store: Store | None = None) -> list[Cache]:
        """Encodes all images, and puts what the episodes need on the devices.

        Args:
            variables: the model's variables, on the mesh.
            store: supplies images that are encoded already, and keeps others that it is made for.

        Returns:
            the cache of each bucket of queries.
        """
        pixels, labels, marks, _ = self.squares
        squares = Images(pixels, self.used)
        features = encode_images(self.scorer, variables, squares, store, "encoding")
        images, labels, marks = put((pixels, labels, marks), replicated(self.mesh))
        caches = []
        for bucket in self.buckets:
            scales = zip(sorted(self.options.scales), bucket.queries.views, strict=True)
            views = tuple(
                None if view is None else self._encode_view(variables, bucket, view, scale, store)
                for scale, view in scales
            )
            host = dataclasses.replace(bucket.queries, views=())
            queries = dataclasses.replace(put(host, replicated(self.mesh)), views=views)
            caches.append(Cache(features, images, labels, marks, queries))
        return caches

    def _encode_view(
        self, variables: Any, bucket: Bucket, view: View, scale: float, store: Store | None
    ) -> View:
        """The queries of a bucket at one scale, encoded and on the devices."""
        images = Images(view.images, bucket.images, scale, view.shape)
        height, width = view.images.shape[1:3]
        words = f"encoding at {width} x {height} px"
        encoded = encode_images(self.scorer, variables, images, store, words)
        return View(encoded, *put((view.images, view.shape), replicated(self.mesh)))

    def score(self, variables: Any, caches: Sequence[Cache], model: Method | None = None) -> Counts:
        """Scores every episode from encoded images.

        Args:
            model: another method with the same variables and the same encoder, to use instead.
        """
        scorer = self.scorer if model is None else dataclasses.replace(self.scorer, model=model)
        if self.options.crf.iterations:
            return self._score_refined(scorer, variables, caches)
        count = len(self.episodes)
        step = -(-self.options.batch_size // self.mesh.size) * self.mesh.size
        parts, order = [], []
        with progress("scoring", count, "episode", nested=True) as scored:
            for number, cache in enumerate(caches):
                of_bucket = np.flatnonzero(self.bucket_of == number)
                for start in range(0, len(of_bucket), step):
                    rows = of_bucket[start : start + step]
                    order.append(rows)
                    rows = np.resize(rows, step)  # repeats the first ones
                    placed = put(self.rows.take(rows), split(self.mesh))
                    parts.append(scorer.score(variables, cache, placed))
                    # Fetch a result only when the devices have their next rows.
                    parts[-2:-1] = jax.device_get(parts[-2:-1])
                    scored.update(len(order[-1]))
        parts = [
            jax.tree.map(operator.itemgetter(slice(len(rows))), part)
            for rows, part in zip(order, jax.device_get(parts), strict=True)
        ]
        back = np.argsort(np.concatenate(order))
        return jax.tree.map(lambda *part: np.concatenate(part)[back], *parts)

    def _score_refined(self, scorer: Scorer, variables: Any, caches: Sequence[Cache]) -> Counts:
        """`score` with predictions that DenseCRF refines one by one on the host."""
        ways = self.episodes.classes.shape[1]
        counts = []
        count = len(self.episodes)
        with progress("scoring with DenseCRF", count, "episode", nested=True) as scored:
            for row in range(count):
                height, width = self._shape(row)
                prediction = self.predict(variables, caches, row, scorer)[:height, :width]
                label = self._label(row)[:height, :width]
                labels = {"ignored": label, "background": np.where(label == IGNORE, 0, label)}
                counts.append({k: label_counts(prediction, x, ways) for k, x in labels.items()})
                scored.update()
        return Counts(jax.tree.map(lambda *x: np.stack(x), *counts), None, {})

    def _queries(self, row: int) -> Queries:
        return self.buckets[self.bucket_of[row]].queries

    def _shape(self, row: int) -> tuple[int, int]:
        """Height and width of the query's image on its label."""
        height, width = self._queries(row).shape[self.rows.turn[row]].tolist()
        return height, width

    def _label(self, row: int) -> UInt8[np.ndarray, "height width"]:
        """The query's label in episode number `row`, at the scoring size."""
        rows, queries = self.rows.take(row), self._queries(row)
        if queries.label is None:
            return np.asarray(episode_label(self.squares.labels[rows.query], rows.classes))
        height, width = self._shape(row)
        return np.asarray(episode_label(queries.label[rows.turn], rows.classes))[:height, :width]

    def predict(
        self, variables: Any, caches: Sequence[Cache], row: int, scorer: Scorer | None = None
    ) -> UInt8[np.ndarray, "height width"]:
        """The prediction for episode number `row` at the scoring size, in episode numbering."""
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
        if self._queries(row).label is not None:  # the report shows squares
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
