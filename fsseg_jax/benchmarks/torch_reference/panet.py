"""PANet in both forms."""

# pyright: reportMissingImports=false
# (PyTorch is no dependency.)

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.nn import ModuleDict

from fsseg_jax.benchmarks.torch_reference.backbones import vgg16
from fsseg_jax.benchmarks.torch_reference.reference import Batch, Reference, Straightforward, Tuned
from fsseg_jax.episode import IGNORE
from fsseg_jax.models.resize import interpolation_matrix

ALIGNMENT_WEIGHT = 1.0


@dataclasses.dataclass(frozen=True)
class Equations:
    """PANet's equations for one episode of any number of ways, shot by shot.

    Features are enlarged anew for each mask that they are pooled under.
    """

    scale: float = 20.0
    epsilon: float = 1e-5  # added to areas
    align_corners: bool = False
    ignored_is_background: bool = True

    def logits(
        self,
        supports: Iterable[Iterable[Float[Tensor, "c h w"]]],  # of each way
        support_label: Integer[Tensor, "way shot height width"],
        query: Float[Tensor, "c h w"],
    ) -> Float[Tensor, "class h w"]:
        """What the softmax of eq. 3 takes, from the prototypes of eq. 1 and 2."""
        background, foreground = [], []
        for way, shots in enumerate(zip(supports, support_label, strict=True), start=1):
            pooled = []
            for features, label in zip(*shots, strict=True):
                pooled.append(self._pool(features, label == way))
                background.append(self._pool(features, self._background(label)))
            foreground.append(sum(pooled) / len(pooled))
        return self._compare(query, [sum(background) / len(background), *foreground])

    def alignment(
        self,
        supports: Iterable[Iterable[Float[Tensor, "c h w"]]],  # of each way
        support_label: Integer[Tensor, "way shot height width"],
        query: Float[Tensor, "c h w"],
        logits: Float[Tensor, "class h w"],
    ) -> Float[Tensor, ""]:
        """Eq. 7: the loss of supports that prototypes of the query, under its prediction (eq. 4),
        segment."""
        loss, winner = logits.new_zeros(()), logits.argmax(dim=0)
        for way, shots in enumerate(zip(supports, support_label, strict=True), start=1):
            if not (winner == way).any():
                continue
            prototypes = [self._average(query, winner == index) for index in (0, way)]
            for features, label in zip(*shots, strict=True):
                target = torch.full_like(label, IGNORE)
                target[self._background(label)] = 0
                target[label == way] = 1
                score = self.score(self._compare(features, prototypes), target)  # eq. 6
                loss = loss + score / support_label[..., 0, 0].numel()
        return loss

    def score(
        self, logits: Float[Tensor, "class h w"], label: Integer[Tensor, "height width"]
    ) -> Float[Tensor, ""]:
        """Eq. 5: the cross-entropy at the size of the label."""
        large = self._enlarge(logits, label.shape)
        return F.cross_entropy(large[None], label[None].long(), ignore_index=IGNORE)

    def _background(self, label: Tensor) -> Bool[Tensor, "height width"]:
        return (label == 0) | (label == IGNORE) if self.ignored_is_background else label == 0

    def _enlarge(self, maps: Tensor, shape: torch.Size) -> Float[Tensor, "c height width"]:
        options = {"mode": "bilinear", "align_corners": self.align_corners}
        return F.interpolate(maps[None], tuple(shape), **options)[0]

    def _pool(self, features: Tensor, mask: Tensor) -> Float[Tensor, " c"]:
        return self._average(self._enlarge(features, mask.shape), mask)

    def _average(self, features: Tensor, mask: Tensor) -> Float[Tensor, " c"]:
        mask = mask.to(features.dtype)
        return (features * mask).sum((-2, -1)) / (mask.sum() + self.epsilon)

    def _compare(self, features: Tensor, prototypes: list[Any]) -> Float[Tensor, "class h w"]:
        return self.scale * torch.stack(
            [F.cosine_similarity(features, p[:, None, None], dim=0) for p in prototypes]
        )


