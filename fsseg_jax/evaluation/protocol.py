"""The protocol of an evaluation: the settings that must agree for figures to be comparable."""

import hashlib
import json
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from fsseg_jax.data import class_ids, test_split
from fsseg_jax.data.annotations import BOXES, RANDOM
from fsseg_jax.data.sampling import Items, check_items, sample
from fsseg_jax.data.source import Source
from fsseg_jax.episode import EpisodeIds, read_episodes
from fsseg_jax.errors import UserError
from fsseg_jax.models import Method

logger = logging.getLogger(__name__)

# Increase this when scores change through a setting that protocols do not name. Naming a setting
# for the first time needs no new version. The texts below are part of the hash.
VERSION = 2
FITS = {
    "stretch": "stretched to a square",
    "letterbox": "to a square by the longer side, sides multiples of 8, the rest black and ignored",
    "own": "queries at their own size times the scale, supports stretched to a square",
}
NOTHING = "nothing is held out"
BORDERS = {"ignored": "label 255 counts for nothing", "background": "label 255 is background"}
SAMPLING = {
    "classes": "class uniform, then photograph uniform",
    "items": "each (class, photograph) item in turn, in random order",
    "photographs": "each photograph in turn, in random order, one of its classes",
}
# Settings of version 1 that have another name or wording now.
_REWORDED = {
    ("ignored pixels of queries", "count for nothing"): ("border of queries", BORDERS["ignored"]),
    ("episodes", "class uniform, then photographs uniform"): ("episodes", SAMPLING["classes"]),
    ("query", "from one of the ways"): ("query", "shows one of the ways"),
}
SELECTION = {
    "last": "the last",
    "best": "the best by the run's own selection",  # for models that were not trained
    "best_base": "the best on validation photographs of base classes",
    "best_validation": "the best on classes kept for validation",
    "best_novel": "the best on the held-out classes",  # leaks the test into the training
}


def protocol_episodes(config: ConfigDict, source: Source) -> dict[int, EpisodeIds]:
    """The episodes of each run by its seed: drawn from the held-out classes, or read from a list.

    Raises:
        UserError: a class has too few images, or the list belongs to another data set.
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
    config: ConfigDict,
    source: Source,
    which: str,
    seed: int,
    count: int | None = None,
    chosen_by: str = "train.select_on",
) -> EpisodeIds:
    """Draws episodes according to `eval.setup` and `eval.sampling`.

    Args:
        which: the classes: "novel", "validation" or "base".
        count: number of episodes; `eval.episodes` by default.
        chosen_by: the field that chose the classes, for error messages.

    Raises:
        UserError: there are too few classes or images.

    Examples:
        >>> from fsseg_jax.config import load_config
        >>> from fsseg_jax.data import open_source
        >>> config = load_config("quickstart")
        >>> config.data.shapes.val, config.data.min_pixels = 96, 1
        >>> source = open_source(config.data, "test")
        >>> episodes = draw_episodes(config, source, "novel", seed=0, count=100)
        >>> np.unique(episodes.classes).tolist()  # those that fold 0 holds out
        [1, 2, 3, 4, 5, 6]
    """
    classes = class_ids(source, config.data.fold, which)
    if not classes:
        raise UserError(
            f"{source.name} has no {which} classes: choose another {chosen_by} or data.folds."
        )
    numbers = np.arange(config.eval.episodes if count is None else count)
    min_pixels, ways, shots = config.data.min_pixels, config.ways, config.shots
    if config.eval.setup == "metaseg" and which == "novel":
        if ways != 2:
            raise UserError(f"ways = {ways}: eval.setup = metaseg needs 2 ways: set ways = 2.")
        return _pairs_with_person(source, classes, min_pixels, seed, numbers, shots)
    items = source.table.items(classes, min_pixels, sampling=config.eval.sampling)
    if which == "base" and source.validation and not items.count.any():
        raise UserError(
            f"the test images of {source.name} show no base classes: set {chosen_by} = validation."
        )
    check_items(items, source.class_names, ways, shots, "data.min_pixels")
    return sample(items, seed, numbers, ways, shots, sampling=config.eval.sampling)


def _pairs_with_person(
    source: Source,
    classes: Sequence[int],
    min_pixels: int,
    seed: int,
    numbers: Int[np.ndarray, " batch"],
    shots: int,
) -> EpisodeIds:
    """MetaSeg's episodes: person and another class, both of which all images show."""
    names = source.class_names
    person = next((c for c in classes if names[c] == "person"), None)
    if person is None:
        raise UserError(
            f"eval.setup = metaseg needs a fold of {source.name} that holds out person: choose "
            "another data.fold."
        )
    shows = {c: source.table.items([c], min_pixels).image for c in classes}
    both = {c: np.intersect1d(shows[person], shows[c]) for c in classes if c != person}
    both = {c: images for c, images in both.items() if len(images) > shots}
    if not both:
        raise UserError(
            f"no class has {shots + 1} images that show person too: lower shots or data.min_pixels."
        )
    # Pairs are sampled as one-way classes; their supports serve both ways.
    pairs = Items.from_images(list(both), list(both.values()))
    pairs = sample(pairs, seed, numbers, 1, shots)
    return EpisodeIds(
        classes=np.concatenate([np.full_like(pairs.classes, person), pairs.classes], axis=1),
        supports=np.repeat(pairs.supports, 2, axis=1),
        query=pairs.query,
        query_index=pairs.query_index,
    )


