"""PANet and CANet in plain PyTorch: what the library's speed is compared with.

Each method comes in two forms that compute the same function as ours. The "straightforward" one
is organised as the published codes are: one episode at a time, features enlarged to the mask
before they are pooled, loops over shots. The "tuned" one is what somebody who knows PyTorch well
would make of it: whole batches, `channels_last`, bfloat16, `torch.compile`, a frozen backbone with
its normalisation folded into the convolutions.

PyTorch is imported when the first reference is built, never with this module: its CUDA libraries
and JAX's need not be in one process, and the package does not depend on it.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Float, Int

from fsseg_jax.backbones.resnet import LAYERS
from fsseg_jax.backbones.vgg import STAGES
from fsseg_jax.episode import IGNORE, IMAGENET_MEAN, IMAGENET_STD, Episode, normalise
from fsseg_jax.errors import UserError
from fsseg_jax.models.canet import CANet
from fsseg_jax.models.panet import PANet
from fsseg_jax.models.resize import interpolation_matrix

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor
    from torch.nn import Conv2d, ModuleDict, Sequential

METHODS = ("panet", "canet")


def available() -> bool:
    """Whether PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


def build(
    method: str,
    *,
    tuned: bool,
    image_size: int,
    shots: int = 1,
    device: str = "cpu",
    dtype: str = "float32",
    compile: bool = False,
    learning_rate: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
) -> Reference:
    """A method in PyTorch with random weights; see `Reference.load`.

    On a GPU this lets cuDNN try its algorithms (`torch.backends.cudnn.benchmark`), for the whole
    process, as PANet's published code does.

    Args:
        method: one of `METHODS`.
        tuned: which of the two forms.
        image_size: height and width of photographs and labels.
        shots: supports an episode; there is one way.
        device: as PyTorch names it.
        dtype: float32, or bfloat16 of the tuned form's convolutions.
        compile: `torch.compile` the tuned form: prediction, and forward pass with loss.
        learning_rate, momentum, weight_decay: of SGD.

    Raises:
        UserError: PyTorch is absent, or there is no such method, type or form.
    """
    if not available():
        raise UserError("the PyTorch reference needs PyTorch: pip install torch.")
    if method not in METHODS:
        raise UserError(f"method = {method!r}: choose {' or '.join(METHODS)}.")
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype = {dtype!r}: choose float32 or bfloat16.")
    if not tuned and (dtype != "float32" or compile):
        raise UserError("the straightforward form is float32 and not compiled: set tuned = True.")
    _import_torch()
    torch.backends.cudnn.benchmark = True
    optimizer = {"lr": learning_rate, "momentum": momentum, "weight_decay": weight_decay}
    form = _FORMS[method, tuned]
    return form(image_size, shots, torch.device(device), getattr(torch, dtype), compile, optimizer)


def _import_torch() -> None:
    """Makes PyTorch the `torch` and `F` of this module."""
    global torch, F
    import torch
    import torch.nn.functional as F


class Batch(NamedTuple):
    """Episodes on the device, as `Reference.prepare` makes them."""

    image: Float[Tensor, "episode photograph 3 height width"]  # normalised; the query is last
    support_label: Int[Tensor, "episode shot height width"]
    query_label: Int[Tensor, "episode height width"]


