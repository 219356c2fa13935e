"""What the methods and forms share: weights, episodes as tensors, prediction, training steps."""

# pyright: reportMissingImports=false
# (PyTorch is no dependency.)

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from flax.traverse_util import flatten_dict
from jaxtyping import Float, Int, Integer
from torch import Tensor
from torch.nn import ModuleDict

from fsseg_jax.episode import IGNORE, IMAGENET_MEAN, IMAGENET_STD, Episode, normalise
from fsseg_jax.errors import UserError

# Flax's names of arrays, and PyTorch's.
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
SGD = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}


def state_dict(variables: dict[str, Any]) -> dict[str, Tensor]:
    """Our variables of a method or backbone, under PyTorch's names."""
    weights = {}
    for (_, *layer, leaf), value in flatten_dict(variables).items():
        name = re.sub(r"\.Conv_|_(?=\d)", ".", ".".join(layer))
        array = np.asarray(value, np.float32)
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        weights[f"{name}.{_LEAVES.get(leaf, leaf)}"] = torch.tensor(array).contiguous()
    return weights


class Batch(NamedTuple):
    """Episodes on the device, as `Reference.prepare` makes them."""

    image: Float[Tensor, "episode image 3 height width"]  # normalised; the query is last
    support_label: Integer[Tensor, "episode shot height width"]
    query_label: Int[Tensor, "episode height width"]


