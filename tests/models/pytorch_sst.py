"""SST spelled out in PyTorch, way by way and shot by shot: what ours must equal."""

import types

import torch
from pytorch_layers import (
    aspp,
    average_inside,
    beside,
    binary,
    binary_loss,
    conv,
    cross_entropy,
    interpolate,
    join,
    residual,
    shrink,
)


def relation(weights, features, vector):
    x = conv(beside(features, vector), weights["relation_0"]).relu()
    return conv(x, weights["relation_1"]).relu()


def decoder(weights, response):
    x = response + residual(response, weights["block"])
    return conv(aspp(x, weights["aspp"]), weights["classifier"])


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
    tuned, scores, binary_logits = [], [], []
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
    binary_logits = torch.cat(binary_logits)
    main = binary_loss(binary_logits, query_label)
    auxiliary = sum(before) / (ways * shots)
    return types.SimpleNamespace(
        tuned=torch.stack(tuned).unflatten(0, (ways, shots)),
        scores=scores,
        binary_logits=binary_logits,
        logits=join(binary_logits),
        segmentation=main,
        self_segmentation=auxiliary,
        total=main + auxiliary_weight * auxiliary,
        shift=(sum(shift) / len(shift)).item(),
        before=auxiliary.item(),
        after=(sum(after) / len(after)).item(),
    )
