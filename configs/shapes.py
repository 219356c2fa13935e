"""Any method with a small encoder, from scratch, on synthetic images: minutes on a laptop.

As `quickstart.py`, which is PANet's: six classes are tested before and after training on the other
eighteen. The method comes after a colon, and heads are a quarter as wide as the papers':

    python -m fsseg_jax.train --config=configs/shapes.py:canet --workdir=runs/shapes_canet
"""

from ml_collections import ConfigDict

from fsseg_jax.config import default_config

# What each of them learns with at this size.
RATES = {"panet": 0.1, "canet": 0.05, "sst": 0.005, "ltafnet": 0.01, "mfnet": 0.02}


def get_config(method: str = "panet") -> ConfigDict:
    """The configuration of a method: panet, canet, sst, ltafnet or mfnet."""
    config = default_config(method)
    config.model.freeze_backbone = False  # it begins from random weights
    if method != "panet":
        config.model.width = 64
        config.model.stages = (5,)
    if method == "canet":
        config.model.init_deviation = 0.0  # the published 0.01 is for weights of 256 channels
        config.data.augment.query = False  # stored predictions are in the query's coordinates
    if method == "ltafnet":
        config.model.refinement_width = 8
    if method == "mfnet":
        config.model.metric_from_epoch = 1.0  # of three
    config.backbone = "small"
    config.image_size = 80
    config.data.name = "shapes"
    config.data.pipeline = "device"
    config.data.shapes.pixels = 80
    # An eighth of an image: the query shows its main class.
    config.data.train_min_pixels = 800
    config.data.min_pixels = 800
    config.train.steps = 600
    config.train.batch_size = 8
    config.train.learning_rate = RATES[method]
    config.train.schedule = "poly"
    config.train.warmup = 50
    config.train.log_every = 20
    config.train.save_every = 300
    config.train.eval_every = 300
    config.train.eval_episodes = 300
    config.train.test_before_and_after = True
    config.eval.runs = 1
    return config
