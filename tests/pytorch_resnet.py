"""ResNet-50 at stride 8, spelled out in PyTorch: what the Flax backbone is compared with."""

import numpy as np
import torch
import torch.nn.functional as F

BLOCKS = {1: 3, 2: 4, 3: 6, 4: 3}  # bottlenecks of each layer


def convolutions(layers):
    """(name, batch-norm's name, input channels, output channels, kernel size) of each one.

    The names are torchvision's; `layers` says up to which layer.
    """
    yield "conv1", "bn1", 3, 64, 7
    channels = 64
    for layer in range(1, layers + 1):
        width = 64 * 2 ** (layer - 1)
        for block in range(BLOCKS[layer]):
            prefix = f"layer{layer}.{block}"
            yield f"{prefix}.conv1", f"{prefix}.bn1", channels, width, 1
            yield f"{prefix}.conv2", f"{prefix}.bn2", width, width, 3
            yield f"{prefix}.conv3", f"{prefix}.bn3", width, 4 * width, 1
            if block == 0:
                yield f"{prefix}.downsample.0", f"{prefix}.downsample.1", channels, 4 * width, 1
            channels = 4 * width


def random_variables(layers=4, seed=0):
    """Kernels, and batch-norm whose four arrays all matter, as Flax holds them."""
    rng = np.random.default_rng(seed)
    params, statistics = {}, {}
    for name, norm, before, after, size in convolutions(layers):
        kernel = rng.standard_normal((size, size, before, after), np.float32)
        kernel *= np.float32(np.sqrt(2 / (size * size * before)))
        # Blocks add up: each one adds a third of what it gets.
        scale = 0.3 if norm.endswith("bn3") else 1.0
        put(params, name, {"kernel": kernel})
        put(
            params,
            norm,
            {
                "scale": scale * rng.uniform(0.7, 1.3, after).astype(np.float32),
                "bias": 0.2 * rng.standard_normal(after, np.float32),
            },
        )
        put(
            statistics,
            norm,
            {
                "mean": 0.2 * rng.standard_normal(after, np.float32),
                "var": rng.uniform(0.5, 2.0, after).astype(np.float32),
            },
        )
    return {"params": params, "batch_stats": statistics}


def flax_path(name):
    """`layer2.0.downsample.1` is `layer2_0/downsample_1` in Flax."""
    parts = name.replace("downsample.", "downsample_").split(".")
    return parts if len(parts) == 1 else [f"{parts[0]}_{parts[1]}", *parts[2:]]


def put(tree, name, arrays):
    *parents, last = flax_path(name)
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = arrays


def get(tree, name):
    for part in flax_path(name):
        tree = tree[part]
    return tree


def to_pytorch(variables):
    """Flax's variables of any number of layers under torchvision's names, kernels as OIHW."""
    layers = max((int(name[5]) for name in variables["params"] if name[:5] == "layer"), default=0)
    arrays = {}
    for name, norm, *_ in convolutions(layers):
        kernel = get(variables["params"], name)["kernel"]
        arrays[f"{name}.weight"] = np.asarray(kernel).transpose(3, 2, 0, 1).copy()
        arrays[f"{norm}.weight"] = get(variables["params"], norm)["scale"]
        arrays[f"{norm}.bias"] = get(variables["params"], norm)["bias"]
        arrays[f"{norm}.running_mean"] = get(variables["batch_stats"], norm)["mean"]
        arrays[f"{norm}.running_var"] = get(variables["batch_stats"], norm)["var"]
    return {name: torch.tensor(np.asarray(array)) for name, array in arrays.items()}


def features(weights, image, layers, stride_in_1x1=False, training=False):
    """Features `(n, channel, h, w)` after each layer, 1 to `layers`, of images `(n, 3, ...)`.

    With `training`, batch-norm takes the statistics of these images, and moves the stored
    ones in `weights` by a tenth towards them.
    """

    def convolution(x, name, stride=1, dilation=1):
        kernel = weights[f"{name}.weight"]
        padding = dilation * (kernel.shape[-1] // 2)
        return F.conv2d(x, kernel, stride=stride, padding=padding, dilation=dilation)

    def norm(x, name):
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        scale, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return F.batch_norm(x, mean, variance, scale, bias, training, momentum=0.1, eps=1e-5)

    def bottleneck(x, prefix, stride, dilation):
        y = convolution(x, f"{prefix}.conv1", stride if stride_in_1x1 else 1)
        y = F.relu(norm(y, f"{prefix}.bn1"))
        y = convolution(y, f"{prefix}.conv2", 1 if stride_in_1x1 else stride, dilation)
        y = F.relu(norm(y, f"{prefix}.bn2"))
        y = norm(convolution(y, f"{prefix}.conv3"), f"{prefix}.bn3")
        if f"{prefix}.downsample.0.weight" in weights:
            x = norm(convolution(x, f"{prefix}.downsample.0", stride), f"{prefix}.downsample.1")
        return F.relu(x + y)

    x = F.relu(norm(convolution(image, "conv1", stride=2), "bn1"))
    x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    outputs = {}
    for layer in range(1, layers + 1):
        for block in range(BLOCKS[layer]):
            stride = 2 if layer == 2 and block == 0 else 1
            dilation = {3: 2, 4: 4}.get(layer, 1)  # of every block, the first one too
            x = bottleneck(x, f"layer{layer}.{block}", stride, dilation)
        outputs[layer] = x
    return outputs
