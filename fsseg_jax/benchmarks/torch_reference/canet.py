"""CANet in both forms."""

# pyright: reportMissingImports=false
# (PyTorch is no dependency.)

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn import Conv2d, ModuleDict, ModuleList

from fsseg_jax.benchmarks.torch_reference.backbones import ResNet50, convolution, fold_normalisation
from fsseg_jax.benchmarks.torch_reference.reference import Batch, Reference, Straightforward, Tuned
from fsseg_jax.episode import IGNORE

DROPOUT, REFINEMENTS = 0.5, 4


class _CANet(Reference):
    """The layers, applied to any number of episodes.

    Two things that cost no time are left out: the table of earlier predictions (training begins
    from none, as ours does with an empty table), and our remedy for masks that vanish between the
    positions of the features.
    """

    align_corners, epsilon, dropout = True, 5e-4, DROPOUT

    def _layers(self) -> ModuleDict:
        def pair(before: int) -> ModuleList:
            return ModuleList([convolution(before, 256), convolution(256, 256)])

        branches = [convolution(256, 256, 1), convolution(256, 256, 1)]
        branches += [convolution(256, 256, dilation=dilation) for dilation in (6, 12, 18)]
        layers = {
            "backbone": ResNet50(layers=3).requires_grad_(False),
            "embedding": convolution(512 + 1024, 256, dilation=2),
            "comparison": convolution(2 * 256, 256, dilation=2),
            "blocks": ModuleList([pair(256 + 2), pair(256), pair(256)]),
            "aspp": ModuleList([*branches, convolution(5 * 256, 256, 1)]),
            "classifier": convolution(256, 2, 1),
        }
        if self.shots > 1:
            layers["attention"] = ModuleList([convolution(2 * 256, 256), convolution(256, 1)])
        return ModuleDict(layers)

    def _encode(self, image: Float[Tensor, "n 3 H W"], train: bool) -> Float[Tensor, "n 256 h w"]:
        with torch.no_grad():
            features = torch.cat(self.network["backbone"](image)[1:], dim=1)  # layer2 and layer3
        return self._drop(F.relu(self.network["embedding"](features)), train)

    def _drop(self, x: Tensor, train: bool) -> Tensor:
        return F.dropout2d(x, self.dropout) if train and self.dropout else x

    def _compare(self, pairs: Float[Tensor, "n 512 h w"], train: bool) -> Tensor:
        return self._drop(F.relu(self.network["comparison"](pairs)), train)

    def _attend(self, pairs: Float[Tensor, "n 512 h w"]) -> Float[Tensor, " n"]:
        first, second = self.network["attention"]
        x = F.max_pool2d(F.relu(first(pairs)), 3, 2, padding=1)
        return second(x).float().mean((1, 2, 3))

    def _refine(self, compared: Float[Tensor, "n 256 h w"], train: bool) -> Tensor:
        n, _, h, w = compared.shape
        prediction = torch.zeros(n, 2, h, w, device=self.device, dtype=compared.dtype)
        for _ in range(1 if train else 1 + REFINEMENTS):
            logits = self._optimize(compared, prediction, train).float()
            prediction = logits.softmax(dim=1).to(compared.dtype)
        return logits

    def _optimize(self, compared: Tensor, prediction: Tensor, train: bool) -> Tensor:
        x, inner = compared, torch.cat([compared, prediction], dim=1)
        for first, second in self.network["blocks"]:
            x = x + second(F.relu(first(F.relu(inner))))
            inner = x
        *branches, last = self.network["aspp"]

        def branch(convolution: Conv2d, x: Tensor) -> Tensor:
            return self._drop(F.relu(convolution(x)), train)

        image = branch(branches[0], x.mean((2, 3), keepdim=True)).expand_as(x)
        outputs = [image, *(branch(convolution, x) for convolution in branches[1:])]
        return self.network["classifier"](branch(last, torch.cat(outputs, dim=1)))


class StraightforwardCANet(_CANet, Straightforward):
    """One shot after another."""

    def _logits(self, episode: Batch, train: bool = False) -> Tensor:
        features = self._encode(episode.image, train)
        query, size = features[-1:], features.shape[-2:]
        compared, scores = [], []
        for shot, label in enumerate(episode.support_label):
            mask = (label == 1).float()[None, None]
            mask = F.interpolate(mask, size, mode="bilinear", align_corners=True)
            total = (features[shot : shot + 1] * mask).sum((2, 3), keepdim=True)
            vector = total / (mask.sum() + self.epsilon)
            pair = torch.cat([query, vector.expand_as(query)], dim=1)
            compared.append(self._compare(pair, train))
            if self.shots > 1:
                scores.append(self._attend(pair))
        if self.shots > 1:
            weights = torch.stack(scores).softmax(dim=0)
            compared = [x * weight for x, weight in zip(compared, weights, strict=True)]
        return self._refine(sum(compared[1:], compared[0]), train)

    def _loss(self, episode: Batch) -> Tensor:
        large = self._enlarge(self._logits(episode, train=True))
        return F.cross_entropy(large, episode.query_label[None], ignore_index=IGNORE)


class TunedCANet(_CANet, Tuned):
    """All shots of all episodes at once, on a frozen backbone whose normalisation is folded."""

    def _install(self, network: ModuleDict) -> None:
        fold_normalisation(network.eval())
        # Autocast would convert the weights, which need no gradient, anew at every step.
        network["backbone"].to(self.dtype)
        super()._install(network)

    def _batch_logits(self, batch: Batch, train: bool = False) -> Tensor:
        with self._autocast():
            images = batch.image.flatten(0, 1).to(self.dtype)
            features = self._encode(images, train).unflatten(0, batch.image.shape[:2])
            supports, query = features[:, :-1], features[:, -1:].expand_as(features[:, :-1])
            vectors = self._pool(supports, batch.support_label).to(features.dtype)
            tiled = vectors[..., None, None].expand_as(query)
            pairs = torch.cat([query, tiled], dim=2).flatten(0, 1)
            pairs = pairs.contiguous(memory_format=torch.channels_last)
            compared = self._compare(pairs, train)
            if self.shots > 1:
                weights = self._attend(pairs).unflatten(0, vectors.shape[:2]).softmax(dim=1)
                weights = weights[..., None, None, None].to(compared.dtype)
                compared = (compared.unflatten(0, vectors.shape[:2]) * weights).sum(dim=1)
            return self._refine(compared, train)

    def _batch_loss(self, batch: Batch) -> Tensor:
        return self._cross_entropy(self._batch_logits(batch, train=True), batch.query_label).mean()

    def _pool(self, features: Tensor, label: Tensor) -> Float[Tensor, "episode shot c"]:
        with self._autocast(enabled=False):
            size = features.shape[-2:]
            masks = F.interpolate((label == 1).float(), size, mode="bilinear", align_corners=True)
            total = torch.einsum("bkchw,bkhw->bkc", features.float(), masks)
            return total / (masks.sum((-2, -1))[..., None] + self.epsilon)
