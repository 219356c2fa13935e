"""SST on VGG-16 (Zhu et al., IJCAI 2020), PASCAL-5i, trained 1-way 1-shot.

The paper's mean-IoU over the four folds: 54.3 with one shot, 57.0 with five (COCO-20i 22.2, 31.3).

    python -m fsseg_jax.train --config=configs/sst_vgg16.py --workdir=runs/sst_vgg16_fold0 \
        --config.data.root=VOCdevkit/VOC2012 --config.data.fold=0
    python -m fsseg_jax.evaluate --workdir=runs/sst_vgg16_fold0 --config.eval.protocol=canet \
        --config.eval.scales=1.0
    python -m fsseg_jax.evaluate --workdir=runs/sst_vgg16_fold0 --config.eval.protocol=canet \
        --config.eval.scales=1.0 --config.shots=5
"""

from ml_collections import ConfigDict

from fsseg_jax.config import default_config


def get_config() -> ConfigDict:
    """The configuration."""
    config = default_config("sst")
    config.model.stages = (2, 3, 4)
    config.init = "timm/vgg16.tv_in1k"  # torchvision's ImageNet weights, from the hub
    config.image_size = 321
    config.train.batch_size = 16
    config.train.steps, config.train.epochs = 0, 200
    config.train.learning_rate = 5e-4
    config.train.new_layers_rate = (
        10.0  # the pretrained layers at the base rate, the others at 10 x
    )
    config.train.schedule = "poly"
    config.train.weight_decay = 5e-4  # the paper's "attenuation rate", as we read it
    return config
