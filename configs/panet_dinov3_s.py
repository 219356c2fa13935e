"""PANet on DINOv3 ViT-S, for use without any training: `panet_dinov2_s.py` with a newer network.

The weights are under the DINOv3 License, which has terms of its own.

    python -m fsseg_jax.predict --workdir=panet_dinov3_s --support=support --query=images --out=out
    python -m fsseg_jax.evaluate --config=configs/panet_dinov3_s.py --workdir=runs/panet_dinov3_s \
        --config.data.root=VOCdevkit/VOC2012 --config.model.prototypes=positions
"""

from ml_collections import ConfigDict

from fsseg_jax.config import config_file, load_config


def get_config() -> ConfigDict:
    """The configuration."""
    config = load_config(config_file("panet_dinov2_s"))
    config.backbone = "dinov3_s"
    config.init = "timm/vit_small_patch16_dinov3.lvd1689m"  # Meta's weights, from the hub
    config.image_size = 448  # 28 patches of 16 pixels
    return config
