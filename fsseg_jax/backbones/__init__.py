"""Backbones by name."""

import functools

import flax.linen as nn
import jax.numpy as jnp

from fsseg_jax.backbones.resnet import ResNet
from fsseg_jax.backbones.small import Small
from fsseg_jax.backbones.vgg import VGG16
from fsseg_jax.backbones.vit import VITS
from fsseg_jax.errors import UserError
from fsseg_jax.extensions import find

BACKBONES = {
    "small": Small,
    "vgg16": VGG16,
    "resnet50": ResNet,  # torchvision's and timm's weights
    "resnet50_caffe": functools.partial(ResNet, stride_in_1x1=True),  # the original ones
    "resnet101": functools.partial(ResNet, blocks=(3, 4, 23, 3)),
    **VITS,
}


def create_backbone(
    name: str, dtype: str, statistics: str = "stored", rematerialise: bool = False
) -> nn.Module:
    """The backbone that `config.backbone` names, computing in `config.dtype`.

    Args:
        name: one of `BACKBONES`, or see `extensions.find`.
        dtype: float32 or bfloat16.
        statistics: those that batch normalisation uses in training, `config.backbone_statistics`.

    Raises:
        UserError: the name or the dtype is unknown, or there is no batch normalisation.

    Examples:
        >>> import jax
        >>> backbone = create_backbone("resnet50", "float32")
        >>> backbone.stage_numbers
        (1, 2, 3, 4)
    """
    make = find(name, BACKBONES, "backbone")
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype = {dtype!r}: choose float32 or bfloat16.")
    try:
        backbone = make(dtype=jnp.dtype(dtype), rematerialise=rematerialise)
    except TypeError as error:
        raise UserError(
            f"backbone = {name} cannot be made ({error}): see docs/extend.md."
        ) from None
    if not isinstance(backbone, nn.Module) or not hasattr(backbone, "stage_numbers"):
        raise UserError(f"backbone = {name} is not a backbone: see docs/extend.md.")
    if statistics == "batch":
        if not hasattr(backbone, "batch_statistics"):
            raise UserError(
                f"backbone_statistics = batch, but {name} has no batch normalisation: leave it at "
                "stored."
            )
        backbone = backbone.clone(batch_statistics=True)
    return backbone
