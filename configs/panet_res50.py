"""PANet on ResNet-50, PASCAL-5i: the baseline of MFNet's tables, trained as on VGG-16.

MFNet's paper gives it for 2 ways (mIoU* / mIoU): 43.9 / 48.3 with one shot, 52.7 / 58.0 with five,
and 23.5 M parameters, which is ResNet-50 with layer4. Weights without layer4 need
`--config.model.stages=3,`.

    python -m fsseg_jax.train --config=configs/panet_res50.py --workdir=runs/panet_res50_fold0 \
        --config.data.root=VOCdevkit/VOC2012 --config.data.fold=0 --config.ways=2
    python -m fsseg_jax.evaluate --workdir=runs/panet_res50_fold0 --config.eval.protocol=mfnet
"""

from ml_collections import ConfigDict

from fsseg_jax.config import config_file, load_config


def get_config() -> ConfigDict:
    """The configuration: VGG-16's, on another backbone."""
    config = load_config(config_file("panet_vgg16"))
    config.backbone = "resnet50"
    config.model.stages = (4,)
    config.init = "timm/resnet50.tv_in1k"  # torchvision's ImageNet weights, from the hub
    return config
