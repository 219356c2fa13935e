"""CANet: dense comparison and iterative refinement (Zhang et al., CVPR 2019).

Features of the query are compared with the masked average of the support's by a convolution
(sec. 4.1); the comparison is turned into a mask by a module that sees its own last prediction
(sec. 4.2); several supports are weighed by attention (sec. 4.3).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from fsseg_jax.backbones.convolution import max_pool
from fsseg_jax.backbones.extent import positions
from fsseg_jax.episode import AnyArray
from fsseg_jax.models.layers import (
    ASPP,
    TORCH_INIT,
    JoinedConvolution,
    ResidualBlock,
    channel_dropout,
    classifier,
    convolution,
    masked_average_pool,
)
from fsseg_jax.models.method import BinaryMethod, join_ways, support_masks
from fsseg_jax.models.option import option
from fsseg_jax.models.output import Output
from fsseg_jax.models.resize import resize_masks


class CANet(BinaryMethod):
    """CANet on a frozen backbone; N ways are N binary passes.

    What the paper leaves open follows the published code (one-shot network), or is stated here.
    """

    freeze_backbone: bool = option(True, "Keep the pretrained backbone as it is (sec. 4.1).")
    stages: tuple[int, ...] = option(
        (2, 3), "Stages whose features are compared (table 3): layer2 and layer3 of ResNet-50."
    )
    width: int = option(256, "Channels of the head.", least=1)
    dropout: float = option(
        0.5,
        "Dropout of channels after each convolution with ReLU, as in the published code.",
        least=0,
        below=1,
    )
    area_epsilon: float = option(5e-4, "Added to the area of a mask, as in the published code.")
    init_deviation: float = option(
        0.01,
        "Standard deviation of the normal distribution that initialises kernels, as in the "
        "published code; 0 for PyTorch's default.",
        least=0,
    )
    refinements: int = option(
        4, "Refinement passes after the first pass, at inference (sec. 4.2).", least=0
    )
    reset_probability: float = option(
        0.7, "Probability with which training forgets the stored prediction (sec. 4.2)."
    )
    fusion: str = option(
        "attention",
        "How several shots are combined (table 5): by learned attention, or the mean of their "
        "vectors, the mean of their predictions, or the union of their masks.",
        choices=("attention", "feature_average", "mask_average", "mask_or"),
    )

    def setup(self) -> None:
        """The layers, by the parts of the paper's fig. 2."""
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
        self, image: Float[Array, "*batch height width 3"], train: bool = False
    ) -> Float[Array, "*batch h w channel"]:
        """Embedded features of normalised photographs, for both branches."""
        features = nn.relu(self.embedding(self.extract(image, train)))
        return self.drop(features, deterministic=not train)

    def segment(
        self,
        support_features: Float[Array, "way shot h w channel"],
        support_label: UInt8[AnyArray, "way shot height width"],
        query_features: Float[Array, "query_h query_w channel"],
        query_image: Float[AnyArray, "query_height query_width 3"],
        previous: UInt8[Array, "h w 2"] | None = None,
        train: bool = False,
    ) -> Output:
        """Logits of the query: one pass in training, refined ones at inference.

        Args:
            support_features, query_features: see `encode`.
            support_label: in episode numbering.
            query_image: not needed.
            previous: the prediction that training stored for this item, probabilities in 0..255.
                It is used for one way only: of several, each would need its own.
            train: whether there is dropout, and one pass that begins from `previous`.
        """
        ways, shots = support_label.shape[:2]
        size = support_features.shape[-3:-1]
        masks = resize_masks(support_masks(support_label), size, self.align_corners)
        vectors = masked_average_pool(
            support_features, masks[..., None, :, :], self.area_epsilon, self.align_corners
        )[..., 0, :]
        fusion = self.fusion if shots > 1 else "feature_average"
        if fusion == "feature_average":
            vectors = vectors.mean(axis=1, keepdims=True)
        # The query's features with each vector beside them: (way, shot, h, w, 2 * width).
        compared = nn.relu(self.comparison(query_features, vector=vectors))
        compared = self.drop(compared, deterministic=not train)
        if fusion == "attention":
            # Parameters exist only where there are several shots: training is K-shot (sec. 4.3).
            weights = self._attention(query_features, vectors)
            compared = jnp.sum(compared * weights[..., None, None, None], axis=1, keepdims=True)

        size = compared.shape[-3:-1]
        prediction = jnp.zeros((*compared.shape[:2], *size, 2))
        if train and previous is not None and ways == 1:
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.reset_probability)
            prediction += jnp.where(keep, previous.astype(jnp.float32) / 255, 0.0)
        for _ in range(1 if train else 1 + self.refinements):
            logits = self._optimize(compared, prediction, train)
            prediction = jax.nn.softmax(logits)

        if fusion == "mask_average":
            logits = jnp.log(prediction.mean(axis=1, keepdims=True) + 1e-7)
        if fusion == "mask_or":  # a pixel is the object's where any shot says so
            best = jnp.argmax(logits[..., 1] - logits[..., 0], axis=1)
            logits = jnp.take_along_axis(logits, best[:, None, ..., None], axis=1)
        logits = logits[:, 0]
        row = None
        if ways == 1:
            row = jnp.round(255 * jax.nn.softmax(logits[0])).astype(jnp.uint8)
        return Output(join_ways(logits), {"binary_logits": logits}, row=row)

    def _attention(
        self, features: Float[Array, "h w channel"], vectors: Float[Array, "way shot channel"]
    ) -> Float[Array, "way shot"]:
        """Softmax over the shots of one learned scalar a shot (sec. 4.3)."""
        first, second = self.attention
        x = nn.relu(first(features, vector=vectors))
        # The paper gives the window alone; stride and padding are those of ResNet's pooling.
        x = max_pool(x, 2)
        scores = second(x).astype(jnp.float32)
        scores = scores.mean(axis=(-3, -2, -1), where=positions(scores))
        return jax.nn.softmax(scores, axis=1)

    def _optimize(self, compared: Array, prediction: Array, train: bool) -> Array:
        """One pass of the iterative optimization module (sec. 4.2): logits."""
        first, *others = self.blocks
        x = first(compared, prediction)
        for block in others:
            x = block(x)
        return self.classifier(self.aspp(x, train=train)).astype(jnp.float32)
