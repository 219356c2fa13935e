"""What is predicted for an image, from the logits of its square."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from fsseg_jax.data.squares import fitted
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation import crf
from fsseg_jax.models.resize import interpolation_matrix
from fsseg_jax.prediction.calibration import Calibration, inside
from fsseg_jax.prediction.memory import check

# Pixels of the longer side of images that DenseCRF refines: its ranges are in pixels, and those of
# the library's example are for images of about this size, such as PASCAL VOC's.
CRF_SIDE = 500
# Numbers that `at_own_size` computes at once, so that only large images are divided.
TILE = 2**25
DIGITS = 4  # of scores in files; further ones depend on how many threads and processes compute


class Result(NamedTuple):
    """The prediction for an image, at its own size.

    Examples:
        >>> from fsseg_jax import load
        >>> images = np.random.default_rng(0).integers(0, 256, (2, 60, 80, 3), np.uint8)
        >>> segmenter = load("quickstart", image_size=32, devices=1)
        >>> segmenter = segmenter.fit(images[0], boxes=(10, 10, 40, 40))
        >>> (result,) = segmenter.results(images[1:])
        >>> result.mask.shape, result.scores.shape, result.probabilities
        ((60, 80), (2,), None)
        >>> 0 <= result.confidence <= 1
        True
    """

    mask: UInt8[np.ndarray, "height width"]  # 0 for the background, n for class n
    # The mean probability of each class over the pixels that the mask gives it; 0 without any.
    scores: Float[np.ndarray, " class"]
    confidence: float  # in 0..1, an estimate of the mask's IoU; see `expected_iou`
    probabilities: Float[np.ndarray, "height width class"] | None


def at_own_size(
    logits: Sequence[Float[np.ndarray, "_ _ class"]],
    shape: tuple[int, int],
    config: ConfigDict,
    align_corners: bool,
    probabilities: bool = False,
    small: UInt8[np.ndarray, "small_height small_width 3"] | None = None,
    calibration: Calibration | None = None,
    sides: Sequence[int] = (),
    likenesses: Sequence[Float[np.ndarray, " way"] | None] = (),
) -> Result | UserError:
    """The result for an image, with or without probabilities; or the error that these do not fit
    into memory.

    Args:
        logits: of its square at each scale, whose probabilities are averaged; perhaps several of
            each, one after another.
        shape: height and width of the image.
        small: the image at the size at which DenseCRF refines the probabilities; None for none.
        calibration: thresholds and the like; None for the most probable class.
        sides: of the square of each scale; `config.image_size` by default.
        likenesses: of each of `logits`, for the calibration; see `calibration.scores`.
    """
    classes = logits[0].shape[-1]
    sides = np.repeat(sides or config.image_size, len(logits) // max(1, len(sides))).tolist()
    extents = [square_extent(shape, side, config.eval.fit) for side in sides]
    own = [inside(view, shape, extent) for view, extent in zip(logits, extents, strict=True)]
    weights, confidence = np.ones(classes, np.float32), None
    if calibration is not None:
        known = list(zip(own, likenesses or [None] * len(own), strict=True))
        weights = np.mean([calibration.weights(*view) for view in known], axis=0)
        if calibration.knows_absence:
            confidence = float(np.mean([calibration.confidence(*view) for view in known]))
    if small is not None:
        size = small.shape[:2]
        small_extents = [square_extent(size, side, config.eval.fit) for side in sides]
        parts = averaged(logits, size, small_extents, align_corners)
        planes = np.concatenate([part for _, part in parts], axis=1)
        refined = crf.refined(np.moveaxis(planes, 0, -1), small, config.eval.crf)
        logits, extents = [np.log(refined + 1e-7)], [shape]
    try:
        every = _room(shape, classes) if probabilities else None
    except UserError as error:
        return error
    mask = np.empty(shape, np.uint8)
    # Sums of each class's probability where the mask has it and everywhere, and pixels of the mask.
    sums, totals, counts = np.zeros((3, classes))
    for rows, large in averaged(logits, shape, extents, align_corners):
        mask[rows] = np.argmax(large * weights[:, None, None], axis=0)
        if every is not None:
            every[:, rows] = large
        totals += large.sum(axis=(1, 2), dtype=np.float64)
        for number in np.flatnonzero(np.bincount(mask[rows].ravel())).tolist():
            won = mask[rows] == number
            sums[number] += large[number].sum(where=won, dtype=np.float64)
            counts[number] += np.count_nonzero(won)
    if confidence is None:
        confidence = expected_iou(sums, totals, counts)
    every = None if every is None else np.moveaxis(every, 0, -1)
    return Result(mask, sums / np.maximum(counts, 1), confidence, every)


def _room(shape: tuple[int, int], classes: int) -> Float[np.ndarray, "class height width"]:
    """An array for the probabilities of an image; a UserError if they do not fit into memory."""
    what = f"an image of {shape[1]} x {shape[0]} pixels has {classes} probabilities for each"
    check(4 * math.prod(shape) * classes, what, "make it smaller, or leave out probabilities")
    return np.empty((classes, *shape), np.float32)


def expected_iou(
    sums: Float[np.ndarray, " class"],
    totals: Float[np.ndarray, " class"],
    counts: Float[np.ndarray, " class"],
) -> float:
    """The IoU that a mask would have on average if pixels were drawn from their probabilities: the
    mean over the classes that it shows, or of the background if it shows none.

    It is the ratio of the expected intersection to the expected union, not the expected ratio.

    Args:
        sums: of each class's probability over the pixels that the mask gives it.
        totals: of each class's probability over all pixels.
        counts: the pixels that the mask gives each class.
    """
    shown = np.flatnonzero(counts[1:]) + 1 if counts[1:].any() else np.array([0])
    return float(np.mean((sums / np.maximum(counts + totals - sums, 1e-9))[shown]))


def averaged(
    logits: Sequence[Float[np.ndarray, "_ _ class"]],
    shape: tuple[int, int],
    extents: Sequence[tuple[int, int]],
    align_corners: bool,
) -> Iterator[tuple[slice, Float[np.ndarray, "class rows width"]]]:
    """Probabilities at the size of the image, averaged over its views (CANet sec. 4.2): all at
    once, or some rows at a time if it is large; see `enlarged`. `extents` are of the views."""
    views = (
        enlarged(view, shape, extent, align_corners)
        for view, extent in zip(logits, extents, strict=True)
    )
    for parts in zip(*views, strict=True):
        rows = parts[0][0]
        for _, large in parts:
            large -= large.max(axis=0)
            np.exp(large, out=large)
            large /= large.sum(axis=0)
        yield rows, np.mean([large for _, large in parts], axis=0)


def square_extent(shape: tuple[int, int], side: int, fit: str) -> tuple[int, int]:
    """The size of the whole square in pixels of the image: a letterboxed one has a border, of which
    the evaluation counts up to 7 pixels as part of the image, as PFENet's code does."""
    height, width = (
        round(n * side / m) for n, m in zip(shape, fitted(shape, side, fit), strict=True)
    )
    return height, width


def enlarged(
    logits: Float[np.ndarray, "h w class"],
    shape: tuple[int, int],
    extent: tuple[int, int],
    align_corners: bool,
) -> Iterator[tuple[slice, Float[np.ndarray, "class rows width"]]]:
    """Logits of what has the size `extent`, cut to `shape`: all at once, or some rows at a time."""
    rows, columns = (
        interpolation_matrix(n, whole, align_corners)[:part]
        for n, whole, part in zip(logits.shape, extent, shape, strict=False)
    )
    planes = np.moveaxis(logits, -1, 0)
    step = max(1, TILE // (shape[1] * len(planes)))
    for start in range(0, shape[0], step):
        part = slice(start, start + step)
        yield part, rows[part] @ planes @ columns.T
