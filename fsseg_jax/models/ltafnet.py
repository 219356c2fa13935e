"""LTAF-Net: learned task-aware features, and refinement by a U-Net.

A vector computed from support and query adapts the features of both to the pair (eq. 1-2); an
auxiliary decoder supervises the adapted features (eq. 3). The query is segmented by comparison with
the support's prototype, and the mask refined at the image's resolution (eq. 4).
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray, Shaped, UInt8

from fsseg_jax.backbones.extent import average
from fsseg_jax.episode import BATCH_AXIS, AnyArray, Episode
from fsseg_jax.models.layers import (
    ASPP,
    JoinedConvolution,
    ResidualBlock,
    channel_dropout,
    classifier,
    convolution,
    cosine_similarity,
    halve,
    pool,
)
from fsseg_jax.models.losses import cross_entropy
from fsseg_jax.models.method import (
    BinaryMethod,
    Method,
    join_ways,
    query_labels,
    support_labels,
    support_masks,
)
from fsseg_jax.models.option import option
from fsseg_jax.models.output import Output
from fsseg_jax.models.resize import resize


class Aux(NamedTuple):
    """What the loss needs."""

    binary_logits: Float[Array, "way h w 2"]  # at the image's size if refined
    coarse_logits: Float[Array, "way height width 2"] | None  # before refinement, if there is one
    # Of the auxiliary decoder, in training.
    support_logits: Float[Array, "way shot h w 2"] | None
    query_logits: Float[Array, "way shot query_h query_w 2"] | None


class LTAFNet(BinaryMethod):
    r"""LTAF-Net on a frozen backbone; N ways are N binary passes.

    A 1 x 1 convolution of the means of support and query features and the category vector gives the
    task embedding $x$. It is standardised over its channels (eq. 1), and two dense layers map it to
    f, which is added to support and query features (eq. 2):

    $$\hat x = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}, \qquad
    f = \operatorname{sigmoid}(W_2 \operatorname{ReLU}(W_1 \hat x)), \qquad
    G_s = F_s + \alpha f, \quad G_q = F_q + \alpha f.$$

    The U-Net G refines the logits M of the coarse mask, given the query image Q (eq. 4):
    $\hat M = M + G(M | Q)$.

    The paper leaves much open. Here the features of support and query are averaged over positions
    before the convolution of the task embedding; there is a ReLU between the dense layers; alpha
    and the U-Net's last layer are 0 at first; the auxiliary decoder shares its weights between
    support and query, and its loss counts the background too (eq. 3 prints the foreground's term
    only); losses are means of weight 1; the coarse mask has a loss too; embeddings have ReLU and
    dropout as CANet's.

    Examples:
        >>> import jax
        >>> from fsseg_jax.backbones import create_backbone
        >>> from fsseg_jax.episode import empty_episode
        >>> model = LTAFNet(
        ...     create_backbone("small", "float32"), stages=(), width=8, refinement_width=4
        ... )
        >>> episode = empty_episode(ways=1, shots=1, size=32)
        >>> variables = jax.jit(model.init)(jax.random.key(0), episode)
        >>> jax.jit(model.apply)(variables, episode).logits.shape
        (32, 32, 2)
    """

    freeze_backbone: bool = option(True, "Do not train the backbone.")
    stages: tuple[int, ...] = option((2, 3), "Backbone stages: layer2 and layer3 of ResNet-50.")
    width: int = option(256, "Channels of the head.", least=1, most=8192)
    area_epsilon: float = option(
        5e-4, "Added to the area of masks, as in CANet's published code.", above=0
    )
    dropout: float = option(
        0.5,
        "Channel dropout after the embedding and in ASPP, as in CANet, the paper's base model.",
        least=0,
        below=1,
    )
    adaption: str = option(
        "concatenation",
        "How the task embedding combines the features of both images: concatenation (sec. 3.2 "
        "says combination), or correlation (the introduction's word): each position is first "
        "weighted by its cosine similarity to the category vector. none: no adaption (eq. 1-3).",
        choices=("none", "concatenation", "correlation"),
    )
    before_aspp: str = option(
        "none",
        "Layers between the concatenation with the prototype and ASPP: none, as in sec. 3.3; "
        "CANet's dense comparison (canet: dilation 2, ReLU, dropout); or a convolution alone "
        "(plain), as in models of version 0.1, but in neither the paper nor CANet's code.",
        choices=("none", "canet", "plain"),
    )
    refinement: bool = option(True, "Refine the mask by the U-Net (eq. 4).")
    refinement_style: str = option(
        "strided",
        "strided: a stem of stride 2, so that four pools reach the paper's 1/32, and twice as many "
        "channels after each pool. constant: a plain convolution at full resolution instead of the "
        "stem, and the same number of channels everywhere, as BASNet's RefUnet (in "
        "github.com/xuebinqin/BASNet, model/BASNet.py), which matches the paper's description "
        "except for the 1/32.",
        choices=("strided", "constant"),
    )
    refinement_width: int = option(
        0,
        "Channels of the U-Net's first block; 0 for 32 (strided) or 64 (constant).",
        least=0,
        most=8192,
    )
    standardisation_epsilon: float = option(1e-5, "Added to the variance of eq. 1.", above=0)
    auxiliary_weight: float = option(1.0, "Weight of the auxiliary loss (eq. 3).", least=0)
    coarse_weight: float = option(1.0, "Weight of the loss of the mask before refinement.", least=0)

    def setup(self) -> None:
        """The layers, in the order of the paper."""
        options = {"kernel_init": nn.initializers.he_normal(), "dtype": self.dtype}
        conv = functools.partial(convolution, **options)
        aspp = functools.partial(
            ASPP, options, self.width, dropout=self.dropout, rematerialise=self.rematerialise
        )
        self.drop = channel_dropout(self.dropout)
        self.embedding = conv(self.width)
        if self.adaption != "none":
            self.pair = conv(self.width, 1)  # the task embedding of a pair
            self.gate = [nn.Dense(self.width, dtype=self.dtype) for _ in range(2)]  # W_1, W_2
            self.alpha = self.param("alpha", nn.initializers.zeros, ())
            self.auxiliary_aspp = aspp()
            self.auxiliary_block = ResidualBlock(options, self.rematerialise)
            self.auxiliary_classifier = classifier(2, self.dtype)
        if self.before_aspp != "none":
            dilation = 2 if self.before_aspp == "canet" else 1
            self.comparison = JoinedConvolution(self.width, dilation=dilation, **options)
        self.aspp = aspp()
        self.classifier = classifier(2, self.dtype)
        if self.refinement:
            strided = self.refinement_style == "strided"
            width = self.refinement_width or (32 if strided else 64)
            self.unet = RefinementUNet(width, strided, dtype=self.dtype)

    def ablations(self) -> dict[str, Method]:
        """The same parameters without adaption: eq. 2 with alpha = 0."""
        return {} if self.adaption == "none" else {"alpha = 0": self.clone(adaption="none")}

    def encode(
        self, image: Float[AnyArray, "*batch height width 3"], train: bool = False
    ) -> Float[Array, "*batch h w channel"]:
        """Embedded features of normalised images."""
        features = nn.relu(self.embedding(self.extract(image, train)))
        return self.drop(features, deterministic=not train)

    def adapt(
        self,
        support: Float[Array, "way shot h w channel"],
        masks: Shaped[Array, "way shot height width"],
        query: Float[Array, "query_h query_w channel"],
    ) -> tuple[
        Float[Array, "way shot h w channel"], Float[Array, "way shot query_h query_w channel"]
    ]:
        """Support and query features of each pair, adapted to the pair (eq. 1-2)."""
        category = self.pool(support, masks)
        # The average of a 1 x 1 convolution is the 1 x 1 convolution of the average, which costs
        # little and allows support and query to differ in size.
        means = []
        for features in (support, query):
            features = features.astype(jnp.float32)
            if self.adaption == "correlation":
                features = jnp.broadcast_to(features, (*category.shape[:-1], *features.shape[-3:]))
                features *= cosine_similarity(features, category[..., None, :])
            means.append(jnp.broadcast_to(average(features), category.shape))
        x = jnp.concatenate([*means, category.astype(jnp.float32)], axis=-1)
        x = self.pair(x[..., None, None, :])[..., 0, 0, :].astype(jnp.float32)
        centred = x - x.mean(axis=-1, keepdims=True)  # eq. 1, over channels
        variance = jnp.mean(centred**2, axis=-1, keepdims=True)
        x = centred / jnp.sqrt(variance + self.standardisation_epsilon)
        first, second = self.gate
        x = nn.sigmoid(second(nn.relu(first(x))))
        shift = (self.alpha * x)[..., None, None, :]
        return support + shift, query + shift  # eq. 2

    def pool(
        self,
        features: Float[AnyArray, "*batch h w channel"],
        mask: Shaped[AnyArray, "*batch height width"],
    ) -> Float[Array, "*batch channel"]:
        """Features averaged over a mask: the category vector (sec. 3.2), the prototype (3.3)."""
        return pool(features, mask, self.area_epsilon, self.align_corners)

    def segment(
        self,
        support_features: Float[AnyArray, "way shot h w channel"],
        support_label: UInt8[AnyArray, "way shot height width"],
        query_features: Float[AnyArray, "query_h query_w channel"],
        query_image: Float[AnyArray, "query_height query_width 3"],
        previous: None = None,
        train: bool = False,
    ) -> Output[Aux]:
        """Logits of the query; in training also those of the auxiliary decoder.

        With several shots, the adapted query features of the pairs are averaged before the
        prediction (sec. 3.4), and so are the prototypes, where the paper averages support features.

        See `Method.segment`; `query_image` is for the refinement, and `previous` is not used.
        """
        masks = support_masks(support_label)
        shape = (*support_label.shape[:2], *query_features.shape)
        # Without adaption; otherwise each pair has query features of its own.
        support, query = jnp.asarray(support_features), jnp.broadcast_to(query_features, shape)
        support_logits = query_logits = coarse = None
        if self.adaption != "none":
            support, query = self.adapt(support, masks, jnp.asarray(query_features))
            if train:
                support_logits, query_logits = self._auxiliary(support), self._auxiliary(query)
        # Not the adapted support features (sec. 3.4), because the masks of the shots differ.
        prototype = self.pool(support, masks).mean(axis=1)
        x = self.aspp(self._compare(query.mean(axis=1), prototype, train), train=train)
        logits = self.classifier(x).astype(jnp.float32)
        if self.refinement:
            coarse = resize(logits, query_image.shape[:2], self.align_corners)
            logits = coarse + self.unet(coarse, query_image, train)
        return Output(join_ways(logits), Aux(logits, coarse, support_logits, query_logits))

    def _compare(
        self,
        query: Float[Array, "way h w channel"],
        prototype: Float[Array, "way channel"],
        train: bool,
    ) -> Float[Array, "way h w c"]:
        """Query features joined with the prototype (sec. 3.3), by the layers of `before_aspp`."""
        match self.before_aspp:
            case "none":
                tiled = jnp.broadcast_to(prototype[..., None, None, :], query.shape)
                return jnp.concatenate([query, tiled.astype(query.dtype)], axis=-1)
            case "plain":
                return self.comparison(query, vector=prototype)
            case "canet":
                compared = nn.relu(self.comparison(query, vector=prototype))
                return self.drop(compared, deterministic=not train)
        raise AssertionError(self.before_aspp)

    def _auxiliary(
        self, features: Float[AnyArray, "way shot h w channel"]
    ) -> Float[Array, "way shot h w 2"]:
        """Logits of the auxiliary decoder (sec. 3.2), which runs in training only."""
        x = self.auxiliary_block(self.auxiliary_aspp(features, train=True))
        return self.auxiliary_classifier(x).astype(jnp.float32)

    def loss(
        self, output: Output, episode: Episode, key: PRNGKeyArray, epoch: Float[AnyArray, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        r"""Cross-entropies of refined and coarse mask, and of the auxiliary decoder (eq. 3).

        $L = \mathrm{CE}(\hat M) + w_c \mathrm{CE}(M) + w_a (\mathrm{CE}_s + \mathrm{CE}_q)$ with
        the weights `coarse_weight` and `auxiliary_weight`.

        See `Method.loss`; `key` and `epoch` are not used.
        """
        total, parts = super().loss(output, episode, key, epoch)
        label = query_labels(episode.query_label, len(episode.class_id))

        def loss_of(logits: Array, target: AnyArray) -> Array:
            return cross_entropy(logits, target, self.align_corners).mean()

        if self.refinement:
            parts["coarse"] = loss_of(output.aux.coarse_logits, label)
            total += self.coarse_weight * parts["coarse"]
        if self.adaption != "none":
            shots = episode.support_label.shape[1]
            query = jnp.broadcast_to(label[:, None], (len(label), shots, *label.shape[1:]))
            support = support_labels(episode.support_label)
            of_query = loss_of(output.aux.query_logits, query)
            parts["auxiliary"] = loss_of(output.aux.support_logits, support) + of_query
            total += self.auxiliary_weight * parts["auxiliary"]
        return total, parts


class RefinementUNet(nn.Module):
    """A residual for coarse logits, computed from the logits and the image (G of eq. 4).

    If strided, a stem and four max-pools reach the paper's 1/32 of the resolution, and channels
    double at each pool. Otherwise a plain convolution replaces the stem, and the number of channels
    is constant. Features are up-sampled to the size of the skip (twice their own, or one less), and
    the residual to the size of the image, both with aligned corners. Batch normalisation spans the
    whole batch of episodes.
    """

    width: int
    strided: bool = True
    dtype: DTypeLike = jnp.float32
    depth: int = 4  # max-pools

    @nn.compact
    def __call__(
        self,
        coarse: Float[AnyArray, "way height width 2"],
        image: Float[AnyArray, "height width 3"],
        train: bool = False,
    ) -> Float[Array, "way height width 2"]:
        """The residual."""

        def block(x: Array, width: int, stride: int = 1) -> Array:
            x = convolution(width, stride=stride, use_bias=False, dtype=self.dtype)(x)
            norm = nn.BatchNorm(
                use_running_average=not train, axis_name=BATCH_AXIS, momentum=0.9, dtype=self.dtype
            )
            return nn.relu(norm(x))

        def up(x: Array, like: Array) -> Array:
            return resize(x, like.shape[-3:-1], align_corners=True).astype(self.dtype)

        image = jnp.broadcast_to(image, (*coarse.shape[:1], *image.shape))
        x = jnp.concatenate([coarse, image], axis=-1).astype(self.dtype)
        skips = []
        growth = 2 if self.strided else 1
        if self.strided:
            x = block(x, self.width, stride=2)
        else:
            x = convolution(self.width, dtype=self.dtype)(x)
        for level in range(self.depth):
            x = block(x, self.width * growth**level)
            skips.append(x)
            x = halve(x)
        x = block(x, self.width * growth**self.depth)  # the bridge
        for level in reversed(range(self.depth)):
            skip = skips[level]
            x = block(jnp.concatenate([up(x, skip), skip], axis=-1), self.width * growth**level)
        # Zero at first: training starts from the coarse mask.
        last = convolution(2, dtype=self.dtype, kernel_init=nn.initializers.zeros)
        residual = last(x).astype(jnp.float32)
        return resize(residual, coarse.shape[-3:-1], align_corners=True)
