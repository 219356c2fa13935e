"""Measures evaluation: python -m fsseg_jax.benchmarks.evaluate

Evaluates a method (PANet by default) from random weights under its protocol, 5 runs of 1,000
episodes, with 1 and 5 shots: each image is encoded once, and episodes are scored from the cache.
This is compared with encoding the images of each episode again, which is timed on a few episodes
and extrapolated. To show that time grows linearly, a quarter, a half and all of the episodes are
scored, and half of the images encoded. Images are synthetic unless --config has data; reading them
is not timed.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Integer
from ml_collections import ConfigDict

from fsseg_jax import command_line
from fsseg_jax.benchmarks import programs, workloads
from fsseg_jax.benchmarks.measure import GIB, by_turns
from fsseg_jax.data import open_source
from fsseg_jax.data.source import Source
from fsseg_jax.data.squares import read_square
from fsseg_jax.devices import make_mesh, replicated
from fsseg_jax.episode import AnyArray, Episode, EpisodeIds, concatenate, episode_label
from fsseg_jax.evaluation.evaluator import Evaluator
from fsseg_jax.evaluation.metrics import pixel_counts
from fsseg_jax.evaluation.protocol import protocol_episodes
from fsseg_jax.models import Method, create_model, init_variables

REPEATS = 3  # of encoding and of scoring, after a first call that compiles
SHOTS = (1, 5)


def read(source: Source, ids: EpisodeIds, size: int) -> Episode:
    """Reads the images of some episodes, as a batch."""
    squares = {int(index): read_square(source, int(index), size) for index in np.unique(ids.images)}

    def stack(indices: Integer[AnyArray, "*shape"], field: int) -> np.ndarray:
        values = np.stack([squares[int(index)][field] for index in indices.ravel()])
        return values.reshape(*indices.shape, *values.shape[1:])

    label = jax.vmap(episode_label)
    return Episode(
        support_image=stack(ids.supports, 0),
        support_label=np.asarray(label(stack(ids.supports, 1), ids.classes)),
        query_image=stack(ids.query, 0),
        query_label=np.asarray(label(stack(ids.query, 1), ids.classes)),
        class_id=ids.classes,
        query_index=ids.query_index,
    )


def whole_episodes(model: Method, variables: Any, batch: Episode, repeats: int) -> float:
    """Seconds of an episode, in a compiled batch that encodes the images of each episode."""
    predict, ways = workloads.prediction(model), batch.class_id.shape[1]

    def score(variables: Any, batch: Episode) -> Int[Array, "episode class 3"]:
        count = jax.vmap(lambda prediction, label: pixel_counts(prediction, label, ways))
        return count(predict(variables, batch), batch.query_label)

    run = workloads.compile(score, variables, batch).run
    seconds = by_turns([run], repeats, description="whole episodes")
    return float(np.median(seconds)) / len(batch.query_index)


def parts(episodes: EpisodeIds) -> list[EpisodeIds]:
    """The first episodes up to half of all images; a quarter, a half, and all of the episodes."""
    images = episodes.images
    used, first = np.unique(images, return_index=True)
    half = np.sort(first)[(len(used) - 1) // 2] // images.shape[1] + 1
    counts = {int(half), *(-(-len(episodes) // share) for share in (4, 2, 1))}
    return [episodes.take(slice(count)) for count in sorted(counts)]


def evaluation_row(
    config: ConfigDict,
    model: Method,
    variables: Any,
    source: Source,
    episodes: EpisodeIds,
    mesh: Mesh,
    repeats: int,
) -> dict[str, Any]:
    """Measures encoding the images of some episodes, and scoring the episodes."""
    evaluator = Evaluator(model, source, episodes, mesh, config)
    variables, caches = jax.device_put(variables, replicated(mesh)), []

    def encode() -> Any:
        nonlocal caches
        caches = evaluator.encode(variables)
        return caches

    seconds = by_turns([encode, lambda: evaluator.score(variables, caches)], repeats)
    images = len(np.unique(episodes.images))
    return {
        "method": config.method,
        "shots": config.shots,
        "episodes": len(episodes),
        "photographs": images,
        "encoding": programs.timing(seconds[:, 0]),
        "scoring": programs.timing(seconds[:, 1]),
        "cache": sum(x.nbytes for x in jax.tree.leaves([cache.features for cache in caches])),
    }


def growth_cells(row: dict[str, Any]) -> list[str]:
    """A row of the table `GROWTH`, with the time of one image and of one episode."""
    encoding, scoring = row["encoding"], row["scoring"]
    return [
        *(row["method"], str(row["shots"])),
        *(str(row["photographs"]), f"{encoding['seconds']:.3f}"),
        f"{1e3 * encoding['seconds'] / row['photographs']:.3f}",
        *(str(row["episodes"]), f"{scoring['seconds']:.3f}"),
        f"{1e3 * scoring['seconds'] / row['episodes']:.3f}",
        f"{row['cache'] / GIB:.2f}",
    ]


GROWTH = ["", "shots", "images", "s", "ms each", "episodes", "s", "ms each", "cache GiB"]


def against_whole(row: dict[str, Any], seconds: float, timed: int) -> dict[str, Any]:
    """Compares a row of all episodes with encoding the images of each episode."""
    encoding, scoring = row["encoding"]["seconds"], row["scoring"]["seconds"]
    once, anew = encoding + scoring, seconds * row["episodes"]
    return {
        **{name: row[name] for name in ("method", "shots", "episodes", "photographs")},
        "photographs_per_second": row["photographs"] / encoding,
        "episodes_per_second": row["episodes"] / scoring,
        "seconds_once": once,
        "seconds_whole_episode": seconds,
        "timed": timed,
        "seconds_anew": anew,
        "ratio": anew / once,
    }


def against_cells(row: dict[str, Any]) -> list[str]:
    """A row of the table `AGAINST`."""
    return [
        *(row["method"], str(row["shots"])),
        *(f"{row[name]:.1f}" for name in ("photographs_per_second", "episodes_per_second")),
        f"{row['seconds_once']:.3f}",
        *(f"{1e3 * row['seconds_whole_episode']:.3f}", str(row["timed"])),
        *(f"{row['seconds_anew']:.3f}", f"{row['ratio']:.2f}"),
    ]


AGAINST = ["", "shots", "images/s", "episodes/s", "s", "ms each", "timed", "s in all", "x"]


def main() -> None:
    """Runs the program."""
    arguments, overrides = programs.parse(
        __doc__, shots="supports per class, separated by commas; 1,5 by default"
    )
    repeats = programs.numbers(arguments.repeats, "repeats", [REPEATS])[0]
    own = any(given.startswith("--config.shots") for given in overrides)
    shots_given = programs.numbers(arguments.shots, "shots", () if own else SHOTS)
    configs = programs.settings(arguments, overrides, "panet")
    mesh = make_mesh(configs[0].devices)
    models = [create_model(config) for config in configs]
    print(programs.hardware(mesh, sorted({config.dtype for config in configs})))
    growth, against = [], []
    for config, model in zip(configs, models, strict=True):
        print(
            f"{programs.words(config)}; {config.eval.runs} x {config.eval.episodes} episodes, "
            f"features kept in {config.eval.feature_dtype}"
        )
        source = open_source(config.data, "test")
        for shots in shots_given or [config.shots]:
            config.shots = shots
            variables = init_variables(model, jax.random.key(0), config.ways, shots)
            episodes = concatenate(list(protocol_episodes(config, source).values()))
            growth += [
                evaluation_row(config, model, variables, source, part, mesh, repeats)
                for part in parts(episodes)
            ]
            few = episodes.take(slice(config.eval.batch_size))
            batch = read(source, few, config.image_size)
            seconds = whole_episodes(model, variables, batch, repeats)
            against.append(against_whole(growth[-1], seconds, len(few)))
    print("each image encoded once, each episode scored from the cache (medians):")
    print(programs.table(GROWTH, [growth_cells(row) for row in growth]))
    print(
        "all episodes, compared with encoding the images of each episode again ('timed' episodes "
        "are\nmeasured in one batch on one device and extrapolated), which takes x times as long:"
    )
    print(programs.table(AGAINST, [against_cells(row) for row in against]))
    results = {"growth": growth, "against_encoding_anew": against}
    programs.finish(arguments.json, "evaluate", mesh, configs, **results)


if __name__ == "__main__":
    command_line.run(main)
