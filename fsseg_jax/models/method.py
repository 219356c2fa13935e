"""What the methods share: the interface, and N ways by N binary passes."""

import abc
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Num, PRNGKeyArray, UInt8
from ml_collections import ConfigDict

from fsseg_jax.episode import IGNORE, UNLABELLED, AnyArray, Episode
from fsseg_jax.models.layers import cross_entropy
from fsseg_jax.models.option import option
from fsseg_jax.models.output import Output
from fsseg_jax.models.resize import resize


class Method(nn.Module, abc.ABC):
    """A pure function of one episode; batches are `jax.vmap` of it.

    A subclass implements `encode`, `segment` and `loss`. Its fields that are declared by `option`
    are `config.model`.
    """

    backbone: nn.Module
    dtype: DTypeLike = jnp.float32  # of the computation; parameters, losses are float32
    rematerialise: bool = False  # blocks of the method's own; see `rematerialisable`
    freeze_backbone: bool = option(
        False, "Keep the pretrained backbone as it is, with no gradient and no optimizer state."
    )
    stages: tuple[int, ...] = option(
        (), "Stages of the backbone whose features are taken, side by side; empty for the last one."
    )
    align_corners: bool = option(
        True, "The corner convention of masks, features and logits, as in PyTorch's interpolate."
    )

    @classmethod
    def check(cls, options: Mapping[str, Any] | ConfigDict) -> None:
        """Raises UserError where options do not fit each other.

        Args:
            options: by name, each within its own limits.
        """

    @abc.abstractmethod
    def encode(self, image: Float[Array, "*batch height width 3"], train: bool = False) -> Any:
        """Features of normalised images: all that depends on an image alone.

        Evaluation and prediction keep them, as arrays or a pytree of arrays with the axes of the
        batch in front.
        """

    @abc.abstractmethod
    def segment(
        self,
        support_features: Any,
        support_label: UInt8[AnyArray, "way shot height width"],
        query_features: Any,
        query_image: Float[AnyArray, "query_height query_width 3"],
        previous: Num[Array, "..."] | None = None,
        train: bool = False,
    ) -> Output:
        """Logits of the query.

        Args:
            support_features: see `encode`, with the axes way and shot in front.
            support_label: 0 background, n + 1 where way n is, 255 ignored, 254 where nobody has
                marked anything.
            query_features: see `encode`, of one image.
            query_image: the normalised query.
            previous: what the method stored for this item when it last met it (`Output.row`).
            train: whether dropout and what only the loss needs are wanted.
        """

    @abc.abstractmethod
    def loss(
        self, output: Output, episode: Episode, key: PRNGKeyArray, epoch: Float[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The loss of one episode, and its parts by name.

        Args:
            output: of the method, with `train`.
            episode: what was segmented.
            key: for what is drawn at random.
            epoch: passes over the training items until now.
        """

    @property
    def frozen(self) -> tuple[str, ...]:
        """The submodules that training leaves alone."""
        return ("backbone",) if self.freeze_backbone else ()

    def ablations(self) -> dict[str, "Method"]:
        """What an evaluation scores beside the method itself: it, with a part left out at test.

        They have the same variables, and encode photographs alike.
        """
        return {}

    @property
    def ignored_pixels(self) -> str:
        """What support pixels of label 255 count as, for the protocol."""
        return "not the class"

    def extract(
        self, image: Float[Array, "*batch height width 3"], train: bool
    ) -> Float[Array, "*batch h w channel"]:
        """The backbone's features of normalised photographs, of all `stages` at the last one's
        resolution."""
        features = self.backbone(image, stages=self.stages, train=train)
        size = features[-1].shape[-3:-1]
        features = [
            x if x.shape[-3:-1] == size else resize(x, size, self.align_corners).astype(x.dtype)
            for x in features
        ]
        features = jnp.concatenate(features, axis=-1)
        return jax.lax.stop_gradient(features) if self.freeze_backbone else features

    def measure(
        self,
        support_features: Any,
        support_label: UInt8[AnyArray, "way shot height width"],
        query_features: Any,
        query_label: UInt8[AnyArray, "height width"],
    ) -> dict[str, Float[Array, ""]]:
        """Named scalars of an episode that an evaluation reports the means of, beside
        `Output.measured`: what takes the query's label to know.

        NaN where there is nothing to measure. By default there are none.
        """
        return {}

    def __call__(
        self,
        episode: Episode,
        previous: Num[Array, "..."] | None = None,
        train: bool = False,
    ) -> Output:
        """Segments one episode of normalised photographs: `encode`, then `segment`.

        Args:
            episode: what to segment.
            previous: what the method stored for this item when it last met it (`Output.row`).
            train: whether dropout and what only the loss needs are wanted.
        """
        ways, shots, height, width, _ = episode.support_image.shape
        supports = episode.support_image.reshape(ways * shots, height, width, 3)
        features = self.encode(jnp.concatenate([supports, episode.query_image[None]]), train=train)
        support_features = jax.tree.map(
            lambda x: x[:-1].reshape(ways, shots, *x.shape[1:]), features
        )
        return self.segment(
            support_features,
            episode.support_label,
            jax.tree.map(lambda x: x[-1], features),
            episode.query_image,
            previous=previous,
            train=train,
        )


class BinaryMethod(Method):
    """A method that tells one class from its background: N ways are N binary passes.

    Everything has a leading way axis, and the ways share nothing but the encoded query. The
    binary predictions are joined by `join_ways`, and the loss is the mean of N binary losses.
    """

    def loss(
        self, output: Output, episode: Episode, key: PRNGKeyArray, epoch: Float[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Cross-entropy of the binary logits, the mean over ways."""
        label = query_labels(episode.query_label, len(episode.class_id))
        loss = cross_entropy(output.aux["binary_logits"], label, self.align_corners).mean()
        return loss, {"segmentation": loss}


def join_ways(logits: Float[Array, "way h w 2"]) -> Float[Array, "h w class"]:
    """N binary predictions as one of N + 1 classes: the winner is the maximum.

    `logit_0 = max_n log p_bg,n` and `logit_n = log p_fg,n` (MFNet sec. IV-C).
    """
    logits = jax.nn.log_softmax(logits.astype(jnp.float32))
    background = logits[..., 0].max(axis=0)
    return jnp.concatenate([background[..., None], jnp.moveaxis(logits[..., 1], 0, -1)], axis=-1)


def query_labels(
    label: UInt8[AnyArray, "*batch height width"], ways: int
) -> UInt8[Array, "*batch way height width"]:
    """A label of N ways as N binary ones: 1 where way n is, 255 where ignored."""
    way = jnp.arange(1, ways + 1)[:, None, None]
    label = label[..., None, :, :]
    return jnp.where(label == IGNORE, IGNORE, label == way).astype(jnp.uint8)


def support_masks(
    label: UInt8[AnyArray, "way shot height width"],
) -> Bool[Array, "way shot height width"]:
    """Where each support photograph shows its own way."""
    return label == jnp.arange(1, label.shape[0] + 1)[:, None, None, None]


def support_labels(
    label: UInt8[AnyArray, "way shot height width"],
) -> UInt8[Array, "way shot height width"]:
    """Each support's label as its own way sees it: 1 there, 0 elsewhere, 255 ignored or unknown."""
    unknown = (label == IGNORE) | (label == UNLABELLED)
    return jnp.where(unknown, IGNORE, support_masks(label)).astype(jnp.uint8)
