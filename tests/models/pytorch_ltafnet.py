"""LTAF-Net spelled out in PyTorch, way by way and pair by pair: what ours must equal."""

import itertools
import types

import torch
import torch.nn.functional as F
from pytorch_layers import (
    aspp,
    average_inside,
    beside,
    binary,
    binary_loss,
    conv,
    cross_entropy,
    embed,
    interpolate,
    join,
    planes,
    residual,
    shrink,
)


def task_vector(weights, support, query, mask, kind):
    """f(F_s, F_q) of one pair, up to its scale: (1, channel)."""
    category = average_inside(support, mask)
    if kind == "correlation":
        likeness = [F.cosine_similarity(x, category[..., None, None]) for x in (support, query)]
        support, query = support * likeness[0][:, None], query * likeness[1][:, None]
    x = beside(torch.cat([support, query], dim=1), category)
    x = conv(x, weights["pair"]).mean(dim=(2, 3))
    x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()  # eq. 1
    first, second = weights["gate_0"], weights["gate_1"]
    x = F.relu(F.linear(x, first["kernel"], first["bias"]))
    return torch.sigmoid(F.linear(x, second["kernel"], second["bias"]))


def auxiliary(weights, features):
    """The auxiliary decoder's logits."""
    x = aspp(features, weights["auxiliary_aspp"])
    x = x + residual(x, weights["auxiliary_block"])
    return conv(x, weights["auxiliary_classifier"])


def predict(weights, pairs, before_aspp):
    """The mask before refinement, from the adapted (support, query, mask) of each shot of a way."""
    vectors = [average_inside(support, mask) for support, _, mask in pairs]
    query = sum(query for _, query, _ in pairs) / len(pairs)
    x = beside(query, sum(vectors) / len(pairs))
    if before_aspp == "plain":
        x = conv(x, weights["comparison"])
    if before_aspp == "canet":
        x = F.relu(conv(x, weights["comparison"], dilation=2))
    return conv(aspp(x, weights["aspp"]), weights["classifier"])


def refine(weights, stored, masks, images, training, strided):
    """G(M | Q) of masks (n, 2, height, width) and images (n, 3, height, width).

    Args:
        weights: of the U-Net.
        stored: its stored statistics, {"BatchNorm_0": {"mean": ..., "var": ...}, ...}.
        masks, images: of all ways of all episodes.
        training: whether normalisation takes the statistics of these n, or the stored ones.
        strided: whether there is a stem of stride 2, or a convolution alone.

    Returns:
        the residuals, and the statistics to store. PyTorch stores an unbiased variance, Flax the
        biased one: these are biased.
    """
    seen = {}
    numbers, norms = itertools.count(), itertools.count()

    def block(x, stride=1):
        x = conv(x, weights[f"Conv_{next(numbers)}"], stride=stride)
        name = f"BatchNorm_{next(norms)}"
        mean, var = stored[name]["mean"].detach().clone(), stored[name]["var"].detach().clone()
        scale, bias = weights[name]["scale"], weights[name]["bias"]
        y = F.batch_norm(x, mean, var, scale, bias, training=training, momentum=0.1)
        if training:
            count = x.numel() // x.shape[1]
            old = 0.9 * stored[name]["var"].detach()
            var = old + (var - old) * (count - 1) / count
        seen[name] = {"mean": mean.numpy(), "var": var.numpy()}
        return F.relu(y)

    x = torch.cat([masks, images], dim=1)
    x = block(x, stride=2) if strided else conv(x, weights[f"Conv_{next(numbers)}"])
    skips = []
    for _ in range(4):
        x = block(x)
        skips.append(x)
        x = F.max_pool2d(x, 2, ceil_mode=True)
    x = block(x)
    for skip in reversed(skips):
        x = block(torch.cat([interpolate(x, skip.shape[2:]), skip], dim=1))
    return interpolate(conv(x, weights[f"Conv_{next(numbers)}"]), masks.shape[2:]), seen


def mean_loss(logits, episodes):
    """Of the queries of a batch."""
    losses = [binary_loss(x, one.query_label) for x, one in zip(logits, episodes, strict=True)]
    return sum(losses) / len(losses)


def run(
    weights,
    stored,
    episodes,  # a list of them, images normalised
    adaption="concatenation",
    before_aspp="none",
    refinement=True,
    refinement_style="strided",
    training=False,
    auxiliary_weight=1.0,
    coarse_weight=1.0,
):
    """A batch of episodes; losses are means over the batch."""
    coarse, images, auxiliary_loss = [], [], 0
    for episode in episodes:
        ways, shots, *size = episode.support_label.shape
        query_image = episode.query_image[None]
        query = embed(weights, query_image)
        for way in range(ways):
            pairs = []
            for shot in range(shots):
                target = binary(episode.support_label[way, shot], way + 1)
                mask = shrink(target == 1, query.shape[2:])
                support = embed(weights, episode.support_image[way, shot][None])
                if adaption != "none":
                    shift = weights["alpha"] * task_vector(weights, support, query, mask, adaption)
                    shift = shift[:, :, None, None]
                    pairs.append((support + shift, query + shift, mask))  # eq. 2
                    # Eq. 3, of both classes.
                    share = len(episodes) * ways * shots
                    of_support = cross_entropy(auxiliary(weights, support + shift), target)
                    target = binary(episode.query_label, way + 1)
                    of_query = cross_entropy(auxiliary(weights, query + shift), target)
                    auxiliary_loss = auxiliary_loss + (of_support + of_query) / share
                else:
                    pairs.append((support, query, mask))
            logits = predict(weights, pairs, before_aspp)
            coarse.append(interpolate(logits, size) if refinement else logits)
            images.append(planes(query_image))
    coarse = logits = torch.cat(coarse)
    seen = {}
    if refinement:
        strided = refinement_style == "strided"
        correction, seen = refine(
            weights["unet"], stored.get("unet"), coarse, torch.cat(images), training, strided
        )
        logits = coarse + correction  # eq. 4

    coarse, logits = (x.unflatten(0, (len(episodes), -1)) for x in (coarse, logits))
    segmentation, coarse_loss = mean_loss(logits, episodes), mean_loss(coarse, episodes)
    total = segmentation
    if refinement:
        total = total + coarse_weight * coarse_loss
    if adaption != "none":
        total = total + auxiliary_weight * auxiliary_loss
    return types.SimpleNamespace(
        logits=torch.stack([join(x) for x in logits]),
        binary_logits=logits,
        coarse=coarse,
        segmentation=segmentation,
        coarse_loss=coarse_loss,
        auxiliary=auxiliary_loss,
        total=total,
        stored=seen,
    )
