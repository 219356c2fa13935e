"""Intersection over union, from pixel counts of single episodes.

The counts of an episode are true positives, false positives and false negatives of each of its
N + 1 classes (background first); pixels of label 255 count for nothing. They are summed over the
episodes of a run before anything is divided.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from fsseg_jax.episode import IGNORE
from fsseg_jax.errors import UserError


def pixel_counts(
    prediction: Int[Array, "height width"], label: UInt8[Array, "height width"], ways: int
) -> Int[Array, "class 3"]:
    """TP, FP and FN of each class of one episode, in pixels."""
    classes = jnp.arange(ways + 1)[:, None, None]
    counted = label != IGNORE
    predicted = (prediction == classes) & counted
    true = (label == classes) & counted
    counts = [predicted & true, predicted & ~true, true & ~predicted]
    return jnp.stack([mask.sum((-2, -1)) for mask in counts], axis=-1)


def iou(counts: Int[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch"]:
    """TP / (TP + FP + FN) in percent; NaN where there is nothing to find and nothing found."""
    counts = np.asarray(counts, np.float64)
    union = counts.sum(-1)
    return np.divide(100 * counts[..., 0], union, out=np.full_like(union, np.nan), where=union > 0)


def episode_iou(counts: Int[np.ndarray, "episode class 3"]) -> Float[np.ndarray, " episode"]:
    """The mean IoU of the classes that each query shows, in percent."""
    foreground = np.where(_shown(counts)[..., None], counts[:, 1:], 0)
    values = iou(foreground)
    seen = np.isfinite(values)
    return np.nansum(values, axis=1) / np.maximum(seen.sum(axis=1), 1)


def run_metrics(
    counts: Int[np.ndarray, "episode class 3"],
    classes: Int[np.ndarray, "episode way"],
    names: dict[int, str],
) -> dict[str, Any]:
    """The figures of one run, all in percent.

    `mean_iou` counts, for each class, only the queries that show it, as PANet's published
    evaluation does: a pixel given to an absent class costs that class nothing. `mean_iou_star`
    counts it (MFNet's mIoU*). They agree for one way. `binary_iou` takes all classes as one: the
    mean of the IoU of the background and of the counts summed over the other classes, where a
    pixel of one class given to another is an error. A class without any pixel has None.

    Args:
        counts: see `pixel_counts`.
        classes: class ids of the ways.
        names: class id to name.

    Raises:
        UserError: no query shows any of its classes.
    """
    per_class, per_class_star = {}, {}
    shown = _shown(counts)
    for class_id in np.unique(classes):
        is_class = classes == class_id
        name = names[int(class_id)]
        per_class_star[name] = float(iou(counts[:, 1:][is_class].sum(0)))
        per_class[name] = float(iou(counts[:, 1:][is_class & shown].sum(0)))
    if np.isnan(list(per_class.values())).all():
        raise UserError(
            "no query shows a pixel of its classes: check the episode list and the labels."
        )
    foreground = iou(counts[:, 1:].sum((0, 1)))
    background = iou(counts[:, 0].sum(0))
    return {
        "mean_iou": float(np.nanmean(list(per_class.values()))),
        "mean_iou_star": float(np.nanmean(list(per_class_star.values()))),
        "binary_iou": float((foreground + background) / 2),
        "per_class": {name: None if np.isnan(x) else x for name, x in per_class.items()},
    }


def _shown(counts: Int[np.ndarray, "episode class 3"]) -> np.ndarray:
    """Which ways the query's ground truth shows: those with true pixels, found or missed."""
    return counts[:, 1:, 0] + counts[:, 1:, 2] > 0
