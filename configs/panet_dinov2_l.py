"""PANet on DINOv2 ViT-L, for use without any training: much larger than `panet_dinov2_s.py`.

The settings of a training are VGG-16's and have not been tried.

    python -m fsseg_jax.predict --workdir=panet_dinov2_l --support=support --query=images --out=out
    python -m fsseg_jax.evaluate --config=configs/panet_dinov2_l.py --workdir=runs/panet_dinov2_l \
        --config.data.root=VOCdevkit/VOC2012 --config.model.prototypes=positions
"""

from ml_collections import ConfigDict

from fsseg_jax.config import config_file, load_config


def get_config() -> ConfigDict:
    """The configuration."""
    config = load_config(config_file("panet_dinov2_s"))
    config.backbone = "dinov2_l"
    config.init = "timm/vit_large_patch14_dinov2.lvd142m"  # Meta's weights, from the hub
    return config
