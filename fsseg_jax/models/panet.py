"""PANet: prototypes by masked average pooling, with prototype alignment (Wang et al., ICCV 2019).

Prototypes are masked averages of support features (eq. 1-2). The query is segmented by the cosine
similarity of its features to them (eq. 3-4), trained by cross-entropy (eq. 5). In training the
roles are then swapped: the query, with its predicted mask, segments the supports (eq. 6-7).

Without training, `prototypes = positions` segments better with the same features (`training_free`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped, UInt8

from fsseg_jax.episode import IGNORE, AnyArray, Episode
from fsseg_jax.models import training_free
from fsseg_jax.models.layers import cosine_similarity, masked_average_pool
from fsseg_jax.models.losses import cross_entropy
from fsseg_jax.models.method import Method, support_masks
from fsseg_jax.models.option import option
from fsseg_jax.models.output import Output
from fsseg_jax.models.resize import pull_back


class Reverse(NamedTuple):
    """The supports segmented by the query's prototypes (eq. 6), for the alignment loss."""

    logits: Float[Array, "way shot h w 2"]  # background, own way
    is_predicted: Bool[Array, " way"]  # whether the query's prediction contains the way


class PANet(Method):
    r"""PANet on any fully convolutional backbone; it has no parameters of its own.

    With features $F$ and masks $M$ of the K supports of class c, the prototype and the query's
    probabilities are (eq. 1 and 3; $\cos = 1 - d$, and the constant cancels)

    $$p_c = \frac{1}{K} \sum_k
    \frac{\sum_{x, y} F_k^{(x, y)} M_k^{(x, y)}}{\sum_{x, y} M_k^{(x, y)}}, \qquad
    P_c^{(x, y)} = \operatorname{softmax}_c\, \alpha \cos(F_q^{(x, y)}, p_c).$$

    The background is a class too: its mask is where no class of the episode is, and its mean is of
    the supports of all classes (eq. 2). Features are up-sampled to the masks, as in the published
    code.

    Examples:
        >>> import jax
        >>> from fsseg_jax.backbones import create_backbone
        >>> from fsseg_jax.episode import empty_episode
        >>> model = PANet(create_backbone("small", "float32"))
        >>> episode = empty_episode(ways=2, shots=1, size=32)
        >>> variables = jax.jit(model.init)(jax.random.key(0), episode)
        >>> jax.jit(model.apply)(variables, episode).logits.shape
        (8, 8, 3)
    """

    similarity_scale: float = option(
        20.0, "Factor of the cosine similarity (alpha of eq. 3; sec. 3.4).", above=0
    )
    alignment_weight: float = option(
        1.0, "Weight of the alignment loss (lambda of sec. 3.5); 0 leaves it out.", least=0
    )
    prototypes: str = option(
        "mean",
        "What stands for a class: the mean of its features (eq. 1-2), or all its positions, which "
        "is better without training (see `training_free`). Training always uses the mean; `load` "
        "takes positions for models that are not trained, unless this is set.",
        choices=("mean", "positions"),
    )
    sharpness: float = option(
        10.0,
        "Kappa of the kernel around each position: larger ones are narrower. 10 is better than 20 "
        "on VOC (docs/figures.md).",
        above=0,
        most=40,
    )
    matching_weight: float = option(
        10.0,
        "Factor of the similarity to prototypes that follow the query as far as its positions "
        "match those of the supports forward and backward; 0 leaves it out. On VOC it gains 5 "
        "points with one shot and 0.7 with five (docs/figures.md).",
        least=0,
    )
    ridge: float = option(
        3.0,
        "Regularises the discriminant: this times the mean variance is added to the diagonal of "
        "its covariance. Of 0.03, 0.3, 3 and 10, 3 is best on VOC (docs/figures.md).",
        least=1e-3,
    )
    discriminant_weight: float = option(
        0.5,
        "Factor of the discriminant's logits, which are added to those of the density.",
        least=0,
    )
    discriminant_from: int = option(
        5,
        "Use the discriminant from this number of shots on, repeated ones included. On VOC it "
        "loses 2.5 with one shot, which tells little of how a class varies, and gains 0.8 with "
        "five.",
        least=1,
    )
    area_epsilon: float = option(
        1e-5,
        "Added to the area of a mask, so that an empty one gives zeros, as in the published code.",
        above=0,
    )
    ignored_is_background: bool = option(
        True, "Treat support pixels of label 255 as background, as the published code does."
    )
    align_corners: bool = option(
        False, "Corner convention of all resizing: half-pixel, as in the published code."
    )

    @property
    def ignored_pixels(self) -> str:
        """How support pixels of label 255 are treated, as an evaluation's protocol says."""
        return "background" if self.ignored_is_background else "ignored"

    def encode(
        self, image: Float[AnyArray, "*batch height width 3"], train: bool = False
    ) -> Float[Array, "*batch h w channel"]:
        """Features of normalised images."""
        # Prototypes and similarities are computed in float32 whatever the dtype.
        return self.extract(image, train).astype(jnp.float32)

    def summarise(
        self,
        support_features: Float[AnyArray, "way shot h w channel"],
        support_label: UInt8[AnyArray, "way shot height width"],
        train: bool = False,
    ) -> Float[AnyArray, "way shot h w channel"] | training_free.Bank:
        """The features of the supports if means stand for classes, otherwise a bank.

        A bank takes a class from every support that shows it, means from its own supports only. A
        support whose label is 254 throughout counts for neither (its zero does not change the
        direction of a mean).
        """
        if train or self.prototypes == "mean":
            return support_features
        shape = support_features.shape[2:]
        features = support_features.reshape(-1, *shape)
        classes = jnp.arange(1, len(support_label) + 1)[:, None, None]
        label = support_label.reshape(-1, 1, *support_label.shape[2:])
        masks = jnp.concatenate([self._is_background(label), label == classes], axis=1)
        areas = pull_back(masks.astype(jnp.float32), shape[:2], self.align_corners)
        areas = jnp.moveaxis(areas, 1, -1)
        return training_free.fit(features, areas, self.ridge, self._activation)

    def segment(
        self,
        support_features: Float[AnyArray, "way shot h w channel"] | training_free.Bank,
        support_label: UInt8[AnyArray, "way shot height width"],
        query_features: Float[AnyArray, "query_h query_w channel"],
        query_image: Float[AnyArray, "query_height query_width 3"],
        previous: None = None,
        train: bool = False,
    ) -> Output[Reverse | None]:
        """Logits of the query (eq. 3); in training also those of the reverse pass (eq. 6).

        See `Method.segment`; `query_image` and `previous` are not used.
        """
        if isinstance(support_features, training_free.Bank):  # `summarise` has made it
            enough = support_label.shape[1] >= self.discriminant_from
            weights = self.matching_weight, self.discriminant_weight if enough else 0.0
            bank = support_features
            logits = training_free.logits(bank, query_features, self.sharpness, *weights)
            return Output(logits, None)
        prototypes = self._prototypes(support_features, support_label)
        logits = self._similarity(query_features, prototypes)
        if not train or self.alignment_weight == 0:
            return Output(logits, None)

        # The reverse pass (sec. 3.5): the query, with its predicted masks, is the support.
        masks = self._predicted_masks(logits)
        query_prototypes = self._pool(query_features, masks)

        def reverse(
            features: Float[AnyArray, "h w channel"], way: Int[AnyArray, ""]
        ) -> Float[Array, "h w 2"]:
            # Eq. 6: a support is segmented into its own way and the background.
            return self._similarity(features, query_prototypes[jnp.stack([0, way])])

        over_shots = jax.vmap(reverse, in_axes=(0, None))
        ways = jnp.arange(1, support_label.shape[0] + 1)
        support_logits = jax.vmap(over_shots)(support_features, ways)
        return Output(logits, Reverse(support_logits, masks[1:].any(axis=(1, 2))))

    def likeness(
        self,
        support_features: Float[AnyArray, "way shot h w channel"] | training_free.Bank,
        query_features: Float[AnyArray, "query_h query_w channel"],
        logits: Float[AnyArray, "query_h query_w class"],
        among: Bool[AnyArray, "query_h query_w"] | None = None,
    ) -> Float[Array, " way"] | None:
        """See `Method.likeness`; of positions only (`training_free.likeness`)."""
        if not isinstance(support_features, training_free.Bank):
            return None
        found = query_features, logits, among
        return training_free.likeness(support_features, *found, self._activation)

    @property
    def _activation(self) -> Callable[[Array], Array]:
        """What follows the features in the network that the weights are of."""
        return jax.nn.relu if getattr(self.backbone, "ends_before_relu", False) else lambda x: x

    def measure(
        self,
        support_features: Float[AnyArray, "way shot h w channel"],
        support_label: UInt8[AnyArray, "way shot height width"],
        query_features: Float[AnyArray, "h w channel"],
        query_label: UInt8[AnyArray, "height width"],
    ) -> dict[str, Float[Array, ""]]:
        """Distances between the prototypes of supports and query (sec. 4.3).

        Euclidean distances of unnormalised prototypes, averaged over the ways. The paper reports
        32.2 with alignment and 42.6 without (1,000 1-way 5-shot episodes of PASCAL-5i's first
        split), but not which mask of the query it takes, nor whether the background counts. Here
        the background is left out and both masks are reported: "prototype distance" uses the
        query's label, "prototype distance, predicted" the prediction, as the reverse pass does.
        """
        prototypes = self._prototypes(support_features, support_label)

        def distance(masks: Shaped[AnyArray, "class height width"]) -> Float[Array, ""]:
            """The mean over the ways in the masks; NaN if there are none."""
            distances = jnp.linalg.norm(self._pool(query_features, masks) - prototypes, axis=-1)
            return jnp.mean(distances[1:], where=masks[1:].any(axis=(1, 2)))

        classes = jnp.arange(len(prototypes))[:, None, None]
        predicted = self._predicted_masks(self._similarity(query_features, prototypes))
        return {
            "prototype distance": distance(query_label == classes),
            "prototype distance, predicted": distance(predicted),
        }

    def loss(
        self, output: Output, episode: Episode, key: PRNGKeyArray, epoch: Float[AnyArray, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        r"""$L = L_{seg} + \lambda L_{PAR}$ (end of sec. 3.5), and both terms, unweighted.

        See `Method.loss`; `key` and `epoch` are not used.
        """
        segmentation = cross_entropy(output.logits, episode.query_label, self.align_corners)
        if output.aux is None:
            return segmentation, {"segmentation": segmentation}
        alignment = self._alignment(output.aux, episode.support_label)
        parts = {"segmentation": segmentation, "alignment": alignment}
        return segmentation + self.alignment_weight * alignment, parts

    def _alignment(
        self, reverse: Reverse, support_label: UInt8[AnyArray, "way shot height width"]
    ) -> Float[Array, ""]:
        """L_PAR (eq. 7; it prints M_q, and means the support's mask): a mean over ways and shots.

        The cross-entropy of {background, own way}. Pixels of other ways do not count, as in the
        published code.
        """
        label = jnp.where(support_masks(support_label), 1, IGNORE)
        label = jnp.where(self._is_background(support_label), 0, label)
        losses = cross_entropy(reverse.logits, label, self.align_corners)
        # A way that is not predicted has no prototype: its loss is 0, and counts in the mean.
        return jnp.mean(losses * reverse.is_predicted[:, None])

    def _predicted_masks(self, logits: Float[AnyArray, "h w class"]) -> Float[Array, "class h w"]:
        """One-hot masks of the most probable class (eq. 4), at the resolution of the features; they
        have no gradient."""
        return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], axis=0)

    def _is_background(self, label: UInt8[AnyArray, "*shape"]) -> Bool[AnyArray, "*shape"]:
        """Pixels of no class of the episode (eq. 2); unmarked ones (254) never are."""
        background = label == 0
        return background | (label == IGNORE) if self.ignored_is_background else background

    def _prototypes(
        self,
        features: Float[AnyArray, "way shot h w channel"],
        label: UInt8[AnyArray, "way shot height width"],
    ) -> Float[Array, "class channel"]:
        """Prototypes, background first: pooled per image, then averaged over images (eq. 1-2)."""
        masks = jnp.stack([self._is_background(label), support_masks(label)], axis=2)
        pooled = self._pool(features, masks)  # (way, shot, {background, own way}, channel)
        background = pooled[:, :, 0].mean(axis=(0, 1))
        return jnp.concatenate([background[None], pooled[:, :, 1].mean(axis=1)])

    def _pool(
        self,
        features: Float[AnyArray, "*batch h w channel"],
        masks: Shaped[AnyArray, "*batch mask height width"],
    ) -> Float[Array, "*batch mask channel"]:
        """Means of features over masks (the fraction in eq. 1)."""
        return masked_average_pool(
            features, masks.astype(jnp.float32), self.area_epsilon, self.align_corners
        )

    def _similarity(
        self, features: Float[AnyArray, "h w channel"], prototypes: Float[AnyArray, "class channel"]
    ) -> Float[Array, "h w class"]:
        """Logits of eq. 3."""
        return self.similarity_scale * cosine_similarity(features, prototypes)
