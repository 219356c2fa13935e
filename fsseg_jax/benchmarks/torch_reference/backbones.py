"""VGG-16 as PANet changes it, and ResNet-50 at stride 8, under torchvision's names."""

# pyright: reportMissingImports=false
# (PyTorch is no dependency.)

import itertools
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

# Widths, dilation, and the stride of the pool that follows: the fourth pool keeps the resolution,
# and the fifth stage is dilated instead.
VGG_STAGES = (
    ((64, 64), 1, 2),
    ((128, 128), 1, 2),
    ((256, 256, 256), 1, 2),
    ((512, 512, 512), 1, 1),
    ((512, 512, 512), 2, None),
)
# Bottlenecks, width, stride, and the dilation of every block, of layer1 to layer4.
RESNET_LAYERS = ((3, 64, 1, 1), (4, 128, 2, 1), (6, 256, 1, 2), (3, 512, 1, 4))


def convolution(
    before: int, after: int, size: int = 3, stride: int = 1, dilation: int = 1, bias: bool = True
) -> nn.Conv2d:
    """A convolution that keeps the resolution, up to its stride."""
    padding = dilation * (size // 2)
    return nn.Conv2d(before, after, size, stride, padding, dilation, bias=bias)


def vgg16() -> nn.Sequential:
    """VGG-16, without the last ReLU; the layers' numbers are torchvision's."""
    layers, before = [], 3
    for widths, dilation, pool_stride in VGG_STAGES:
        for width in widths:
            layers.append(convolution(before, width, dilation=dilation))
            layers.append(nn.ReLU(inplace=True))
            before = width
        if pool_stride is not None:
            layers.append(nn.MaxPool2d(3, pool_stride, padding=1))
    return nn.Sequential(*layers[:-1])


class Bottleneck(nn.Module):
    """Three convolutions and their sum with the input.

    Args:
        before: channels of the input.
        width: channels of the first two convolutions; the third has four times as many.
        strides: of the first and the second convolution.
        dilation: of the second convolution.
        first: whether this is the first block of a layer, which projects its input.
    """

    def __init__(
        self, before: int, width: int, strides: tuple[int, int], dilation: int, first: bool
    ) -> None:
        super().__init__()
        self.conv1 = convolution(before, width, 1, strides[0], bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3, strides[1], dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = convolution(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        if first:
            project = convolution(before, 4 * width, 1, max(strides), bias=False)
            self.downsample = nn.Sequential(project, nn.BatchNorm2d(4 * width))
        else:
            self.downsample = None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """The features after the block."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + (self.downsample(x) if self.downsample else x), inplace=True)


class ResNet50(nn.Module):
    """The stem and the first layers of ResNet-50.

    Args:
        layers: how many of its four layers.
        stride_in_1x1: whether a layer's stride is on its first 1 x 1 convolution.
    """

    def __init__(self, layers: int, stride_in_1x1: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(3, 64, 7, 2, bias=False), nn.BatchNorm2d(64)
        before = 64
        for number, (blocks, width, stride, dilation) in enumerate(RESNET_LAYERS[:layers], start=1):
            parts = []
            for block in range(blocks):
                strides = (stride, 1) if stride_in_1x1 else (1, stride)
                strides = strides if block == 0 else (1, 1)
                parts.append(Bottleneck(before, width, strides, dilation, first=block == 0))
                before = 4 * width
            self.add_module(f"layer{number}", nn.Sequential(*parts))

    def forward(self, image: Float[Tensor, "n 3 height width"]) -> list[Tensor]:
        """The features after each layer."""
        x = F.relu(self.bn1(self.conv1(image)), inplace=True)
        x = F.max_pool2d(x, 3, 2, padding=1)
        outputs = []
        for name, layer in self.named_children():
            if name.startswith("layer"):
                outputs.append(x := layer(x))
        return outputs


def fold_normalisation(network: Any) -> None:
    """Merges every normalisation by stored statistics into the convolution before it."""
    for module in list(network.modules()):
        for (name, first), (next_name, second) in itertools.pairwise(module.named_children()):
            if isinstance(second, nn.BatchNorm2d):
                setattr(module, name, nn.utils.fusion.fuse_conv_bn_eval(first, second))
                setattr(module, next_name, nn.Identity())
