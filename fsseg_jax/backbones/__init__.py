"""Backbones by name."""

import flax.linen as nn
import jax.numpy as jnp

from fsseg_jax.backbones.small import Small
from fsseg_jax.backbones.vgg import VGG16
from fsseg_jax.errors import UserError

BACKBONES = {"small": Small, "vgg16": VGG16}


def create_backbone(name: str, dtype: str) -> nn.Module:
    """The backbone that `config.backbone` names, computing in `config.dtype`.

    Raises:
        UserError: the name or the type is unknown.
    """
    if name not in BACKBONES:
        raise UserError(f"backbone = {name!r}: choose one of {', '.join(BACKBONES)}.")
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype = {dtype!r}: choose float32 or bfloat16.")
    return BACKBONES[name](dtype=jnp.dtype(dtype))
