"""MFNet: multi-way few-shot segmentation in one pass (Zhang et al., TCSVT 2022).

The prototype of each class is added to the query at several scales, which attention combines into
one feature map per class (sec. III-C). These maps are concatenated, and one decoder separates all
classes (sec. III-B). Training adds a triplet loss on hard pixels of the embedding (sec. III-D).
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8
from ml_collections import ConfigDict

from fsseg_jax.backbones.convolution import max_pool
from fsseg_jax.backbones.extent import positions
from fsseg_jax.backbones.rematerialise import rematerialisable
from fsseg_jax.episode import AnyArray, Episode
from fsseg_jax.errors import UserError
from fsseg_jax.models.layers import (
    ASPP,
    JoinedConvolution,
    ResidualBlock,
    channel_dropout,
    classifier,
    convolution,
    masked_average_pool,
)
from fsseg_jax.models.losses import focal_loss, metric_loss
from fsseg_jax.models.method import Method, join_ways, query_labels, support_masks
from fsseg_jax.models.option import option
from fsseg_jax.models.output import Output
from fsseg_jax.models.resize import adaptive_pool, resize, resize_masks


class Aux(NamedTuple):
    """What the loss needs."""

    logits: Float[Array, "branch h w class"]  # one branch, or one per way of two classes
    embedding: Float[Array, "branch h w channel"] | None  # in training


class MFNet(Method):
    r"""MFNet on a frozen backbone. Its parameters depend on the number of ways.

    The K vectors of a way attend to each other in several heads, and their mean is the prototype
    (eq. 2-3). At scale z the query plus the prototype gives a score $a_z$ and features $t_z$, and
    the scales are combined per position (eq. 4-5):

    $$A_z = \frac{e^{a_z}}{\sum_{z'} e^{a_{z'}}}, \qquad S = \sum_z A_z t_z.$$

    The ways share all weights before the decoder. Where the paper leaves a choice open: scales
    have separate weights; the metric loss is the mean over valid triplets of foreground classes.

    Example:
        >>> import jax
        >>> from fsseg_jax.backbones import create_backbone
        >>> from fsseg_jax.episode import empty_episode
        >>> model = MFNet(create_backbone("small", "float32"), stages=(), width=8, scales=2)
        >>> episode = empty_episode(ways=2, shots=1, size=32)
        >>> variables = jax.jit(model.init)(jax.random.key(0), episode)
        >>> jax.jit(model.apply)(variables, episode).logits.shape
        (8, 8, 3)
    """

    freeze_backbone: bool = option(True, "Do not train the backbone.")
    stages: tuple[int, ...] = option(
        (2, 3), "Backbone stages: layer2 and layer3 of ResNet-50; for VGG-16 (2, 3, 4)."
    )
    width: int = option(256, "Channels of the head, a multiple of heads.", least=1)
    dropout: float = option(
        0.5,
        "Channel dropout after the embedding, as in PFENet, which MFNet follows.",
        least=0,
        below=1,
    )
    separate_embeddings: bool = option(
        True, "Separate embeddings of supports and queries, as in PFENet."
    )
    area_epsilon: float = option(5e-4, "Added to the area of masks.")
    scales: int = option(
        4, "Number of scales Z: the query at 1, 1/2, 1/4, ... of its resolution.", least=1
    )
    heads: int = option(4, "Number of heads N_r of the support attention (eq. 2-3).", least=1)
    support_attention: bool = option(
        True, "Attention over shots; without it, their mean (table VI)."
    )
    scale_attention: bool = option(
        True, "Attention over scales (eq. 4-5); without it, the mean over scales."
    )
    compare_supports: bool = option(
        False,
        "A_S-v1 (table VI, without support_attention): compare each support with the query, and "
        "weight the results as CANet weights its supports.",
    )
    hierarchy: bool = option(
        False,
        "A_M-v1 (table VII): merge each scale with the larger ones, as in PFENet's FEM, and "
        "concatenate the results.",
    )
    aspp: bool = option(False, "A_M-v2 (table VII, with scales = 1): ASPP in the decoder.")
    query_fusion: str = option(
        "add", "How to combine query and prototype (table IV).", choices=("add", "concat")
    )
    way_fusion: str = option(
        "concat", "How to combine the features of the ways (table IV).", choices=("add", "concat")
    )
    binary_branches: bool = option(
        False, "Decode each way separately, and combine the ways by the maximum."
    )
    focal_gamma: float = option(2.0, "The exponent of the focal loss (eq. 1).")
    focal_over_ways: bool = option(
        True,
        "Divide the focal loss by N, as eq. 1 does, taken as the number of ways. It makes no "
        "difference in 1-way; in 2-way it halves the loss relative to the metric loss, whose "
        "weight the paper tuned with it. Most focal losses leave it out.",
    )
    metric_positives: str = option(
        "spatial",
        "Positives of the metric loss (table VIII): drawn by spatial proximity or at random, the "
        "farthest in feature space, or none for no metric loss.",
        choices=("spatial", "random", "feature", "none"),
    )
    metric_weight: float = option(0.4, "Weight of the metric loss (eq. 7's lambda).")
    metric_from_epoch: float = option(
        5.0, "First epoch of the metric loss: 5 on PASCAL-5i, 1 on COCO-20i."
    )
    metric_anchors: int = option(20, "Number of anchors N_t.", least=1)
    metric_margin: float = option(1.0, "Margin of the metric loss (eq. 6's alpha).")

    @classmethod
    def check(cls, options: Mapping[str, Any] | ConfigDict) -> None:
        """Raises UserError unless the heads divide the width."""
        if options["width"] % options["heads"]:
            raise UserError(
                f"model.width = {options['width']} does not divide into model.heads = "
                f"{options['heads']}."
            )

    def setup(self) -> None:
        """The layers, in the order of the paper's fig. 2 and 3."""
        options = {"dtype": self.dtype}
        conv = functools.partial(convolution, **options)
        self.drop = channel_dropout(self.dropout)
        count = 2 if self.separate_embeddings else 1
        self.embeddings = [conv(self.width, 1, use_bias=False) for _ in range(count)]
        if self.support_attention:
            dense = functools.partial(nn.Dense, self.width, use_bias=False)
            self.relations = [dense() for _ in range(3)]  # W_A, W_B and W_V of all heads
        attention = self.scale_attention and not self.hierarchy
        self.branches = [
            ScaleBranch(options, self.width, attention, self.rematerialise)
            for _ in range(self.scales)
        ]
        if self.compare_supports:
            self.shot_scores = [ShotScore(options, self.width) for _ in range(self.scales)]
        if self.hierarchy:
            self.merging = Hierarchy(options, self.width, self.rematerialise)
        self.decoder = Decoder(options, self.width, self.aspp, self.rematerialise)

    def encode(
        self, image: Float[Array, "*batch height width 3"], train: bool = False
    ) -> dict[str, Float[Array, "*batch h w channel"]]:
        """Embedded features of normalised images, as supports and as queries."""
        features = self.extract(image, train)
        embedded = [
            self.drop(nn.relu(layer(features)), deterministic=not train)
            for layer in self.embeddings
        ]
        return {"support": embedded[0], "query": embedded[-1]}

    def prototypes(self, vectors: Float[Array, "way shot channel"]) -> Float[Array, "way channel"]:
        r"""Means over shots of the vectors after attention among them (eq. 2-3).

        With queries q, keys k and values u of the vectors v in each head r, of width d,

        $$v_i' = v_i + \operatorname{concat}_r
        \sum_j \operatorname{softmax}_j(q_i \cdot k_j / \sqrt d) \, u_j.$$
        """
        # A single shot has nothing to attend to, and these parameters do not exist.
        if self.support_attention and vectors.shape[1] > 1:
            query, key, value = (
                rearrange(layer(vectors), "n k (r c) -> n r k c", r=self.heads)
                for layer in self.relations
            )
            scores = jnp.einsum("nrkc,nrjc->nrkj", query, key) / math.sqrt(query.shape[-1])
            related = jnp.einsum("nrkj,nrjc->nrkc", jax.nn.softmax(scores), value)
            vectors = vectors + rearrange(related, "n r k c -> n k (r c)")
        return vectors.mean(axis=1)

    def segment(
        self,
        support_features: dict[str, Float[Array, "way shot h w channel"]],
        support_label: UInt8[AnyArray, "way shot height width"],
        query_features: dict[str, Float[Array, "query_h query_w channel"]],
        query_image: Float[AnyArray, "query_height query_width 3"],
        previous: None = None,
        train: bool = False,
    ) -> Output[Aux]:
        """Logits of the query, and in training the embedding of its positions.

        Args:
            support_features, query_features: outputs of `encode`.
            support_label: label in episode numbering.
            query_image: not used.
            previous: not used.
            train: whether to return the embedding.
        """
        ways = support_label.shape[0]
        support, query = support_features["support"], query_features["query"]
        masks = resize_masks(support_masks(support_label), support.shape[-3:-1], self.align_corners)
        vectors = masked_average_pool(
            support, masks[..., None, :, :], self.area_epsilon, self.align_corners
        )[..., 0, :]
        vectors = vectors.astype(jnp.float32)
        compare = self.compare_supports and vectors.shape[1] > 1
        prototypes = rearrange(vectors, "n k c -> (n k) c") if compare else self.prototypes(vectors)

        size = query.shape[:2]
        scores, features = [], []
        for scale, branch in enumerate(self.branches):
            shape = tuple(math.ceil(side / 2**scale) for side in size)
            pooled = adaptive_pool(query, shape).astype(self.dtype)
            if self.query_fusion == "add":
                pair = (pooled + prototypes[:, None, None, :].astype(self.dtype),)
            else:
                pair = pooled, prototypes
            score, transformed = branch(*pair)
            if compare:
                weights = jax.nn.softmax(self.shot_scores[scale](*pair).reshape(ways, -1), axis=1)
                score, transformed = (
                    jnp.einsum("nk,nkhwc->nhwc", weights, x.reshape(ways, -1, *x.shape[1:]))
                    if len(x) > 1
                    else x
                    for x in (score, transformed)
                )
            scores.append(resize(score.astype(jnp.float32), size, self.align_corners))
            features.append(transformed)
        if self.hierarchy:
            combined = self.merging(features, align_corners=self.align_corners)
        else:
            features = [resize(x, size, self.align_corners).astype(self.dtype) for x in features]
            weights = jax.nn.softmax(jnp.stack(scores), axis=0)  # eq. 4
            combined = jnp.sum(weights.astype(self.dtype) * jnp.stack(features), axis=0)  # eq. 5

        if self.binary_branches:
            joint = combined
        elif self.way_fusion == "add":
            joint = combined.sum(axis=0, keepdims=True)
        else:
            joint = rearrange(combined, "n h w c -> 1 h w (n c)")
        logits, embedding = self.decoder(joint, classes=2 if self.binary_branches else ways + 1)
        joined = join_ways(logits) if self.binary_branches else logits[0]
        return Output(joined, Aux(logits, embedding if train else None))

    def loss(
        self, output: Output, episode: Episode, key: PRNGKeyArray, epoch: Float[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        r"""$L = L_{focal} + \lambda L_{metric}$ (eq. 1, 6 and 7), and both parts.

        Args:
            output: output of a pass with `train=True`.
            episode: the segmented episode.
            key: key of the draws of anchors, positives and negatives.
            epoch: the metric loss counts from epoch `metric_from_epoch` on.
        """
        label = episode.query_label[None]
        if self.binary_branches:
            label = query_labels(episode.query_label, len(episode.class_id))
        logits = output.aux.logits
        large = resize(logits, label.shape[-2:], self.align_corners)
        focal = jax.vmap(functools.partial(focal_loss, gamma=self.focal_gamma))(large, label).mean()
        if self.focal_over_ways and not self.binary_branches:  # a binary branch has one way
            focal /= len(episode.class_id)
        parts = {"focal": focal}
        if self.metric_positives == "none":
            return focal, parts
        triplet = functools.partial(
            metric_loss,
            positives=self.metric_positives,
            anchors=self.metric_anchors,
            margin=self.metric_margin,
        )
        keys = jax.random.split(key, len(logits))
        # The label of a position is that of the pixel at its centre.
        rows, columns = (
            nearest(large_side, side, self.align_corners)
            for large_side, side in zip(label.shape[-2:], logits.shape[-3:-1], strict=True)
        )
        small = label[:, rows][:, :, columns]
        metric = jax.vmap(triplet)(logits, output.aux.embedding, small, keys).mean()
        parts["metric"] = metric
        on = epoch >= self.metric_from_epoch
        return focal + jnp.where(on, self.metric_weight * metric, 0.0), parts


class ScaleBranch(nn.Module):
    """Attention score and transformed features of one scale (fig. 3b), shared by the ways."""

    options: Mapping[str, Any]
    width: int
    attention: bool  # without it, all scores are 0
    rematerialise: bool = False

    @rematerialisable
    @nn.compact
    def __call__(
        self, x: Float[Array, "*way h w c"], vector: Float[Array, "way c"] | None = None
    ) -> tuple[Float[Array, "way h w 1"], Float[Array, "way h w channel"]]:
        """Both branches of a map concatenated with a vector at every position."""
        joined = functools.partial(JoinedConvolution, self.width, **self.options)
        score = jnp.zeros((1, *x.shape[-3:-1], 1))
        if self.attention:
            y = nn.relu(joined(name="Conv_0")(x, vector=vector))
            y = nn.relu(convolution(self.width, name="Conv_1", **self.options)(y))
            score = convolution(1, 1, name="Conv_2", **self.options)(y)
        last = joined(1, name="Conv_3" if self.attention else "Conv_0")
        return score, ResidualBlock(self.options)(last(x, vector=vector))


class ShotScore(nn.Module):
    """A score of the comparison with each support, as in CANet's sec. 4.3."""

    options: Mapping[str, Any]
    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "*row h w c"], vector: Float[Array, "row c"] | None = None
    ) -> Float[Array, " row"]:
        """Scores of maps concatenated with a vector at every position."""
        joined = JoinedConvolution(self.width, name="Conv_0", **self.options)
        y = max_pool(nn.relu(joined(x, vector=vector)), 2)
        y = convolution(1, name="Conv_1", **self.options)(y).astype(jnp.float32)
        return y.mean(axis=(-3, -2, -1), where=positions(y))


