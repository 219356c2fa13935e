"""Methods by name. Whatever uses them needs nothing but this registry and their interface."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from fsseg_jax.backbones import create_backbone
from fsseg_jax.backbones.pretrained import load_pretrained
from fsseg_jax.episode import Episode
from fsseg_jax.errors import UserError
from fsseg_jax.models.output import Output
from fsseg_jax.models.panet import PANet

__all__ = ["METHODS", "Output", "create_model", "default_options", "init_variables"]

METHODS = {"panet": PANet}


def _method(name: str) -> type[nn.Module]:
    if name not in METHODS:
        raise UserError(f"method = {name!r}: choose one of {', '.join(METHODS)}.")
    return METHODS[name]


def default_options(method: str) -> dict[str, Any]:
    """The fields of a method and their defaults: what `config.model` holds."""
    return {
        field.name: field.default
        for field in dataclasses.fields(_method(method))
        if field.name not in ("backbone", "parent", "name")
    }


def create_model(config: ConfigDict) -> nn.Module:
    """The module that `config.method`, `.backbone`, `.dtype` and `.model` describe.

    Raises:
        UserError: a name is unknown.
    """
    backbone = create_backbone(config.backbone, config.dtype)
    return _method(config.method)(backbone=backbone, **config.model)


def init_variables(
    model: nn.Module, key: PRNGKeyArray, ways: int, shots: int, init: str = ""
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
    size = 32  # does not matter to a fully convolutional network: compile for a small one
    episode = Episode(
        support_image=jnp.zeros((ways, shots, size, size, 3)),
        support_label=jnp.zeros((ways, shots, size, size), jnp.uint8),
        query_image=jnp.zeros((size, size, 3)),
        query_label=jnp.zeros((size, size), jnp.uint8),
        class_id=jnp.zeros(ways, jnp.int32),
        query_index=jnp.zeros((), jnp.int32),
    )
    variables = jax.jit(model.init)(key, episode)
    if init:
        backbone = {name: tree["backbone"] for name, tree in variables.items()}
        loaded = load_pretrained(init, backbone)
        variables = {name: {**variables[name], "backbone": loaded[name]} for name in variables}
    return variables
