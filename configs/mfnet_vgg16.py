"""MFNet on VGG-16 (Zhang et al., TCSVT 2022), PASCAL-5i, 2-way 1-shot.

The paper's mIoU* over the four folds (table IX): 52.7 with one shot, 57.6 with five.

    python -m fsseg_jax.train --config=configs/mfnet_vgg16.py --workdir=runs/mfnet_vgg16_fold0 \
        --config.data.root=VOCdevkit/VOC2012 --config.data.fold=0
    python -m fsseg_jax.evaluate --workdir=runs/mfnet_vgg16_fold0 --config.eval.protocol=mfnet
"""

from ml_collections import ConfigDict

from fsseg_jax.config import config_file, load_config


def get_config() -> ConfigDict:
    """The configuration: ResNet-50's, on another backbone."""
    config = load_config(config_file("mfnet_res50"))
    config.backbone = "vgg16"
    config.model.stages = (2, 3, 4)
    config.init = "timm/vgg16.tv_in1k"  # torchvision's ImageNet weights, from the hub
    return config
