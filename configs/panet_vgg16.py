"""PANet on VGG-16 (Wang et al., ICCV 2019), PASCAL-5i, 1-way 1-shot, the published training.

The paper's table 1: mean-IoU 42.3, 58.0, 51.1, 41.2 on folds 0..3, 48.1 on average (5-shot, with
--config.shots=5: 51.8, 64.6, 59.8, 46.5, 55.7); 5 runs of 1,000 episodes. The published code
tests on `trainaug` images without an area filter (--config.eval.protocol=panet); without a
protocol it is `val` and 2,048 pixels. Its scribble is one stroke at random, not widened
(--config.support_annotation=one_scribble --config.annotation_width=1), where "scribble" draws wider
ones in all parts of the class.

    python -m fsseg_jax.train --config=configs/panet_vgg16.py --workdir=runs/panet_fold0 \
        --config.data.root=VOCdevkit/VOC2012 --config.data.fold=0
    python -m fsseg_jax.evaluate --workdir=runs/panet_fold0 --config.eval.protocol=panet
"""

from ml_collections import ConfigDict

from fsseg_jax.config import default_config


def get_config() -> ConfigDict:
    """The configuration: sec. 4.1, and where the paper is silent its published code."""
    config = default_config("panet")
    config.backbone = "vgg16"
    config.init = "timm/vgg16.tv_in1k"  # torchvision's ImageNet weights, from the hub
    config.image_size = 417
    config.data.sampling = "classes"
    config.data.train_min_pixels = 1  # the published code's lists of a class take any pixel
    config.data.augment.flip = True
    config.train.steps = 30_000
    config.train.batch_size = 1
    config.train.learning_rate = 1e-3
    config.train.schedule = "step"
    config.train.decay_every, config.train.decay_factor = 10_000, 0.1
    config.train.momentum = 0.9
    config.train.weight_decay = 5e-4
    config.eval.runs, config.eval.episodes = 5, 1000
    return config
