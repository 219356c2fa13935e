"""Reads the configurations in checkpoints and saved models, including those of earlier versions."""

import logging
from typing import Any

from ml_collections import ConfigDict

from fsseg_jax.config.checks import flatten
from fsseg_jax.config.fields import default_config
from fsseg_jax.errors import UserError, brief

logger = logging.getLogger(__name__)


def from_saved(saved: dict[str, Any]) -> ConfigDict:
    """The configuration of a checkpoint; missing fields have their defaults.

    A permission to run code does not come with it: it may be somebody else's.

    Raises:
        UserError: it is of a version that is no longer supported, or damaged.
    """
    config = default_config(saved["method"])
    saved = {**saved, "model": _renewed(saved["method"], saved.get("model", {}))}
    with config.unlocked():
        _update(config, saved)
        config.data.tfds.allow_code = False
        if "queries" in config.eval:  # its name in checkpoints of version 0.1
            config.eval.sampling = {"uniform": "classes", "each": "items"}[config.eval.queries]
            del config.eval.queries
    for name in sorted(flatten(config).keys() - flatten(default_config(config.method)).keys()):
        if not name.startswith("model."):  # those are an error, when the model is made
            logger.warning("%s: this version has no such field; it is ignored", name)
    return config


def _renewed(method: str, model: dict[str, Any]) -> dict[str, Any]:
    """The fields of a method in a checkpoint of an earlier version, with current names and values,
    so that it predicts what it did."""
    model = {**model}
    if method == "panet" and model.get("prototypes") == "positions":
        model = {"matching_weight": 0.0, **model}
    if method == "ltafnet" and isinstance(model.get("adaption"), bool):
        model["adaption"] = "concatenation" if model["adaption"] else "none"
        model |= {"before_aspp": "plain", "dropout": 0.0}
        logger.warning(
            "this LTAF-Net was trained by version 0.1, whose refinement left out the last row and "
            "column of odd maps: its figures may now differ by a few tenths"
        )
    if method == "sst" and "inner_reduction" in model:
        reduction, rate = model.pop("inner_reduction"), model.pop("inner_rate")
        # The rate had another meaning. Up to 1, the inner loop moved the prototype by about 1 %.
        if model.get("tuning", True):
            if reduction != "mean" or rate > 1:
                raise UserError(
                    "this SST has an inner loop of version 0.1, which is no longer supported: "
                    "train it again."
                )
            logger.warning(
                "this SST was trained by version 0.1, whose inner loop had almost no effect: it is "
                "evaluated without the loop"
            )
            model["tuning"] = False
    return model


def _update(config: ConfigDict, saved: dict[str, Any]) -> None:
    for name, value in saved.items():
        group = isinstance(config.get(name), ConfigDict)
        if group != isinstance(value, dict):
            raise UserError(
                f"the saved configuration has {name} = {brief(value)}, which is damaged or of "
                "another version: save the model again, or install a newer version."
            )
        if group:
            _update(config[name], value)
        else:
            # JSON has no tuples.
            config[name] = tuple(value) if isinstance(value, list) else value
