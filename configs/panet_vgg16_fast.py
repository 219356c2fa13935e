"""PANet on VGG-16, PASCAL-5i, 1-way 1-shot: `panet_vgg16.py` rescaled for one fast accelerator.

As many episodes as the published training sees twice (60,000), in batches of 8 instead of 1:
bfloat16, a rate that grows with the square root of the batch, and a short warm-up. All images
are held on the device (7.4 GB for VOC's 10,582), and the host is asked every 50 steps. A setting
to start from: it has been run at small sizes only, and has no figure of its own yet; the published
one is 48.1 mean-IoU on average over the folds (42.3 on fold 0).

    python -m fsseg_jax.train --config=configs/panet_vgg16_fast.py --workdir=runs/panet_fast_fold0 \
        --config.data.root=VOCdevkit/VOC2012 --config.data.fold=0
    python -m fsseg_jax.evaluate --workdir=runs/panet_fast_fold0 --config.eval.protocol=panet
"""

from ml_collections import ConfigDict

from fsseg_jax.config import config_file, load_config


def get_config() -> ConfigDict:
    """The configuration."""
    config = load_config(config_file("panet_vgg16"))
    config.dtype = "bfloat16"
    config.data.pipeline = "device"
    config.train.steps_per_dispatch = 50
    config.train.batch_size = 8
    config.train.steps = 7_500
    config.train.decay_every = 2_500  # a third of the training each, as published
    config.train.learning_rate = 1e-3 * 8**0.5
    config.train.warmup = 200
    config.train.save_every = 500
    config.train.eval_every = 500
    return config