class Reference:
    """A method with its weights and its optimizer; see `torch_reference.build` for the arguments.

    Attributes:
        network: the layers, named as in our variables and, in the backbone, as in torchvision.
        dropout: probability with which training drops a channel; set it to 0 to compare losses.
    """

    align_corners: bool  # the corner convention of masks and logits
    dropout = 0.0
    network: Any

    def __init__(
        self, image_size: int, shots: int, device: torch.device, dtype: torch.dtype, compile: bool
    ) -> None:
        self.image_size, self.shots = image_size, shots
        self.device, self.dtype = device, dtype
        self._optimizer = None
        self._install(self._layers())
        if compile:
            self._predict_batch = torch.compile(self._predict_batch, dynamic=False)
            self._batch_loss = torch.compile(self._batch_loss, dynamic=False)

    def load(self, variables: dict[str, Any]) -> None:
        """Takes the values of our variables of the method, and resets the optimizer."""
        network = self._layers()
        network.load_state_dict(state_dict(variables))
        self._install(network)

    def prepare(self, batch: Episode) -> Batch:
        """Episodes of uint8 NumPy arrays, with a batch axis, as floats on the device.

        Raises:
            UserError: their number of ways or shots, or their size, is not that of the reference.
        """
        expected = (1, self.shots, self.image_size, self.image_size)
        if batch.support_label.shape[1:] != expected:
            raise UserError(
                f"supports have the shape {batch.support_label.shape[1:]} (way, shot, height, "
                f"width), but the reference was built for {expected}: build another one."
            )
        images = np.concatenate([batch.support_image[:, 0], batch.query_image[:, None]], axis=1)
        labels = (batch.support_label[:, 0], batch.query_label)
        labels = [torch.from_numpy(label).to(self.device).long() for label in labels]
        return Batch(self._images(images), *labels)

    def predict(self, batch: Episode | Batch) -> Int[Tensor, "episode height width"]:
        """Class indices of the queries, 0 or 1, on the device."""
        with torch.inference_mode():
            return self._predict_batch(self._prepared(batch))

    def forward(self, batch: Episode | Batch) -> Float[Tensor, "episode 2 h w"]:
        """The logits behind `predict`, at the resolution of the features."""
        with torch.inference_mode():
            return self._batch_logits(self._prepared(batch))

    def loss(self, batch: Episode | Batch) -> Float[Tensor, ""]:
        """Mean of the episodes' training losses, for `backward`."""
        return self._batch_loss(self._prepared(batch))

    def train_step(self, batch: Episode | Batch) -> Float[Tensor, ""]:
        """Takes one step of SGD on the batch, and returns its loss on the device."""
        batch = self._prepared(batch)
        if self._optimizer is None:
            self._optimizer = self._create_optimizer()
        self._optimizer.zero_grad()
        loss = self._backward(batch)
        self._optimizer.step()
        return loss

    def synchronize(self) -> None:
        """Waits until the device has done all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # What methods and forms implement.

    def _layers(self) -> ModuleDict:
        raise NotImplementedError

    def _images(self, images: np.ndarray) -> Tensor:
        raise NotImplementedError

    def _batch_logits(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def _batch_loss(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    # What they share, or override.

    def _install(self, network: ModuleDict) -> None:
        # Training too normalises by stored statistics, hence `eval`.
        self.network, self._optimizer = network.eval().to(self.device), None

    def _backward(self, batch: Batch) -> Tensor:
        loss = self._batch_loss(batch)
        loss.backward()
        return loss.detach()

    def _create_optimizer(self, **options: bool) -> torch.optim.SGD:
        trained = [x for x in self.network.parameters() if x.requires_grad]
        return torch.optim.SGD(trained, **SGD, **options)

    def _prepared(self, batch: Episode | Batch) -> Batch:
        return batch if isinstance(batch, Batch) else self.prepare(batch)

    def _predict_batch(self, batch: Batch) -> Tensor:
        return self._enlarge(self._batch_logits(batch)).argmax(dim=1)

    def _enlarge(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c height width"]:
        size = (self.image_size, self.image_size)
        return F.interpolate(maps, size, mode="bilinear", align_corners=self.align_corners)


class Straightforward(Reference):
    """One episode at a time; gradients of the episodes add up."""

    def _images(self, images: np.ndarray) -> Tensor:
        images = np.moveaxis(np.asarray(normalise(images)), -1, -3)
        return torch.from_numpy(np.ascontiguousarray(images)).to(self.device)

    def _predict_batch(self, batch: Batch) -> Tensor:
        logits = (self._logits(episode) for episode in self._episodes(batch))
        return torch.cat([self._enlarge(one).argmax(dim=1) for one in logits])

    def _batch_logits(self, batch: Batch) -> Tensor:
        return torch.cat([self._logits(episode) for episode in self._episodes(batch)])

    def _batch_loss(self, batch: Batch) -> Tensor:
        return torch.stack([self._loss(episode) for episode in self._episodes(batch)]).mean()

    def _backward(self, batch: Batch) -> Tensor:
        total = torch.zeros((), device=self.device)
        for episode in self._episodes(batch):
            loss = self._loss(episode) / len(batch.image)
            loss.backward()
            total += loss.detach()
        return total

    def _episodes(self, batch: Batch) -> Iterator[Batch]:
        """The episodes without the batch axis."""
        return map(Batch._make, zip(*batch, strict=True))

    def _logits(self, episode: Batch) -> Float[Tensor, "1 2 h w"]:
        raise NotImplementedError

    def _loss(self, episode: Batch) -> Float[Tensor, ""]:
        raise NotImplementedError


class Tuned(Reference):
    """The whole batch at once, `channels_last`, convolutions in the chosen dtype."""

    def _install(self, network: Any) -> None:
        super()._install(network.to(memory_format=torch.channels_last))

    def _images(self, images: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(images).to(self.device)  # a quarter of the floats' bytes
        mean = torch.tensor(IMAGENET_MEAN, device=self.device)
        deviation = torch.tensor(IMAGENET_STD, device=self.device)
        # Colours stay last in memory: this is the `channels_last` format.
        return ((pixels / 255.0 - mean) / deviation).movedim(-1, -3)

    def _create_optimizer(self) -> torch.optim.SGD:
        return super()._create_optimizer(**({"fused": True} if self.device.type == "cuda" else {}))

    def _autocast(self, enabled: bool = True) -> torch.autocast:
        enabled = enabled and self.dtype != torch.float32
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _cross_entropy(self, logits: Tensor, label: Tensor) -> Float[Tensor, " n"]:
        """The mean over the counted pixels of each image."""
        losses = F.cross_entropy(
            self._enlarge(logits.float()), label, ignore_index=IGNORE, reduction="none"
        )
        return losses.sum((-2, -1)) / (label != IGNORE).sum((-2, -1)).clamp(min=1)
