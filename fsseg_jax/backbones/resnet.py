"""ResNet-50 and 101 (He et al., CVPR 2016) with stride 8, as in CANet and its successors."""

import functools
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from fsseg_jax.backbones.convolution import Conv, max_pool
from fsseg_jax.backbones.rematerialise import rematerialisable
from fsseg_jax.episode import BATCH_AXIS, AnyArray

# (width, stride, dilation) of layer1 to layer4. From layer3 on the resolution stays the same, and
# all blocks of a layer are dilated, including the first.
LAYERS = ((64, 1, 1), (128, 2, 1), (256, 1, 2), (512, 1, 4))


class ResNet(nn.Module):
    """The stem and up to four layers; 417 px give 53 x 53, and layer n has 2^(n + 7) channels.

    Layers and arrays have torchvision's names (`layer1_0`, `bn1`). Layers after the requested ones
    are not computed and have no parameters.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)  # bottlenecks of each layer
    dtype: DTypeLike = jnp.float32  # of the computation; parameters are float32
    # Where a layer's stride is: on the 3 x 3 convolution of its first block, as in torchvision's
    # and timm's weights, or on the first 1 x 1, as in those of the original Caffe model.
    stride_in_1x1: bool = False
    # Normalise training images with statistics of their own batch, as CANet's and PFENet's
    # published codes do even with a frozen backbone, instead of the stored ones (HSNet's).
    batch_statistics: bool = False
    rematerialise: bool = False  # each bottleneck; see `rematerialisable`

    stage_numbers: ClassVar = (1, 2, 3, 4)

    @nn.compact
    def __call__(
        self,
        image: Float[AnyArray, "*batch height width 3"],
        stages: tuple[int, ...] = (),
        train: bool = False,
    ) -> tuple[Float[Array, "*batch h w channel"], ...]:
        """Features of normalised RGB images after each of `stages` (layer1 is 1), or after
        layer4."""
        stages = stages or (len(LAYERS),)
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not (train and self.batch_statistics),
            momentum=0.9,
            epsilon=1e-5,
            axis_name=BATCH_AXIS if self.batch_statistics else None,
            dtype=self.dtype,
        )
        convolution = functools.partial(Conv, use_bias=False, dtype=self.dtype)
        x = image.astype(self.dtype)
        x = nn.relu(norm(name="bn1")(convolution(64, (7, 7), 2, 3, name="conv1")(x)))
        x = max_pool(x, 2)
        outputs = {}
        layers = zip(self.blocks, LAYERS, strict=True)
        for number, (blocks, (width, stride, dilation)) in enumerate(layers, start=1):
            if number > max(stages):
                break
            for block in range(blocks):
                x = Bottleneck(
                    width,
                    stride=stride if block == 0 else 1,
                    dilation=dilation,
                    shortcut=block == 0,
                    stride_in_1x1=self.stride_in_1x1,
                    norm=norm,
                    convolution=convolution,
                    rematerialise=self.rematerialise,
                    name=f"layer{number}_{block}",
                )(x)
            outputs[number] = x
        return tuple(outputs[stage] for stage in stages)


class Bottleneck(nn.Module):
    """Convolutions of 1 x 1 to `width`, 3 x 3, and 1 x 1 to four times that, with a shortcut."""

    width: int
    stride: int
    dilation: int
    shortcut: bool  # whether the shortcut has a convolution
    stride_in_1x1: bool
    norm: functools.partial
    convolution: functools.partial
    rematerialise: bool

    @rematerialisable
    @nn.compact
    def __call__(self, x: Float[AnyArray, "*batch h w c"]) -> Float[Array, "*batch H W C"]:
        """One residual block."""
        first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
        y = self.convolution(self.width, (1, 1), first, 0, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.convolution(
            self.width, (3, 3), second, self.dilation, kernel_dilation=self.dilation, name="conv2"
        )(y)
        y = nn.relu(self.norm(name="bn2")(y))
        y = self.convolution(4 * self.width, (1, 1), 1, 0, name="conv3")(y)
        y = self.norm(name="bn3")(y)
        if self.shortcut:
            x = self.convolution(4 * self.width, (1, 1), self.stride, 0, name="downsample_0")(x)
            x = self.norm(name="downsample_1")(x)
        return nn.relu(x + y)
