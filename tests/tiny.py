"""A configuration of runs that take seconds: PANet on few images of 32 x 32 pixels."""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from fsseg_jax.backbones.convolution import Conv
from fsseg_jax.config import default_config


class Plain(nn.Module):
    """A backbone that is compiled in no time: a strided convolution and three of single pixels."""

    dtype: jnp.dtype = jnp.float32
    rematerialise: bool = False
    width: int = 8

    stage_numbers: ClassVar = (2, 3, 4, 5)

    @nn.compact
    def __call__(self, image, stages=(), train=False):
        x, outputs, stages = jnp.asarray(image, self.dtype), {}, stages or (5,)
        for stage in range(2, max(stages) + 1):
            size, stride = (3, 4) if stage == 2 else (1, 1)
            x = Conv(self.width, (size, size), stride, size // 2, dtype=self.dtype)(x)
            outputs[stage] = x
            x = nn.relu(x)
        return tuple(outputs[stage] for stage in stages)


def get_config():
    config = default_config("panet")
    config.backbone = "tiny:Plain"
    config.image_size = 32
    config.devices = 1
    config.data.name = "shapes"
    config.data.pipeline = "device"
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
        eval_pictures=0,
    )
    return config
