"""What supports that are left out tell about predictions: thresholds, absence, confidence.

Each support is predicted from the others. From these predictions follow, for each class, the
threshold of its probability, the score below which an image does not show it, and how sharp
probabilities must be for the expected IoU to be the one that was found. Everything is computed from
logits at the network's resolution, on the host.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import binary_dilation
from scipy.special import expit, log_softmax, logit, logsumexp

from fsseg_jax.episode import IGNORE, UNLABELLED
from fsseg_jax.models.resize import interpolation_matrix

# Thresholds that are tried: finer steps change hardly any pixel, and there are few supports.
THRESHOLDS = np.arange(1, 100) / 100
# How many standard errors an IoU must grow by before the threshold moves away from 0.5. With fewer
# it follows the chance of a few supports, and loses IoU on other images (docs/figures.md).
ERRORS = 2
# The part of an image by whose most probable positions its score goes. Smaller parts see single
# positions, larger ones miss small objects.
PART = 0.01
# Log-odds that a likeness of 1 is worth in a score. On VOC, 30 to 100 are alike.
LIKENESS = 50.0
# The least part of a support that its background must be to stand for an image without the class.
LEAST_BACKGROUND = 0.1
# How far from the class, as a part of a side, the background of a support stands for an image
# without the class: as far as features mix neighbouring pixels noticeably.
MARGIN = 0.06
# Where the border between images with and without the class is, from the score of backgrounds (0)
# to that of images with it (1): other images score higher than the backgrounds of the supports. Of
# 0.5 to 0.9, 0.6 to 0.8 are as good where three of eight images do not show the class, and 0.8
# marks the fewest of these (docs/figures.md).
BORDER = 0.8
SHARPNESS = np.geomspace(0.1, 100, 121)  # factors of logits that are tried


class LeftOut(NamedTuple):
    """A support that was predicted from others."""

    square: Float[np.ndarray, "h w class"]  # logits of its square
    # Of the part of the square that it fills: class numbers, 255 ignored, 254 unmarked.
    label: UInt8[np.ndarray, "height width"]
    support: int  # its place among the supports
    align_corners: bool  # how the model's logits are resized
    size: int  # side of the square, in pixels of the label
    # Of each class: see `Method.likeness`, 0 where it is not known; and of what is found far from
    # the class alone.
    likeness: Float[np.ndarray, " way"]
    backgrounds: Float[np.ndarray, " way"]

    @property
    def logits(self) -> Float[np.ndarray, "h w class"]:
        """Logits of the support, without those of a border of its square."""
        return inside(self.square, self.label.shape, (self.size, self.size))


def inside(
    logits: Float[np.ndarray, "h w class"], shape: tuple[int, ...], extent: tuple[int, ...]
) -> Float[np.ndarray, "_ _ class"]:
    """The logits of a square that are of its image, which fills the upper left `shape` of `extent`
    (letterboxed, see `squares.square`)."""
    height, width = (
        max(1, round(n * part / whole))
        for n, part, whole in zip(logits.shape, shape, extent, strict=False)
    )
    return logits[:height, :width]


class CrossValidation(NamedTuple):
    """How well supports, or views of them, are predicted, in percent.

    Examples:
        >>> from fsseg_jax import load
        >>> images = np.random.default_rng(0).integers(0, 256, (3, 60, 80, 3), np.uint8)
        >>> segmenter = load("quickstart", image_size=32, devices=1)
        >>> found = segmenter.fit(images, boxes=[(10, 10, 40, 40)] * 3).cross_validate()
        >>> len(found.ious), found.supports
        (3, (0, 1, 2))
        >>> found.low < found.mean < found.high
        True
    """

    ious: tuple[float, ...]  # the mean over the classes of each support, or of each of its views
    supports: tuple[int, ...]  # which these are of the supports that are used, from 0
    mean: float
    # Ends of the interval that holds the mean in 95 % of cases (Student's t); None for views of
    # supports that are predicted from themselves, which tell nothing of other images.
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return (
                f"mean IoU {self.mean:.1f} of mirror images and crops of the supports, predicted "
                "from these themselves: other images will reach less"
            )
        return (
            f"mean IoU {self.mean:.1f} ({self.low:.1f} to {self.high:.1f}) of "
            f"{len(self.ious)} supports, each predicted from the others"
        )


class Calibration(NamedTuple):
    """How logits of an image become its mask and the confidence in it.

    Class n wins a pixel against the background if its probability is at least `thresholds[n - 1]`
    of the two; an image whose `score` for it is less than `absence[n - 1]` does not show it.
    """

    thresholds: Float[np.ndarray, " way"]
    absence: Float[np.ndarray, " way"]  # -inf: it is not known how images without the class look
    slopes: Float[np.ndarray, " way"]  # of the log-odds of presence by score
    sharpness: float = 1.0

    def weights(
        self,
        logits: Float[np.ndarray, "h w class"],
        likeness: Float[np.ndarray, " way"] | None = None,
    ) -> Float[np.ndarray, " class"]:
        """Factors of an image's probabilities before the largest wins, from its logits, and from
        its likeness if the model gives any."""
        weights = np.exp(self.shifts)
        if np.isfinite(self.absence).any():
            weights[1:] *= scores(logits, likeness) >= self.absence
        return weights

    @property
    def shifts(self) -> Float[np.ndarray, " class"]:
        """What the thresholds add to logits before the largest wins."""
        return np.array([0, *-logit(self.thresholds)], np.float32)

    @property
    def knows_absence(self) -> bool:
        """Whether something is known of images without some class."""
        return bool(np.isfinite(self.absence).any())

    def confidence(
        self,
        logits: Float[np.ndarray, "h w class"],
        likeness: Float[np.ndarray, " way"] | None = None,
    ) -> float:
        """An estimate of the IoU of an image's mask, in 0..1; see `weights`.

        The mean over the classes that the mask shows of their expected IoU (`expected_ious`) times
        the probability that the image shows them; or, if it shows none, how probable that is. The
        probability of a class whose scores tell nothing of it is left out, or a half.
        """
        weights = self.weights(logits, likeness)
        with np.errstate(divide="ignore"):
            shifted = log_softmax(logits, axis=-1) + np.log(weights)
        ious = expected_ious(self.sharpness * shifted)
        shown = np.flatnonzero(np.isfinite(ious[1:]))
        known = np.isfinite(self.absence)
        present = np.ones(len(self.absence))
        distance = scores(logits, likeness)[known] - self.absence[known]
        present[known] = expit(self.slopes[known] * distance)
        if len(shown):
            return float(np.mean(ious[1:][shown] * np.where(self.slopes > 0, present, 1)[shown]))
        return float((1 - present).min()) if known.all() else float(ious[0])


def that_show(left_out: Sequence[LeftOut]) -> list[LeftOut]:
    """Those that show a class: the others are examples of images without any."""
    return [one for one in left_out if not np.isin(one.label, [0, UNLABELLED, IGNORE]).all()]


def plain(ways: int, threshold: float = 0.5) -> Calibration:
    """One threshold for all classes, and nothing else."""
    return Calibration(
        np.full(ways, threshold), np.full(ways, -np.inf), np.zeros(ways), sharpness=1.0
    )


def calibrated(left_out: Sequence[LeftOut]) -> Calibration:
    """The calibration that supports which were left out give; see the module."""
    ways = left_out[0].logits.shape[-1] - 1
    thresholds = np.array([best_threshold(left_out, n) for n in range(1, ways + 1)])
    absence, slopes = np.array([presence(left_out, n) for n in range(1, ways + 1)]).T
    at_thresholds = Calibration(thresholds, np.full(ways, -np.inf), np.zeros(ways))
    sharpness = _sharpness(left_out, at_thresholds)
    return Calibration(thresholds, absence, slopes, sharpness)


def best_threshold(left_out: Sequence[LeftOut], number: int) -> float:
    """The threshold of class `number` with the greatest IoU, as far as the supports are sure of it.

    It is 0.5 unless another has a greater mean IoU by more than `ERRORS` standard errors of the
    differences between the supports; then it is the one with the most beyond that.
    """
    counts = [threshold_counts(one, number) for one in left_out if (one.label == number).any()]
    if len(counts) < 2:
        return 0.5
    right, wrong, missed = np.moveaxis(np.array(counts, np.float64), -1, 0)
    ious = right / np.maximum(right + wrong + missed, 1)
    gains = ious - ious[:, [np.argmin(abs(THRESHOLDS - 0.5))]]
    errors = gains.std(axis=0, ddof=1) / np.sqrt(len(gains))
    sure = gains.mean(axis=0) - ERRORS * errors
    return float(THRESHOLDS[sure.argmax()]) if sure.max() > 0 else 0.5


def threshold_counts(one: LeftOut, number: int) -> Float[np.ndarray, "threshold 3"]:
    """Pixels of class `number` at each of `THRESHOLDS`: found, found wrongly, and missed.

    The other classes have their probabilities as they are.
    """
    logits = resized(one)
    others = np.delete(logits, number, axis=-1).max(axis=-1)
    known = (one.label != IGNORE) & (one.label != UNLABELLED)
    margins, inside = (logits[..., number] - others)[known], one.label[known] == number
    # The pixel is found at the first `place` thresholds.
    place = np.searchsorted(logit(THRESHOLDS), margins, side="right")
    found = _at_least(place[inside])
    return np.stack([found, _at_least(place[~inside]), inside.sum() - found], axis=-1) * 1.0


def _at_least(place: np.ndarray) -> np.ndarray:
    """How many exceed 0, 1 ... up to the number of thresholds."""
    counts = np.bincount(place, minlength=len(THRESHOLDS) + 1)
    return counts[::-1].cumsum()[::-1][1:]


def presence(left_out: Sequence[LeftOut], number: int) -> tuple[float, float]:
    """The score below which an image does not show class `number`, and the slope of its log-odds.

    Scores of images with and without the class are taken for normal with one variance (linear
    discriminant analysis with equal priors): the border is half-way between their means. Without
    the class are supports that do not show it. The background of those that do stands for such
    images, too, with a border at `BORDER`. The higher border of the two counts, so that examples of
    images without the class never make more of them show it; but theirs is at most a standard
    deviation below the mean of images with it, as some may look just like these. (-inf, 0) if
    nothing is known of images without the class, or only backgrounds are, which score higher.
    """
    with_it, without, backgrounds = [], [], []
    for one in left_out:
        inside = one.label == number
        if inside.any():
            with_it.append(scores(one.logits, one.likeness)[number - 1])
            far = background(one, number)
            if far.mean() > LEAST_BACKGROUND:
                backgrounds.append(scores(one.logits, one.backgrounds, far)[number - 1])
        elif not (one.label == UNLABELLED).any():
            without.append(scores(one.logits, one.likeness)[number - 1])
    if not with_it:
        return -np.inf, 0.0
    mean, borders = np.mean(with_it), []
    if backgrounds and np.mean(backgrounds) < mean:
        borders.append((1 - BORDER) * np.mean(backgrounds) + BORDER * mean)
    if without:
        spread = np.std(with_it, ddof=1) if len(with_it) > 1 else 0.0
        borders.append(min((np.mean(without) + mean) / 2, mean - spread))
    if not borders:
        return -np.inf, 0.0
    others = without or backgrounds
    apart = max(mean - np.mean(others), 0.0)
    free = len(with_it) + len(others) - 2
    squares = len(with_it) * np.var(with_it) + len(others) * np.var(others)
    # Few scores may be nearly the same by chance: no border is surer than two deviations.
    variance = max(squares / free if free else 0, (apart / 8) ** 2)
    return float(max(borders)), float(apart / variance) if apart else 0.0


def background(one: LeftOut, number: int) -> Bool[np.ndarray, "h w"]:
    """Positions far from the class and from what is not marked."""
    h, w, _ = one.logits.shape
    near = (one.label == number) | (one.label == UNLABELLED) | (one.label == IGNORE)
    rows, columns = (
        np.linspace(0, n, m + 1).astype(int)[:-1] for n, m in zip(near.shape, (h, w), strict=True)
    )
    near = np.logical_or.reduceat(np.logical_or.reduceat(near, rows), columns, axis=1)
    size = [2 * round(MARGIN * n) + 1 for n in (h, w)]
    return ~binary_dilation(near, np.ones(size, bool))


def scores(
    logits: Float[np.ndarray, "h w class"],
    likeness: Float[np.ndarray, " way"] | None = None,
    among: Bool[np.ndarray, "h w"] | None = None,
) -> Float[np.ndarray, " way"]:
    """How much an image, or a part of it, looks as if it showed each class: the mean log-odds of
    the class at the `PART` of its positions where they are greatest, and `LIKENESS` times how like
    the supports all is that was found of it (0 if the model does not tell)."""
    flat = logits.reshape(-1, logits.shape[-1]) if among is None else logits[among]
    most = max(1, int(PART * len(flat)))

    def score(number: int) -> float:
        odds = flat[:, number] - logsumexp(np.delete(flat, number, axis=1), axis=1)
        return float(np.partition(odds, -most)[-most:].mean())

    odds = np.array([score(number) for number in range(1, flat.shape[-1])])
    return odds if likeness is None else odds + LIKENESS * likeness


def expected_ious(logits: Float[np.ndarray, "h w class"]) -> Float[np.ndarray, " class"]:
    """The IoU that each class of the most probable mask would have on average if pixels were drawn
    from their probabilities; NaN for classes that the mask does not show.

    It is the ratio of the expected intersection to the expected union, not the expected ratio.
    """
    flat = logits.reshape(-1, logits.shape[-1])
    probabilities = np.exp(log_softmax(flat, axis=-1))
    inside = flat.argmax(axis=-1)[:, None] == np.arange(flat.shape[-1])
    sums = (probabilities * inside).sum(axis=0)
    unions = inside.sum(axis=0) + probabilities.sum(axis=0) - sums
    return np.where(inside.any(axis=0), sums / np.maximum(unions, 1e-9), np.nan)


def _sharpness(left_out: Sequence[LeftOut], calibration: Calibration) -> float:
    """The factor of logits with which the mean confidence in left-out supports is their IoU."""
    left_out = that_show(left_out)
    true = np.mean([iou_of(one, calibration) for one in left_out])
    known = [(one.logits, one.likeness) for one in left_out]
    found = [
        np.mean([calibration._replace(sharpness=x).confidence(*one) for one in known])
        for x in SHARPNESS
    ]
    return float(SHARPNESS[np.argmin(np.abs(np.array(found) - true))])


def iou_of(one: LeftOut, calibration: Calibration) -> float:
    """The IoU, in 0..1, of a support's mask: the mean over the classes that it shows."""
    weights = calibration.weights(one.logits, one.likeness)
    with np.errstate(divide="ignore"):
        mask = (resized(one) + np.log(weights)).argmax(axis=-1)
    known = (one.label != IGNORE) & (one.label != UNLABELLED)
    shown = np.setdiff1d(one.label[known], [0])
    both = [((mask == n) & (one.label == n) & known).sum() for n in shown]
    either = [(((mask == n) | (one.label == n)) & known).sum() for n in shown]
    return float(np.mean(np.divide(both, either)))


def resized(one: LeftOut) -> Float[np.ndarray, "height width class"]:
    """Logits at the resolution of the label, as the model's are resized."""
    rows, columns = (
        interpolation_matrix(n, one.size, one.align_corners)[:part]
        for n, part in zip(one.square.shape, one.label.shape, strict=False)
    )
    return np.einsum("Hh,hwc,Ww->HWc", rows, one.square, columns, optimize=True)
