"""VGG-16 as PANet uses it, spelled out in PyTorch: what the Flax backbone is compared with."""

import numpy as np
import torch
import torch.nn.functional as F

CHANNELS = {
    **{0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128)},
    **{10: (128, 256), 12: (256, 256), 14: (256, 256)},
    **{17: (256, 512), 19: (512, 512), 21: (512, 512)},
    **{24: (512, 512), 26: (512, 512), 28: (512, 512)},
}  # before and after each convolution, by its number among torchvision's layers


def random_params(seed=0):
    """He-normal kernels, and biases so that they matter, as Flax holds them."""
    rng = np.random.default_rng(seed)
    params = {}
    for number, (before, after) in CHANNELS.items():
        kernel = rng.standard_normal((3, 3, before, after), np.float32)
        params[f"features_{number}"] = {
            "kernel": kernel * np.float32(np.sqrt(2 / (9 * before))),
            "bias": 0.1 * rng.standard_normal(after, np.float32),
        }
    return params


def to_pytorch(params):
    """`{"features_0": {"kernel": HWIO, ...}}` as `{"features.0.weight": OIHW, ...}`."""
    weights = {}
    for number in CHANNELS:
        arrays = params[f"features_{number}"]
        kernel = np.einsum("hwio->oihw", arrays["kernel"])
        weights[f"features.{number}.weight"] = torch.tensor(kernel)
        weights[f"features.{number}.bias"] = torch.tensor(arrays["bias"])
    return weights


def from_pytorch(weights):
    """The other way round."""
    params = {}
    for number in CHANNELS:
        kernel, bias = (weights[f"features.{number}.{name}"] for name in ("weight", "bias"))
        kernel = np.einsum("oihw->hwio", kernel.numpy())
        params[f"features_{number}"] = {"kernel": kernel, "bias": bias.numpy()}
    return params


def features(weights, image):
    """Features `(n, 512, h, w)` of images `(n, 3, height, width)`."""

    def convolution(x, number, dilation=1):
        kernel, bias = (weights[f"features.{number}.{name}"] for name in ("weight", "bias"))
        return F.conv2d(x, kernel, bias, padding=dilation, dilation=dilation)

    x = image
    for numbers, pool_stride in (
        ((0, 2), 2),
        ((5, 7), 2),
        ((10, 12, 14), 2),
        ((17, 19, 21), 1),  # the fourth pool keeps the resolution ...
    ):
        for number in numbers:
            x = torch.relu(convolution(x, number))
        x = F.max_pool2d(x, kernel_size=3, stride=pool_stride, padding=1)
    x = torch.relu(convolution(x, 24, dilation=2))  # ... and the fifth stage is dilated instead
    x = torch.relu(convolution(x, 26, dilation=2))
    return convolution(x, 28, dilation=2)
