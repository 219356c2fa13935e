"""The protocol of an evaluation: every setting that makes two figures comparable, and its hash."""

import hashlib
import json
from typing import Any

from ml_collections import ConfigDict

from fsseg_jax.data import class_ids
from fsseg_jax.data.source import Source
from fsseg_jax.episode import EpisodeIds, check_items, read_episodes, sample


def protocol_episodes(config: ConfigDict, source: Source) -> dict[int, EpisodeIds]:
    """The episodes of each run by its seed: drawn from the held-out classes, or one list's.

    Raises:
        UserError: a class has too few photographs, or the list is not of this data set.
    """
    if config.eval.episodes_file:
        listed = read_episodes(config.eval.episodes_file, source.ids, list(source.class_names))
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
    check_items(items, source.class_names, config.ways, config.shots)
    return sample(items, seed, range(count or config.eval.episodes), config.ways, config.shots)


def protocol(config: ConfigDict, source: Source, align_corners: bool) -> dict[str, Any]:
    """Every setting that makes two figures comparable, and `hash`: eight hexadecimal digits.

    Fold, ways and shots are not among them: they tell the cells of one table apart.
    """
    listed = bool(config.eval.episodes_file)
    settings = {
        "data": source.name,
        "photographs": f"{config.data.split}, {len(source)}",
        "folds": " | ".join(",".join(map(str, fold)) for fold in source.folds),
        "image size": config.image_size,
        "photographs resized": "to a square, bilinear with antialiasing; labels nearest",
        "scored at": "image size",
        "corners": "aligned" if align_corners else "half-pixel",
        "ignored pixels": "label 255 counts for nothing in the query",
        "averaging": "pixels summed over a run, IoU a class, mean over classes; mean over runs",
        "episodes": "a list" if listed else "class uniform, then photographs uniform",
        "query": "from one of the ways",
        "min_pixels": None if listed else config.data.min_pixels,
        "runs": 1 if listed else config.eval.runs,
        "episodes a run": None if listed else config.eval.episodes,
        "first seed": None if listed else config.eval.seed,
        "training photographs": config.data.train_split,
        "training min_pixels": config.data.train_min_pixels,
        "held-out classes in training photographs": config.data.held_out_photographs,
        "checkpoint": config.eval.checkpoint,
        "selected on": config.train.select_on,
        "computed in": config.dtype,
        "features kept in": config.eval.feature_dtype,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return {**settings, "hash": digest[:8]}
