"""Methods by name, and the modules and variables that a configuration describes."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from fsseg_jax.backbones import create_backbone
from fsseg_jax.backbones.pretrained import load_pretrained
from fsseg_jax.episode import Episode, empty_episode
from fsseg_jax.errors import UserError
from fsseg_jax.extensions import find
from fsseg_jax.models.canet import CANet
from fsseg_jax.models.ltafnet import LTAFNet
from fsseg_jax.models.method import Method
from fsseg_jax.models.mfnet import MFNet
from fsseg_jax.models.option import options_of
from fsseg_jax.models.panet import PANet
from fsseg_jax.models.sst import SST

METHODS = {"panet": PANet, "canet": CANet, "sst": SST, "ltafnet": LTAFNet, "mfnet": MFNet}


def default_options(method: str) -> dict[str, Any]:
    """The options of a method and their defaults: `config.model`."""
    options = options_of(find(method, METHODS, "method"))
    return {name: field.default for name, field in options.items()}


def create_model(config: ConfigDict) -> Method:
    """The module described by `config.method`, `.backbone`, `.dtype` and `.model`.

    Raises:
        UserError: a name or a choice is unknown, an option is out of its range, or the backbone
            lacks a stage.

    Examples:
        >>> from fsseg_jax.config import load_config
        >>> model = create_model(load_config("quickstart"))
        >>> type(model).__name__, model.similarity_scale
        ('PANet', 20.0)
    """
    method = find(config.method, METHODS, "method")
    options = options_of(method)
    if unknown := sorted(config.model.keys() - options.keys()):
        raise UserError(f"model.{unknown[0]}: {config.method} has no such option.")
    for name, field in options.items():
        field.check(f"model.{name}", config.model[name])
    method.check(config.model)
    backbone = create_backbone(
        config.backbone,
        config.dtype,
        config.backbone_statistics,
        # A frozen backbone has no backward pass.
        config.rematerialise and not config.model.freeze_backbone,
    )
    if unknown := set(config.model.stages) - set(backbone.stage_numbers):
        raise UserError(
            f"model.stages = {tuple(config.model.stages)}: {config.backbone} has no stage "
            f"{min(unknown)}, but {', '.join(map(str, backbone.stage_numbers))}."
        )
    _check_blocks(config, tuple(options["stages"].default), backbone)
    return method(
        backbone=backbone,
        dtype=jnp.dtype(config.dtype),
        rematerialise=config.rematerialise,
        **{**config.model.to_dict(), "stages": tuple(config.model.stages)},
    )


def _check_blocks(config: ConfigDict, default: tuple[int, ...], backbone: nn.Module) -> None:
    """Raises UserError if the stages are those of a ResNet, but the backbone's are blocks: the
    first of them tell edges from each other, and not objects."""
    depth = max(backbone.stage_numbers)
    if default and hasattr(backbone, "patch") and tuple(config.model.stages) == default:
        middle = max(depth * 2 // 3, 1)
        raise UserError(
            f"model.stages = {default}: these are layers of ResNet-50, but of {config.backbone} "
            f"the first of {depth} blocks, which see little more than edges; set later ones, such "
            f"as --config.model.stages={middle},{depth}."
        )


def init_variables(
    model: Method, key: PRNGKeyArray, ways: int, shots: int, init: str = ""
) -> dict[str, Any]:
    """Initialises the variables of a model.

    Args:
        model: see `create_model`.
        key: key of the random initialisation.
        ways, shots: numbers of ways and shots of the episodes; the parameters of some methods
            depend on them.
        init: pretrained weights of the backbone, as in `config.init`; empty for random ones.

    Raises:
        UserError: the weights cannot be loaded or do not fit.

    Examples:
        >>> from fsseg_jax.config import load_config
        >>> model = create_model(load_config("quickstart"))
        >>> variables = init_variables(model, jax.random.key(0), ways=1, shots=1)
        >>> sorted(variables["params"])  # PANet has no parameters but those of its backbone
        ['backbone']
    """
    # A fully convolutional network has the same variables at any image size: compile for a small
    # one.
    episode = empty_episode(ways, shots, size=32)
    keys = dict(zip(("params", "dropout"), jax.random.split(key), strict=True))

    if init:
        _, backbone = jax.eval_shape(functools.partial(_initialise, model), keys, episode)
        backbone = load_pretrained(init, backbone)
        others = _compiled(_initialise_others, model)(keys, episode)
    else:
        others, backbone = _compiled(_initialise, model)(keys, episode)
    joined = {kind: {"backbone": tree} for kind, tree in backbone.items()}
    return {kind: {**joined.get(kind, {}), **tree} for kind, tree in others.items()}


def _compiled(function: Callable[..., Any], model: Method) -> Callable[..., Any]:
    """A function of a model and arrays, compiled for the model: once for equal ones, which those of
    the same options are, unless a field has no hash, as lists have none."""
    try:
        hash(model)
    except TypeError:
        return jax.jit(functools.partial(function, model))
    return functools.partial(jax.jit(function, static_argnums=0), model)


def _initialise(
    model: Method, keys: dict[str, PRNGKeyArray], episode: Episode
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables of the parts beside the backbone, and those of the backbone."""
    # In training mode, because some layers are used by the loss only.
    variables = model.init(keys, episode, train=True)
    backbone = {kind: tree["backbone"] for kind, tree in variables.items() if "backbone" in tree}
    others = {
        kind: {name: part for name, part in tree.items() if name != "backbone"}
        for kind, tree in variables.items()
    }
    return others, backbone


def _initialise_others(
    model: Method, keys: dict[str, PRNGKeyArray], episode: Episode
) -> dict[str, Any]:
    """Without the backbone: drawing the weights of a large one takes long, and XLA drops what is
    not returned."""
    return _initialise(model, keys, episode)[0]