class Hierarchy(nn.Module):
    """Merges scales one after another, the largest first, and concatenates the results.

    As the feature enrichment module of PFENet (Tian et al., TPAMI 2020): the result of the scale
    before is concatenated with the scale, a 1 x 1 convolution of both is added to it, and a
    residual block follows.
    """

    options: Mapping[str, Any]
    width: int
    rematerialise: bool = False

    @rematerialisable
    @nn.compact
    def __call__(
        self, features: Sequence[Float[Array, "way ?h ?w channel"]], align_corners: bool
    ) -> Float[Array, "way h w channel"]:
        """One map, at the size of the first scale."""
        size, levels = features[0].shape[-3:-1], []
        for x in features:
            if levels:
                before = resize(levels[-1], x.shape[-3:-1], align_corners).astype(x.dtype)
                beside = jnp.concatenate([x, before], axis=-1)
                x = x + nn.relu(convolution(self.width, 1, **self.options)(beside))
            levels.append(ResidualBlock(self.options)(x))
        whole = [resize(x, size, align_corners).astype(x.dtype) for x in levels]
        return nn.relu(convolution(self.width, 1, **self.options)(jnp.concatenate(whole, axis=-1)))


class Decoder(nn.Module):
    """1 x 1 convolution to the embedding, residual block or ASPP, 1 x 1 convolution to classes."""

    options: Mapping[str, Any]
    width: int
    aspp: bool = False
    rematerialise: bool = False

    @rematerialisable
    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch h w c"], classes: int
    ) -> tuple[Float[Array, "*batch h w classes"], Float[Array, "*batch h w channel"]]:
        """Logits and the embedding, which is the input of the residual block."""
        embedding = convolution(self.width, 1, **self.options)(x)
        seen = (ASPP(self.options, self.width) if self.aspp else ResidualBlock(self.options))(
            embedding
        )
        logits = classifier(classes, self.options["dtype"])(seen)
        return logits.astype(jnp.float32), embedding.astype(jnp.float32)


def nearest(n_in: int, n_out: int, align_corners: bool) -> Int[Array, " n_out"]:
    """The pixel at the centre of each of `n_out` positions."""
    out = jnp.arange(n_out)
    if align_corners:
        return jnp.round(out * ((n_in - 1) / max(n_out - 1, 1))).astype(int)
    return jnp.minimum(((out + 0.5) * n_in / n_out).astype(int), n_in - 1)
