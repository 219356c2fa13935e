"""What is wrong with a configuration."""

from typing import Any

from ml_collections import ConfigDict

from fsseg_jax.config.fields import FIELDS
from fsseg_jax.errors import UserError

LARGEST_SCALE = 4  # of a query; beyond that memory ends before any use does


def check(config: ConfigDict) -> None:
    """Raises UserError where a number or a choice of `config` is out of its range."""
    fields = flatten(config)
    for name, field in FIELDS.items():
        field.check(name, fields[name])
    steps, epochs = config.train.steps, config.train.epochs
    if bool(steps) == bool(epochs):
        raise UserError(
            f"train.steps = {steps} and train.epochs = {epochs}: one of them says how long, the "
            "other must be 0."
        )
    each = config.train.steps_per_dispatch
    for name in ("train.steps", "train.log_every", "train.save_every", "train.eval_every"):
        if fields[name] % each:
            raise UserError(
                f"{name} = {fields[name]}: it must be a multiple of train.steps_per_dispatch = "
                f"{each}, as nothing can be done between the steps of one dispatch."
            )
    low, high = config.data.augment.scale
    if not 0 < low <= high:
        raise UserError(
            f"data.augment.scale = ({low}, {high}): the first must be above 0 and not above the "
            "second."
        )
    scales = tuple(config.eval.scales)
    if not scales or min(scales) <= 0 or max(scales) > LARGEST_SCALE:
        raise UserError(
            f"eval.scales = {scales}: it must be one or more numbers above 0 and up to "
            f"{LARGEST_SCALE}."
        )
    if config.eval.setup == "metaseg" and config.eval.sampling != "classes":
        raise UserError(
            "eval.setup = metaseg draws its queries among images that show two classes: set "
            "eval.sampling = classes."
        )
    if config.eval.fit == "own" and config.eval.scored_at == "network":
        raise UserError(
            "eval.fit = own leaves queries as large as they are, so that there is no size of the "
            "network to compare masks at: set eval.scored_at = photograph."
        )
    if config.eval.threshold and config.eval.crf.iterations:
        raise UserError(
            "eval.threshold asks for probabilities, which DenseCRF replaces by a mask: set "
            "eval.threshold = '' or eval.crf.iterations = 0."
        )
    if config.eval.setup == "metaseg" and config.data.coco.masks == "category":
        raise UserError(
            "eval.setup = metaseg needs two classes in one label, which data.coco.masks = category "
            "keeps apart: set data.coco.masks = label."
        )
    if abs(config.seed) >= 2**32 or abs(config.eval.seed) >= 2**32:
        raise UserError("seed and eval.seed must be below 2**32.")


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """The fields by their dotted names."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
