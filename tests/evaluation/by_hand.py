"""Evaluators for tests, and what their counts are compared with."""

import flax.linen as nn
import numpy as np

from fsseg_jax.backbones.convolution import Conv
from fsseg_jax.config import default_config
from fsseg_jax.devices import make_mesh
from fsseg_jax.evaluation.evaluator import Evaluator


class Stem(nn.Module):
    """A backbone of one layer at stride 4: it is compiled in no time."""

    @nn.compact
    def __call__(self, image, stages=(), train=False):
        return (Conv(16, (5, 5), 4, 2)(image),)


def make_evaluator(model, source, episodes, size, devices=1, **changes):
    """An evaluator with features in float32; `changes` are fields of `eval`."""
    config = default_config()
    config.image_size, config.eval.feature_dtype = size, "float32"
    config.update_from_flattened_dict({f"eval.{name}": value for name, value in changes.items()})
    return Evaluator(model, source, episodes, make_mesh(devices), config)


def count(prediction, truth, classes, border="ignored"):
    """Pixels that are rightly, wrongly and not found, of each class."""
    seen = truth != 255
    if border == "background":
        truth, seen = np.where(seen, truth, 0), np.ones_like(seen)
    found = [(prediction == c) & seen for c in range(classes)]
    there = [(truth == c) & seen for c in range(classes)]
    return np.array(
        [[(f & t).sum(), (f & ~t).sum(), (t & ~f).sum()] for f, t in zip(found, there, strict=True)]
    )