class Reference:
    """A method with its weights and its optimizer; `build` makes one.

    Attributes:
        network: the layers, named as in our variables, and as torchvision names the backbone's.
        dropout: probability with which training drops a channel; 0 compares losses.
    """

    align_corners: bool  # the corner convention of masks and logits
    dropout = 0.0
    network: Any

    def __init__(
        self,
        image_size: int,
        shots: int,
        device: torch.device,
        dtype: torch.dtype,
        compile: bool,
        optimizer: dict[str, float],
    ) -> None:
        self.image_size, self.shots = image_size, shots
        self.device, self.dtype = device, dtype
        self._options, self._optimizer = optimizer, None
        self._install(self._layers())
        if compile:
            self._predict_batch = torch.compile(self._predict_batch, dynamic=False)
            self._batch_loss = torch.compile(self._batch_loss, dynamic=False)

    def load(self, variables: dict[str, Any]) -> None:
        """Takes the values of our variables of the method; the optimizer starts anew."""
        weights = {}
        for (_, *layer, leaf), value in flatten_dict(variables).items():
            name = re.sub(r"\.Conv_|_(?=\d)", ".", ".".join(layer))
            array = np.asarray(value, np.float32)
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
            name = f"{name}.{_LEAVES.get(leaf, leaf)}"
            weights[name] = torch.tensor(array)
        network = self._layers()
        network.load_state_dict(weights)
        self._install(network)

    def prepare(self, batch: Episode) -> Batch:
        """Episodes of uint8 NumPy arrays, with a batch axis, as floats on the device.

        Raises:
            UserError: they have several ways, or not the shots or the size of the reference.
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
        return Batch(self._photographs(images), *labels)

    def predict(self, batch: Episode | Batch) -> Int[Tensor, "episode height width"]:
        """Class indices of the queries, 0 or 1, on the device."""
        with torch.inference_mode():
            return self._predict_batch(self._prepared(batch))

    def forward(self, batch: Episode | Batch) -> Float[Tensor, "episode 2 h w"]:
        """The logits at the features' resolution that `predict` decides by."""
        with torch.inference_mode():
            return self._batch_logits(self._prepared(batch))

    def loss(self, batch: Episode | Batch) -> Float[Tensor, ""]:
        """Mean of the episodes' training losses, for `backward`."""
        return self._batch_loss(self._prepared(batch))

    def train_step(self, batch: Episode | Batch) -> Float[Tensor, ""]:
        """One step of SGD on the batch; its loss, on the device."""
        batch = self._prepared(batch)
        if self._optimizer is None:
            self._optimizer = self._create_optimizer()
        self._optimizer.zero_grad()
        loss = self._backward(batch)
        self._optimizer.step()
        return loss

    def synchronize(self) -> None:
        """Waits until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # What the methods and forms differ in.

    def _layers(self) -> ModuleDict:
        raise NotImplementedError

    def _install(self, network: ModuleDict) -> None:
        # Normalisation is by stored statistics in training too, hence `eval`.
        self.network, self._optimizer = network.eval().to(self.device), None

    def _photographs(self, images: np.ndarray) -> Tensor:
        raise NotImplementedError

    def _batch_logits(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def _batch_loss(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def _backward(self, batch: Batch) -> Tensor:
        loss = self._batch_loss(batch)
        loss.backward()
        return loss.detach()

    def _create_optimizer(self, **options: bool) -> torch.optim.SGD:
        trained = [x for x in self.network.parameters() if x.requires_grad]
        return torch.optim.SGD(trained, **self._options, **options)

    # What they share.

    def _prepared(self, batch: Episode | Batch) -> Batch:
        return batch if isinstance(batch, Batch) else self.prepare(batch)

    def _predict_batch(self, batch: Batch) -> Tensor:
        return self._enlarge(self._batch_logits(batch)).argmax(dim=1)

    def _enlarge(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c height width"]:
        size = (self.image_size, self.image_size)
        return F.interpolate(maps, size, mode="bilinear", align_corners=self.align_corners)


# Flax's names of arrays, and PyTorch's.
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


class _Straightforward(Reference):
    """One episode at a time; gradients of the episodes add up."""

    def _photographs(self, images: np.ndarray) -> Tensor:
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
        """Each of them without the batch axis."""
        return map(Batch._make, zip(*batch, strict=True))

    def _logits(self, episode: Batch) -> Float[Tensor, "1 2 h w"]:
        raise NotImplementedError

    def _loss(self, episode: Batch) -> Float[Tensor, ""]:
        raise NotImplementedError

    def _score(self, logits: Tensor, label: Tensor) -> Float[Tensor, ""]:
        return F.cross_entropy(self._enlarge(logits), label[None], ignore_index=IGNORE)


class _Tuned(Reference):
    """The whole batch at once, `channels_last`, convolutions in the type of choice."""

    def _install(self, network: Any) -> None:
        super()._install(network.to(memory_format=torch.channels_last))

    def _photographs(self, images: np.ndarray) -> Tensor:
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
        """The mean of each one's own counted pixels."""
        losses = F.cross_entropy(
            self._enlarge(logits.float()), label, ignore_index=IGNORE, reduction="none"
        )
        return losses.sum((-2, -1)) / (label != IGNORE).sum((-2, -1)).clamp(min=1)


# ----------------------------------------------------------------------------- PANet


