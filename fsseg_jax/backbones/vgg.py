"""VGG-16 with stride 8, as in PANet's published code."""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from fsseg_jax.backbones.convolution import Conv, max_pool
from fsseg_jax.backbones.rematerialise import rematerialisable
from fsseg_jax.episode import AnyArray

# (channels of each convolution, dilation, stride of the pooling after them) of each stage.
STAGES = (
    ((64, 64), 1, 2),
    ((128, 128), 1, 2),
    ((256, 256, 256), 1, 2),
    ((512, 512, 512), 1, 1),
    ((512, 512, 512), 2, None),
)


class VGG16(nn.Module):
    """13 convolutions in 5 stages, 512 channels out; 417 px give 53 x 53.

    Max-pools are 3 x 3 with padding 1, the fourth has stride 1, the fifth stage is dilated by 2,
    and there is no ReLU after the last convolution. Layers have torchvision's numbers (`features_0`
    to `features_28`); stages after the requested ones have none.
    """

    dtype: DTypeLike = jnp.float32  # of the computation; parameters are float32
    rematerialise: bool = False  # each stage; see `rematerialisable`

    stage_numbers: ClassVar = (1, 2, 3, 4, 5)
    ends_before_relu: ClassVar = True

    @nn.compact
    def __call__(
        self,
        image: Float[AnyArray, "*batch height width 3"],
        stages: tuple[int, ...] = (),
        train: bool = False,
    ) -> tuple[Float[Array, "*batch h w channel"], ...]:
        """Features of normalised RGB images after each of `stages`, including its pooling, or after
        the fifth."""
        stages = stages or (len(STAGES),)
        x = image.astype(self.dtype)
        outputs = {}
        for number in range(1, max(stages) + 1):
            outputs[number] = x = self._stage(x, number=number)
        return tuple(outputs[stage] for stage in stages)

    @rematerialisable
    def _stage(self, x: Array, number: int) -> Array:
        channels, dilation, stride = STAGES[number - 1]
        # Torchvision counts convolutions, ReLUs and pools.
        index = sum(2 * len(stage[0]) + 1 for stage in STAGES[: number - 1])
        for width in channels:
            x = Conv(
                width,
                (3, 3),
                padding=dilation,
                kernel_dilation=dilation,
                dtype=self.dtype,
                kernel_init=nn.initializers.he_normal(),
                name=f"features_{index}",
            )(x)
            index += 2
            x = nn.relu(x) if index < 30 else x  # none after the last convolution
        if stride is not None:
            x = max_pool(x, stride)
        return x
