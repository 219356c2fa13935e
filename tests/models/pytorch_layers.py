"""What the formulations of several methods share in PyTorch, on maps (n, channel, h, w).

Weights are those of the Flax module, as nested dictionaries of tensors under the same names.
"""

import numpy as np
import torch
import torch.nn.functional as F


def tensors(tree):
    """A Flax tree as double tensors, kernels in PyTorch's order, ready for autograd."""
    if hasattr(tree, "items"):
        return {name: tensors(branch) for name, branch in tree.items()}
    tensor = torch.tensor(tree, dtype=torch.float64)
    order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(tensor.ndim)  # convolutions, fully connected
    return (tensor.permute(order) if order else tensor).contiguous().requires_grad_()


def gradients_of(tree):
    """The gradients of `tensors(...)`, in Flax's order of axes."""
    if isinstance(tree, dict):
        return {name: gradients_of(branch) for name, branch in tree.items()}
    gradient = torch.zeros_like(tree) if tree.grad is None else tree.grad
    order = {4: (2, 3, 1, 0), 2: (1, 0)}.get(gradient.ndim)
    return (gradient.permute(order) if order else gradient).numpy()


def planes(array):
    """(..., h, w, channel) to a double tensor (..., channel, h, w)."""
    return torch.tensor(np.asarray(array), dtype=torch.float64).movedim(-1, -3).contiguous()


def channels_last(tensor):
    """The inverse of `planes`."""
    return tensor.detach().movedim(-3, -1).numpy()


# ----------------------------------------------------------------------------- layers


def conv(x, layer, dilation=1, stride=1):
    """A convolution that is padded alike on all sides."""
    kernel = layer["kernel"]
    padding = dilation * (kernel.shape[-1] // 2)
    return F.conv2d(x, kernel, layer.get("bias"), stride, padding, dilation)


def aspp(x, layers):
    """Five branches and the 1 x 1 convolution that joins them."""
    average = F.adaptive_avg_pool2d(x, 1)
    branches = [
        F.relu(conv(average, layers["Conv_0"])).expand(-1, -1, *x.shape[2:]),
        F.relu(conv(x, layers["Conv_1"])),
        F.relu(conv(x, layers["Conv_2"], dilation=6)),
        F.relu(conv(x, layers["Conv_3"], dilation=12)),
        F.relu(conv(x, layers["Conv_4"], dilation=18)),
    ]
    return F.relu(conv(torch.cat(branches, dim=1), layers["Conv_5"]))


def residual(x, layers):
    """F(x) of a residual block x + F(x): ReLU, 3 x 3, ReLU, 3 x 3."""
    return conv(F.relu(conv(F.relu(x), layers["Conv_0"])), layers["Conv_1"])


def shot_weights(pairs, first, second):
    """CANet's attention over shots: the softmax of one number for each pair with the query."""
    scores = []
    for x in pairs:
        hidden = F.max_pool2d(F.relu(conv(x, first)), kernel_size=3, stride=2, padding=1)
        scores.append(conv(hidden, second).mean())
    return torch.stack(scores).softmax(dim=0)


def interpolate(x, size):
    """Bilinear, aligned corners."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


def join_stages(stages):
    """The feature maps of a backbone's stages at the size of the last one."""
    return torch.cat([interpolate(x, stages[-1].shape[2:]) for x in stages], dim=1)


def embed(weights, images):
    """(n, height, width, 3) to features: `tiny.TwoStages` and the 3 x 3 convolution."""
    fine = F.relu(conv(planes(images), weights["backbone"]["fine"], stride=2))
    coarse = F.relu(conv(fine, weights["backbone"]["coarse"], stride=2))
    return F.relu(conv(join_stages([fine, coarse]), weights["embedding"]))


def shrink(mask, size):
    """A mask of (height, width) at the size of features."""
    return interpolate(torch.as_tensor(mask).double()[None, None], size)[0, 0]


def average_inside(features, mask, epsilon=5e-4):
    """Masked average of (1, channel, h, w), where the mask has its size."""
    return (features * mask).sum(dim=(2, 3)) / (mask.sum() + epsilon)


def beside(features, vector):
    """Features and a vector at each of their positions."""
    tiled = vector[:, :, None, None].expand(-1, -1, *features.shape[2:])
    return torch.cat([features, tiled], dim=1)


# ----------------------------------------------------------------------------- binary logits


def join(binary_logits):
    """The binary logits of all ways, (way, 2, h, w), as (way + 1, h, w)."""
    log_p = F.log_softmax(binary_logits, dim=1)
    return torch.cat([log_p[:, 0].amax(dim=0, keepdim=True), log_p[:, 1]])


def binary(label, way):
    """1 where `way` is, 0 elsewhere, 255 ignored."""
    label = torch.tensor(label).long()
    target = (label == way).long()
    target[label == 255] = 255
    return target


def cross_entropy(logits, label):
    """Of logits (1, 2, h, w) up-sampled to the label (height, width), the mean over its pixels."""
    return F.cross_entropy(interpolate(logits, label.shape), label[None], ignore_index=255)


def binary_loss(binary_logits, label):
    """The mean of the cross-entropies of all ways' logits, (way, 2, h, w)."""
    losses = [
        cross_entropy(logits[None], binary(label, way))
        for way, logits in enumerate(binary_logits, start=1)
    ]
    return sum(losses) / len(losses)
