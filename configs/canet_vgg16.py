"""CANet on VGG-16 (Zhang et al., CVPR 2019), PASCAL-5i, 1-way 1-shot.

The paper's mean-IoU over the four folds: 54.3, at the images' own size and with a multi-scale
query. Features of stages 2 to 4 are compared (sec. 5.1.3).

    python -m fsseg_jax.train --config=configs/canet_vgg16.py --workdir=runs/canet_vgg16_fold0 \
        --config.data.root=VOCdevkit/VOC2012 --config.data.fold=0
    python -m fsseg_jax.evaluate --workdir=runs/canet_vgg16_fold0 --config.eval.protocol=canet
"""

from ml_collections import ConfigDict

from fsseg_jax.config import config_file, load_config


def get_config() -> ConfigDict:
    """The configuration: ResNet-50's, on another backbone."""
    config = load_config(config_file("canet_res50"))
    config.backbone = "vgg16"
    config.model.stages = (2, 3, 4)
    config.init = "timm/vgg16.tv_in1k"  # torchvision's ImageNet weights, from the hub
    return config
