"""What is predicted for an image, from the logits of its square."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from fsseg_jax.data.squares import fitted
from fsseg_jax.errors import UserError
from fsseg_jax.models.resize import interpolation_matrix
from fsseg_jax.prediction.memory import check

# Numbers that `at_own_size` computes at once, so that only large images are divided.
TILE = 2**25


class Result(NamedTuple):
    """The prediction for an image, at its own size."""

    mask: UInt8[np.ndarray, "height width"]  # 0 for the background, n for class n
    # The mean probability of each class over the pixels that the mask gives it; 0 without any.
    scores: Float[np.ndarray, " class"]
    confidence: float  # in 0..1, an estimate of the mask's IoU; see `expected_iou`
    probabilities: Float[np.ndarray, "height width class"] | None


def at_own_size(
    logits: Float[np.ndarray, "h w class"],
    shape: tuple[int, int],
    config: ConfigDict,
    align_corners: bool,
    probabilities: bool = False,
) -> Result | UserError:
    """The result for an image of `shape`, from logits of its square, with or without probabilities;
    or the error that these do not fit into memory."""
    classes = logits.shape[-1]
    mask = np.empty(shape, np.uint8)
    every = None
    if probabilities:
        what = f"an image of {shape[1]} x {shape[0]} pixels has {classes} probabilities for each"
        try:
            check(4 * mask.size * classes, what, "make it smaller, or leave out probabilities")
        except UserError as error:
            return error
        every = np.empty((classes, *shape), np.float32)
    # Sums of each class's probability where the mask has it and everywhere, and pixels of the mask.
    sums, totals, counts = np.zeros((3, classes))
    for rows, large in enlarged(logits, shape, config, align_corners):
        mask[rows] = np.argmax(large, axis=0)
        large -= large.max(axis=0)
        np.exp(large, out=large)
        large /= large.sum(axis=0)
        if every is not None:
            every[:, rows] = large
        totals += large.sum(axis=(1, 2), dtype=np.float64)
        for number in np.flatnonzero(np.bincount(mask[rows].ravel())).tolist():
            inside = mask[rows] == number
            sums[number] += large[number].sum(where=inside, dtype=np.float64)
            counts[number] += np.count_nonzero(inside)
    confidence = expected_iou(sums, totals, counts)
    every = None if every is None else np.moveaxis(every, 0, -1)
    return Result(mask, sums / np.maximum(counts, 1), confidence, every)


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


def enlarged(
    logits: Float[np.ndarray, "h w class"],
    shape: tuple[int, int],
    config: ConfigDict,
    align_corners: bool,
) -> Iterator[tuple[slice, Float[np.ndarray, "class rows width"]]]:
    """Logits at the size of the image: all at once, or some rows at a time if it is large."""
    # The size of the whole square in pixels of the image: a letterboxed one has a border, of which
    # the evaluation counts up to 7 pixels as part of the image, as PFENet's code does.
    inside = fitted(shape, config.image_size, config.eval.fit)
    extent = [round(n * config.image_size / part) for n, part in zip(shape, inside, strict=True)]
    rows, columns = (
        interpolation_matrix(n, whole, align_corners)[:part]
        for n, whole, part in zip(logits.shape, extent, shape, strict=False)
    )
    planes = np.moveaxis(logits, -1, 0)
    step = max(1, TILE // (shape[1] * len(planes)))
    for start in range(0, shape[0], step):
        part = slice(start, start + step)
        yield part, rows[part] @ planes @ columns.T
