"""Checks of a configuration."""

from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from fsseg_jax.config.fields import FIELDS
from fsseg_jax.errors import UserError

LARGEST_SCALE = 4  # of a query; larger ones only cost memory
LEAST_SIDE = 16  # of a query in pixels, two positions of the features


def check(config: ConfigDict) -> None:
    """Raises UserError if a field of `config` is out of its range, or fields contradict each
    other."""
    fields = flatten(config)
    for name, field in FIELDS.items():
        field.check(name, fields[name])
    for name in ("data.augment.scale", "eval.crf.smooth", "eval.crf.colour"):
        if len(fields[name]) != len(FIELDS[name].default):
            raise UserError(
                f"{name} = {fields[name]}: it must be {len(FIELDS[name].default)} numbers, such as "
                f"{FIELDS[name].default}."
            )
    steps, epochs = config.train.steps, config.train.epochs
    if bool(steps) == bool(epochs):
        raise UserError(
            f"train.steps = {steps} and train.epochs = {epochs}: set one of them, and leave the "
            "other at 0."
        )
    each = config.train.steps_per_dispatch
    for name in ("train.steps", "train.log_every", "train.save_every", "train.eval_every"):
        if fields[name] % each:
            raise UserError(
                f"{name} = {fields[name]}: it must be a multiple of train.steps_per_dispatch = "
                f"{each}, because nothing can happen between the steps of a dispatch."
            )
    ranges = (config.eval.crf.smooth[0], *config.eval.crf.colour[:2])
    if min(ranges) <= 0:
        raise UserError(
            f"eval.crf.smooth = {fields['eval.crf.smooth']} and eval.crf.colour = "
            f"{fields['eval.crf.colour']}: the ranges, all but the last, must be above 0."
        )
    low, high = config.data.augment.scale
    if low > high:
        raise UserError(
            f"data.augment.scale = ({low}, {high}): the first must not be above the second."
        )
    _check_scales(config)
    _check_evaluation(config)


def _check_scales(config: ConfigDict) -> None:
    """Raises UserError if there are no scales of a query, or useless ones."""
    scales = tuple(config.eval.scales)
    if not scales or min(scales) <= 0 or max(scales) > LARGEST_SCALE:
        raise UserError(
            f"eval.scales = {scales}: it must be one or more numbers above 0 and up to "
            f"{LARGEST_SCALE}."
        )
    if min(scales) * config.image_size < LEAST_SIDE:
        raise UserError(
            f"eval.scales = {scales}: of image_size = {config.image_size} the smallest leaves less "
            f"than {LEAST_SIDE} pixels; raise the scale."
        )


def _check_evaluation(config: ConfigDict) -> None:
    """Raises UserError if fields of the evaluation contradict each other."""
    if config.eval.setup == "metaseg" and config.eval.sampling != "classes":
        raise UserError(
            "eval.setup = metaseg draws queries from images that show two classes: set "
            "eval.sampling = classes."
        )
    if config.eval.fit == "own" and config.eval.scored_at == "network":
        raise UserError(
            "eval.fit = own leaves queries at their own size, so that masks cannot be compared at "
            "the network's: set eval.scored_at = photograph."
        )
    if config.eval.threshold and config.eval.crf.iterations:
        raise UserError(
            "eval.threshold needs probabilities, which DenseCRF replaces with a mask: set "
            "eval.threshold = '' or eval.crf.iterations = 0."
        )
    if config.eval.setup == "metaseg" and config.data.coco.masks == "category":
        raise UserError(
            "eval.setup = metaseg needs two classes in one label, which data.coco.masks = category "
            "separates: set data.coco.masks = label."
        )


def flatten(config: ConfigDict) -> dict[str, Any]:
    """The values of all fields by dotted name."""
    return flatten_dict(config.to_dict(), sep=".")
