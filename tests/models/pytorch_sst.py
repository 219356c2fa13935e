"""SST spelled out in PyTorch, way by way and shot by shot: what ours must equal.

Weights are those of the Flax module, as nested dictionaries of tensors under the same names.
"""

import types

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
    return torch.tensor(array, dtype=torch.float64).movedim(-1, -3).contiguous()


# ----------------------------------------------------------------------------- layers


def conv(x, layer, dilation=1, stride=1):
    """A convolution of (n, channel, h, w), padded alike on all sides."""
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


def residual_block(x, layers):
    """x + F(x), F = ReLU, 3 x 3, ReLU, 3 x 3."""
    return x + conv(F.relu(conv(F.relu(x), layers["Conv_0"])), layers["Conv_1"])


def interpolate(x, size):
    """Bilinear, aligned corners; (n, channel, h, w)."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


def shrink(mask, size):
    """A mask of (height, width) at the size of features."""
    return interpolate(mask.double()[None, None], size)[0, 0]


def average_inside(features, mask):
    """Masked average of (1, channel, h, w), where the mask has its size."""
    return (features * mask).sum(dim=(2, 3)) / (mask.sum() + 5e-4)


def beside(features, vector):
    """Features and a vector at each of their positions."""
    tiled = vector[:, :, None, None].expand(-1, -1, *features.shape[2:])
    return torch.cat([features, tiled], dim=1)


def cross_entropy(logits, label):
    """Of logits (1, 2, h, w) up-sampled to the label (height, width), the mean over its pixels."""
    return F.cross_entropy(interpolate(logits, label.shape), label[None], ignore_index=255)


def binary(label, way):
    """1 where `way` is, 0 elsewhere, 255 ignored."""
    label = torch.tensor(label).long()
    target = (label == way).long()
    target[label == 255] = 255
    return target


def join(binary_logits):
    """The binary logits of all ways, (way, 2, h, w), as (way + 1, h, w)."""
    log_p = F.log_softmax(binary_logits, dim=1)
    return torch.cat([log_p[:, 0].amax(dim=0, keepdim=True), log_p[:, 1]])


# ----------------------------------------------------------------------------- the method


def relation(weights, features, vector):
    x = beside(features, vector)
    x = F.relu(conv(x, weights["relation_0"]))
    return F.relu(conv(x, weights["relation_1"]))


def decoder(weights, response):
    x = aspp(residual_block(response, weights["block"]), weights["aspp"])
    return conv(x, weights["classifier"])


def iou(logits, target):
    """Of the foreground, over pixels that count."""
    predicted = interpolate(logits, target.shape)[0].argmax(dim=0)
    intersection = union = 0
    for guess, truth in zip(predicted.flatten().tolist(), target.flatten().tolist(), strict=True):
        if truth != 255:
            intersection += guess == 1 and truth == 1
            union += guess == 1 or truth == 1
    return intersection / union if union else 0.0


def tune(weights, features, target, rate, second_order):
    """Eq. 8 to 11 for one support of (1, channel, h, w).

    Returns the moved features, and the mean loss and the logits of the self-segmentation.
    """
    if not features.requires_grad:
        features = features.clone().requires_grad_()
    mask = shrink(target == 1, features.shape[2:])
    response = relation(weights, features, average_inside(features, mask))
    logits = decoder(weights, response)
    loss = cross_entropy(logits, target)
    (gradient,) = torch.autograd.grad(loss, features, create_graph=True)
    if not second_order:
        gradient = gradient.detach()
    length = average_inside(features, mask).detach().norm()
    return features - rate * mask.sum() * length * gradient, loss, logits


def run(
    weights,
    support_features,  # (way, shot, channel, h, w)
    query_features,  # (channel, h, w)
    support_label,  # (way, shot, height, width)
    query_label,  # (height, width)
    rate=1.0,
    second_order=True,
    fusion="weighted",
    auxiliary_weight=1.0,
):
    """One episode from features on."""
    ways, shots = support_label.shape[:2]
    tuned, scores, binary_logits, main = [], [], [], 0
    before, after, shift = [], [], []
    for way in range(ways):
        responses = []
        for shot in range(shots):
            features = support_features[way, shot][None]
            target = binary(support_label[way, shot], way + 1)
            moved, loss, logits = tune(weights, features, target, rate, second_order)
            mask = shrink(target == 1, features.shape[2:])
            vector = average_inside(moved, mask)
            responses.append(relation(weights, query_features[None], vector))
            tuned.append(moved[0])
            scores.append(iou(logits, target))

            old = average_inside(features, mask)
            shift.append((vector - old).norm() / old.norm())
            before.append(loss)
            again = decoder(weights, relation(weights, moved, vector))
            after.append(cross_entropy(again, target))
        own = scores[-shots:]
        match fusion:
            case "weighted":
                response = sum(r * score for r, score in zip(responses, own, strict=True))
                response = response / sum(own)  # choose an episode in which one finds itself
                logits = decoder(weights, response)
            case "average" | "maximum":
                objects = [decoder(weights, one).softmax(dim=1)[:, 1] for one in responses]
                objects = torch.stack(objects)
                p = objects.mean(dim=0) if fusion == "average" else objects.amax(dim=0)
                logits = torch.stack([(1 - p).log(), p.log()], dim=1)
        binary_logits.append(logits)
        main = main + cross_entropy(binary_logits[-1], binary(query_label, way + 1)) / ways
    auxiliary = sum(before) / (ways * shots)
    return types.SimpleNamespace(
        tuned=torch.stack(tuned).unflatten(0, (ways, shots)),
        scores=scores,
        binary_logits=torch.cat(binary_logits),
        logits=join(torch.cat(binary_logits)),
        segmentation=main,
        self_segmentation=auxiliary,
        total=main + auxiliary_weight * auxiliary,
        shift=(sum(shift) / len(shift)).item(),
        before=auxiliary.item(),
        after=(sum(after) / len(after)).item(),
    )
