"""PANet on DINOv3 ViT-B, for use without any training: `panet_dinov3_s.py` with a larger network.

The settings of a training are VGG-16's and have not been tried.

    python -m fsseg_jax.predict --workdir=panet_dinov3_b --support=support --query=images --out=out
    python -m fsseg_jax.evaluate --config=configs/panet_dinov3_b.py --workdir=runs/panet_dinov3_b \
        --config.data.root=VOCdevkit/VOC2012 --config.model.prototypes=positions
"""

from ml_collections import ConfigDict

from fsseg_jax.config import config_file, load_config


def get_config() -> ConfigDict:
    """The configuration."""
    config = load_config(config_file("panet_dinov3_s"))
    config.backbone = "dinov3_b"
    config.init = "timm/vit_base_patch16_dinov3.lvd1689m"  # Meta's weights, from the hub
    return config
