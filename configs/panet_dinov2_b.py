"""PANet on DINOv2 ViT-B, for use without any training: `panet_dinov2_s.py` with a larger network.

python -m fsseg_jax.predict --workdir=panet_dinov2_b --support=support --query=images --out=out
"""

from ml_collections import ConfigDict

from fsseg_jax.config import config_file, load_config


def get_config() -> ConfigDict:
    """The configuration."""
    config = load_config(config_file("panet_dinov2_s"))
    config.backbone = "dinov2_b"
    config.init = "timm/vit_base_patch14_dinov2.lvd142m"  # Meta's weights, from the hub
    return config
