"""PANet with a small encoder, from scratch, on synthetic images: minutes on a laptop.

Tests six classes that it never saw in training, before and after training on the other eighteen,
and writes a report:

    python -m fsseg_jax.train --config=configs/quickstart.py --workdir=runs/quickstart
"""

from ml_collections import ConfigDict

from fsseg_jax.config import default_config


def get_config() -> ConfigDict:
    """The configuration."""
    config = default_config("panet")
    config.backbone = "small"
    config.image_size = 80
    config.data.name = "shapes"
    config.data.pipeline = "device"  # 51 MB of images, and TensorFlow is not needed
    config.data.shapes.pixels = 80
    # An eighth of an image: the query shows its main class.
    config.data.train_min_pixels = 800
    config.data.min_pixels = 800
    config.train.steps = 600
    config.train.batch_size = 8
    config.train.learning_rate = 0.1
    config.train.schedule = "poly"
    config.train.warmup = 50
    config.train.log_every = 20
    config.train.save_every = 300
    config.train.eval_every = 300
    config.train.eval_episodes = 300
    config.train.test_before_and_after = True
    config.eval.runs = 1
    return config
