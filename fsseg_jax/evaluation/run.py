"""An evaluation: scores the episodes of a protocol, and writes the results to files."""

import json
import logging
import pathlib
import time
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fsseg_jax.checksums import checksum_of
from fsseg_jax.config import differences, flatten
from fsseg_jax.data import test_split
from fsseg_jax.data.source import Source
from fsseg_jax.devices import is_first_process
from fsseg_jax.episode import EpisodeIds, episodes_hash, episodes_to_csv
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.metrics import best_threshold, episode_iou
from fsseg_jax.evaluation.protocol import (
    draw_episodes,
    protocol,
    protocol_episodes,
    tell_difference,
)
from fsseg_jax.evaluation.report import write_report
from fsseg_jax.evaluation.scorer import THRESHOLDS
from fsseg_jax.evaluation.scoring import Scoring
from fsseg_jax.evaluation.summary import mean_of_known, means_of, summarise
from fsseg_jax.files import write_text, writing
from fsseg_jax.models import Method
from fsseg_jax.training.checkpoints import Loaded

# Fields that change neither what is evaluated nor under which rules: where, how fast, what besides.
SAME = (
    *("platform", "devices", "distributed", "compilation_cache", "rematerialise", "seed", "init"),
    *("data.root", "data.pipeline", "data.device", "data.augment", "data.train", "train."),
    *("eval.batch_size", "eval.together", "eval.cache", "eval.buckets", "eval.gallery"),
    *("eval.threshold", "predict."),
)
# Fields of a model that protocols leave out; of a trained one, only its own options may change.
MODEL = ("method", "backbone", "init", "seed", "model.")
# What the seconds of an evaluation are spent on, besides all else.
PARTS = ("seconds_reading", "seconds_encoding", "seconds_scoring")

logger = logging.getLogger(__name__)


def evaluate(
    config: ConfigDict,
    model: Method,
    loaded: Loaded,
    source: Source,
    mesh: Mesh,
    folder: pathlib.Path,
) -> dict[str, Any]:
    """Scores a model under the protocol of `config`, and writes the results into `folder`.

    The files are `results.json`, `episodes.csv` (an episode list with the run and the IoU of each)
    and `report.html`.

    Args:
        loaded: its variables, on the mesh, and their origin.
        folder: created if it does not exist.

    Returns:
        the contents of `results.json`; IoUs are in percent.

    Examples:
        >>> import tempfile
        >>> from fsseg_jax.config import load_config
        >>> from fsseg_jax.data import open_source
        >>> from fsseg_jax.devices import make_mesh
        >>> from fsseg_jax.models import create_model
        >>> from fsseg_jax.training.checkpoints import load_variables
        >>> config, mesh = load_config("quickstart"), make_mesh(devices=1)
        >>> config.image_size, config.data.shapes.val, config.eval.episodes = 32, 500, 4
        >>> model, source = create_model(config), open_source(config.data, "test")
        >>> loaded = load_variables(config, model, pathlib.Path("no_run"), mesh, source)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     results = evaluate(config, model, loaded, source, mesh, pathlib.Path(folder))
        >>> results["checkpoint"], 0 <= results["mean_iou"] <= 100
        ('freshly initialised, random weights', True)
    """
    started = time.perf_counter()
    with writing(folder):  # before all is computed
        folder.mkdir(parents=True, exist_ok=True)
    by_seed = protocol_episodes(config, source)
    described = protocol(config, source, model, loaded.config, loaded.checkpoint)
    tell_difference(folder / "results.json", described)
    thresholds = _choose_thresholds(config, model, loaded, source, mesh)
    scoring = Scoring(config, model, loaded.variables, source, mesh, by_seed)
    episodes = scoring.episodes
    results = {
        "method": config.method,
        "backbone": config.backbone,
        "model": json.loads(json.dumps(config.model.to_dict())),  # tuples as lists
        "fold": _fold(source, episodes, config.data.fold),
        "ways": episodes.classes.shape[1],
        "shots": episodes.supports.shape[2],
        "checkpoint": loaded.words,
        **_figures(scoring, thresholds),
        "protocol": described,
        "seconds": time.perf_counter() - started,
        **dict(zip(PARTS, scoring.seconds, strict=True)),
    }
    _write(scoring, results, folder)
    return results


