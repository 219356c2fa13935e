"""PANet on DINOv2 ViT-S: the first thing to try on images of one's own, without any training.

Untrained, it compares features that DINOv2 (Oquab et al., TMLR 2024) learnt from 142 million images
without labels: with those of all positions of the supports in `predict`, and with their means in
`evaluate` and in a training, unless `model.prototypes` says otherwise. It has no published figure,
and the settings of a training are those of VGG-16 and have not been tried. Larger ones are
panet_dinov2_b and panet_dinov2_l.

    python -m fsseg_jax.predict --workdir=panet_dinov2_s --support=support --query=images --out=out
    python -m fsseg_jax.evaluate --config=configs/panet_dinov2_s.py --workdir=runs/panet_dinov2_s \
        --config.data.root=VOCdevkit/VOC2012 --config.model.prototypes=positions
"""

from ml_collections import ConfigDict

from fsseg_jax.config import config_file, load_config


def get_config() -> ConfigDict:
    """The configuration: VGG-16's, on another backbone."""
    config = load_config(config_file("panet_vgg16"))
    config.backbone = "dinov2_s"
    config.init = "timm/vit_small_patch14_dinov2.lvd142m"  # Meta's weights, from the hub
    config.image_size = 518  # 37 patches of 14 pixels, at which DINOv2's training ended
    return config
