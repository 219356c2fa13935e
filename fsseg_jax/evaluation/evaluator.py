"""Scores a model on lists of episodes: each photograph is encoded once, episodes use the cache.

Then an evaluation: the lists of the protocol, and the files that tell the result.
"""

import json
import os
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, UInt8
from ml_collections import ConfigDict
from tqdm import tqdm

from fsseg_jax.data.source import Source, parallel_map, read_square
from fsseg_jax.devices import map_over_devices, replicated
from fsseg_jax.episode import (
    EpisodeIds,
    concatenate,
    episode_label,
    episodes_hash,
    episodes_to_csv,
    normalise,
)
from fsseg_jax.evaluation.metrics import episode_iou, pixel_counts, run_metrics
from fsseg_jax.evaluation.protocol import protocol, protocol_episodes
from fsseg_jax.evaluation.report import Example, changed_options, write_report
from fsseg_jax.models import Method
from fsseg_jax.models.resize import resize


class Loaded(NamedTuple):
    """Variables to evaluate, and where they come from."""

    variables: Any
    words: str  # for people
    config: ConfigDict | None = None  # of the training; None for a freshly initialised model


class Evaluator:
    """Scores variables of one model on one list of episodes.

    Reads the photographs that the episodes need once, when it is made. Results do not depend on
    `batch_size`: every photograph and every episode is computed on its own.

    Args:
        model: a method.
        source: the photographs.
        episodes: what to score.
        mesh: the devices.
        image_size: side of the square that photographs are resized to, and of scoring.
        batch_size: episodes a dispatch.
        feature_dtype: in which encoded photographs are kept.
    """

    def __init__(
        self,
        model: Method,
        source: Source,
        episodes: EpisodeIds,
        mesh: Mesh,
        *,
        image_size: int,
        batch_size: int,
        feature_dtype: str,
    ) -> None:
        self.model, self.mesh, self.episodes = model, mesh, episodes
        self.batch_size, self.feature_dtype = batch_size, feature_dtype
        used = np.unique(episodes.photographs)
        row = np.zeros(len(source), np.int32)
        row[used] = np.arange(len(used))
        self._rows = episodes.replace(supports=row[episodes.supports], query=row[episodes.query])
        squares = parallel_map(
            lambda index: read_square(source, int(index), image_size), used, "reading"
        )
        self.images, self.labels = (np.stack(arrays) for arrays in zip(*squares, strict=True))

        def encode(variables: Any, image: UInt8[Array, "height width 3"]) -> Any:
            features = model.apply(variables, normalise(image), method="encode")
            return jax.tree.map(lambda x: x.astype(feature_dtype), features)

        self._encode = map_over_devices(encode, mesh, batched=1)
        self._score = map_over_devices(self._score_one, mesh, batched=1)
        self._predict = jax.jit(self._predict_one)

    def _predict_one(
        self, variables: Any, cache: tuple[Any, Array, Array], episode: EpisodeIds
    ) -> tuple[Int[Array, "height width"], UInt8[Array, "height width"], dict[str, Array]]:
        """The prediction for one row of `self._rows`, its label, and what the method measured."""
        features, images, labels = cache

        def cached(photographs: Array) -> Any:
            return jax.tree.map(lambda x: x[photographs].astype(jnp.float32), features)

        output = self.model.apply(
            variables,
            cached(episode.supports),
            episode_label(labels[episode.supports], episode.classes),
            cached(episode.query),
            normalise(images[episode.query]),
            method="segment",
        )
        label = episode_label(labels[episode.query], episode.classes)
        logits = resize(output.logits, label.shape, self.model.align_corners)
        return jnp.argmax(logits, axis=-1), label, output.measured

    def _score_one(
        self, variables: Any, cache: tuple[Any, Array, Array], episode: EpisodeIds
    ) -> tuple[Int[Array, "class 3"], dict[str, Array]]:
        prediction, label, measured = self._predict_one(variables, cache, episode)
        return pixel_counts(prediction, label, episode.classes.shape[0]), measured

    def encode(self, variables: Any) -> tuple[Any, Array, Array]:
        """Features, photographs and labels of all that the episodes need, on the devices."""
        step = self.mesh.size
        stored = None
        with _bar("encoding", len(self.images), "photo") as progress:
            for start in range(0, len(self.images), step):
                chunk = self.images[start : start + step]
                padded = np.resize(chunk, (step, *chunk.shape[1:]))
                features = jax.tree.map(np.asarray, self._encode(variables, padded))
                if stored is None:
                    stored = jax.tree.map(
                        lambda x: np.empty((len(self.images), *x.shape[1:]), x.dtype), features
                    )
                for whole, part in zip(*map(jax.tree.leaves, (stored, features)), strict=True):
                    whole[start : start + len(chunk)] = part[: len(chunk)]
                progress.update(len(chunk))
        return jax.device_put((stored, self.images, self.labels), replicated(self.mesh))

    def score(
        self, variables: Any, cache: tuple[Any, Array, Array]
    ) -> tuple[Int[np.ndarray, "episode class 3"], dict[str, float]]:
        """Scores every episode from encoded photographs.

        Returns:
            pixel counts (see `metrics.pixel_counts`), and the means of what the method measured.
        """
        count = len(self.episodes)
        step = -(-self.batch_size // self.mesh.size) * self.mesh.size
        parts = []
        with _bar("scoring", count, "episode") as progress:
            for start in range(0, count, step):
                rows = np.minimum(np.arange(start, start + step), count - 1)  # the last repeats
                parts.append(jax.device_get(self._score(variables, cache, self._rows.take(rows))))
                progress.update(min(step, count - start))
        counts, measured = jax.tree.map(lambda *part: np.concatenate(part)[:count], *parts)
        return counts, {name: float(values.mean()) for name, values in measured.items()}

    def predict(
        self, variables: Any, cache: tuple[Any, Array, Array], row: int
    ) -> UInt8[np.ndarray, "height width"]:
        """The predicted label of episode number `row`, in episode numbering."""
        prediction, *_ = self._predict(variables, cache, self._rows.take(row))
        return np.asarray(prediction, np.uint8)

    def example(
        self, variables: Any, cache: tuple[Any, Array, Array], row: int, source: Source, iou: float
    ) -> Example:
        """Episode number `row` with its prediction, for the report."""
        rows, ids = self._rows.take(row), self.episodes.take(row)
        return Example(
            title=f"Episode {row + 1}",
            iou=iou,
            classes=tuple(source.class_names[int(c)] for c in ids.classes),
            support_ids=tuple(tuple(source.ids[i] for i in shots) for shots in ids.supports),
            query_id=source.ids[ids.query],
            support_image=self.images[rows.supports],
            support_label=np.asarray(episode_label(self.labels[rows.supports], ids.classes)),
            query_image=self.images[rows.query],
            query_label=np.asarray(episode_label(self.labels[rows.query], ids.classes)),
            prediction=self.predict(variables, cache, row),
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
    evaluator = Evaluator(
        model,
        source,
        episodes,
        mesh,
        image_size=config.image_size,
        batch_size=config.eval.batch_size,
        feature_dtype=config.eval.feature_dtype,
    )
    read = time.perf_counter()
    cache = evaluator.encode(variables)
    encoded = time.perf_counter()
    counts, measured = evaluator.score(variables, cache)
    scored = time.perf_counter()

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
        "ways": episodes.classes.shape[1],
        "shots": episodes.supports.shape[2],
        "checkpoint": loaded.words,
        **means,
        **deviations,
        "per_class": per_class,
        "measured": measured,
        "runs": runs,
        "episodes": len(episodes) // len(runs),  # a run
        "episodes_hash": episodes_hash(episodes, source.ids),
        "protocol": protocol(config, source, model, loaded.config),
        "photographs": len(evaluator.images),
        "seconds": time.perf_counter() - started,
        "seconds_reading": read - started,
        "seconds_encoding": encoded - read,
        "seconds_scoring": scored - encoded,
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
    gallery = {
        title: [evaluator.example(variables, cache, row, source, float(ious[row])) for row in rows]
        for title, rows in chosen.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    listing = episodes_to_csv(
        episodes, source.ids, run=run_of.tolist(), iou=[f"{value:.2f}" for value in ious]
    )
    _write(folder / "episodes.csv", listing)
    write_report(folder / "report.html", results, gallery)
    _write(folder / "results.json", json.dumps(results, indent=1))
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


def _write(path: pathlib.Path, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)