def _check_supports(episodes: EpisodeIds, source: Source, path: str) -> None:
    """Raises UserError if a listed support does not show its class."""
    shown = set(zip(source.table.image.tolist(), source.table.class_id.tolist(), strict=True))
    for row in range(len(episodes)):
        for class_id, supports in zip(episodes.classes[row], episodes.supports[row], strict=True):
            for image in supports.tolist():
                if (image, int(class_id)) not in shown:
                    raise UserError(
                        f"{path}, episode {row + 1}: the support {source.ids[image]} shows "
                        f"no {source.class_names[int(class_id)]} (class {class_id})."
                    )


def protocol(
    config: ConfigDict,
    source: Source,
    model: Method,
    trained: ConfigDict | None,
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """The settings that must agree for figures to be comparable, and `hash`: eight hex digits.

    Fold, ways and shots are left out, because they distinguish the cells of one table. The rule
    that chose the checkpoint is included; for a trained model it is the rule that actually did,
    whatever name `eval.checkpoint` has for it.

    Args:
        trained: the configuration of the training, or None for a model that was not trained.
        checkpoint: the checkpoint that was loaded; `eval.checkpoint` by default.

    Examples:
        >>> from fsseg_jax.config import load_config
        >>> from fsseg_jax.data import open_source
        >>> from fsseg_jax.models import create_model
        >>> config = load_config("quickstart")
        >>> config.data.shapes.val = 96
        >>> source = open_source(config.data, "test")
        >>> described = protocol(config, source, create_model(config), trained=None)
        >>> described["border of queries"], len(described["hash"])
        ('label 255 counts for nothing', 8)
    """
    rule = config.eval.checkpoint
    if trained:
        rule = _rule(checkpoint or rule, trained.train.select_on)
    settings = _test_settings(config, source, model) | {"checkpoint rule": SELECTION[rule]}
    if trained:
        settings |= _training_settings(trained, config)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return {**settings, "hash": digest[:8]}


# Names and values of these settings are hashed: changing their wording changes every protocol.


def _test_settings(config: ConfigDict, source: Source, model: Method) -> dict[str, Any]:
    """The settings of the test, except for the rule that chose the checkpoint."""
    options = config.eval
    listed = bool(options.episodes_file)
    return {
        "version": VERSION,
        "data": f"{source.name}, {source.digest()}",
        "photographs": f"{test_split(config.data)}, {len(source)}",
        "masks": _masks(config),
        "folds": NOTHING
        if source.nothing_held_out
        else " | ".join(",".join(map(str, fold)) for fold in source.folds),
        "image size": config.image_size,
        "photographs resized": f"{FITS[options.fit]}, bilinear with antialiasing; labels nearest",
        "query scales": ", ".join(str(float(scale)) for scale in sorted(options.scales)),
        "scored at": "image size" if options.scored_at == "network" else "each photograph's size",
        "DenseCRF": _crf(options.crf),
        "supports outlined by": _outline(config),
        "objects with boxes": _objects(config, source),
        "corners": "aligned" if model.align_corners else "half-pixel",
        "border of queries": BORDERS[options.border],
        "ignored pixels of supports": model.ignored_pixels,
        "averaging": "pixels summed over a run, IoU a class, mean over classes; mean over runs",
        "episodes": "a list" if listed else SAMPLING[options.sampling],
        "query": None if listed else _queries(options),
        "min_pixels": None if listed else config.data.min_pixels,
        "runs": 1 if listed else options.runs,
        "episodes a run": None if listed else options.episodes,
        # With a list, the seed only chooses the objects whose outlines are used.
        "first seed": None if listed and config.support_annotation not in RANDOM else options.seed,
        "computed in": config.dtype,
        "features kept in": options.feature_dtype,
    }


def _training_settings(trained: ConfigDict, config: ConfigDict) -> dict[str, Any]:
    """The settings of the training that matter to a comparison."""
    as_tested = (trained.ways, trained.shots) == (config.ways, config.shots)
    episodes = f"{trained.ways}-way {trained.shots}-shot"
    return {
        "training episodes": "as tested" if as_tested else episodes,
        "training supports outlined by": _outline(trained),
        "training data": trained.data.name,
        "training photographs": trained.data.train_split or "the data set's training split",
        "training min_pixels": trained.data.train_min_pixels,
        "held-out classes in training photographs": trained.data.held_out_photographs,
        "training sampling": trained.data.sampling,
        "training border": trained.data.border,
        "training masks": _masks(trained),
    }


def _outline(config: ConfigDict) -> str:
    kind = config.support_annotation
    return kind if kind in ("dense", *BOXES) else f"{kind}, {config.annotation_width} pixels wide"


def _objects(config: ConfigDict, source: Source) -> str | None:
    if config.support_annotation not in BOXES:
        return None
    looked_at = np.unique(np.linspace(0, len(source) - 1, 20).astype(int)).tolist()
    known = sum(source.instances(index) is not None for index in looked_at)
    if not known:
        return "connected parts"
    return f"the data set's (in {known} of {len(looked_at)} photographs looked at)"


def _crf(options: ConfigDict) -> str | None:
    if not options.iterations:
        return None
    values = [*map(float, (*options.smooth, *options.colour))]
    return f"{options.iterations} iterations, smooth {values[:2]}, colour {values[2:]}"


def _queries(options: ConfigDict) -> str:
    pair = "person and another class, as in all supports"
    return pair if options.setup == "metaseg" else "shows one of the ways"


def _rule(checkpoint: str, select_on: str) -> str:
    """The rule that chose a checkpoint of a training with the given `train.select_on`."""
    return f"best_{select_on.split('+')[0]}" if checkpoint == "best" else checkpoint


def _masks(config: ConfigDict) -> str | None:
    """How overlapping objects become labels, for data sets with outlines of each object."""
    if config.data.name != "coco":
        return None
    one_label = config.data.coco.masks == "label"
    return "one class a pixel" if one_label else "one mask a category, overlaps belong to each"


def tell_difference(path: pathlib.Path, described: dict[str, Any]) -> None:
    """Warns if the results in `path`, which are about to be replaced, have another protocol.

    Args:
        path: `results.json` of an earlier evaluation, which may not exist.
        described: the `protocol` of the new evaluation.
    """
    earlier = earlier_protocol(path)
    if earlier is None or earlier.get("hash") == described["hash"]:
        return
    try:
        apart = difference(earlier, described)
    except (LookupError, TypeError, AttributeError):
        apart = "the file is damaged"
    logger.warning(
        "%s has another protocol (%s, now %s): old and new figures are not comparable (%s)",
        *(path, earlier.get("hash", "none"), described["hash"], apart),
    )


def earlier_protocol(path: pathlib.Path) -> dict[str, Any] | None:
    """The protocol in a `results.json`; None if the file is missing or broken."""
    try:
        if not path.is_file():  # reading a pipe would wait for ever
            return None
        return dict(json.loads(path.read_text()).get("protocol", {}))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The settings in which two protocols differ, as text; a setting that one of them lacks is
    "nothing" there.

    Version 1 had fewer settings: only those that both name are compared.
    """
    parts = []
    names = {**new, **old}
    if "version" not in old:
        same = (now for (name, words), now in _REWORDED.items() if old.get(name) == words)
        old = {**old, **dict(same)}
        if "selected on" in old:
            old["checkpoint rule"] = SELECTION[_rule(old["checkpoint"], old["selected on"])]
        names = [name for name in new if name in old]
        parts = ["written by a version with fewer settings"]
    for name in names:
        before, now = (of.get(name, "nothing") for of in (old, new))
        if before != now and name not in ("hash", "version"):
            parts.append(f"{name}: {before} before, {now} now")
    return "; ".join(parts)
