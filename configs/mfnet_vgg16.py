"""MFNet on VGG-16, PASCAL-5i, 2-way 1-shot.

The paper's mIoU* over the four folds (table IX): 52.7 with one shot, 57.6 with five.

    python -m fsseg_jax.train --config=configs/mfnet_vgg16.py --workdir=runs/mfnet_vgg16_fold0 \
        --config.data.root=VOCdevkit/VOC2012 --config.data.fold=0
    python -m fsseg_jax.evaluate --workdir=runs/mfnet_vgg16_fold0
"""

from ml_collections import ConfigDict

from fsseg_jax.config import default_config


def get_config() -> ConfigDict:
    """The configuration."""
    config = default_config("mfnet")
    config.model.stages = (2, 3, 4)
    config.init = "timm/vgg16.tv_in1k"  # torchvision's ImageNet weights, from the hub
    config.ways = 2
    config.image_size = 473
    config.data.augment.scale = (0.9, 1.1)
    config.data.augment.rotation = 10.0
    config.train.batch_size = 4
    config.train.steps, config.train.epochs = 0, 200
    config.train.learning_rate = 2.5e-3
    config.train.schedule = "poly"
    config.train.weight_decay = 1e-4
    return config
