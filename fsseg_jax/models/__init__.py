"""Methods by name. Whatever uses them needs nothing but this registry and their interface."""

import logging
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from fsseg_jax.backbones import create_backbone
from fsseg_jax.backbones.pretrained import load_pretrained, read_weights
from fsseg_jax.episode import Episode, empty_episode
from fsseg_jax.errors import UserError
from fsseg_jax.extensions import find
from fsseg_jax.models.canet import CANet
from fsseg_jax.models.ltafnet import LTAFNet
from fsseg_jax.models.method import Method
from fsseg_jax.models.mfnet import MFNet
from fsseg_jax.models.option import options_of
from fsseg_jax.models.output import Output
from fsseg_jax.models.panet import PANet
from fsseg_jax.models.sst import SST

__all__ = [
    "METHODS",
    "Method",
    "Output",
    "choose_stages",
    "create_model",
    "default_options",
    "init_variables",
]

METHODS = {"panet": PANet, "canet": CANet, "sst": SST, "ltafnet": LTAFNet, "mfnet": MFNet}

logger = logging.getLogger(__name__)


def default_options(method: str) -> dict[str, Any]:
    """The fields of a method and their defaults: what `config.model` holds."""
    options = options_of(find(method, METHODS, "method"))
    return {name: field.default for name, field in options.items()}


def create_model(config: ConfigDict) -> Method:
    """The module that `config.method`, `.backbone`, `.dtype` and `.model` describe.

    Raises:
        UserError: a name or a choice is unknown, or the backbone has no such stage.
    """
    method = find(config.method, METHODS, "method")
    for name, field in options_of(method).items():
        field.check(f"model.{name}", config.model[name])
    method.check(config.model)
    backbone = create_backbone(
        config.backbone,
        config.dtype,
        config.backbone_statistics,
        # A frozen one has no backward pass.
        config.rematerialise and not config.model.freeze_backbone,
    )
    if unknown := set(config.model.stages) - set(backbone.stage_numbers):
        raise UserError(
            f"model.stages = {tuple(config.model.stages)}: {config.backbone} has no stage "
            f"{min(unknown)}, but {', '.join(map(str, backbone.stage_numbers))}."
        )
    options = {name: value for name, value in config.model.items() if name != "stages"}
    stages = tuple(config.model.stages)
    return method(
        backbone=backbone,
        dtype=jnp.dtype(config.dtype),
        rematerialise=config.rematerialise,
        stages=stages,
        **options,
    )


def choose_stages(config: ConfigDict) -> None:
    """Where `config.model.stages` is empty: the last stage that the pretrained weights have.

    Weights of ResNet-50 come with and without layer4. Says which stage it is.
    """
    if config.model.stages or not config.init or not config.backbone.startswith("resnet"):
        return
    names = read_weights(config.init)
    config.model.stages = (4,) if any(name.startswith("layer4.") for name in names) else (3,)
    logger.info(
        "%s: features of layer%d, the last one in %s",
        *(config.backbone, config.model.stages[0], config.init),
    )


def init_variables(
    model: Method, key: PRNGKeyArray, ways: int, shots: int, init: str = ""
) -> dict[str, Any]:
    """Fresh variables of a model: random, or the backbone's from pretrained weights.

    Args:
        model: see `create_model`.
        key: of the random initialisation.
        ways, shots: of the episodes to come; the parameters of some methods depend on them.
        init: weights as `config.init` names them, or empty.

    Raises:
        UserError: the weights cannot be had or do not fit.
    """
    # Size does not matter to a fully convolutional network: compile for a small one.
    episode = empty_episode(ways, shots, size=32)
    keys = dict(zip(("params", "dropout"), jax.random.split(key), strict=True))

    def initialise(keys: dict[str, PRNGKeyArray], episode: Episode) -> tuple[Any, Any]:
        # In training mode, because some layers serve the loss alone.
        variables = model.init(keys, episode, train=True)
        backbone = {
            kind: tree["backbone"] for kind, tree in variables.items() if "backbone" in tree
        }
        others = {
            kind: {name: part for name, part in tree.items() if name != "backbone"}
            for kind, tree in variables.items()
        }
        return others, backbone

    if init:
        _, backbone = jax.eval_shape(initialise, keys, episode)
        backbone = load_pretrained(init, backbone)
        # What is not returned is not computed: drawing a large backbone takes long.
        others = jax.jit(lambda *arguments: initialise(*arguments)[0])(keys, episode)
    else:
        others, backbone = jax.jit(initialise)(keys, episode)
    joined = {kind: {"backbone": tree} for kind, tree in backbone.items()}
    return {kind: {**joined.get(kind, {}), **tree} for kind, tree in others.items()}
