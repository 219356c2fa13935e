"""SST on VGG-16 (Zhu et al., IJCAI 2020), PASCAL-5i, trained 1-way 1-shot.

The paper's mean-IoU over the four folds: 54.3 with one shot, 57.0 with five.

    python -m fsseg_jax.train --config=configs/sst_vgg16.py --workdir=runs/sst_vgg16_fold0 \
        --config.data.root=VOCdevkit/VOC2012 --config.data.fold=0
    python -m fsseg_jax.evaluate --workdir=runs/sst_vgg16_fold0 --config.eval.protocol=canet \
        --config.eval.scales=1.0
    python -m fsseg_jax.evaluate --workdir=runs/sst_vgg16_fold0 --config.eval.protocol=canet \
        --config.eval.scales=1.0 --config.shots=5
"""

from ml_collections import ConfigDict

from fsseg_jax.config import config_file, load_config


def get_config() -> ConfigDict:
    """The configuration: ResNet-50's, on another backbone."""
    config = load_config(config_file("sst_res50"))
    config.backbone = "vgg16"
    config.model.stages = (2, 3, 4)
    config.init = "timm/vgg16.tv_in1k"  # torchvision's ImageNet weights, from the hub
    return config
