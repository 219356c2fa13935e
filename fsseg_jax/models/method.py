"""The interface of a method, and N-way segmentation by N binary passes."""

import abc
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Num, PRNGKeyArray, UInt8
from ml_collections import ConfigDict

from fsseg_jax.episode import IGNORE, UNLABELLED, AnyArray, Episode
from fsseg_jax.models.losses import cross_entropy
from fsseg_jax.models.option import option
from fsseg_jax.models.output import Output
from fsseg_jax.models.resize import resize


class Method(nn.Module, abc.ABC):
    """A pure function of one episode; batches are `jax.vmap` of it.

    A subclass implements `encode`, `segment` and `loss`. The fields that it declares with `option`
    are the fields of `config.model`; the others come from the rest of the configuration.

    Examples:
        >>> from fsseg_jax.backbones import create_backbone
        >>> from fsseg_jax.episode import empty_episode
        >>> from fsseg_jax.models.layers import cosine_similarity, masked_average_pool
        >>> class Similar(Method):  # cosine similarity to the class's mean; the background has 0
        ...     def encode(self, image, train=False):
        ...         return self.extract(image, train)
        ...
        ...     def segment(self, supports, label, query, image, previous=None, train=False):
        ...         masks = support_masks(label)[:, :, None].astype(jnp.float32)
        ...         means = masked_average_pool(supports, masks, 1e-3, self.align_corners)
        ...         logits = cosine_similarity(query, means[:, :, 0].mean(axis=1))
        ...         return Output(jnp.pad(logits, [(0, 0), (0, 0), (1, 0)]), None)
        ...
        ...     def loss(self, output, episode, key, epoch):
        ...         loss = cross_entropy(output.logits, episode.query_label, self.align_corners)
        ...         return loss, {"segmentation": loss}
        >>> model = Similar(create_backbone("small", "float32"))
        >>> episode = empty_episode(ways=2, shots=1, size=32)
        >>> variables = jax.jit(model.init)(jax.random.key(0), episode)
        >>> jax.jit(model.apply)(variables, episode).logits.shape
        (8, 8, 3)
    """

    backbone: nn.Module
    dtype: DTypeLike = jnp.float32  # parameters and losses are float32 whatever this is
    rematerialise: bool = False  # recompute the head's blocks in the backward pass
    freeze_backbone: bool = option(
        False, "Do not train the backbone; it then has no gradients and no optimizer state."
    )
    stages: tuple[int, ...] = option(
        (),
        "Backbone stages whose features are concatenated; empty for the last stage. Those of a "
        "Vision Transformer are its blocks.",
    )
    align_corners: bool = option(
        True,
        "Corner convention of all resizing, as `align_corners` of PyTorch's interpolate. "
        "Patches of a Vision Transformer lie as False has it.",
    )

    @classmethod
    def check(cls, options: Mapping[str, Any] | ConfigDict) -> None:
        """Raises UserError if options contradict each other; by default they never do.

        Args:
            options: values by name, each within its own limits.
        """

    @abc.abstractmethod
    def encode(self, image: Float[AnyArray, "*batch height width 3"], train: bool = False) -> Any:
        """Features of normalised images: everything that depends on a single image.

        Evaluation and prediction cache them. They are an array or a pytree of arrays, with the
        batch axes in front.
        """

    def summarise(
        self,
        support_features: Any,
        support_label: UInt8[AnyArray, "way shot height width"],
        train: bool = False,
    ) -> Any:
        """What `segment` takes of the supports; by default their features as they are.

        Everything that depends on the supports alone, and costs something, belongs here:
        evaluation and prediction do it once for each set of supports, not for each query.

        Args:
            support_features: output of `encode`, with axes way and shot in front.
            support_label: see `segment`.
            train: whether this is for training.

        Returns:
            an array or a pytree of arrays.
        """
        return support_features

    @abc.abstractmethod
    def segment(
        self,
        support_features: Any,
        support_label: UInt8[AnyArray, "way shot height width"],
        query_features: Any,
        query_image: Float[AnyArray, "query_height query_width 3"],
        previous: Num[AnyArray, "..."] | None = None,
        train: bool = False,
    ) -> Output:
        """Logits of the query.

        Args:
            support_features: output of `summarise`.
            support_label: 0 background, n + 1 for way n, 255 ignored, 254 unlabelled
                (weak annotations only).
            query_features: output of `encode` for the query.
            query_image: the normalised query.
            previous: `Output.row` of the last time this item was the query in training.
            train: whether to apply dropout and compute `Output.aux`.
        """

    def likeness(
        self,
        support_features: Any,
        query_features: Any,
        logits: Float[AnyArray, "h w class"],
        among: Bool[AnyArray, "h w"] | None = None,
    ) -> Float[Array, " way"] | None:
        """How much what was found of each class is like the supports, in -1..1; None if the method
        does not know. Prediction uses it to tell whether an image shows a class.

        Args:
            support_features: output of `summarise`.
            query_features: output of `encode` for the query.
            logits: of the query, from `segment`.
            among: positions that count; by default all.
        """
        return None

    @abc.abstractmethod
    def loss(
        self, output: Output, episode: Episode, key: PRNGKeyArray, epoch: Float[AnyArray, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The loss of one episode, and its parts by name.

        Args:
            output: output of `__call__` with `train=True`.
            episode: the segmented episode.
            key: key for random draws.
            epoch: number of passes over the training items so far, fractional.
        """

    @property
    def frozen(self) -> tuple[str, ...]:
        """Submodules that are not trained."""
        return ("backbone",) if self.freeze_backbone else ()

    @property
    def patch(self) -> int:
        """Side in pixels of the patches that the backbone divides an image into; 1 if it has none,
        and halves the image step by step."""
        return getattr(self.backbone, "patch", 1)

    def ablations(self) -> dict[str, "Method"]:
        """Variants that an evaluation scores beside the method: a part is switched off at test.

        They share the method's variables and its `encode`.
        """
        return {}

    @property
    def ignored_pixels(self) -> str:
        """How support pixels of label 255 are treated, as an evaluation's protocol says."""
        return "not the class"

    def extract(
        self, image: Float[AnyArray, "*batch height width 3"], train: bool
    ) -> Float[Array, "*batch h w channel"]:
        """Backbone features of normalised images: all `stages`, at the resolution of the last."""
        stages = self.backbone(image, stages=self.stages, train=train)
        size = stages[-1].shape[-3:-1]
        features = jnp.concatenate(
            [
                # `resize` computes in float32.
                x if x.shape[-3:-1] == size else resize(x, size, self.align_corners).astype(x.dtype)
                for x in stages
            ],
            axis=-1,
        )
        # Training takes no gradient of frozen parameters anyway; this is for other callers.
        return jax.lax.stop_gradient(features) if self.freeze_backbone else features

    def measure(
        self,
        support_features: Any,
        support_label: UInt8[AnyArray, "way shot height width"],
        query_features: Any,
        query_label: UInt8[AnyArray, "height width"],
    ) -> dict[str, Float[Array, ""]]:
        """Named scalars that need the query's label, which `segment` does not see.

        An evaluation reports their means, as those of `Output.measured`, without NaN values.
        """
        return {}

    def __call__(
        self,
        episode: Episode,
        previous: Num[AnyArray, "..."] | None = None,
        train: bool = False,
    ) -> Output:
        """Segments one episode of normalised images: `encode`, `summarise`, then `segment`.

        Args:
            episode: the episode, normalised.
            previous: see `segment`.
            train: see `segment`.
        """
        # One pass of the backbone: the images of an episode have one size.
        ways, shots, height, width, _ = episode.support_image.shape
        supports = episode.support_image.reshape(ways * shots, height, width, 3)
        features = self.encode(jnp.concatenate([supports, episode.query_image[None]]), train=train)
        support_features = jax.tree.map(
            lambda x: x[:-1].reshape(ways, shots, *x.shape[1:]), features
        )
        return self.segment(
            self.summarise(support_features, episode.support_label, train),
            episode.support_label,
            jax.tree.map(lambda x: x[-1], features),
            episode.query_image,
            previous=previous,
            train=train,
        )


class Binary(NamedTuple):
    """What the loss of a binary method needs."""

    binary_logits: Float[Array, "way h w 2"]


class BinaryMethod(Method):
    """A method that separates one class from its background: N ways are N binary passes.

    Every array has a leading way axis; the ways share only the encoded query. `join_ways` joins
    the binary predictions, and the loss is the mean of N binary losses.

    Examples:
        >>> from fsseg_jax.backbones import create_backbone
        >>> from fsseg_jax.episode import empty_episode
        >>> class Likely(BinaryMethod):  # how likely any object is, whatever the supports show
        ...     @nn.compact
        ...     def encode(self, image, train=False):
        ...         return nn.Dense(2)(self.extract(image, train))
        ...
        ...     def segment(self, supports, label, query, image, previous=None, train=False):
        ...         binary = jnp.broadcast_to(query, (len(label), *query.shape))  # way by way
        ...         return Output(join_ways(binary), Binary(binary))
        >>> model = Likely(create_backbone("small", "float32"))
        >>> episode = empty_episode(ways=2, shots=1, size=32)
        >>> variables = jax.jit(model.init)(jax.random.key(0), episode)
        >>> output = jax.jit(model.apply)(variables, episode)
        >>> output.logits.shape, output.aux.binary_logits.shape
        ((8, 8, 3), (2, 8, 8, 2))
    """

    def loss(
        self, output: Output, episode: Episode, key: PRNGKeyArray, epoch: Float[AnyArray, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Cross-entropy of the binary logits (`output.aux.binary_logits`), averaged over the ways.

        See `Method.loss`; `key` and `epoch` are not used.
        """
        label = query_labels(episode.query_label, len(episode.class_id))
        loss = cross_entropy(output.aux.binary_logits, label, self.align_corners).mean()
        return loss, {"segmentation": loss}


def join_ways(logits: Float[AnyArray, "way h w 2"]) -> Float[Array, "h w class"]:
    r"""Joins N binary predictions into one of N + 1 classes by the maximum (MFNet sec. IV-C).

    The logits are $z_0 = \max_n \log p_n(\text{background})$ and
    $z_n = \log p_n(\text{foreground})$.

    Examples:
        >>> logits = jnp.log(jnp.array([[0.6, 0.4], [0.2, 0.8]]))  # of two ways at one position
        >>> join_ways(logits[:, None, None])[0, 0].argmax().item()  # way 1: 0.8 is more than 0.6
        2
    """
    logits = jax.nn.log_softmax(logits.astype(jnp.float32))
    background = logits[..., 0].max(axis=0)
    return jnp.concatenate([background[..., None], jnp.moveaxis(logits[..., 1], 0, -1)], axis=-1)


def query_labels(
    label: UInt8[AnyArray, "*batch height width"], ways: int
) -> UInt8[Array, "*batch way height width"]:
    """One binary label per way: 1 for the way, 0 elsewhere, 255 ignored."""
    way = jnp.arange(1, ways + 1)[:, None, None]
    label = label[..., None, :, :]
    return jnp.where(label == IGNORE, IGNORE, label == way).astype(jnp.uint8)


def support_masks(
    label: UInt8[AnyArray, "way shot height width"],
) -> Bool[Array, "way shot height width"]:
    """Where each support image shows its own way.

    Examples:
        >>> label = jnp.zeros((2, 1, 4, 4), jnp.uint8).at[:, 0, 0, :2].set(1).at[1, 0, 3].set(2)
        >>> support_masks(label).sum(axis=(2, 3)).tolist()  # pixels of each support's own way
        [[2], [4]]
    """
    return label == jnp.arange(1, label.shape[0] + 1)[:, None, None, None]


def support_labels(
    label: UInt8[AnyArray, "way shot height width"],
) -> UInt8[Array, "way shot height width"]:
    """One binary label per support: 1 for its own way, 0 elsewhere, 255 ignored or unmarked.

    Examples:
        >>> label = jnp.array([[[[0, 1, 2, 255, 254]]]], jnp.uint8)  # of way 0, whose class is 1
        >>> support_labels(label).tolist()
        [[[[0, 1, 0, 255, 255]]]]
    """
    unknown = (label == IGNORE) | (label == UNLABELLED)
    return jnp.where(unknown, IGNORE, support_masks(label)).astype(jnp.uint8)
