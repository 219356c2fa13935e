"""PANet: prototypes of masked averages, aligned in both directions (Wang et al., ICCV 2019).

Prototypes are masked averages of support features (eq. 1-2). The query is segmented by the cosine
similarity of its features to them (eq. 3-4), trained by cross-entropy (eq. 5). The prediction then
serves as the support for segmenting the support images: the same pass in reverse (eq. 6-7).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped, UInt8

from fsseg_jax.episode import IGNORE, AnyArray, Episode
from fsseg_jax.models.layers import cosine_similarity, masked_average_pool
from fsseg_jax.models.losses import cross_entropy
from fsseg_jax.models.method import Method
from fsseg_jax.models.option import option
from fsseg_jax.models.output import Output


class Reverse(NamedTuple):
    """The supports segmented by the query's prediction, for the alignment loss."""

    logits: Float[Array, "way shot h w 2"]
    is_predicted: Bool[Array, " way"]  # whether the prediction contains the way


class PANet(Method):
    r"""PANet on any fully convolutional backbone; it has no parameters of its own.

    With features $F$ and masks $M$ of the K supports of class c, the prototype and the query's
    probabilities are (eq. 1 and 3)

    $$p_c = \frac{1}{K} \sum_k
    \frac{\sum_{x, y} F_k^{(x, y)} M_k^{(x, y)}}{\sum_{x, y} M_k^{(x, y)}}, \qquad
    P_c^{(x, y)} = \operatorname{softmax}_c\, \alpha \cos(F_q^{(x, y)}, p_c).$$

    Example:
        >>> import jax
        >>> from fsseg_jax.backbones import create_backbone
        >>> from fsseg_jax.episode import empty_episode
        >>> model = PANet(create_backbone("small", "float32"))
        >>> episode = empty_episode(ways=2, shots=1, size=32)
        >>> variables = jax.jit(model.init)(jax.random.key(0), episode)
        >>> jax.jit(model.apply)(variables, episode).logits.shape
        (8, 8, 3)
    """

    similarity_scale: float = option(20.0, "Factor of the cosine similarity (alpha of eq. 3).")
    alignment_weight: float = option(1.0, "Weight of the alignment loss (lambda); 0 leaves it out.")
    area_epsilon: float = option(1e-5, "Added to the area of masks, as in the published code.")
    ignored_is_background: bool = option(
        True, "Treat support pixels of label 255 as background, as the published code does."
    )
    align_corners: bool = option(False, "Half-pixel corners, as in the published code.")

    @property
    def ignored_pixels(self) -> str:
        """How support pixels of label 255 are treated, for the protocol."""
        return "background" if self.ignored_is_background else "ignored"

    def encode(
        self, image: Float[Array, "*batch height width 3"], train: bool = False
    ) -> Float[Array, "*batch h w channel"]:
        """Features of normalised images."""
        return self.extract(image, train).astype(jnp.float32)

    def segment(
        self,
        support_features: Float[Array, "way shot h w channel"],
        support_label: UInt8[AnyArray, "way shot height width"],
        query_features: Float[Array, "query_h query_w channel"],
        query_image: Float[AnyArray, "query_height query_width 3"],
        previous: None = None,
        train: bool = False,
    ) -> Output[Reverse | None]:
        """Logits of the query (eq. 3); in training also those of the reverse pass (eq. 6).

        Args:
            support_features, query_features: outputs of `encode`.
            support_label: label in episode numbering.
            query_image: not used.
            previous: not used.
            train: whether to compute the reverse pass.
        """
        prototypes = self._prototypes(support_features, support_label)
        logits = self._similarity(query_features, prototypes)
        if not train or self.alignment_weight == 0:
            return Output(logits, None)

        # The reverse pass: the query with its predicted mask is the support.
        prediction = self._predicted(logits)
        query_prototypes = self._pool(query_features, prediction)

        def reverse(
            features: Float[Array, "h w channel"], way: Int[Array, ""]
        ) -> Float[Array, "h w 2"]:
            return self._similarity(features, query_prototypes[jnp.stack([0, way])])

        over_shots = jax.vmap(reverse, in_axes=(0, None))
        ways = jnp.arange(1, support_label.shape[0] + 1)
        support_logits = jax.vmap(over_shots)(support_features, ways)
        return Output(logits, Reverse(support_logits, prediction[1:].any(axis=(1, 2))))

    def measure(
        self,
        support_features: Float[Array, "way shot h w channel"],
        support_label: UInt8[AnyArray, "way shot height width"],
        query_features: Float[Array, "h w channel"],
        query_label: UInt8[AnyArray, "height width"],
    ) -> dict[str, Float[Array, ""]]:
        """Distances between prototypes of the supports and of the query (sec. 4.3).

        Euclidean distances at the features' own scale, averaged over the ways. (The paper reports
        32.2 with alignment and 42.6 without, over 1,000 1-way 5-shot episodes of PASCAL-5i's first
        split.) It leaves open which mask of the query is meant, and whether the background
        counts. Here it does not count, and both masks are measured: "prototype distance" takes
        the query's label and the ways in it, "prototype distance, predicted" the prediction, as
        in training.
        """
        prototypes = self._prototypes(support_features, support_label)
        masks = {
            "prototype distance": query_label == jnp.arange(len(prototypes))[:, None, None],
            "prototype distance, predicted": self._predicted(
                self._similarity(query_features, prototypes)
            ),
        }

        def distance(masks: Shaped[Array, "class height width"]) -> Float[Array, ""]:
            apart = jnp.linalg.norm(self._pool(query_features, masks) - prototypes, axis=-1)
            return jnp.mean(apart[1:], where=masks[1:].any(axis=(1, 2)))  # NaN if there is none

        return jax.tree.map(distance, masks)

    def loss(
        self, output: Output, episode: Episode, key: PRNGKeyArray, epoch: Float[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        r"""$L = L_{seg} + \lambda L_{PAR}$ (eq. 5 and 7), and both parts.

        Args:
            output: output of a pass with `train=True`.
            episode: the segmented episode.
            key: not used.
            epoch: not used.
        """
        segmentation = cross_entropy(output.logits, episode.query_label, self.align_corners)
        parts = {"segmentation": segmentation}
        if output.aux is not None:
            parts["alignment"] = self._alignment(output.aux, episode.support_label)
        return segmentation + self.alignment_weight * parts.get("alignment", 0.0), parts

    def _alignment(
        self, reverse: Reverse, support_label: UInt8[AnyArray, "way shot height width"]
    ) -> Float[Array, ""]:
        """The alignment loss: supports of way n against {background, n}, other ways ignored."""
        way = jnp.arange(1, support_label.shape[0] + 1)[:, None, None, None]
        label = jnp.where(support_label == way, 1, IGNORE)
        label = jnp.where(self._is_background(support_label), 0, label)
        losses = cross_entropy(reverse.logits, label, self.align_corners)
        # A way that the prediction does not contain has no prototype and contributes nothing.
        return jnp.mean(losses * reverse.is_predicted[:, None])

    def _predicted(self, logits: Float[Array, "h w class"]) -> Float[Array, "class h w"]:
        """One mask per class of the prediction."""
        return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], axis=0)

    def _is_background(self, label: UInt8[AnyArray, "*shape"]) -> Array:
        background = label == 0
        return background | (label == IGNORE) if self.ignored_is_background else background

    def _prototypes(
        self,
        features: Float[Array, "way shot h w channel"],
        label: UInt8[AnyArray, "way shot height width"],
    ) -> Float[Array, "class channel"]:
        """Prototypes of the background and of each way: means over images of pooled features."""
        way = jnp.arange(1, label.shape[0] + 1)[:, None, None, None]
        masks = jnp.stack([self._is_background(label), label == way], axis=2)
        pooled = self._pool(features, masks)  # (way, shot, 2, channel)
        background = pooled[:, :, 0].mean(axis=(0, 1))
        return jnp.concatenate([background[None], pooled[:, :, 1].mean(axis=1)])

    def _pool(
        self,
        features: Float[Array, "*batch h w channel"],
        masks: Shaped[Array, "*batch mask height width"],
    ) -> Float[Array, "*batch mask channel"]:
        return masked_average_pool(
            features, masks.astype(jnp.float32), self.area_epsilon, self.align_corners
        )

    def _similarity(
        self, features: Float[Array, "h w channel"], prototypes: Float[Array, "class channel"]
    ) -> Float[Array, "h w class"]:
        return self.similarity_scale * cosine_similarity(features, prototypes)
