"""SST: self-supervised tuning of the support features (Zhu et al., IJCAI 2020).

The support is first segmented with its own prototype. A gradient step of that loss with respect to
the support features updates the features; the parameters stay (eq. 8-11). The query is segmented
with the prototype of the updated features (eq. 12-13).
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from fsseg_jax.episode import IGNORE, AnyArray, Episode
from fsseg_jax.models.layers import (
    ASPP,
    JoinedConvolution,
    ResidualBlock,
    classifier,
    convolution,
    masked_average_pool,
)
from fsseg_jax.models.losses import cross_entropy
from fsseg_jax.models.method import BinaryMethod, Method, join_ways, support_labels
from fsseg_jax.models.option import option
from fsseg_jax.models.output import Output
from fsseg_jax.models.resize import resize, resize_masks


class SST(BinaryMethod):
    r"""SST; N ways are N binary passes.

    With support features $R$, their prototype $p$ and the label $y$, the inner loop is one step on
    the self-segmentation loss (eq. 8-11), and its result segments the query (eq. 12-13):

    $$L_{self} = \mathrm{CE}(f_d(f_m(R, p)), y), \qquad
    R' = R - \eta \frac{\partial L_{self}}{\partial R}, \qquad
    P_q = f_d(f_m(R_q, \mathrm{pool}(R', y))).$$

    The paper draws the embedding, the relation $f_m$ and the decoder $f_d$ without defining their
    layers. Here they are a 3 x 3 convolution with ReLU, two of these, and a residual block with
    ASPP.

    Example:
        >>> import jax
        >>> from fsseg_jax.backbones import create_backbone
        >>> from fsseg_jax.episode import empty_episode
        >>> model = SST(create_backbone("small", "float32"), stages=(), width=8)
        >>> episode = empty_episode(ways=1, shots=1, size=32)
        >>> variables = jax.jit(model.init)(jax.random.key(0), episode)
        >>> sorted(jax.jit(model.apply)(variables, episode).measured)[0]
        'prototype shift'
    """

    stages: tuple[int, ...] = option(
        (2, 3), "Backbone stages: those of CANet for ResNet-50; for VGG-16 (2, 3, 4)."
    )
    width: int = option(256, "Channels of the head.", least=1)
    area_epsilon: float = option(5e-4, "Added to the area of masks, as in CANet's published code.")
    tuning: bool = option(
        True, "Run the inner loop; without it, features stay as they are (table 1)."
    )
    # Eq. 11 has no rate, and the paper does not say whether its loss is a sum or a mean. A mean
    # moves the prototype p by less than a thousandth of its length, a sum by half of it to several
    # times it, which diverged. Here p moves by inner_rate * |p| * the gradient of the mean, which
    # does not depend on the object's area or the features' scale (the scale differs between
    # backbones and changes in training). At 3 that is about 10 to 25 % of |p| at full width, on
    # ResNet-50 and VGG-16, before and in training (docs/figures.md; in training on ResNet-50 as
    # measured at 4).
    inner_rate: float = option(
        3.0, "Step size of the inner loop: the prototype p moves by inner_rate * |p| * gradient."
    )
    second_order: bool = option(True, "Differentiate through the inner gradient.")
    auxiliary_weight: float = option(
        1.0, "Weight of the self-segmentation loss in training (sec. 4.4)."
    )
    fusion: str = option(
        "weighted",
        "How to combine shots (table 2): by the sum of their responses, weighted by the IoU of "
        "their self-segmentations (eq. 14), or by the average or the maximum of their "
        "segmentations. Without tuning and auxiliary loss the weights are meaningless: choose the "
        "average.",
        choices=("weighted", "average", "maximum"),
    )

    def setup(self) -> None:
        """The layers: the last one of theta_e, theta_m and theta_d."""
        options = {"kernel_init": nn.initializers.he_normal(), "dtype": self.dtype}
        conv = functools.partial(convolution, **options)
        self.embedding = conv(self.width)
        self.relation = [JoinedConvolution(self.width, **options), conv(self.width)]
        self.block = ResidualBlock(options, self.rematerialise)
        self.aspp = ASPP(options, self.width, rematerialise=self.rematerialise)
        self.classifier = classifier(2, self.dtype)

    def ablations(self) -> dict[str, Method]:
        """The same parameters without the inner loop."""
        return {"tuning off": self.clone(tuning=False)} if self.tuning else {}

    def encode(
        self, image: Float[Array, "*batch height width 3"], train: bool = False
    ) -> Float[Array, "*batch h w channel"]:
        """Embedded features of normalised images (f_e)."""
        features = nn.relu(self.embedding(self.extract(image, train)))
        return features.astype(jnp.float32)  # the inner loop is computed in float32

    def pool(
        self,
        features: Float[Array, "*batch h w channel"],
        label: UInt8[Array, "*batch height width"],
    ) -> Float[Array, "*batch channel"]:
        """The prototype of a binary label (pool of eq. 12)."""
        masks = resize_masks(label == 1, features.shape[-3:-1], self.align_corners)[..., None, :, :]
        pooled = masked_average_pool(features, masks, self.area_epsilon, self.align_corners)
        return pooled[..., 0, :]

    def respond(
        self,
        features: Float[Array, "*#batch h w channel"],
        prototype: Float[Array, "*#batch channel"],
    ) -> Float[Array, "... h w channel"]:
        """Response of features to a prototype (f_m of eq. 13)."""
        first, second = self.relation
        return nn.relu(second(nn.relu(first(features, vector=prototype))))

    def decode(self, response: Float[Array, "*batch h w channel"]) -> Float[Array, "*batch h w 2"]:
        """Logits of a response (f_d of eq. 13)."""
        return self.classifier(self.aspp(self.block(response))).astype(jnp.float32)

    def self_segmentation(
        self,
        features: Float[Array, "*batch h w channel"],
        label: UInt8[Array, "*batch height width"],
    ) -> tuple[Float[Array, "*batch"], Float[Array, "*batch h w 2"]]:
        """Self-segmentation of supports (eq. 8-9): mean cross-entropies and logits."""
        logits = self.decode(self.respond(features, self.pool(features, label)))
        return cross_entropy(logits, label, self.align_corners), logits

    def tune(
        self,
        features: Float[Array, "way shot h w channel"],
        label: UInt8[Array, "way shot height width"],
    ) -> "Tuned":
        r"""One gradient step on the features of each support (eq. 10-11).

        $R' = R - \eta A |p| \, \partial L / \partial R$ with the rate $\eta$ = `inner_rate`, A
        foreground positions and the prototype p.

        Args:
            features: features of the supports.
            label: label of each support: 1 for its way, 0 elsewhere, 255 ignored.
        """
        loss, logits = self.self_segmentation(features, label)
        if not self.tuning or self.is_initializing():  # no parameters exist yet
            return Tuned(features, loss, logits)

        module, variables = self.unbind()

        def total(features: Array) -> Array:
            losses, _ = module.apply(variables, features, label, method="self_segmentation")
            return losses.sum()  # the loss of an image depends on its own features only

        gradient = jax.grad(total)(features)
        if not self.second_order:
            gradient = jax.lax.stop_gradient(gradient)
        masks = resize_masks(label == 1, features.shape[-3:-1], self.align_corners)
        area = masks.sum((-2, -1))
        length = jnp.linalg.norm(jax.lax.stop_gradient(self.pool(features, label)), axis=-1)
        step = self.inner_rate * (area * length)[..., None, None, None]
        return Tuned(features - step * gradient, loss, logits)

    def segment(
        self,
        support_features: Float[Array, "way shot h w channel"],
        support_label: UInt8[AnyArray, "way shot height width"],
        query_features: Float[Array, "query_h query_w channel"],
        query_image: Float[AnyArray, "query_height query_width 3"],
        previous: None = None,
        train: bool = False,
    ) -> Output["Aux"]:
        """Logits of the query with tuned supports (eq. 12-14), and measures of the tuning.

        Args:
            support_features, query_features: outputs of `encode`.
            support_label: label in episode numbering.
            query_image: not used.
            previous: not used.
            train: whether to leave out the measures.
        """
        support_features = support_features.astype(jnp.float32)
        label = support_labels(support_label)
        tuned = self.tune(support_features, label)
        prototype = self.pool(tuned.features, label)
        response = self.respond(query_features, prototype)  # (way, shot, h, w, width)
        if self.fusion == "weighted":
            weight = self_iou(tuned.logits, label, self.align_corners)
            weight = weight / jnp.maximum(weight.sum(axis=1, keepdims=True), 1e-6)
            weight = jnp.where(weight.sum(axis=1, keepdims=True) > 0, weight, 1 / len(label[0]))
            logits = self.decode(jnp.sum(response * weight[..., None, None, None], axis=1))
        else:
            logits = join_shots(self.decode(response), self.fusion)
        measured = {} if train else self._measure(support_features, tuned, prototype, label)
        return Output(join_ways(logits), Aux(logits, tuned.loss), measured=measured)

    def _measure(
        self, features: Array, tuned: "Tuned", prototype: Array, label: Array
    ) -> dict[str, Array]:
        """Effect of the inner loop: means over ways and shots."""
        before = self.pool(features, label)
        moved = jnp.linalg.norm(prototype - before, axis=-1)
        after, _ = self.self_segmentation(tuned.features, label)
        return {
            "prototype shift": jnp.mean(moved / (jnp.linalg.norm(before, axis=-1) + 1e-6)),
            "self-segmentation loss before": tuned.loss.mean(),
            "self-segmentation loss after": after.mean(),
        }

    def loss(
        self, output: Output, episode: Episode, key: PRNGKeyArray, epoch: Float[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Loss of the query plus the weighted loss of the self-segmentations (sec. 4.4)."""
        main, parts = super().loss(output, episode, key, epoch)
        auxiliary = output.aux.self_segmentation.mean()
        parts["self_segmentation"] = auxiliary
        return main + self.auxiliary_weight * auxiliary, parts


class Aux(NamedTuple):
    """What the loss needs."""

    binary_logits: Float[Array, "way h w 2"]
    self_segmentation: Float[Array, "way shot"]  # losses


class Tuned(NamedTuple):
    """Support features after the inner loop, and the self-segmentation before it."""

    features: Float[Array, "way shot h w channel"]
    loss: Float[Array, "way shot"]
    logits: Float[Array, "way shot h w 2"]


def join_shots(logits: Float[Array, "way shot h w 2"], fusion: str) -> Float[Array, "way h w 2"]:
    """Logits of the average or the maximum over shots of foreground probabilities (table 2)."""
    log_p = jax.nn.log_softmax(logits)
    if fusion == "average":
        return jax.nn.logsumexp(log_p, axis=1) - jnp.log(logits.shape[1])
    surest = jnp.argmax(log_p[..., 1], axis=1)[:, None, ..., None]
    return jnp.take_along_axis(log_p, surest, axis=1)[:, 0]


def self_iou(
    logits: Float[Array, "*batch h w 2"],
    label: UInt8[Array, "*batch height width"],
    align_corners: bool,
) -> Float[Array, "*batch"]:
    """IoU of the foreground of self-segmentations (f_IoU of eq. 14); it has no gradient."""
    predicted = jnp.argmax(resize(logits, label.shape[-2:], align_corners), axis=-1) == 1
    counted, truth = label != IGNORE, label == 1
    intersection = jnp.sum(predicted & truth, axis=(-2, -1))
    union = jnp.sum((predicted | truth) & counted, axis=(-2, -1))
    return intersection / jnp.maximum(union, 1)