class _PANet(Reference):
    align_corners, scale, epsilon = PANet.align_corners, PANet.similarity_scale, PANet.area_epsilon

    def _layers(self) -> ModuleDict:
        return torch.nn.ModuleDict({"backbone": torch.nn.ModuleDict({"features": _vgg16()})})

    def _encode(self, image: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 512 h w"]:
        return self.network["backbone"]["features"](image)


def _vgg16() -> Sequential:
    """VGG-16 as PANet changes it; the layers' numbers are torchvision's."""
    layers, before = [], 3
    for channels, dilation, stride in STAGES:
        for width in channels:
            layers.append(_convolution(before, width, dilation=dilation))
            layers.append(torch.nn.ReLU(inplace=True))
            before = width
        if stride is not None:
            layers.append(torch.nn.MaxPool2d(3, stride, padding=1))
    return torch.nn.Sequential(*layers[:-1])  # no ReLU at the end


def _convolution(
    before: int, after: int, size: int = 3, stride: int = 1, dilation: int = 1, bias: bool = True
) -> Conv2d:
    padding = dilation * (size // 2)
    return torch.nn.Conv2d(before, after, size, stride, padding, dilation, bias=bias)


class _StraightforwardPANet(_PANet, _Straightforward):
    """Features are enlarged anew for each mask that they are pooled under."""

    def _logits(self, episode: Batch) -> Tensor:
        return self._segment(self._encode(episode.image), episode.support_label)

    def _loss(self, episode: Batch) -> Tensor:
        features = self._encode(episode.image)
        logits = self._segment(features, episode.support_label)
        alignment = self._alignment(features, episode.support_label, logits)
        return self._score(logits, episode.query_label) + PANet.alignment_weight * alignment

    def _segment(self, features: Tensor, support_label: Tensor) -> Tensor:
        background, foreground = [], []
        for shot, label in enumerate(support_label):
            support = features[shot : shot + 1]
            foreground.append(self._pool(support, label == 1))
            background.append(self._pool(support, (label == 0) | (label == IGNORE)))
        prototypes: list[Any] = [sum(pooled) / self.shots for pooled in (background, foreground)]
        return self._compare(features[-1:], prototypes)

    def _alignment(self, features: Tensor, support_label: Tensor, logits: Tensor) -> Tensor:
        """The supports segmented by the query under its prediction."""
        loss = torch.zeros((), device=self.device)
        winner = logits.argmax(dim=1)
        if not winner.any():
            return loss
        prototypes = [self._average(features[-1:], winner == index) for index in (0, 1)]
        for shot, label in enumerate(support_label):
            target = torch.full_like(label, IGNORE)
            target[(label == 0) | (label == IGNORE)] = 0
            target[label == 1] = 1
            support_logits = self._compare(features[shot : shot + 1], prototypes)
            loss = loss + self._score(support_logits, target) / self.shots
        return loss

    def _pool(self, features: Tensor, mask: Tensor) -> Float[Tensor, "1 c"]:
        return self._average(self._enlarge(features), mask)

    def _average(self, features: Tensor, mask: Tensor) -> Float[Tensor, "1 c"]:
        mask = mask.float()
        return (features * mask).sum((-2, -1)) / (mask.sum() + self.epsilon)

    def _compare(self, features: Tensor, prototypes: list[Tensor]) -> Float[Tensor, "1 2 h w"]:
        distances = [
            F.cosine_similarity(features, prototype[..., None, None], dim=1)
            for prototype in prototypes
        ]
        return self.scale * torch.stack(distances, dim=1)


class _TunedPANet(_PANet, _Tuned):
    """Masks are pulled to the features' resolution instead, and all episodes are one product."""

    def __init__(self, image_size: int, *arguments: Any) -> None:
        super().__init__(image_size, *arguments)
        # Enlarging is linear: its transpose takes masks to the resolution of the features.
        matrix = interpolation_matrix(-(-image_size // 8), image_size, self.align_corners)
        self._matrix = torch.tensor(matrix, device=self.device)

    def _features(self, batch: Batch) -> Float[Tensor, "episode photograph c h w"]:
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
        return (segmentation + PANet.alignment_weight * alignment).mean()

    def _segment(self, features: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the features divided by their norms."""
        masks = torch.stack([(label == 0) | (label == IGNORE), label == 1], dim=2).float()
        weights = self._matrix.T @ masks @ self._matrix
        pooled = torch.einsum("bkchw,bkmhw->bkmc", features[:, :-1], weights)
        prototypes = pooled / (masks.sum((-2, -1))[..., None] + self.epsilon)
        prototypes = F.normalize(prototypes.mean(dim=1), dim=-1, eps=1e-8)
        unit = F.normalize(features, dim=2, eps=1e-8)
        return self.scale * torch.einsum("bchw,bmc->bmhw", unit[:, -1], prototypes), unit


# ----------------------------------------------------------------------------- CANet


class _CANet(Reference):
    """What both forms share works on any number of episodes.

    Two things that cost nothing are left out: the table of earlier predictions (training begins
    from none, as it does in ours with an empty table), and our remedy for masks that vanish
    between the features' positions.
    """

    align_corners, epsilon = CANet.align_corners, CANet.area_epsilon
    dropout = CANet.dropout

    def _layers(self) -> ModuleDict:
        def pair(before: int) -> torch.nn.ModuleList:
            return torch.nn.ModuleList([_convolution(before, 256), _convolution(256, 256)])

        branches = [_convolution(256, 256, 1), _convolution(256, 256, 1)]
        branches += [_convolution(256, 256, dilation=dilation) for dilation in (6, 12, 18)]
        layers = {
            "backbone": _resnet50(layers=3).requires_grad_(False),
            "embedding": _convolution(512 + 1024, 256, dilation=2),
            "comparison": _convolution(2 * 256, 256, dilation=2),
            "blocks": torch.nn.ModuleList([pair(256 + 2), pair(256), pair(256)]),
            "aspp": torch.nn.ModuleList([*branches, _convolution(5 * 256, 256, 1)]),
            "classifier": _convolution(256, 2, 1),
        }
        if self.shots > 1:
            attention = [_convolution(2 * 256, 256), _convolution(256, 1)]
            layers["attention"] = torch.nn.ModuleList(attention)
        return torch.nn.ModuleDict(layers)

    def _encode(self, image: Float[Tensor, "n 3 H W"], train: bool) -> Float[Tensor, "n 256 h w"]:
        with torch.no_grad():
            features = torch.cat(_layer2_and_layer3(self.network["backbone"], image), dim=1)
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
        for _ in range(1 if train else 1 + CANet.refinements):
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


def _resnet50(layers: int) -> ModuleDict:
    """The stem and the first `layers` layers at stride 8; names are torchvision's."""
    network = {"conv1": _convolution(3, 64, 7, 2, bias=False), "bn1": torch.nn.BatchNorm2d(64)}
    before = 64
    for number, (blocks, width, stride, dilation) in enumerate(LAYERS[:layers], start=1):
        parts = []
        for block in range(blocks):
            step = stride if block == 0 else 1
            part = {
                "conv1": _convolution(before, width, 1, bias=False),
                "bn1": torch.nn.BatchNorm2d(width),
                "conv2": _convolution(width, width, 3, step, dilation, bias=False),
                "bn2": torch.nn.BatchNorm2d(width),
                "conv3": _convolution(width, 4 * width, 1, bias=False),
                "bn3": torch.nn.BatchNorm2d(4 * width),
            }
            if block == 0:
                part["downsample"] = torch.nn.Sequential(
                    _convolution(before, 4 * width, 1, step, bias=False),
                    torch.nn.BatchNorm2d(4 * width),
                )
            parts.append(torch.nn.ModuleDict(part))
            before = 4 * width
        network[f"layer{number}"] = torch.nn.ModuleList(parts)
    return torch.nn.ModuleDict(network)


def _layer2_and_layer3(network: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    x = F.relu(network["bn1"](network["conv1"](image)), inplace=True)
    x = F.max_pool2d(x, 3, 2, padding=1)
    outputs = []
    for number in (1, 2, 3):
        for block in network[f"layer{number}"]:
            y = F.relu(block["bn1"](block["conv1"](x)), inplace=True)
            y = F.relu(block["bn2"](block["conv2"](y)), inplace=True)
            y = block["bn3"](block["conv3"](y))
            x = F.relu(y + (block["downsample"](x) if "downsample" in block else x), inplace=True)
        outputs.append(x)
    return outputs[1], outputs[2]


class _StraightforwardCANet(_CANet, _Straightforward):
    """One shot after the other."""

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
        return self._score(self._logits(episode, train=True), episode.query_label)


class _TunedCANet(_CANet, _Tuned):
    """All shots of all episodes at once; the frozen backbone has no normalisation any more."""

    def _install(self, network: ModuleDict) -> None:
        _fold_normalisation(network.eval())
        # Autocast would convert weights that need no gradient anew at every step.
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


def _fold_normalisation(network: Any) -> None:
    """Makes every normalisation by stored statistics part of the convolution before it."""
    for module in list(network.modules()):
        for (name, first), (next_name, second) in itertools.pairwise(module.named_children()):
            if isinstance(second, torch.nn.BatchNorm2d):
                fused = torch.nn.utils.fusion.fuse_conv_bn_eval(first, second)
                setattr(module, name, fused)
                setattr(module, next_name, torch.nn.Identity())


_FORMS = {
    ("panet", False): _StraightforwardPANet,
    ("panet", True): _TunedPANet,
    ("canet", False): _StraightforwardCANet,
    ("canet", True): _TunedCANet,
}
