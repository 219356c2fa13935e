"""A small encoder that can be trained from scratch in minutes, for experiments and tests."""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from fsseg_jax.backbones.convolution import Conv
from fsseg_jax.backbones.extent import positions
from fsseg_jax.backbones.rematerialise import rematerialisable
from fsseg_jax.episode import AnyArray


class Small(nn.Module):
    """A strided stem and dilated residual blocks at stride 4.

    Group normalisation keeps images independent of each other: there are no batch statistics. There
    is no ReLU at the end: cosine similarity needs both signs.

    Examples:
        >>> import jax
        >>> backbone, image = Small(width=16), jnp.zeros((32, 32, 3))
        >>> variables = jax.jit(backbone.init)(jax.random.key(0), image)
        >>> [x.shape for x in backbone.apply(variables, image, stages=(2, 4))]
        [(8, 8, 16), (8, 8, 16)]
    """

    width: int = 64
    dtype: DTypeLike = jnp.float32  # of the computation; parameters are float32
    rematerialise: bool = False  # each residual block; see `rematerialisable`

    stage_numbers: ClassVar = (2, 3, 4, 5)

    @nn.compact
    def __call__(
        self,
        image: Float[AnyArray, "*batch height width 3"],
        stages: tuple[int, ...] = (),
        train: bool = False,
    ) -> tuple[Float[Array, "*batch h w channel"], ...]:
        """Features of normalised RGB images after each of `stages`: 2 to 4 are the residual
        blocks, and 5, the last, is linear."""
        stages = stages or (5,)
        x = jnp.asarray(image, self.dtype)
        x = nn.relu(self._convolution(x, self.width // 2, 5, 2, 1))
        x = nn.relu(self._convolution(x, self.width, 3, 2, 1))
        outputs = {}
        for stage, dilation in ((2, 1), (3, 2), (4, 4)):
            outputs[stage] = x = self._residual(x, dilation=dilation)
        if 5 in stages:
            outputs[5] = Conv(self.width, (1, 1), dtype=self.dtype)(x)
        return tuple(outputs[stage] for stage in stages)

    @rematerialisable
    def _residual(self, x: Array, dilation: int) -> Array:
        y = nn.relu(self._convolution(x, self.width, 3, 1, dilation))
        return nn.relu(x + self._convolution(y, self.width, 3, 1, dilation))

    def _convolution(self, x: Array, width: int, size: int, stride: int, dilation: int) -> Array:
        padding = dilation * (size - 1) // 2
        x = Conv(
            width,
            (size, size),
            stride,
            padding,
            kernel_dilation=dilation,
            use_bias=False,
            dtype=self.dtype,
        )(x)
        # Explicit axes: by default the first axis is a batch, even if there is none.
        axes = (-3, -2, -1)
        mask = positions(x)
        if mask is not None:
            mask = jnp.broadcast_to(mask, x.shape[-3:])
        return nn.GroupNorm(num_groups=8, reduction_axes=axes, dtype=self.dtype)(x, mask=mask)
