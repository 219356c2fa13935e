"""A configuration of runs that take seconds: PANet on few images of 32 x 32 pixels."""

from fsseg_jax.config import default_config


def get_config():
    config = default_config("panet")
    config.backbone = "small"
    config.image_size = 32
    config.devices = 1
    config.data.name = "shapes"
    config.data.min_pixels = config.data.train_min_pixels = 1
    config.data.shapes.update(train=60, val=80, pixels=32)
    config.eval.update(runs=1, episodes=6, gallery=1)
    config.train.update(
        steps=6,
        batch_size=8,
        learning_rate=0.01,
        log_every=2,
        save_every=2,
        eval_every=3,
        eval_episodes=6,
    )
    return config