def _write(scoring: Scoring, results: dict[str, Any], folder: pathlib.Path) -> None:
    """Writes the files of an evaluation; see `evaluate`."""
    ious = episode_iou(scoring.counts[""].borders[scoring.config.eval.border])
    gallery = scoring.gallery(ious)
    if is_first_process():
        runs, shown = scoring.run_of.tolist(), [f"{value:.2f}" for value in ious]
        listing = episodes_to_csv(scoring.episodes, scoring.source.ids, run=runs, iou=shown)
        write_text(folder / "episodes.csv", listing)
        write_report(folder / "report.html", results, gallery)
        write_text(folder / "results.json", json.dumps(results, indent=1))


def setting_folder(trained: ConfigDict | None, config: ConfigDict, protocol_hash: str) -> str:
    """The folder, below that of all evaluations, for one with `config`: itself ("") for the
    settings of the run, and one of its own for any others.

    Args:
        trained: the configuration of the run; None if there was no training, as then a folder may
            be given any configuration, and models differ by their initial weights, too.
    """
    if trained is None:
        changed = flatten(config)
    else:
        found = differences(trained, config).items()
        changed = {name: new for name, (_, new) in found if not name.startswith(SAME)}
    if not changed:
        return ""
    parts = [f"{config.ways}way-{config.shots}shot-fold{config.data.fold}", protocol_hash]
    if model := {name: x for name, x in changed.items() if name.startswith(MODEL)}:
        parts.append(checksum_of(model)[:8])
    return "-".join(parts)


def _figures(scoring: Scoring, thresholds: dict[str, float]) -> dict[str, Any]:
    """The scores of an evaluation, for `results.json`; `thresholds` as `_choose_thresholds` gives
    them."""
    source, by_seed, counts = scoring.source, scoring.by_seed, scoring.counts[""]
    episodes = scoring.episodes
    summaries = {
        border: summarise(values, by_seed, source.class_names)
        for border, values in counts.borders.items()
    }
    main = summaries[scoring.config.eval.border]
    for run, (seed, listed) in zip(main["runs"], by_seed.items(), strict=True):
        run |= {"seed": seed, "episodes_hash": episodes_hash(listed, source.ids)}
    return {
        **main,
        "borders": {border: means_of(values) for border, values in summaries.items()},
        **scoring.compare(thresholds),
        # Episodes without anything to measure have NaN.
        "measured": {
            name: mean_of_known(values.tolist()) for name, values in counts.measured.items()
        },
        "episodes": len(episodes) // len(by_seed),  # in a run
        "episodes_hash": episodes_hash(episodes, source.ids),
        "photographs": len(np.unique(episodes.images)),
    }


def _choose_thresholds(
    config: ConfigDict, model: Method, loaded: Loaded, source: Source, mesh: Mesh
) -> dict[str, float]:
    """The thresholds that are best on classes other than the tested ones (`eval.threshold`): of the
    model (""), and of each of its ablations by name. Empty if `eval.threshold` is.

    Raises:
        UserError: the model was trained on the images, they are those of the test, or no image
            shows such classes.
    """
    which = config.eval.threshold
    if not which:
        return {}
    if which == "base" and source.nothing_held_out:
        raise UserError(
            "data.folds = 0 holds out no classes: eval.threshold = base would be chosen on the "
            "tested images: choose eval.threshold = ''."
        )
    if which == "base" and loaded.config and test_split(config.data).startswith("train"):
        raise UserError(
            f"data.split = {test_split(config.data)}: eval.threshold = base would be chosen on "
            "training images: choose another data.split, or eval.threshold = ''."
        )
    seed, count = config.eval.seed, config.train.eval_episodes
    episodes = draw_episodes(config, source, which, seed, count, chosen_by="eval.threshold")
    scoring = Scoring(config, model, loaded.variables, source, mesh, {seed: episodes})
    thresholds = {
        name: best_threshold(counts.thresholds, episodes.classes, THRESHOLDS)
        for name, counts in scoring.counts.items()
        if counts.thresholds is not None
    }
    for name, threshold in thresholds.items():
        words = f"{name}: " if name else ""
        logger.info("%sthreshold %.2f is best on %s classes", words, threshold, which)
    return thresholds


def _fold(source: Source, episodes: EpisodeIds, fold: int) -> int | None:
    """The fold that holds out all classes of the episodes; None if there is none, as for lists."""
    classes = set(np.unique(episodes.classes).tolist())
    folds = [fold, *range(len(source.folds))]
    return next((number for number in folds if classes <= set(source.folds[number])), None)
