"""The VGG-16 of the benchmarks in PyTorch, for the tests of ours."""

import functools

import numpy as np
import torch

from fsseg_jax.benchmarks.torch_reference.backbones import vgg16
from fsseg_jax.benchmarks.torch_reference.reference import state_dict


@functools.cache
def network():
    """The layers without arrays."""
    with torch.device("meta"):
        return vgg16()


def random_params(seed=0):
    """He-normal kernels, and biases so that they matter, as Flax holds them."""
    rng = np.random.default_rng(seed)
    params = {}
    for number, layer in enumerate(network()):
        if isinstance(layer, torch.nn.Conv2d):
            before, after = layer.in_channels, layer.out_channels
            kernel = rng.standard_normal((3, 3, before, after), np.float32)
            params[f"features_{number}"] = {
                "kernel": kernel * np.float32(np.sqrt(2 / (9 * before))),
                "bias": 0.1 * rng.standard_normal(after, np.float32),
            }
    return params


def to_pytorch(params):
    """`{"features_0": {"kernel": HWIO, ...}}` as `{"features.0.weight": OIHW, ...}`."""
    return state_dict({"params": params})


def features(weights, image):
    """Features `(n, 512, h, w)` of images `(n, 3, height, width)`."""
    weights = {name.removeprefix("features."): array for name, array in weights.items()}
    return torch.func.functional_call(network(), weights, (image,))