EQUATIONS = Equations()


class _PANet(Reference):
    align_corners = EQUATIONS.align_corners

    def _layers(self) -> ModuleDict:
        return ModuleDict({"backbone": ModuleDict({"features": vgg16()})})

    def _encode(self, image: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 512 h w"]:
        return self.network["backbone"]["features"](image)


class StraightforwardPANet(_PANet, Straightforward):
    """The equations, as they are written."""

    def _logits(self, episode: Batch) -> Tensor:
        features = self._encode(episode.image)
        return EQUATIONS.logits(features[None, :-1], episode.support_label[None], features[-1])[
            None
        ]

    def _loss(self, episode: Batch) -> Tensor:
        features = self._encode(episode.image)
        known = features[None, :-1], episode.support_label[None], features[-1]
        logits = EQUATIONS.logits(*known)
        alignment = EQUATIONS.alignment(*known, logits)
        return EQUATIONS.score(logits, episode.query_label) + ALIGNMENT_WEIGHT * alignment


class TunedPANet(_PANet, Tuned):
    """Masks are pulled to the features' resolution instead, and all episodes are one product."""

    scale, epsilon = EQUATIONS.scale, EQUATIONS.epsilon

    def __init__(self, image_size: int, *arguments: Any) -> None:
        super().__init__(image_size, *arguments)
        # Enlarging is linear: its transpose takes masks to the resolution of the features.
        matrix = interpolation_matrix(-(-image_size // 8), image_size, self.align_corners)
        self._matrix = torch.tensor(matrix, device=self.device)

    def _features(self, batch: Batch) -> Float[Tensor, "episode image c h w"]:
        with self._autocast():
            features = self._encode(batch.image.flatten(0, 1))
        return features.float().unflatten(0, batch.image.shape[:2])

    def _batch_logits(self, batch: Batch) -> Tensor:
        return self._segment(self._features(batch), batch.support_label)[0]

    def _batch_loss(self, batch: Batch) -> Tensor:
        features, label = self._features(batch), batch.support_label
        logits, unit = self._segment(features, label)
        segmentation = self._cross_entropy(logits, batch.query_label)

        # The supports segmented by prototypes of the query under its prediction.
        masks = torch.stack([logits[:, 1] <= logits[:, 0], logits[:, 1] > logits[:, 0]], dim=1)
        areas = masks.sum((-2, -1))
        pooled = torch.einsum("bchw,bmhw->bmc", features[:, -1], masks.float())
        prototypes = F.normalize(pooled / (areas[..., None] + self.epsilon), dim=-1, eps=1e-8)
        support_logits = self.scale * torch.einsum("bkchw,bmc->bkmhw", unit[:, :-1], prototypes)
        target = torch.where(label == IGNORE, 0, torch.where(label > 1, IGNORE, label))
        alignment = self._cross_entropy(support_logits.flatten(0, 1), target.flatten(0, 1))
        alignment = alignment.unflatten(0, label.shape[:2]).mean(dim=1) * (areas[:, 1] > 0)
        return (segmentation + ALIGNMENT_WEIGHT * alignment).mean()

    def _segment(self, features: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the features divided by their norms."""
        masks = torch.stack([(label == 0) | (label == IGNORE), label == 1], dim=2).float()
        weights = self._matrix.T @ masks @ self._matrix
        pooled = torch.einsum("bkchw,bkmhw->bkmc", features[:, :-1], weights)
        prototypes = pooled / (masks.sum((-2, -1))[..., None] + self.epsilon)
        prototypes = F.normalize(prototypes.mean(dim=1), dim=-1, eps=1e-8)
        unit = F.normalize(features, dim=2, eps=1e-8)
        return self.scale * torch.einsum("bchw,bmc->bmhw", unit[:, -1], prototypes), unit
