"""Scores a model on lists of episodes: each photograph is encoded once, episodes use the cache.

Then an evaluation: the lists of the protocol, and the files that tell the result.
"""

import json
import logging
import os
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, UInt8, UInt32
from ml_collections import ConfigDict
from tqdm import tqdm

from fsseg_jax.data.annotations import annotated, annotation_of, choose, square_marks
from fsseg_jax.data.source import Photograph, Source, parallel_map, square
from fsseg_jax.devices import is_first_process, put, replicated, split
from fsseg_jax.episode import (
    IGNORE,
    EpisodeIds,
    concatenate,
    episode_label,
    episodes_hash,
    episodes_to_csv,
)
from fsseg_jax.evaluation import crf
from fsseg_jax.evaluation.metrics import episode_iou, pixel_counts, run_metrics
from fsseg_jax.evaluation.parts import Store, portions, scaled_side, shared_photographs
from fsseg_jax.evaluation.protocol import protocol, protocol_episodes
from fsseg_jax.evaluation.report import Example, changed_options, write_report
from fsseg_jax.evaluation.scorer import Cache, Rows, Scorer, Truth
from fsseg_jax.models import Method

CANVAS = 64  # what heights and widths are rounded up to where evaluators are to be alike

logger = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """Variables to evaluate, and where they come from."""

    variables: Any
    words: str  # for people
    config: ConfigDict | None = None  # of the training; None for a freshly initialised model
    checkpoint: str | None = None  # "best" or "last"


