"""MFNet: multi-way few-shot segmentation in one pass (Zhang et al., TCSVT 2022).

Each class's prototype is added to the query at several scales, which attention combines into one
feature map a class (sec. III-C); these stand side by side, and one decoder tells all classes apart
(sec. III-B). Training adds a triplet loss on hard pixels of the embedding (sec. III-D).
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8
from ml_collections import ConfigDict

from fsseg_jax.backbones.convolution import max_pool
from fsseg_jax.backbones.extent import positions
from fsseg_jax.backbones.rematerialise import rematerialisable
from fsseg_jax.episode import IGNORE, AnyArray, Episode
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
from fsseg_jax.models.method import Method, join_ways, query_labels, support_masks
from fsseg_jax.models.option import option
from fsseg_jax.models.output import Output
from fsseg_jax.models.resize import adaptive_pool, resize, resize_masks


class MFNet(Method):
    """MFNet on a frozen backbone. Its parameters depend on the number of ways.

    The ways share all weights before the decoder. Where the paper is silent: scales have weights
    of their own; the metric loss is the mean over valid triplets of foreground classes.
    """

    freeze_backbone: bool = option(True, "Keep the pretrained backbone as it is.")
    stages: tuple[int, ...] = option(
        (2, 3), "Stages whose features are taken: those of ResNet-50; VGG-16: (2, 3, 4)."
    )
    width: int = option(256, "Channels of the head; heads divide it.", least=1)
    dropout: float = option(
        0.5,
        "Dropout of channels after the embedding, as in PFENet, which MFNet follows.",
        least=0,
        below=1,
    )
    separate_embeddings: bool = option(
        True, "One embedding for supports and one for queries, as PFENet has them."
    )
    area_epsilon: float = option(5e-4, "Added to the area of a mask.")
    scales: int = option(
        4, "Number of scales Z: the query at 1, 1/2, 1/4, ... of its resolution.", least=1
    )
    heads: int = option(4, "Heads N_r of the support attention (eq. 2-3).", least=1)
    support_attention: bool = option(
        True, "Attention over several shots; without it, their mean (table VI)."
    )
    scale_attention: bool = option(
        True, "Attention over scales (eq. 4-5); without it, the mean over scales."
    )
    compare_supports: bool = option(
        False,
        "A_S-v1 (table VI, without support_attention): compare several supports with the query "
        "one by one, and weigh the results as CANet weighs its supports.",
    )
    hierarchy: bool = option(
        False,
        "A_M-v1 (table VII): join each scale with what the larger ones gave, as in PFENet's FEM, "
        "and all of them side by side.",
    )
    aspp: bool = option(False, "A_M-v2 (table VII, with scales = 1): ASPP in the decoder.")
    query_fusion: str = option(
        "add", "How query and prototype are combined (table IV).", choices=("add", "concat")
    )
    way_fusion: str = option(
        "concat", "How the ways' features are combined (table IV).", choices=("add", "concat")
    )
    binary_branches: bool = option(
        False, "Decode each way on its own, and combine them by the maximum."
    )
    focal_gamma: float = option(2.0, "The exponent of the focal loss (eq. 1).")
    focal_over_ways: bool = option(
        True,
        "Divide the focal loss by the number of classes N, as eq. 1 does, taken for that of the "
        "ways. It changes nothing in 1-way; in 2-way it halves the loss beside the metric loss, "
        "whose weight the paper found with it. Most focal losses leave it out.",
    )
    metric_positives: str = option(
        "spatial",
        "Positives of the metric loss (table VIII): drawn by spatial nearness or at random, the "
        "farthest in feature space, or none for no such loss.",
        choices=("spatial", "random", "feature", "none"),
    )
    metric_weight: float = option(0.4, "Weight of the metric loss (eq. 7's lambda).")
    metric_from_epoch: float = option(
        5.0, "The epoch from which the metric loss counts: 5 on PASCAL-5i, 1 on COCO-20i."
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
        """The layers, by the parts of the paper's fig. 2 and 3."""
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
        """Embedded features of normalised photographs, as a support and as a query."""
        features = self.extract(image, train)
        embedded = [
            self.drop(nn.relu(layer(features)), deterministic=not train)
            for layer in self.embeddings
        ]
        return {"support": embedded[0], "query": embedded[-1]}

    def prototypes(self, vectors: Float[Array, "way shot channel"]) -> Float[Array, "way channel"]:
        """Means over shots, modulated by their relations where there are several (eq. 2-3)."""
        # With one shot there is nothing to relate, and so no parameters to train.
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
    ) -> Output:
        """Logits of the query, and the embedding of its positions for the metric loss."""
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
        aux = {"logits": logits}
        if train:
            aux["embedding"] = embedding
        return Output(join_ways(logits) if self.binary_branches else logits[0], aux)

    def loss(
        self, output: Output, episode: Episode, key: PRNGKeyArray, epoch: Float[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Focal loss (eq. 1) plus the weighted metric loss (eq. 6-7), from its epoch on."""
        label = episode.query_label[None]
        if self.binary_branches:
            label = query_labels(episode.query_label, len(episode.class_id))
        logits = output.aux["logits"]
        large = resize(logits, label.shape[-2:], self.align_corners)
        focal = jax.vmap(functools.partial(focal_loss, gamma=self.focal_gamma))(large, label).mean()
        if self.focal_over_ways and not self.binary_branches:  # each branch is of one way
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
        # A position has the label of the pixel at its centre.
        rows, columns = (
            nearest(large_side, side, self.align_corners)
            for large_side, side in zip(label.shape[-2:], logits.shape[-3:-1], strict=True)
        )
        small = label[:, rows][:, :, columns]
        metric = jax.vmap(triplet)(logits, output.aux["embedding"], small, keys).mean()
        parts["metric"] = metric
        on = epoch >= self.metric_from_epoch
        return focal + jnp.where(on, self.metric_weight * metric, 0.0), parts


class ScaleBranch(nn.Module):
    """Attention score and transformed features of one scale (fig. 3b), shared by the ways."""

    options: Mapping[str, Any]
    width: int
    attention: bool  # without it all scores are 0
    rematerialise: bool = False

    @rematerialisable
    @nn.compact
    def __call__(
        self, x: Float[Array, "*way h w c"], vector: Float[Array, "way c"] | None = None
    ) -> tuple[Float[Array, "way h w 1"], Float[Array, "way h w channel"]]:
        """Both branches, of a map with a vector beside each of its positions."""
        joined = functools.partial(JoinedConvolution, self.width, **self.options)
        score = jnp.zeros((1, *x.shape[-3:-1], 1))
        if self.attention:
            y = nn.relu(joined(name="Conv_0")(x, vector=vector))
            y = nn.relu(convolution(self.width, name="Conv_1", **self.options)(y))
            score = convolution(1, 1, name="Conv_2", **self.options)(y)
        last = joined(1, name="Conv_3" if self.attention else "Conv_0")
        return score, ResidualBlock(self.options)(last(x, vector=vector))


class ShotScore(nn.Module):
    """A number that says how much the comparison with a support is worth, as CANet's sec. 4.3."""

    options: Mapping[str, Any]
    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "*row h w c"], vector: Float[Array, "row c"] | None = None
    ) -> Float[Array, " row"]:
        """The numbers of maps with a vector beside each of their positions."""
        joined = JoinedConvolution(self.width, name="Conv_0", **self.options)
        y = max_pool(nn.relu(joined(x, vector=vector)), 2)
        y = convolution(1, name="Conv_1", **self.options)(y).astype(jnp.float32)
        return y.mean(axis=(-3, -2, -1), where=positions(y))


