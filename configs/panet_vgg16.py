"""PANet on VGG-16 (Wang et al., ICCV 2019), PASCAL-5i, 1-way 1-shot, the published training.

The paper's table 1: mean-IoU 42.3, 58.0, 51.1, 41.2 on folds 0..3, 48.1 on average (5-shot, with
--config.shots=5: 51.8, 64.6, 59.8, 46.5, 55.7); 5 runs of 1,000 episodes. The published code
tests on `trainaug` photographs without an area filter (--config.eval.protocol=panet); without a
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
    """The configuration: the other defaults are PANet's."""
    config = default_config("panet")
    config.init = "timm/vgg16.tv_in1k"  # torchvision's ImageNet weights, from the hub
    config.data.sampling = "classes"
    config.data.train_min_pixels = 1  # the published code's lists of a class take any pixel
    return config
