"""Scores a model on lists of episodes: each photograph is encoded once, episodes use the cache.

Then an evaluation: the lists of the protocol, and the files that tell the result.
"""

import dataclasses
import json
import logging
import operator
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8, UInt32
from ml_collections import ConfigDict
from tqdm import tqdm

from fsseg_jax.data import test_split
from fsseg_jax.data.annotations import annotated, annotation_of, choose, square_marks
from fsseg_jax.data.parallel import parallel_map
from fsseg_jax.data.source import Photograph, Source
from fsseg_jax.data.squares import fitted, square
from fsseg_jax.devices import is_first_process, put, replicated, split
from fsseg_jax.episode import (
    IGNORE,
    EpisodeIds,
    concatenate,
    episode_label,
    episodes_hash,
    episodes_to_csv,
)
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation import crf
from fsseg_jax.evaluation.buckets import canvas_for, group, place, resized
from fsseg_jax.evaluation.metrics import MEANS, best_threshold, episode_iou, run_metrics
from fsseg_jax.evaluation.parts import Store, portions, scaled_side, shared_photographs
from fsseg_jax.evaluation.protocol import (
    draw_episodes,
    protocol,
    protocol_episodes,
    tell_difference,
)
from fsseg_jax.evaluation.report import Example, changed_options, write_report
from fsseg_jax.evaluation.scorer import (
    THRESHOLDS,
    Cache,
    Counts,
    Queries,
    Rows,
    Scorer,
    View,
    border_counts,
)
from fsseg_jax.files import write_text
from fsseg_jax.models import Method
from fsseg_jax.training.checkpoints import Loaded

CANVAS = 64  # what heights and widths are rounded up to where evaluators are to be alike

logger = logging.getLogger(__name__)