class Hierarchy(nn.Module):
    """Scales joined one after another, the largest first, then all of them side by side.

    After the feature enrichment of PFENet (Tian et al., TPAMI 2020): what the scale before gave
    comes beside a scale, a 1 x 1 convolution adds to it what it finds there, and a residual block
    follows.
    """

    options: Mapping[str, Any]
    width: int
    rematerialise: bool = False

    @rematerialisable
    @nn.compact
    def __call__(
        self, features: Sequence[Float[Array, "way ?h ?w channel"]], align_corners: bool
    ) -> Float[Array, "way h w channel"]:
        """One map at the size of the first."""
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
    """1 x 1 to the embedding, a residual block or ASPP, 1 x 1 to the classes."""

    options: Mapping[str, Any]
    width: int
    aspp: bool = False
    rematerialise: bool = False

    @rematerialisable
    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch h w c"], classes: int
    ) -> tuple[Float[Array, "*batch h w classes"], Float[Array, "*batch h w channel"]]:
        """Logits and the embedding, which comes before the residual block."""
        embedding = convolution(self.width, 1, **self.options)(x)
        seen = (ASPP(self.options, self.width) if self.aspp else ResidualBlock(self.options))(
            embedding
        )
        logits = classifier(classes, self.options["dtype"])(seen)
        return logits.astype(jnp.float32), embedding.astype(jnp.float32)


