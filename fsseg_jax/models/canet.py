"""CANet: dense comparison and iterative refinement (Zhang et al., CVPR 2019).

A convolution compares the query's features with the masked average of the support's (sec. 4.1). The
iterative optimization module turns the comparison into a mask, given its previous prediction
(sec. 4.2). Attention weights the comparisons with several supports (sec. 4.3).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from fsseg_jax.backbones.convolution import max_pool
from fsseg_jax.backbones.extent import average
from fsseg_jax.episode import AnyArray
from fsseg_jax.models.layers import (
    ASPP,
    TORCH_INIT,
    JoinedConvolution,
    ResidualBlock,
    channel_dropout,
    classifier,
    convolution,
    pool,
)
from fsseg_jax.models.method import Binary, BinaryMethod, join_ways, support_masks
from fsseg_jax.models.option import option
from fsseg_jax.models.output import Output


class CANet(BinaryMethod):
    r"""CANet on a frozen backbone; N ways are N binary passes.

    The optimization module starts with a residual block of the comparison $x$ and the previous
    prediction $y_{t-1}$, where F concatenates them and applies two 3 x 3 convolutions (eq. 1), each
    after a ReLU, as in the published code:

    $$M_t = x + F(x, y_{t-1}).$$

    $y_t$ is the softmax of the logits after iteration t = 1, 2 ... $y_0$ is 0; in training it is,
    with probability $1 - p_r$, the prediction that was stored when the item was last the query: one
    epoch before, if `data.sampling` is `items`.

    The comparisons with K supports are summed with weights, the softmax of one learned score per
    support (eq. 2):

    $$\hat\lambda_k = \frac{e^{\lambda_k}}{\sum_j e^{\lambda_j}}.$$

    Where the paper leaves a choice open, this follows the published code of the one-shot network.
    Shots are fused at the resolution of the features, before logits are resized to the image.

    Examples:
        >>> import jax
        >>> from fsseg_jax.backbones import create_backbone
        >>> from fsseg_jax.episode import empty_episode
        >>> model = CANet(create_backbone("small", "float32"), stages=(), width=8)
        >>> episode = empty_episode(ways=1, shots=2, size=32)
        >>> variables = jax.jit(model.init)(jax.random.key(0), episode)
        >>> jax.jit(model.apply)(variables, episode).logits.shape
        (8, 8, 2)
    """

    freeze_backbone: bool = option(True, "Do not train the backbone (sec. 4.1).")
    stages: tuple[int, ...] = option(
        (2, 3), "Backbone stages to compare (table 3): layer2 and layer3 of ResNet-50."
    )
    width: int = option(256, "Channels of all layers after the backbone.", least=1, most=8192)
    dropout: float = option(
        0.5,
        "Channel dropout after the embedding, the comparison and each convolution of ASPP, as in "
        "the published code.",
        least=0,
        below=1,
    )
    area_epsilon: float = option(
        5e-4,
        "Added to the area of masks, in positions of the features, as in the published code.",
        above=0,
    )
    init_deviation: float = option(
        0.01,
        "Standard deviation of the normal initialisation of kernels, as in the published code; 0 "
        "for PyTorch's default. The classifier's is always 0.01.",
        least=0,
    )
    refinements: int = option(
        4, "Iterations after the first one at inference (4 in sec. 5).", least=0, most=100
    )
    reset_probability: float = option(
        0.7,
        "Probability p_r of replacing the stored prediction by zeros in training (sec. 4.2; 0.7 in "
        "sec. 5).",
        least=0,
        most=1,
    )
    fusion: str = option(
        "attention",
        "How to combine shots (table 5): by learned attention, the mean of their vectors, the mean "
        "of their predictions, or the union of their masks. Attention has parameters only in a "
        "model of several shots: one trained with one shot needs another fusion for more.",
        choices=("attention", "feature_average", "mask_average", "mask_or"),
    )

    def setup(self) -> None:
        """The layers: comparison (fig. 2b), attention (fig. 3) and optimization module (fig. 2c).

        The dilation of the first two is the published code's.
        """
        deviation = self.init_deviation
        init = nn.initializers.normal(deviation) if deviation else TORCH_INIT
        options = {"kernel_init": init, "dtype": self.dtype}
        conv = functools.partial(convolution, **options)
        self.drop = channel_dropout(self.dropout)
        self.embedding = conv(self.width, dilation=2)
        self.comparison = JoinedConvolution(self.width, dilation=2, **options)
        self.attention = [JoinedConvolution(self.width, **options), conv(1)]
        self.blocks = [ResidualBlock(options, self.rematerialise) for _ in range(3)]
        self.aspp = ASPP(
            options, self.width, dropout=self.dropout, rematerialise=self.rematerialise
        )
        self.classifier = classifier(2, self.dtype)

    def encode(
        self, image: Float[AnyArray, "*batch height width 3"], train: bool = False
    ) -> Float[Array, "*batch h w channel"]:
        """Embedded features of normalised images, for both branches (sec. 4.1); ReLU and dropout
        are the published code's."""
        features = nn.relu(self.embedding(self.extract(image, train)))
        return self.drop(features, deterministic=not train)

    def segment(
        self,
        support_features: Float[AnyArray, "way shot h w channel"],
        support_label: UInt8[AnyArray, "way shot height width"],
        query_features: Float[AnyArray, "query_h query_w channel"],
        query_image: Float[AnyArray, "query_height query_width 3"],
        previous: UInt8[AnyArray, "query_h query_w 2"] | None = None,
        train: bool = False,
    ) -> Output[Binary]:
        """Logits of the query after 1 iteration in training, 1 + `refinements` at inference.

        Args:
            support_features, support_label, query_features: see `Method.segment`.
            query_image: not used.
            previous: the prediction stored for this item in training: 255 times the probabilities
                of background and object, or zeros if there is none. It is used in 1-way episodes
                only: each of several ways would need its own. Training with several ways therefore
                never trains the weights that read a prediction; set `refinements` to 0 with it.
            train: whether to apply dropout, and make one iteration that starts from `previous`.

        Returns:
            logits (query_h, query_w, way + 1), see `join_ways`; those of each way against its
            background; and what to store as the next `previous` (None for several ways).
        """
        ways, shots = support_label.shape[:2]
        masks = support_masks(support_label)
        vectors = pool(support_features, masks, self.area_epsilon, self.align_corners)
        # The mean of one shot is that shot, and the axis of shots stays, of length 1.
        fusion = self.fusion if shots > 1 else "feature_average"
        if fusion == "feature_average":
            vectors = vectors.mean(axis=1, keepdims=True)
        # A convolution of [query, vector] at every position: (way, shot, h, w, width), where shot
        # is 1 if vectors were averaged. This is x of eq. 1.
        compared = nn.relu(self.comparison(query_features, vector=vectors))
        compared = self.drop(compared, deterministic=not train)
        if fusion == "attention":
            weights = self._shot_weights(query_features, vectors).astype(compared.dtype)
            compared = jnp.sum(compared * weights[..., None, None, None], axis=1, keepdims=True)

        prediction = jnp.zeros((*compared.shape[:-1], 2))  # y_0
        if train and previous is not None and ways == 1:
            # Dropout of the whole mask (sec. 4.2).
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.reset_probability)
            stored = previous.astype(jnp.float32) / 255
            prediction += jnp.where(keep, stored, 0.0)  # (h, w, 2), to the one way and all shots
        for _ in range(1 if train else 1 + self.refinements):
            logits = self._optimize(compared, prediction, train)
            prediction = jax.nn.softmax(logits)

        if fusion == "mask_average":  # log-probabilities are logits; ours: 1e-7 keeps them finite
            logits = jnp.log(prediction.mean(axis=1, keepdims=True) + 1e-7)
        if fusion == "mask_or":  # the logits of the shot that is surest of the object: their union
            best = jnp.argmax(logits[..., 1] - logits[..., 0], axis=1)
            logits = jnp.take_along_axis(logits, best[:, None, ..., None], axis=1)
        logits = logits[:, 0]
        row = None
        if ways == 1:  # `previous` when this item is the query again
            row = jnp.round(255 * jax.nn.softmax(logits[0])).astype(jnp.uint8)
        return Output(join_ways(logits), Binary(logits), row=row)

    def _shot_weights(
        self, query: Float[AnyArray, "h w channel"], vectors: Float[AnyArray, "way shot channel"]
    ) -> Float[Array, "way shot"]:
        """Softmax over the shots of one learned score per shot (sec. 4.3, eq. 2)."""
        first, second = self.attention
        x = nn.relu(first(query, vector=vectors))
        # The paper gives the window, 3 x 3; stride and padding are those of ResNet's pooling.
        x = max_pool(x, stride=2)
        scores = average(second(x).astype(jnp.float32))[..., 0]
        return jax.nn.softmax(scores, axis=1)

    def _optimize(
        self,
        compared: Float[AnyArray, "way shot h w channel"],
        prediction: Float[AnyArray, "way shot h w 2"],
        train: bool,
    ) -> Float[Array, "way shot h w 2"]:
        """Logits of one iteration of the optimization module (sec. 4.2): eq. 1, two residual blocks
        more, ASPP and a classifier."""
        first, *others = self.blocks
        x = first(compared, prediction)
        for block in others:
            x = block(x)
        return self.classifier(self.aspp(x, train=train)).astype(jnp.float32)
