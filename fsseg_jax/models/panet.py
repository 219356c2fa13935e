"""PANet: nearest-prototype segmentation with prototype alignment (Wang et al., ICCV 2019).

Prototypes are masked averages of support features (eq. 1-2), the query is segmented by its
cosine similarity to them (eq. 3-4), trained by cross-entropy (eq. 5), and the prediction in turn
serves as support for segmenting the support photographs (eq. 6-7): the forward pass in reverse.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped, UInt8

from fsseg_jax.episode import IGNORE, AnyArray, Episode
from fsseg_jax.models.layers import cosine_similarity, cross_entropy, masked_average_pool
from fsseg_jax.models.method import Method
from fsseg_jax.models.option import option
from fsseg_jax.models.output import Output


class PANet(Method):
    """PANet on any fully convolutional backbone; it has no parameters of its own."""

    similarity_scale: float = option(20.0, "Multiplies the cosine similarity (eq. 3's alpha).")
    alignment_weight: float = option(
        1.0, "Weight of the alignment loss (the paper's lambda); 0 leaves it out."
    )
    area_epsilon: float = option(1e-5, "Added to the area of a mask, as in the published code.")
    ignored_is_background: bool = option(
        True, "Support pixels of label 255 are background, as in the published code."
    )
    align_corners: bool = option(False, "Half-pixel corners, as in the published code.")

    @property
    def ignored_pixels(self) -> str:
        """What support pixels of label 255 count as, for the protocol."""
        return "background" if self.ignored_is_background else "ignored"

    def encode(
        self, image: Float[Array, "*batch height width 3"], train: bool = False
    ) -> Float[Array, "*batch h w channel"]:
        """Features of normalised photographs: all that depends on a photograph alone."""
        return self.extract(image, train).astype(jnp.float32)

    def segment(
        self,
        support_features: Float[Array, "way shot h w channel"],
        support_label: UInt8[AnyArray, "way shot height width"],
        query_features: Float[Array, "query_h query_w channel"],
        query_image: Float[AnyArray, "query_height query_width 3"],
        previous: None = None,
        train: bool = False,
    ) -> Output:
        """Logits of the query; in training also those of the supports, segmented in reverse."""
        prototypes = self._prototypes(support_features, support_label)
        logits = self._similarity(query_features, prototypes)
        if not train or self.alignment_weight == 0:
            return Output(logits, {})

        # The reverse pass: the query under its own prediction is the support now.
        prediction = self._predicted(logits)
        query_prototypes = self._pool(query_features, prediction)

        def reverse(
            features: Float[Array, "h w channel"], way: Int[Array, ""]
        ) -> Float[Array, "h w 2"]:
            return self._similarity(features, query_prototypes[jnp.stack([0, way])])

        over_shots = jax.vmap(reverse, in_axes=(0, None))
        ways = jnp.arange(1, support_label.shape[0] + 1)
        support_logits = jax.vmap(over_shots)(support_features, ways)
        is_predicted = prediction[1:].any(axis=(1, 2))
        return Output(logits, {"support_logits": support_logits, "is_predicted": is_predicted})

    def measure(
        self,
        support_features: Float[Array, "way shot h w channel"],
        support_label: UInt8[AnyArray, "way shot height width"],
        query_features: Float[Array, "h w channel"],
        query_label: UInt8[AnyArray, "height width"],
    ) -> dict[str, Float[Array, ""]]:
        """How far the prototypes of a class in the supports and in the query are apart (sec. 4.3).

        Euclidean distances at the features' own scale, means over the ways (the paper has 32.2
        with alignment and 42.6 without, over 1,000 1-way 5-shot episodes of PASCAL-5i's first
        split). It does not say which mask of the query is meant, nor whether the background
        counts, which is left out here: "prototype distance" is by the query's label, over the
        ways that it shows, "prototype distance, predicted" by its prediction, as in training.
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
            return jnp.mean(apart[1:], where=masks[1:].any(axis=(1, 2)))  # NaN of none

        return jax.tree.map(distance, masks)

    def loss(
        self, output: Output, episode: Episode, key: PRNGKeyArray, epoch: Float[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Segmentation loss (eq. 5) plus the weighted alignment loss (eq. 7), and both parts."""
        segmentation = cross_entropy(output.logits, episode.query_label, self.align_corners)
        parts = {"segmentation": segmentation}
        if "support_logits" in output.aux:
            parts["alignment"] = self._alignment(output.aux, episode.support_label)
        return segmentation + self.alignment_weight * parts.get("alignment", 0.0), parts

    def _alignment(
        self, aux: dict[str, Array], support_label: UInt8[AnyArray, "way shot height width"]
    ) -> Float[Array, ""]:
        """Each support of way n against {background, n}; other ways' pixels are ignored."""
        way = jnp.arange(1, support_label.shape[0] + 1)[:, None, None, None]
        label = jnp.where(support_label == way, 1, IGNORE)
        label = jnp.where(self._is_background(support_label), 0, label)
        losses = cross_entropy(aux["support_logits"], label, self.align_corners)
        # A way that the prediction does not contain has no prototype and contributes nothing.
        return jnp.mean(losses * aux["is_predicted"][:, None])

    def _predicted(self, logits: Float[Array, "h w class"]) -> Float[Array, "class h w"]:
        """A mask for each class of the prediction."""
        return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], axis=0)

    def _is_background(self, label: UInt8[AnyArray, "*shape"]) -> Array:
        background = label == 0
        return background | (label == IGNORE) if self.ignored_is_background else background

    def _prototypes(
        self,
        features: Float[Array, "way shot h w channel"],
        label: UInt8[AnyArray, "way shot height width"],
    ) -> Float[Array, "class channel"]:
        """Background, then one prototype a way: means over photographs of pooled features."""
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