def focal_loss(
    logits: Float[Array, "height width class"],
    label: UInt8[AnyArray, "height width"],
    gamma: float,
) -> Float[Array, ""]:
    """Focal loss with weights 1 / log(1.1 + a class's share of the pixels) (MFNet eq. 1).

    The mean over pixels that are not ignored; the background is a class too.
    """
    counted = label != IGNORE
    truth = jax.nn.one_hot(jnp.where(counted, label, 0), logits.shape[-1]) * counted[..., None]
    total = jnp.maximum(counted.sum(), 1)
    weight = 1 / jnp.log(1.1 + truth.sum((0, 1)) / total)
    log_probability = jax.nn.log_softmax(logits)
    # Clamped, because the power has no gradient at 0 where gamma is below 1.
    rest = jnp.maximum(-jnp.expm1(log_probability), 1e-7)
    modulated = rest**gamma * log_probability
    return -jnp.sum(weight * truth * modulated) / total


def metric_loss(
    logits: Float[Array, "h w class"],
    embedding: Float[Array, "h w c"],
    label: UInt8[AnyArray, "h w"],
    key: PRNGKeyArray,
    *,
    positives: str,
    anchors: int,
    margin: float,
) -> Float[Array, ""]:
    """Triplet loss on hard pixels (MFNet eq. 6), the mean over valid triplets.

    Anchors are drawn uniformly from the rightly classified foreground positions of all classes.
    An anchor's positive is one of its class's missed positions, its negative one of those wrongly
    given to the class, drawn uniformly; an anchor whose class lacks either is not counted.

    Args:
        logits, embedding, label: of each position; labels are class indices or 255.
        key: of the draws.
        positives: "spatial" draws them with weight 1 / (1 + distance in positions), "random"
            uniformly, "feature" takes the farthest embedding, and the nearest for the negative.
        anchors: how many to draw.
        margin: of the triplet loss.
    """
    columns = label.shape[1]
    label, embedding = label.ravel(), embedding.reshape(-1, embedding.shape[-1])
    predicted = jnp.argmax(logits, axis=-1).ravel()
    counted = label != IGNORE
    right = counted & (label == predicted) & (label > 0)
    anchor_key, positive_key, negative_key = jax.random.split(key, 3)
    anchor = draw(anchor_key, jnp.broadcast_to(jnp.log(right), (anchors, right.size)))
    own = label[anchor][:, None]
    missed = counted & (label == own) & (predicted != own)
    wrong = counted & (label != own) & (predicted == own)
    valid = right[anchor] & missed.any(axis=1) & wrong.any(axis=1)

    def squared_distance(other: Int[Array, " anchor"]) -> Float[Array, " anchor"]:
        return jnp.sum((embedding[anchor] - embedding[other]) ** 2, axis=-1)

    if positives == "feature":
        every = jax.vmap(lambda a: jnp.sum((embedding[a] - embedding) ** 2, axis=-1))(anchor)
        positive = jnp.argmax(jnp.where(missed, every, -jnp.inf), axis=1)
        negative = jnp.argmin(jnp.where(wrong, every, jnp.inf), axis=1)
    else:
        weight = jnp.log(missed)
        if positives == "spatial":
            position = jnp.arange(label.size)
            down = position // columns - (anchor // columns)[:, None]
            across = position % columns - (anchor % columns)[:, None]
            weight -= jnp.log1p(jnp.sqrt(down**2 + across**2))
        positive = draw(positive_key, weight)
        negative = draw(negative_key, jnp.log(wrong))
    losses = nn.relu(squared_distance(positive) - squared_distance(negative) + margin)
    return jnp.sum(losses * valid) / jnp.maximum(valid.sum(), 1)


def draw(key: PRNGKeyArray, log_weight: Float[Array, "row n"]) -> Int[Array, " row"]:
    """One index a row, with the given log-weights; any one where all weights are 0."""
    return jax.random.categorical(key, jnp.maximum(log_weight, -1e30))


def nearest(n_in: int, n_out: int, align_corners: bool) -> Int[Array, " n_out"]:
    """Which pixel lies at the centre of each of `n_out` positions."""
    out = jnp.arange(n_out)
    if align_corners:
        return jnp.round(out * ((n_in - 1) / max(n_out - 1, 1))).astype(int)
    return jnp.minimum(((out + 0.5) * n_in / n_out).astype(int), n_in - 1)
