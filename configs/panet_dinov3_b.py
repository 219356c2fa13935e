"""PANet on DINOv3 ViT-B, for use without any training: `panet_dinov3_s.py` with a larger network.

python -m fsseg_jax.predict --workdir=panet_dinov3_b --support=support --query=images --out=out
"""

from ml_collections import ConfigDict

from fsseg_jax.config import config_file, load_config


def get_config() -> ConfigDict:
    """The configuration."""
    config = load_config(config_file("panet_dinov3_s"))
    config.backbone = "dinov3_b"
    config.init = "timm/vit_base_patch16_dinov3.lvd1689m"  # Meta's weights, from the hub
    return config