class Bucket(NamedTuple):
    """Queries that one compiled function scores, on the host; their features are not there yet."""

    photographs: Int[np.ndarray, " query"]
    queries: Queries


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
        bits: UInt32[np.ndarray, "episode way shot"] | None = None,
        room: tuple[int, int] = (0, 0),
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

        self.used, queries = np.unique(episodes.photographs), np.unique(episodes.query)
        self._read_squares(set(episodes.supports.ravel().tolist()), room[0])
        self.buckets = self._read_queries(queries, room[1])
        ways, shots = episodes.supports.shape[1:]
        if bits is None:
            bits = choose(self.options.seed, np.arange(len(episodes)), ways, shots)
        # Where each query stands: in which bucket, and in which of its rows.
        standing = {
            int(index): (number, row)
            for number, bucket in enumerate(self.buckets)
            for row, index in enumerate(bucket.photographs)
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

    # ------------------------------------------------------------------------- reading

    def _read_squares(self, supports: set[int], room: int) -> None:
        """Reads all photographs as squares, with their labels and what outlines need."""
        options, marked = self.options, self.annotation.kind != "dense"
        count = max(len(self.used), room), self.size, self.size
        self.images = np.zeros((*count, 3), np.uint8)
        self.labels = np.zeros(count, self._label_type)
        self.marks = np.zeros(count, np.uint8) if marked else None
        self.shapes = np.ones((len(self.used), 2), np.int32)  # own sizes

        def read(row: int) -> None:
            index = int(self.used[row])
            photograph = self.source.read(index)
            self.shapes[row] = photograph.label.shape
            self.images[row], self.labels[row] = square(photograph, self.size, options.fit)
            if marked and index in supports:
                label = self.labels[row]
                self.marks[row] = square_marks(
                    self.source, index, label, self.annotation, options.fit
                )

        parallel_map(read, range(len(self.used)), "reading")

    @property
    def _label_type(self) -> type:
        return np.uint8 if max(self.source.class_names) < IGNORE else np.uint16

    def _read_queries(self, queries: Int[np.ndarray, " query"], room: int) -> list["Bucket"]:
        """What the options ask of queries beside their squares, by buckets."""
        options, scales = self.options, sorted(self.options.scales)
        shapes = self.shapes[np.searchsorted(self.used, queries)]
        if options.fit == "own":
            buckets = group(shapes, options.buckets)
            return [self._read_own(queries[rows], shapes[rows], scales) for rows in buckets]
        sides = [scaled_side(self.size, scale) for scale in scales]
        turns = max(len(queries), room)
        views = [
            None if side == self.size else np.zeros((turns, side, side, 3), np.uint8)
            for side in sides
        ]
        padded = np.ones((turns, 2), np.int32)
        label = None
        if options.scored_at == "photograph":
            padded[: len(queries)] = shapes
            largest = padded.max(axis=0)
            if room:  # other evaluators have other photographs, mostly of about this size
                largest = -(-largest // CANVAS) * CANVAS
            label = np.full((turns, *largest), IGNORE, self._label_type)
        else:
            padded[: len(queries)] = [fitted(tuple(s), self.size, options.fit) for s in shapes]
        extent = padded
        if options.fit == "letterbox":
            extent = np.repeat(padded.max(axis=1, keepdims=True), 2, axis=1)

        def read(turn: int) -> None:
            photograph = self.source.read(int(queries[turn]))
            for images, side in zip(views, sides, strict=True):
                if images is not None:
                    images[turn] = square(photograph, side, options.fit).image
            if label is not None:
                place(label[turn], photograph.label)

        if label is not None or any(images is not None for images in views):
            parallel_map(read, range(len(queries)), "reading queries")
        views = tuple(None if images is None else View(None, images, None) for images in views)
        return [Bucket(queries, Queries(views, label, padded, extent))]

    def _read_own(
        self,
        queries: Int[np.ndarray, " query"],
        shapes: Int[np.ndarray, "query 2"],
        scales: Sequence[float],
    ) -> "Bucket":
        """Queries of about the same size, at multiples of it, on one canvas a scale."""
        sizes = [np.maximum(np.rint(shapes * scale), 8).astype(np.int32) for scale in scales]
        canvases = [canvas_for(size.max(axis=0), avoid=self.size) for size in sizes]
        views = [
            View(None, np.zeros((len(queries), *canvas, 3), np.uint8), size)
            for canvas, size in zip(canvases, sizes, strict=True)
        ]
        label = np.full((len(queries), *shapes.max(axis=0)), IGNORE, self._label_type)

        def read(turn: int) -> None:
            photograph = self.source.read(int(queries[turn]))
            place(label[turn], photograph.label)
            for view in views:
                place(view.images[turn], resized(photograph.image, view.shape[turn]))

        parallel_map(read, range(len(queries)), "reading queries")
        return Bucket(queries, Queries(tuple(views), label, shapes, shapes))

    # ------------------------------------------------------------------------- all of them

    def encode(self, variables: Any, store: Store | None = None) -> list[Cache]:
        """Encodes all photographs, and puts what the episodes need on the devices.

        Args:
            variables: of the model, on the mesh.
            store: has photographs that are encoded already, and is given those that it asks for.

        Returns:
            what the episodes of each bucket need.
        """
        key = (self.images.shape[1:3], 1.0)
        features = self._encode_all(variables, self.images, self.used, store, key)
        squares = (self.images, self.labels, self.marks)
        images, labels, marks = put(squares, replicated(self.mesh))
        caches = []
        for bucket in self.buckets:
            views = []
            for scale, view in zip(sorted(self.options.scales), bucket.queries.views, strict=True):
                if view is not None:
                    key = (view.images.shape[1:3], scale)
                    encoded = self._encode_all(
                        variables, view.images, bucket.photographs, store, key, view.shape
                    )
                    placed = put((view.images, view.shape), replicated(self.mesh))
                    view = View(encoded, *placed)
                views.append(view)
            host = bucket.queries.replace(views=())
            queries = put(host, replicated(self.mesh)).replace(views=tuple(views))
            caches.append(Cache(features, images, labels, marks, queries))
        return caches

    def _encode_all(
        self,
        variables: Any,
        images: UInt8[np.ndarray, "photograph height width 3"],
        photographs: Int[np.ndarray, " photograph"],
        store: Store | None,
        key: Any,
        shapes: Int[np.ndarray, "photograph 2"] | None = None,
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
        words = "encoding" if images is self.images else f"encoding at {width} x {height} px"
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
                    if kept:
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
        count = jax.jit(lambda *pictures: border_counts(*pictures[:2], ways, pictures[2]))
        counts = []
        with _bar("scoring with DenseCRF", len(self.episodes), "episode") as progress:
            for row in range(len(self.episodes)):
                # On canvases of one size, as any other size would be compiled anew.
                pictures = np.zeros((3, *canvas), np.uint8)
                prediction = self.predict(variables, caches, row, scorer)
                inside = np.zeros(prediction.shape, np.uint8)
                rows, columns = self._shape(row)
                inside[:rows, :columns] = 1
                for blank, part in zip(
                    pictures, (prediction, self._label(row), inside), strict=True
                ):
                    place(blank, part)
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
            return np.asarray(episode_label(self.labels[rows.query], rows.classes))
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
            image = self.images[rows.query]
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
        support_label = np.asarray(episode_label(self.labels[rows.supports], ids.classes))
        if self.marks is not None:
            marks = self.marks[rows.supports]
            support_label = annotated(support_label, marks, rows.bits, self.annotation.kind)
        prediction = self.predict(variables, caches, row)
        if self._queries(row).label is not None:  # back to the square that is shown
            blank = np.zeros((*prediction.shape, 3), np.uint8)
            prediction = square(Photograph(blank, prediction), self.size, self.options.fit).label
        names = self.source.class_names
        return Example(
            title=title,
            iou=iou,
            classes=tuple(names[int(c)] for c in ids.classes),
            support_ids=tuple(tuple(self.source.ids[i] for i in shots) for shots in ids.supports),
            query_id=self.source.ids[ids.query],
            support_image=self.images[rows.supports],
            support_label=support_label,
            query_image=self.images[rows.query],
            query_label=np.asarray(episode_label(self.labels[rows.query], ids.classes)),
            prediction=prediction,
        )


def evaluate(
    config: ConfigDict,
    model: Method,
    loaded: Loaded,
    source: Source,
    mesh: Mesh,
    folder: pathlib.Path,
) -> dict[str, Any]:
    """Scores a model by the protocol of `config` and writes what came out into `folder`.

    The files: `results.json`, `episodes.csv` (an episode list with each one's run and IoU) and
    `report.html`.

    Args:
        config: of the run.
        model: a method.
        loaded: its variables, on the mesh, and where they come from.
        source: the test photographs.
        mesh: the devices.
        folder: is made if need be.

    Returns:
        the contents of `results.json`; IoUs in percent.
    """
    started = time.perf_counter()
    by_seed = protocol_episodes(config, source)
    episodes = concatenate(list(by_seed.values()))
    described = protocol(config, source, model, loaded.config, loaded.checkpoint)
    tell_difference(folder / "results.json", described)
    thresholds = _choose_thresholds(config, model, loaded, source, mesh)
    scoring = Scoring(config, model, loaded.variables, source, mesh, by_seed)
    counts = scoring.counts[""]
    summaries = {
        border: summarise(values, by_seed, source.class_names)
        for border, values in counts.borders.items()
    }
    results = {
        "method": config.method,
        "backbone": config.backbone,
        "model": json.loads(json.dumps(config.model.to_dict())),  # as it is read back
        "fold": _fold(source, episodes, config.data.fold),
        "ways": episodes.classes.shape[1],
        "shots": episodes.supports.shape[2],
        "checkpoint": loaded.words,
        **summaries[config.eval.border],
        "borders": {border: _means_of(values) for border, values in summaries.items()},
        **scoring.compare(thresholds),
        # NaN is an episode that has nothing to measure.
        "measured": {name: _mean(values.tolist()) for name, values in counts.measured.items()},
        "episodes": len(episodes) // len(by_seed),  # a run
        "episodes_hash": episodes_hash(episodes, source.ids),
        "protocol": described,
        "photographs": len(np.unique(episodes.photographs)),
        "seconds": time.perf_counter() - started,
        "seconds_reading": scoring.seconds[0],
        "seconds_encoding": scoring.seconds[1],
        "seconds_scoring": scoring.seconds[2],
    }
    for run, (seed, listed) in zip(results["runs"], by_seed.items(), strict=True):
        run |= {"seed": seed, "episodes_hash": episodes_hash(listed, source.ids)}
    ious = episode_iou(counts.borders[config.eval.border])
    gallery = scoring.gallery(ious)
    if not is_first_process():
        return results
    folder.mkdir(parents=True, exist_ok=True)
    listing = episodes_to_csv(
        episodes,
        source.ids,
        run=scoring.run_of.tolist(),
        iou=[f"{value:.2f}" for value in ious],
    )
    write_text(folder / "episodes.csv", listing)
    write_report(folder / "report.html", results, gallery)
    write_text(folder / "results.json", json.dumps(results, indent=1))
    return results


class Scoring:
    """The episodes of all runs of an evaluation, scored in parts that fit into memory.

    Args:
        config: of the run.
        model: a method.
        variables: of the model, on the mesh.
        source: the test photographs.
        mesh: the devices.
        by_seed: the episodes of each run.
        store: has photographs that another evaluation has encoded, and is given those of this one;
            by default there is one where there are several parts.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: Method,
        variables: Any,
        source: Source,
        mesh: Mesh,
        by_seed: dict[int, EpisodeIds],
        store: Store | None = None,
    ) -> None:
        self.config, self.model, self.variables = config, model, variables
        self.source, self.mesh, self.by_seed = source, mesh, by_seed
        self.episodes = concatenate(list(by_seed.values()))
        lengths = [len(run) for run in by_seed.values()]
        self.run_of = np.repeat(np.arange(len(by_seed)), lengths)
        self.bits = np.concatenate(
            [
                choose(seed, np.arange(len(run)), *run.supports.shape[1:])
                for seed, run in by_seed.items()
            ]
        )
        self.parts = portions(config, model, variables, source, self.episodes)
        self.store, self.room = store, (0, 0)
        if len(self.parts) > 1:
            self.store = store or Store(shared_photographs(self.episodes, self.parts))
            several = [self.episodes.take(rows) for rows in self.parts]
            self.room = tuple(
                max(len(np.unique(ids)) for ids in each)
                for each in ([e.photographs for e in several], [e.query for e in several])
            )
        self.seconds = np.zeros(3)  # reading, encoding, scoring
        self.counts = self._score()  # of the model (""), and of what it names as ablations

    def _evaluator(self, rows: Int[np.ndarray, " part"]) -> Evaluator:
        part, bits = self.episodes.take(rows), self.bits[rows]
        return Evaluator(self.model, self.source, part, self.mesh, self.config, bits, self.room)

    def _score(self) -> dict[str, Counts]:
        counts: dict[str, list[Counts]] = {}
        for rows in self.parts:
            times = [time.perf_counter()]
            self.evaluator = self._evaluator(rows)
            times.append(time.perf_counter())
            self.caches = self.evaluator.encode(self.variables, self.store)
            times.append(time.perf_counter())
            for name, model in {"": None, **self.model.ablations()}.items():
                part = self.evaluator.score(self.variables, self.caches, model)
                counts.setdefault(name, []).append(part)
            times.append(time.perf_counter())
            self.seconds += np.diff(times)
        back = np.argsort(np.concatenate(self.parts))
        return {
            name: jax.tree.map(lambda *x: np.concatenate(x)[back], *parts)
            for name, parts in counts.items()
        }

    def compare(self, thresholds: dict[str, float]) -> dict[str, Any]:
        """Figures beside the main ones: with parts of the method left out, and all at thresholds.

        Args:
            thresholds: of the model ("") and of its ablations by name, if they are to be told.
        """

        def means(values: Int[np.ndarray, "episode class 3"]) -> dict[str, float]:
            return _means_of(summarise(values, self.by_seed, self.source.class_names))

        def thresholded(name: str) -> dict[str, Any]:
            if name not in thresholds:
                return {}
            threshold = thresholds[name]
            column = self.counts[name].thresholds[:, THRESHOLDS.index(threshold)]
            figures = {"threshold": threshold, "chosen_on": self.config.eval.threshold}
            return {"thresholded": {**figures, **means(column)}}

        without = {
            name: {**means(counts.borders[self.config.eval.border]), **thresholded(name)}
            for name, counts in self.counts.items()
            if name
        }
        return thresholded("") | ({"without": without} if without else {})

    def gallery(self, ious: Float[np.ndarray, " episode"]) -> dict[str, list[Example]]:
        """The best, median and worst episodes, each shown once, for the report."""
        # Small data sets repeat episodes.
        count = len(self.episodes)
        supports = self.episodes.supports.reshape(count, -1)
        ids = [self.episodes.classes, supports, self.episodes.query[:, None]]
        _, first = np.unique(np.concatenate(ids, axis=1), axis=0, return_index=True)
        order = np.sort(first)
        order = order[np.argsort(-ious[order], kind="stable")]
        shown = min(self.config.eval.gallery, len(order))
        middle = (len(order) - shown) // 2
        chosen = {
            "Best": order[:shown],
            "Median": order[middle : middle + shown],
            "Worst": order[len(order) - shown :],
        }
        at, evaluator, caches = self.parts[0], self.evaluator, self.caches
        if len(self.parts) > 1:  # what was encoded for these alone is gone
            at = np.unique(np.concatenate(list(chosen.values())))
            if len(at):
                evaluator = self._evaluator(at)
                caches = evaluator.encode(self.variables, self.store)
        return {
            heading: [
                evaluator.example(
                    self.variables,
                    caches,
                    int(np.searchsorted(at, row)),
                    f"Episode {row + 1}",
                    float(ious[row]),
                )
                for row in rows
            ]
            for heading, rows in chosen.items()
        }


def _choose_thresholds(
    config: ConfigDict, model: Method, loaded: Loaded, source: Source, mesh: Mesh
) -> dict[str, float]:
    """The thresholds that are best on classes that are not tested (`eval.threshold`): of the model
    (""), and of each of its ablations by name. Nothing where none is asked for.

    Raises:
        UserError: training has seen the photographs, or none shows such classes.
    """
    which = config.eval.threshold
    if not which:
        return {}
    if which == "base" and loaded.config and test_split(config.data).startswith("train"):
        raise UserError(
            f"data.split = {test_split(config.data)}: eval.threshold = base would be chosen on "
            "photographs that training has seen: choose another data.split, or eval.threshold = ''."
        )
    seed, count = config.eval.seed, config.train.eval_episodes
    episodes = draw_episodes(config, source, which, seed, count, chosen_by="eval.threshold")
    scoring = Scoring(config, model, loaded.variables, source, mesh, {seed: episodes})
    thresholds = {
        name: best_threshold(counts.thresholds, episodes.classes, THRESHOLDS)
        for name, counts in scoring.counts.items()
    }
    for name, threshold in thresholds.items():
        words = f"{name}: " if name else ""
        logger.info("%sthreshold %.2f is best on %s classes", words, threshold, which)
    return thresholds


def summarise(
    counts: Int[np.ndarray, "episode class 3"],
    by_seed: dict[int, EpisodeIds],
    names: dict[int, str],
) -> dict[str, Any]:
    """Figures of each run, and over the runs their means and standard deviations."""
    ends = np.cumsum([len(listed) for listed in by_seed.values()])
    runs = [
        run_metrics(part, listed.classes, names)
        for part, listed in zip(np.split(counts, ends[:-1]), by_seed.values(), strict=True)
    ]
    classes = [names[c] for c in sorted(names) if any(names[c] in run["per_class"] for run in runs)]
    return {
        **{name: float(np.mean([run[name] for run in runs])) for name in MEANS},
        **{f"{name}_std": float(np.std([run[name] for run in runs])) for name in MEANS},
        "per_class": {name: _mean([r["per_class"].get(name) for r in runs]) for name in classes},
        "runs": runs,
    }


def _means_of(summary: dict[str, Any]) -> dict[str, float]:
    return {name: summary[name] for name in MEANS}


def summary(results: dict[str, Any]) -> str:
    """The score in one line, with what it may be compared to."""
    several = len(results["runs"]) > 1

    def score(name: str) -> str:
        return f"{results[name]:.1f}" + f" +- {results[f'{name}_std']:.1f}" * several

    star = f"mIoU* {score('mean_iou_star')}, " if results["ways"] > 1 else ""
    changed = "".join(f", {name} {value}" for name, value in changed_options(results).items())
    return (
        f"mean-IoU {score('mean_iou')}, {star}binary-IoU {results['binary_iou']:.1f} "
        f"({results['method']}{changed}, {results['checkpoint']}; fold {results['fold']}, "
        f"{results['ways']}-way {results['shots']}-shot, "
        f"{len(results['runs'])} x {results['episodes']} episodes; "
        f"protocol {results['protocol']['hash']}, episodes {results['episodes_hash']})"
    )


def comparisons(results: dict[str, Any]) -> list[str]:
    """Lines that tell the figures of the same predictions under other rules."""

    def line(words: str, figures: dict[str, float]) -> str:
        return (
            f"{words}: mean-IoU {figures['mean_iou']:.1f}, binary-IoU {figures['binary_iou']:.1f}"
        )

    lines = [
        line(f"label 255 {'ignored' if border == 'ignored' else 'as background'}", figures)
        for border, figures in results["borders"].items()
    ]
    if at := results.get("thresholded"):
        words = f"at threshold {at['threshold']:.2f}, best on {at['chosen_on']} classes"
        lines.append(line(words, at))
    for name, figures in results.get("without", {}).items():
        lines.append(line(name, figures))
        if at := figures.get("thresholded"):
            lines.append(line(f"{name}, at threshold {at['threshold']:.2f}", at))
    return lines


def _bar(description: str, total: int, unit: str) -> tqdm:
    """A progress bar that is cleared when it is done if it stands below another one."""
    return tqdm(desc=description, total=total, unit=unit, delay=1, leave=None)


def _fold(source: Source, episodes: EpisodeIds, fold: int) -> int | None:
    """The fold that holds out all classes of the episodes; of a list that may be none."""
    classes = set(np.unique(episodes.classes).tolist())
    folds = [fold, *range(len(source.folds))]
    return next((number for number in folds if classes <= set(source.folds[number])), None)


def _mean(values: list[float | None]) -> float | None:
    """The mean of what is known: a class may be missing in a run, or have no pixels."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None