class Evaluator:
    """Scores variables of one model on one list of episodes.

    Reads the photographs that the episodes need once, when it is made. Results do not depend on
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
            what has been compiled.
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
            sides=tuple(scaled_side(self.size, scale) for scale in self.options.scales),
            annotation=self.annotation.kind,
            feature_dtype=self.options.feature_dtype,
            together=self.options.together,
        )

        used, queries = np.unique(episodes.photographs), np.unique(episodes.query)
        self.used, self.queries = used, queries
        ways, shots = episodes.supports.shape[1:]
        if bits is None:
            bits = choose(self.options.seed, np.arange(len(episodes)), ways, shots)
        self.rows = Rows(
            classes=episodes.classes,
            supports=np.searchsorted(used, episodes.supports).astype(np.int32),
            query=np.searchsorted(used, episodes.query).astype(np.int32),
            turn=np.searchsorted(queries, episodes.query).astype(np.int32),
            bits=bits,
        )
        self._read(used, queries, set(episodes.supports.ravel().tolist()), room)

    # ------------------------------------------------------------------------- reading

    def _read(
        self, used: np.ndarray, queries: np.ndarray, supports: set[int], room: tuple[int, int]
    ) -> None:
        """Reads photographs, labels and what else the options ask for."""
        options, marked = self.options, self.annotation.kind != "dense"
        is_query = np.isin(used, queries)
        count = max(len(used), room[0]), self.size, self.size
        turns = max(len(queries), room[1])
        sides = [side for side in self.scorer.sides if side != self.size]
        wide = np.uint8 if max(self.source.class_names) < IGNORE else np.uint16
        self.images = np.zeros((*count, 3), np.uint8)
        self.labels = np.zeros(count, wide)
        self.marks = np.zeros(count, np.uint8) if marked else None
        self.scaled = [np.zeros((turns, side, side, 3), np.uint8) for side in sides]
        own = [None] * len(queries)

        def read(row: int) -> None:
            index = int(used[row])
            photograph = self.source.read(index)
            self.images[row], self.labels[row] = square(photograph, self.size, options.fit)
            if marked and index in supports:
                label = self.labels[row]
                self.marks[row] = square_marks(
                    self.source, index, label, self.annotation, options.fit
                )
            if is_query[row]:
                turn = np.searchsorted(queries, index)
                for images, side in zip(self.scaled, sides, strict=True):
                    images[turn] = square(photograph, side, options.fit).image
                if options.scored_at == "photograph":
                    own[turn] = photograph.label

        parallel_map(read, range(len(used)), "reading")
        self.truth = None
        if options.scored_at == "photograph":
            shape = np.ones((turns, 2), np.int32)
            shape[: len(own)] = [label.shape for label in own]
            largest = shape.max(axis=0)
            if room[1]:  # other evaluators have other photographs, mostly of about this size
                largest = -(-largest // CANVAS) * CANVAS
            label = np.full((turns, *largest), IGNORE, wide)
            for canvas, part in zip(label, own, strict=False):
                canvas[: part.shape[0], : part.shape[1]] = part
            extent = shape
            if options.fit == "letterbox":
                extent = np.repeat(shape.max(axis=1, keepdims=True), 2, axis=1)
            self.truth = Truth(label, shape, extent)

    # ------------------------------------------------------------------------- all of them

    def encode(self, variables: Any, store: Store | None = None) -> Cache:
        """Encodes all photographs, and puts what the episodes need on the devices.

        Args:
            variables: of the model, on the mesh.
            store: has photographs that are encoded already, and is given those that it asks for.
        """
        features = self._encode_all(variables, self.images, self.used, store, "encoding")
        scaled = []
        for images in self.scaled:
            words = f"encoding at {images.shape[1]} px"
            scaled.append((self._encode_all(variables, images, self.queries, store, words), images))
        host = (self.images, self.labels, self.marks, tuple(i for _, i in scaled), self.truth)
        images, labels, marks, large, truth = put(host, replicated(self.mesh))
        scaled = tuple((features, i) for (features, _), i in zip(scaled, large, strict=True))
        return Cache(features, images, labels, marks, scaled, truth)

    def _encode_all(
        self,
        variables: Any,
        images: UInt8[np.ndarray, "photograph side side 3"],
        photographs: Int[np.ndarray, " photograph"],
        store: Store | None,
        words: str,
    ) -> Any:
        """Features of photographs at one size, on the mesh, row by row as `photographs`."""
        size = self.mesh.size * self.options.together
        side = images.shape[1]
        known = np.zeros(len(photographs), bool)
        if store is not None:
            known = store.has(side, photographs)
        encoded = self.scorer.room(variables, len(images), side)
        with _bar(words, len(photographs), "photo") as progress:
            for kept in (True, False):
                rows = np.flatnonzero(known == kept)
                for start in range(0, len(rows), size):
                    chunk = rows[start : start + size]
                    padded = np.resize(chunk, size)
                    if kept:
                        part = put(store.get(side, photographs[padded]), replicated(self.mesh))
                    else:
                        part = self.scorer.encode(variables, put(images[padded], split(self.mesh)))
                        if store is not None:
                            store.put(side, photographs[chunk], part)
                    encoded = self.scorer.insert(encoded, put(padded, replicated(self.mesh)), part)
                    jax.block_until_ready(encoded)  # so that the progress shown is true
                    progress.update(len(chunk))
        return encoded

    def score(
        self, variables: Any, cache: Cache
    ) -> tuple[Int[np.ndarray, "episode class 3"], dict[str, float]]:
        """Scores every episode from encoded photographs.

        Returns:
            pixel counts (see `metrics.pixel_counts`), and the means of what the method measured.
        """
        if self.options.crf.iterations:
            return self._score_refined(variables, cache), {}
        count = len(self.episodes)
        step = -(-self.options.batch_size // self.mesh.size) * self.mesh.size
        parts = []
        with _bar("scoring", count, "episode") as progress:
            for start in range(0, count, step):
                rows = np.minimum(np.arange(start, start + step), count - 1)  # the last repeats
                rows = put(self.rows.take(rows), split(self.mesh))
                parts.append(self.scorer.score(variables, cache, rows))
                # The devices have the next rows before these are waited for.
                parts[-2:-1] = jax.device_get(parts[-2:-1])
                progress.update(min(step, count - start))
        parts = jax.device_get(parts)
        counts, measured = jax.tree.map(lambda *part: np.concatenate(part)[:count], *parts)
        return counts, {name: float(values.mean()) for name, values in measured.items()}

    def _score_refined(self, variables: Any, cache: Cache) -> Int[np.ndarray, "episode class 3"]:
        """`score` of predictions that DenseCRF has refined, one by one on the host."""
        ways = self.episodes.classes.shape[1]
        labels = self.labels if self.truth is None else self.truth.label
        count = jax.jit(lambda *pictures: pixel_counts(*pictures, ways))
        counts = []
        with _bar("scoring with DenseCRF", len(self.episodes), "episode") as progress:
            for row in range(len(self.episodes)):
                # On canvases of one size, as any other size would be compiled anew.
                label, prediction = np.full((2, *labels.shape[1:]), IGNORE, np.uint8)
                for canvas, part in (
                    (label, self._label(row)),
                    (prediction, self.predict(variables, cache, row)),
                ):
                    canvas[: part.shape[0], : part.shape[1]] = part
                counts.append(count(prediction, label))
                progress.update()
        return np.stack(jax.device_get(counts))

    def _label(self, row: int) -> UInt8[np.ndarray, "height width"]:
        """The query's label of episode number `row` at the scoring size."""
        rows = self.rows.take(row)
        if self.truth is None:
            return np.asarray(episode_label(self.labels[rows.query], rows.classes))
        height, width = self.truth.shape[rows.turn]
        whole = np.asarray(episode_label(self.truth.label[rows.turn], rows.classes))
        return whole[:height, :width]

    def predict(self, variables: Any, cache: Cache, row: int) -> UInt8[np.ndarray, "height width"]:
        """The predicted label of episode number `row` at the scoring size, in episode numbering."""
        rows = self.rows.take(row)
        placed = put(rows, replicated(self.mesh))
        prediction, probabilities = self.scorer.predict(variables, cache, placed)
        height, width = self._label(row).shape
        if self.options.crf.iterations:
            image = self.images[rows.query]
            if self.truth is not None:
                image = self.source.read(int(self.episodes.query[row])).image
            probabilities = np.asarray(probabilities)[:height, :width]
            return crf.refine(probabilities, image, self.options.crf)
        return np.asarray(prediction, np.uint8)[:height, :width]

    def example(self, variables: Any, cache: Cache, row: int, title: str, iou: float) -> Example:
        """Episode number `row` with its prediction, for the report."""
        rows, ids = self.rows.take(row), self.episodes.take(row)
        support_label = np.asarray(episode_label(self.labels[rows.supports], ids.classes))
        if self.marks is not None:
            marks = self.marks[rows.supports]
            support_label = annotated(support_label, marks, rows.bits, self.annotation.kind)
        prediction = self.predict(variables, cache, row)
        if self.truth is not None:  # back to the square that is shown
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
    variables = loaded.variables
    by_seed = protocol_episodes(config, source)
    episodes = concatenate(list(by_seed.values()))
    bits = [
        choose(seed, np.arange(len(run)), *run.supports.shape[1:]) for seed, run in by_seed.items()
    ]
    bits = np.concatenate(bits)
    parts = portions(config, model, variables, source, episodes)
    ways = episodes.classes.shape[1]
    counts = np.empty((len(episodes), ways + 1, 3), np.int64)
    measured: dict[str, float] = {}
    seconds = np.zeros(3)  # reading, encoding, scoring
    store, room = None, (0, 0)
    if len(parts) > 1:
        store = Store(shared_photographs(episodes, parts))
        several = [episodes.take(rows) for rows in parts]
        room = tuple(
            max(len(np.unique(ids)) for ids in each)
            for each in ([e.photographs for e in several], [e.query for e in several])
        )
    for rows in parts:
        times = [time.perf_counter()]
        evaluator = Evaluator(model, source, episodes.take(rows), mesh, config, bits[rows], room)
        times.append(time.perf_counter())
        cache = evaluator.encode(variables, store)
        times.append(time.perf_counter())
        counts[rows], means = evaluator.score(variables, cache)
        times.append(time.perf_counter())
        seconds += np.diff(times)
        for name, mean in means.items():
            measured[name] = measured.get(name, 0.0) + mean * len(rows) / len(episodes)

    names = source.class_names
    runs = []
    run_of = np.repeat(np.arange(len(by_seed)), [len(run) for run in by_seed.values()])
    for run, (seed, listed) in enumerate(by_seed.items()):
        runs.append(
            {
                "seed": seed,
                "episodes_hash": episodes_hash(listed, source.ids),
                **run_metrics(counts[run_of == run], listed.classes, names),
            }
        )
    means = {
        name: float(np.mean([run[name] for run in runs]))
        for name in ("mean_iou", "mean_iou_star", "binary_iou")
    }
    deviations = {f"{name}_std": float(np.std([run[name] for run in runs])) for name in means}
    classes = [names[c] for c in sorted(names) if any(names[c] in run["per_class"] for run in runs)]
    per_class = {name: _mean([run["per_class"].get(name) for run in runs]) for name in classes}
    ious = episode_iou(counts)
    results = {
        "method": config.method,
        "backbone": config.backbone,
        "model": json.loads(json.dumps(config.model.to_dict())),  # as it is read back
        "fold": _fold(source, episodes, config.data.fold),
        "ways": ways,
        "shots": episodes.supports.shape[2],
        "checkpoint": loaded.words,
        **means,
        **deviations,
        "per_class": per_class,
        "measured": measured,
        "runs": runs,
        "episodes": len(episodes) // len(runs),  # a run
        "episodes_hash": episodes_hash(episodes, source.ids),
        "protocol": protocol(config, source, model, loaded.config, loaded.checkpoint),
        "photographs": len(np.unique(episodes.photographs)),
        "seconds": time.perf_counter() - started,
        "seconds_reading": seconds[0],
        "seconds_encoding": seconds[1],
        "seconds_scoring": seconds[2],
    }

    # Small data sets repeat episodes: the gallery shows each of them once.
    ids = [episodes.classes, episodes.supports.reshape(len(episodes), -1), episodes.query[:, None]]
    _, first = np.unique(np.concatenate(ids, axis=1), axis=0, return_index=True)
    order = np.sort(first)
    order = order[np.argsort(-ious[order], kind="stable")]
    shown = min(config.eval.gallery, len(order))
    middle = (len(order) - shown) // 2
    chosen = {
        "Best": order[:shown],
        "Median": order[middle : middle + shown],
        "Worst": order[len(order) - shown :],
    }
    at = np.unique(np.concatenate(list(chosen.values()))) if len(parts) > 1 else parts[0]
    if len(parts) > 1 and len(at):  # what was encoded for these alone is gone
        evaluator = Evaluator(model, source, episodes.take(at), mesh, config, bits[at], room)
        cache = evaluator.encode(variables, store)
    gallery = {
        heading: [
            evaluator.example(
                variables, cache, np.searchsorted(at, row), f"Episode {row + 1}", float(ious[row])
            )
            for row in rows
        ]
        for heading, rows in chosen.items()
    }
    if not is_first_process():
        return results
    folder.mkdir(parents=True, exist_ok=True)
    listing = episodes_to_csv(
        episodes, source.ids, run=run_of.tolist(), iou=[f"{value:.2f}" for value in ious]
    )
    write_whole(folder / "episodes.csv", listing)
    write_report(folder / "report.html", results, gallery)
    write_whole(folder / "results.json", json.dumps(results, indent=1))
    return results


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


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)
