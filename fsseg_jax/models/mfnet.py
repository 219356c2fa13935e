"""MFNet: multi-way few-shot segmentation in one pass (Zhang et al., TCSVT 2022).

Attention among the shots of a class makes its prototype (sec. III-C), which is added to the query's
features at several scales (sec. III-B). Attention over the scales gives one feature map per class
(sec. III-C). One decoder separates all classes in the concatenated maps (sec. III-B). Training adds
a triplet loss on hard pixels of the embedding, which is the decoder's first layer (sec. III-D).
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, PRNGKeyArray, UInt8
from ml_collections import ConfigDict

from fsseg_jax.episode import AnyArray, Episode
from fsseg_jax.errors import UserError
from fsseg_jax.models.layers import (
    TORCH_INIT,
    channel_dropout,
    convolution,
    pool,
)
from fsseg_jax.models.losses import focal_loss, metric_loss
from fsseg_jax.models.method import Method, join_ways, query_labels, support_masks
from fsseg_jax.models.mfnet_layers import Decoder, Hierarchy, ScaleBranch, ShotScore
from fsseg_jax.models.option import option
from fsseg_jax.models.output import Output
from fsseg_jax.models.resize import adaptive_pool, nearest, resize


class Aux(NamedTuple):
    """What the loss needs."""

    # One pass of N + 1 classes; with `binary_branches` N passes of 2.
    logits: Float[Array, "pass h w class"]
    embedding: Float[Array, "pass h w channel"] | None  # None at inference


class MFNet(Method):
    r"""MFNet on a frozen backbone. The decoder's parameters depend on the number of ways.

    The K support vectors of a way attend to each other in several heads, and their mean is the
    prototype (eq. 2-3). For each way, the query pooled to scale z plus the prototype gives a score
    map $A^z$ of one channel and features $T^z$. U up-samples both to the first scale, and the
    features are summed with weights at every position (eq. 4-5):

    $$a^z = \operatorname{softmax}_z U(A^z), \qquad S = \sum_z a^z U(T^z).$$

    The ways share all weights before the decoder. Where the paper leaves a choice open: scales
    have separate weights; ReLU is between the convolutions of a score map; residual blocks begin
    with ReLU, as CANet's; masks are resized to the features before pooling; the metric loss is a
    mean over triplets, whose anchors are of the foreground.

    Examples:
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
        (2, 3), "Backbone stages: layer2 and layer3 of ResNet-50; for VGG-16 (2, 3, 4), as CANet."
    )
    width: int = option(
        256,
        "Channels C of all layers after the backbone, a multiple of `heads`.",
        least=1,
        most=8192,
    )
    dropout: float = option(
        0.5,
        "Channel dropout after the 1 x 1 embeddings, as in PFENet, which MFNet follows.",
        least=0,
        below=1,
    )
    separate_embeddings: bool = option(
        True, "Separate embeddings of supports and queries, as in PFENet."
    )
    area_epsilon: float = option(5e-4, "Added to the area of masks, as in CANet's code.", above=0)
    scales: int = option(
        4,
        "Scales Z (sec. III-B): the query's features at 1, 1/2, 1/4, ... of their size.",
        least=1,
        most=16,
    )
    heads: int = option(4, "Number of heads N_r of the support attention (sec. III-C).", least=1)
    support_attention: bool = option(
        True,
        "Attention over shots (eq. 2-3); without it, their mean (table VI). It has parameters only "
        "in a model of several shots: one trained with one shot needs False for more.",
    )
    scale_attention: bool = option(True, "Attention over scales (eq. 4-5); without it, their mean.")
    compare_supports: bool = option(
        False,
        "A_S-v1 (table VI), for several shots, instead of support_attention: compare each shot "
        "with the query, and average the score maps and features of a scale with CANet's softmax "
        "weights over shots. (The paper concatenates query and supports here, as `query_fusion` "
        "can, and merges the shots before it computes score maps.)",
    )
    hierarchy: bool = option(
        False,
        "A_M-v1 (table VII), which overrides scale_attention: merge each scale with the larger "
        "ones, as in PFENet's FEM, and concatenate the results.",
    )
    aspp: bool = option(
        False,
        "A_M-v2 (table VII, with scales = 1 and no scale_attention): ASPP instead of the decoder's "
        "residual block, without dropout.",
    )
    query_fusion: str = option(
        "add", "How to combine query and prototype (table IV).", choices=("add", "concat")
    )
    way_fusion: str = option(
        "concat",
        "How to combine the features of the ways (table IV). A sum cannot tell the ways apart.",
        choices=("add", "concat"),
    )
    binary_branches: bool = option(
        False,
        "Decode each way separately, and join them by the maximum (table IV); `way_fusion` is not "
        "used then.",
    )
    focal_gamma: float = option(
        2.0, "Exponent of the focal loss (eq. 1; the paper states no value).", least=0
    )
    focal_over_ways: bool = option(
        True,
        "Divide the focal loss by N, the number of ways (eq. 1). It makes no difference in 1-way; "
        "in 2-way it halves the loss relative to the metric loss, whose weight the paper tuned "
        "with it. Most focal losses do not divide.",
    )
    metric_positives: str = option(
        "spatial",
        "The hard positive of an anchor in the metric loss (table VIII). spatial: drawn, a near "
        "one more likely; random: drawn; feature: the one with the farthest embedding, with the "
        "nearest negative; none: no metric loss.",
        choices=("spatial", "random", "feature", "none"),
    )
    metric_weight: float = option(
        0.4,
        "Weight of the metric loss (lambda of eq. 7). The loss is a mean over triplets; eq. 6 is a "
        "sum, which is up to `metric_anchors` times as large.",
        least=0,
    )
    metric_from_epoch: float = option(
        5.0, "Epochs before the metric loss (sec. IV-B): 5 on PASCAL-5i, 1 on COCO-20i.", least=0
    )
    metric_anchors: int = option(
        20,
        "Number of anchors N_t of all classes together, drawn with replacement.",
        least=1,
        most=10_000,
    )
    metric_margin: float = option(1.0, "Margin of the metric loss (eq. 6's alpha).", least=0)

    @classmethod
    def check(cls, options: Mapping[str, Any] | ConfigDict) -> None:
        """Raises UserError unless the heads divide the width."""
        if options["width"] % options["heads"]:
            raise UserError(
                f"model.width = {options['width']} must be a multiple of model.heads = "
                f"{options['heads']}."
            )

    def setup(self) -> None:
        """The layers in the order of use; those of ablations exist only where they are on."""
        options = {"dtype": self.dtype}
        self.drop = channel_dropout(self.dropout)
        count = 2 if self.separate_embeddings else 1
        self.embeddings = [  # 1 x 1, to C channels
            convolution(self.width, 1, use_bias=False, dtype=self.dtype) for _ in range(count)
        ]
        if self.support_attention:  # of vectors, which are few, in float32
            dense = functools.partial(nn.Dense, self.width, use_bias=False, kernel_init=TORCH_INIT)
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
        self, image: Float[AnyArray, "*batch height width 3"], train: bool = False
    ) -> dict[str, Float[Array, "*batch h w channel"]]:
        """Embedded features of normalised images, both as supports and as queries."""
        features = self.extract(image, train)
        embedded = [
            self.drop(nn.relu(layer(features)), deterministic=not train)
            for layer in self.embeddings
        ]
        return {"support": embedded[0], "query": embedded[-1]}  # the same if not separate

    def prototypes(self, vectors: Float[Array, "way shot channel"]) -> Float[Array, "way channel"]:
        r"""Means over shots of the vectors after attention among them (eq. 2-3).

        With shots k and j, and N_r heads r of width d = C / N_r,

        $$F_k' = F_k + \operatorname{concat}_r \sum_j w_{kj}^r W_V^r F_j, \qquad
        w_{kj}^r = \operatorname{softmax}_j \frac{W_A^r F_k \cdot W_B^r F_j}{\sqrt d}.$$
        """
        # Only for several shots (sec. III-B): a model of one shot has no such parameters.
        if self.support_attention and vectors.shape[1] > 1:
            a, b, v = (
                rearrange(layer(vectors), "n k (r c) -> n r k c", r=self.heads)
                for layer in self.relations
            )
            scores = jnp.einsum("nrkc,nrjc->nrkj", a, b) / math.sqrt(a.shape[-1])
            weights = jax.nn.softmax(scores, axis=-1)  # over the shots j
            related = jnp.einsum("nrkj,nrjc->nrkc", weights, v)
            vectors = vectors + rearrange(related, "n r k c -> n k (r c)")
        return vectors.mean(axis=1)

    def segment(
        self,
        support_features: dict[str, Float[AnyArray, "way shot h w channel"]],
        support_label: UInt8[AnyArray, "way shot height width"],
        query_features: dict[str, Float[AnyArray, "query_h query_w channel"]],
        query_image: Float[AnyArray, "query_height query_width 3"],
        previous: None = None,
        train: bool = False,
    ) -> Output[Aux]:
        """Logits of the query, and in training the embedding of its positions.

        See `Method.segment`; `query_image` and `previous` are not used.
        """
        ways = support_label.shape[0]
        support, query = support_features["support"], query_features["query"]
        masks = support_masks(support_label)
        vectors = pool(support, masks, self.area_epsilon, self.align_corners)
        separate_shots = self.compare_supports and vectors.shape[1] > 1
        rows = (
            rearrange(vectors, "n k c -> (n k) c") if separate_shots else self.prototypes(vectors)
        )
        per_scale = [self._at_scale(scale, query, rows, ways) for scale in range(self.scales)]
        combined = self._combine(per_scale, query.shape[:2])
        # The paper's query-support embedding: (pass, h, w, channels of all ways).
        if self.binary_branches:
            joint = combined
        elif self.way_fusion == "add":
            joint = combined.sum(axis=0, keepdims=True)
        else:
            joint = rearrange(combined, "n h w c -> 1 h w (n c)")
        logits, embedding = self.decoder(joint, classes=2 if self.binary_branches else ways + 1)
        joined = join_ways(logits) if self.binary_branches else logits[0]
        return Output(joined, Aux(logits, embedding if train else None))

    def _at_scale(
        self,
        scale: int,
        query: Float[AnyArray, "query_h query_w channel"],
        vectors: Float[AnyArray, "row channel"],
        ways: int,
    ) -> tuple[Float[Array, "way h w 1"], Float[Array, "way h w channel"]]:
        """$A^z$ and $T^z$ of each way at a scale (sec. III-B and fig. 3b).

        Args:
            scale: from 0.
            vectors: the prototype of each way; or of each shot of each way, to be averaged here.
        """
        size = tuple(math.ceil(side / 2**scale) for side in query.shape[:2])  # 60, 30, 15, 8
        x = adaptive_pool(query, size).astype(self.dtype)
        if self.query_fusion == "add":  # a map for each vector
            x, vector = x + vectors[:, None, None, :].astype(self.dtype), None
        else:  # one map: the branch concatenates each vector to every position
            vector = vectors
        score, features = self.branches[scale](x, vector)
        if len(vectors) == ways:  # one vector for each way: shots are merged already
            return score, features
        # CANet's weights over shots, of (way, shot).
        weights = jax.nn.softmax(self.shot_scores[scale](x, vector).reshape(ways, -1), axis=1)
        score, features = (
            jnp.einsum("nk,nkhwc->nhwc", weights, y.reshape(*weights.shape, *y.shape[1:]))
            for y in (score, features)
        )
        return score, features

    def _combine(
        self,
        per_scale: Sequence[tuple[Float[Array, "way _ _ 1"], Float[Array, "way _ _ channel"]]],
        size: tuple[int, ...],
    ) -> Float[Array, "way h w channel"]:
        """One feature map per way, of this size, from the score maps and features of all scales."""
        scores, features = zip(*per_scale, strict=True)
        if self.hierarchy:
            return self.merging(features, align_corners=self.align_corners)
        scores = [resize(x.astype(jnp.float32), size, self.align_corners) for x in scores]
        features = [resize(x, size, self.align_corners).astype(self.dtype) for x in features]
        weights = jax.nn.softmax(jnp.stack(scores), axis=0)  # eq. 4: (scale, way, h, w, 1)
        return jnp.sum(weights.astype(self.dtype) * jnp.stack(features), axis=0)  # eq. 5

    def loss(
        self, output: Output, episode: Episode, key: PRNGKeyArray, epoch: Float[AnyArray, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        r"""$L = L_{focal} + \lambda L_{metric}$ (eq. 1, 6, 7: L_SEG and L_PML), and its parts.

        See `Method.loss`. The metric loss is added from epoch `metric_from_epoch` on; before, it is
        only reported.
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
            nearest(pixels, count, self.align_corners)
            for pixels, count in zip(label.shape[-2:], logits.shape[-3:-1], strict=True)
        )
        small = label[:, rows][:, :, columns]
        metric = jax.vmap(triplet)(logits, output.aux.embedding, small, keys).mean()
        parts["metric"] = metric
        on = epoch >= self.metric_from_epoch
        return focal + jnp.where(on, self.metric_weight * metric, 0.0), parts
