"""The protocol of an evaluation: every setting that makes two figures comparable, and its hash."""

import hashlib
import json
from typing import Any

from ml_collections import ConfigDict

from fsseg_jax.data import class_ids
from fsseg_jax.data.source import Source
from fsseg_jax.episode import EpisodeIds, check_items, read_episodes, sample
from fsseg_jax.errors import UserError
from fsseg_jax.models import Method


def protocol_episodes(config: ConfigDict, source: Source) -> dict[int, EpisodeIds]:
    """The episodes of each run by its seed: drawn from the held-out classes, or one list's.

    Raises:
        UserError: a class has too few photographs, or the list is not of this data set.
    """
    if config.eval.episodes_file:
        listed = read_episodes(config.eval.episodes_file, source.ids, list(source.class_names))
        _check_supports(listed, source, config.eval.episodes_file)
        return {config.eval.seed: listed}
    return {
        config.eval.seed + run: draw_episodes(config, source, "novel", config.eval.seed + run)
        for run in range(config.eval.runs)
    }


def draw_episodes(
    config: ConfigDict, source: Source, which: str, seed: int, count: int | None = None
) -> EpisodeIds:
    """`count` episodes (`config.eval.episodes` by default) of the "novel" or "base" classes."""
    classes = class_ids(source, config.data.fold, which)
    items = source.table.items(classes, config.data.min_pixels)
    check_items(items, source.class_names, config.ways, config.shots, "data.min_pixels")
    count = config.eval.episodes if count is None else count
    return sample(items, seed, range(count), config.ways, config.shots)


def _check_supports(episodes: EpisodeIds, source: Source, path: str) -> None:
    """Raises UserError where a listed support does not show its class."""
    shown = set(zip(source.table.photograph.tolist(), source.table.class_id.tolist(), strict=True))
    for row in range(len(episodes)):
        for class_id, supports in zip(episodes.classes[row], episodes.supports[row], strict=True):
            for photograph in supports.tolist():
                if (photograph, int(class_id)) not in shown:
                    raise UserError(
                        f"{path}, episode {row + 1}: the support {source.ids[photograph]} shows "
                        f"no {source.class_names[int(class_id)]} (class {class_id})."
                    )


def protocol(
    config: ConfigDict, source: Source, model: Method, trained: ConfigDict | None
) -> dict[str, Any]:
    """Every setting that makes two figures comparable, and `hash`: eight hexadecimal digits.

    Fold, ways and shots are not among them: they tell the cells of one table apart.

    Args:
        config: of the evaluation.
        source: the test photographs.
        model: a method.
        trained: the configuration of the training, or None for a model that was not trained.
    """
    listed = bool(config.eval.episodes_file)
    settings = {
        "data": source.name,
        "photographs": f"{config.data.split}, {len(source)}",
        "folds": " | ".join(",".join(map(str, fold)) for fold in source.folds),
        "image size": config.image_size,
        "photographs resized": "to a square, bilinear with antialiasing; labels nearest",
        "scored at": "image size",
        "corners": "aligned" if model.align_corners else "half-pixel",
        "ignored pixels of queries": "count for nothing",
        "ignored pixels of supports": model.ignored_pixels,
        "averaging": "pixels summed over a run, IoU a class, mean over classes; mean over runs",
        "episodes": "a list" if listed else "class uniform, then photographs uniform",
        "query": "from one of the ways",
        "min_pixels": None if listed else config.data.min_pixels,
        "runs": 1 if listed else config.eval.runs,
        "episodes a run": None if listed else config.eval.episodes,
        "first seed": None if listed else config.eval.seed,
        "computed in": config.dtype,
        "features kept in": config.eval.feature_dtype,
    }
    if trained:
        as_tested = (trained.ways, trained.shots) == (config.ways, config.shots)
        episodes = f"{trained.ways}-way {trained.shots}-shot"
        settings |= {
            "training episodes": "as tested" if as_tested else episodes,
            "training data": trained.data.name,
            "training photographs": trained.data.train_split or "the source's training split",
            "training min_pixels": trained.data.train_min_pixels,
            "held-out classes in training photographs": trained.data.held_out_photographs,
            "checkpoint": config.eval.checkpoint,
            "selected on": trained.train.select_on,
        }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return {**settings, "hash": digest[:8]}
