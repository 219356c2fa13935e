"""The ResNet-50 of the benchmarks in PyTorch, for the tests of ours."""

import functools

import numpy as np
import torch
from flax.traverse_util import unflatten_dict

from fsseg_jax.benchmarks.torch_reference.backbones import ResNet50
from fsseg_jax.benchmarks.torch_reference.reference import state_dict


@functools.cache
def network(layers, stride_in_1x1=False):
    """The layers without arrays."""
    with torch.device("meta"):
        return ResNet50(layers, stride_in_1x1)


def random_variables(layers=4, seed=0):
    """Kernels, and batch-norm whose four arrays all matter, as Flax holds them."""
    rng = np.random.default_rng(seed)
    params, statistics = {}, {}
    for name, layer in network(layers).named_modules():
        if isinstance(layer, torch.nn.Conv2d):
            (size, _), before = layer.kernel_size, layer.in_channels
            kernel = rng.standard_normal((size, size, before, layer.out_channels), np.float32)
            kernel *= np.float32(np.sqrt(2 / (size * size * before)))
            params[*flax_path(name), "kernel"] = kernel
        elif isinstance(layer, torch.nn.BatchNorm2d):
            path, channels = flax_path(name), layer.num_features
            # Blocks add up: each one adds a third of what it gets.
            scale = 0.3 if name.endswith("bn3") else 1.0
            params[*path, "scale"] = scale * rng.uniform(0.7, 1.3, channels).astype(np.float32)
            params[*path, "bias"] = 0.2 * rng.standard_normal(channels, np.float32)
            statistics[*path, "mean"] = 0.2 * rng.standard_normal(channels, np.float32)
            statistics[*path, "var"] = rng.uniform(0.5, 2.0, channels).astype(np.float32)
    return {"params": unflatten_dict(params), "batch_stats": unflatten_dict(statistics)}


def flax_path(name):
    """`layer2.0.downsample.1` is `layer2_0/downsample_1` in Flax."""
    parts = name.replace("downsample.", "downsample_").split(".")
    return parts if len(parts) == 1 else [f"{parts[0]}_{parts[1]}", *parts[2:]]


def get(tree, name):
    for part in flax_path(name):
        tree = tree[part]
    return tree


def to_pytorch(variables):
    """Flax's variables of any number of layers under torchvision's names, kernels as OIHW."""
    return state_dict(variables)


def features(weights, image, layers, stride_in_1x1=False, training=False):
    """Features `(n, h, w, channel)` after each layer, 1 to `layers`, of images `(n, ..., 3)`.

    With `training`, batch-norm takes the statistics of these images, and moves the stored ones in
    `weights` by a tenth towards them.
    """
    model = network(layers, stride_in_1x1).train(training)
    results = torch.func.functional_call(model, weights, (torch.tensor(image).movedim(-1, 1),))
    return {number: x.movedim(1, -1).numpy() for number, x in enumerate(results, start=1)}
