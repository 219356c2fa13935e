"""SST: self-supervised tuning of the support features (Zhu et al., IJCAI 2020).

The support is first segmented with its own prototype (eq. 8-10). One gradient step on that loss
changes the support's features, not the parameters (eq. 11). The query is segmented with the
prototype of the changed features (eq. 12-13).
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
    pool,
)
from fsseg_jax.models.losses import cross_entropy
from fsseg_jax.models.method import BinaryMethod, Method, join_ways, support_labels
from fsseg_jax.models.option import option
from fsseg_jax.models.output import Output
from fsseg_jax.models.resize import resize, resize_masks


class SST(BinaryMethod):
    r"""SST; N ways are N binary passes.

    With support features $R$, their prototype $p$, the label $y$ and query features $R_q$, the
    inner loop is one step on the self-segmentation loss (eq. 8-11), and its result segments the
    query (eq. 12-13, 7), with the rate $\eta$ (`inner_rate`) and the mask's area A in positions:

    $$L_{sup} = \mathrm{CE}(f_d(f_m(R, p)), y), \qquad
    R' = R - \eta A |p| \frac{\partial L_{sup}}{\partial R}, \qquad
    S = f_d(f_m(R_q, \mathrm{pool}(R', y))).$$

    Eq. 11 has no factor ($\eta A |p| = 1$); see `inner_rate`. The paper draws the embedding, the
    relation $f_m$ and the decoder $f_d$ without defining their layers. Here the embedding is a
    3 x 3 convolution with ReLU, the relation two of them on features concatenated with the tiled
    prototype, and the decoder a residual block, ASPP and a 1 x 1 convolution.

    Examples:
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
    width: int = option(256, "Channels of the head.", least=1, most=8192)
    area_epsilon: float = option(
        5e-4, "Added to the area of masks, as in CANet's published code.", above=0
    )
    tuning: bool = option(
        True, "Run the inner loop (SSM in table 1); without it, features stay as they are."
    )
    # Eq. 11 has no rate, and the paper does not say whether its loss is a sum or a mean. With a
    # mean over pixels the prototype p hardly moves, by less than a thousandth of its length; with
    # a sum it moves by half of it to several times it, which diverged. This step moves p by
    # -inner_rate * |p| * (the gradient of the mean with respect to R, summed over the mask), which
    # hardly depends on the object's area nor, for a given head, on the features' scale (that
    # differs between backbones and changes in training). At 3, p moves by about 10 to 25 % of its
    # length at full width; docs/figures.md has measurements.
    inner_rate: float = option(
        3.0,
        "The inner step moves the prototype p by -inner_rate * |p| * the loss's gradient with "
        "respect to the support features, summed over the mask.",
        least=0,
    )
    second_order: bool = option(True, "Differentiate through the inner gradient.")
    auxiliary_weight: float = option(
        1.0,
        "Weight of the self-segmentation loss in training (sec. 4.4, which states none).",
        least=0,
    )
    fusion: str = option(
        "weighted",
        "How to combine shots (table 2): by the mean of their responses, weighted by the IoU of "
        "their self-segmentations (eq. 14), or by the average or the maximum of their "
        "segmentations. Without tuning and auxiliary loss, no loss looks at the "
        "self-segmentation, and its IoU may mean little: choose the average.",
        choices=("weighted", "average", "maximum"),
    )

    def setup(self) -> None:
        """The layers after the backbone: the embedding, f_m (`relation`) and f_d (the others)."""
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
        self, image: Float[AnyArray, "*batch height width 3"], train: bool = False
    ) -> Float[Array, "*batch h w channel"]:
        """Embedded features of normalised images (f_e)."""
        features = nn.relu(self.embedding(self.extract(image, train)))
        return features.astype(jnp.float32)  # for the pooling and the step of the inner loop

    def pool(
        self,
        features: Float[AnyArray, "*batch h w channel"],
        label: UInt8[AnyArray, "*batch height width"],
    ) -> Float[Array, "*batch channel"]:
        """The prototype of a binary label (pool of eq. 12)."""
        return pool(features, label == 1, self.area_epsilon, self.align_corners)

    def respond(
        self,
        features: Float[AnyArray, "*#batch h w channel"],
        prototype: Float[AnyArray, "*#batch channel"],
    ) -> Float[Array, "... h w channel"]:
        """Response of features to a prototype (f_m of eq. 6, `Relation` of eq. 13)."""
        first, second = self.relation
        return nn.relu(second(nn.relu(first(features, vector=prototype))))

    def decode(
        self, response: Float[AnyArray, "*batch h w channel"]
    ) -> Float[Array, "*batch h w 2"]:
        """Logits of a response (f_d of eq. 7 and 9, before its up-sampling to the image)."""
        return self.classifier(self.aspp(self.block(response))).astype(jnp.float32)

    def self_segmentation(
        self,
        features: Float[AnyArray, "*batch h w channel"],
        label: UInt8[AnyArray, "*batch height width"],
    ) -> tuple[Float[Array, "*batch"], Float[Array, "*batch h w 2"]]:
        """Self-segmentation of each support (eq. 8-10): the loss, and the logits."""
        logits = self.decode(self.respond(features, self.pool(features, label)))
        return cross_entropy(logits, label, self.align_corners), logits

    def tune(
        self,
        features: Float[Array, "way shot h w channel"],
        label: UInt8[AnyArray, "way shot height width"],
    ) -> "Tuned":
        r"""One gradient step on the features of each support (eq. 11).

        $R' = R - \eta A |p| \, \partial L / \partial R$ with the rate $\eta$ (`inner_rate`), the
        loss L of eq. 10, the mask's area A in positions and the prototype p.

        Args:
            features: features of the supports.
            label: label of each support: 1 for its way, 0 elsewhere, 255 ignored.
        """
        loss, logits = self.self_segmentation(features, label)
        # The line above creates the parameters, which a gradient needs. XLA computes once what it
        # shares with the gradient below.
        if not self.tuning or self.is_initializing():
            return Tuned(features, loss, logits)

        # `jax.grad` needs a pure function, which a bound module is not.
        module, variables = self.unbind()

        def total(features: Array) -> Array:
            losses, _ = module.apply(variables, features, label, method="self_segmentation")
            return losses.sum()  # the loss of an image depends on its own features only

        gradient = jax.grad(total)(features)
        if not self.second_order:
            gradient = jax.lax.stop_gradient(gradient)
        masks = resize_masks(label == 1, features.shape[-3:-1], self.align_corners)
        area = masks.sum((-2, -1))  # (way, shot)
        # |p| only scales the step: no gradient passes, which would be NaN at p = 0.
        length = jnp.linalg.norm(jax.lax.stop_gradient(self.pool(features, label)), axis=-1)
        step = self.inner_rate * (area * length)[..., None, None, None]
        return Tuned(features - step * gradient, loss, logits)

    def segment(
        self,
        support_features: Float[AnyArray, "way shot h w channel"],
        support_label: UInt8[AnyArray, "way shot height width"],
        query_features: Float[AnyArray, "query_h query_w channel"],
        query_image: Float[AnyArray, "query_height query_width 3"],
        previous: None = None,
        train: bool = False,
    ) -> Output["Aux"]:
        """Logits of the query with tuned supports (eq. 12-14), and measures of the tuning.

        See `Method.segment`; `query_image` and `previous` are not used. Training measures nothing.
        """
        # Cached features may be float16, in which the inner step would lose too much.
        support_features = jnp.asarray(support_features, jnp.float32)
        label = support_labels(support_label)
        tuned = self.tune(support_features, label)
        prototype = self.pool(tuned.features, label)
        response = self.respond(query_features, prototype)  # (way, shot, query_h, query_w, channel)
        if self.fusion == "weighted":
            # Eq. 14 is a sum; sec. 5.3's weights near 1/5 for five shots mean that they sum to 1.
            weight = self_iou(tuned.logits_before, label, self.align_corners)
            weight = weight / jnp.maximum(weight.sum(axis=1, keepdims=True), 1e-6)
            # Shots count alike where all IoUs are 0.
            weight = jnp.where(weight.sum(axis=1, keepdims=True) > 0, weight, 1 / label.shape[1])
            logits = self.decode(jnp.sum(response * weight[..., None, None, None], axis=1))
        else:
            logits = join_shots(self.decode(response), self.fusion)
        measured = (
            {} if train else self._effect_of_tuning(support_features, tuned, prototype, label)
        )
        return Output(join_ways(logits), Aux(logits, tuned.loss_before), measured=measured)

    def _effect_of_tuning(
        self,
        features: Float[AnyArray, "way shot h w channel"],
        tuned: "Tuned",
        prototype: Float[AnyArray, "way shot channel"],
        label: UInt8[AnyArray, "way shot height width"],
    ) -> dict[str, Float[Array, ""]]:
        """The prototype's relative shift, and the loss before and after: means over supports."""
        original = self.pool(features, label)
        moved = jnp.linalg.norm(prototype - original, axis=-1)
        loss_after, _ = self.self_segmentation(tuned.features, label)
        return {
            "prototype shift": jnp.mean(moved / (jnp.linalg.norm(original, axis=-1) + 1e-6)),
            "self-segmentation loss before": tuned.loss_before.mean(),
            "self-segmentation loss after": loss_after.mean(),
        }

    def loss(
        self, output: Output, episode: Episode, key: PRNGKeyArray, epoch: Float[AnyArray, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Loss of the query plus the weighted loss of the self-segmentations (sec. 4.4)."""
        main, parts = super().loss(output, episode, key, epoch)
        auxiliary = output.aux.self_segmentation.mean()
        parts["self_segmentation"] = auxiliary
        return main + self.auxiliary_weight * auxiliary, parts


class Aux(NamedTuple):
    """What the loss needs: the query's logits, and the loss of each self-segmentation (eq. 10)."""

    binary_logits: Float[Array, "way h w 2"]
    self_segmentation: Float[Array, "way shot"]


class Tuned(NamedTuple):
    """Support features after the inner loop, and the self-segmentation before it."""

    features: Float[Array, "way shot h w channel"]
    loss_before: Float[Array, "way shot"]
    logits_before: Float[Array, "way shot h w 2"]


def join_shots(logits: Float[AnyArray, "way shot h w 2"], fusion: str) -> Float[Array, "way h w 2"]:
    """Logits of the average or the maximum over shots of foreground probabilities (table 2)."""
    log_p = jax.nn.log_softmax(logits)
    if fusion == "average":
        return jax.nn.logsumexp(log_p, axis=1) - jnp.log(logits.shape[1])
    # At each position, the shot that is surest of the foreground: (way, 1, h, w, 1).
    shot = jnp.argmax(log_p[..., 1], axis=1)[:, None, ..., None]
    return jnp.take_along_axis(log_p, shot, axis=1)[:, 0]


def self_iou(
    logits: Float[AnyArray, "*batch h w 2"],
    label: UInt8[AnyArray, "*batch height width"],
    align_corners: bool,
) -> Float[Array, "*batch"]:
    """IoU of the foreground of self-segmentations (f_IoU of eq. 14); it has no gradient."""
    predicted = jnp.argmax(resize(logits, label.shape[-2:], align_corners), axis=-1) == 1
    counted, truth = label != IGNORE, label == 1
    intersection = jnp.sum(predicted & truth, axis=(-2, -1))
    union = jnp.sum((predicted | truth) & counted, axis=(-2, -1))
    return intersection / jnp.maximum(union, 1)
