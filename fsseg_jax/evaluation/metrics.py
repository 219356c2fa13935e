"""Intersection over union, from pixel counts of single episodes.

The counts of an episode are true positives, false positives and false negatives of each of its
N + 1 classes (background first). They are summed over the episodes of a run before anything is
divided.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from fsseg_jax.episode import IGNORE, AnyArray
from fsseg_jax.errors import UserError

MEANS = ("mean_iou", "mean_iou_star", "binary_iou", "binary_iou_shown", "binary_iou_merged")


def pixel_counts(
    prediction: Int[Array, "height width"],
    label: UInt8[Array, "height width"],
    ways: int,
    counted: Bool[Array, "height width"] | None = None,
) -> Int[Array, "class 3"]:
    """TP, FP and FN of each class of one episode, in pixels.

    Args:
        prediction, label: in episode numbering.
        ways: N.
        counted: which pixels count; by default those whose label is not 255. Where 255 counts, it
            is background.
    """
    classes = jnp.arange(ways + 1)[:, None, None]
    if counted is None:
        counted = label != IGNORE
    else:
        label = jnp.where(label == IGNORE, 0, label)
    predicted = (prediction == classes) & counted
    true = (label == classes) & counted
    counts = [predicted & true, predicted & ~true, true & ~predicted]
    return jnp.stack([mask.sum((-2, -1)) for mask in counts], axis=-1)


def iou(counts: Int[AnyArray, "*batch 3"]) -> Float[np.ndarray, "*batch"]:
    """TP / (TP + FP + FN) in percent; NaN where there is nothing to find and nothing found."""
    counts = np.asarray(counts, np.float64)
    union = counts.sum(-1)
    return np.divide(100 * counts[..., 0], union, out=np.full_like(union, np.nan), where=union > 0)


def episode_iou(counts: Int[AnyArray, "episode class 3"]) -> Float[np.ndarray, " episode"]:
    """The mean IoU of the classes that each query shows, in percent."""
    foreground = np.where(_shown(counts)[..., None], counts[:, 1:], 0)
    values = iou(foreground)
    seen = np.isfinite(values)
    return np.nansum(values, axis=1) / np.maximum(seen.sum(axis=1), 1)


def run_metrics(
    counts: Int[AnyArray, "episode class 3"],
    classes: Int[AnyArray, "episode way"],
    names: dict[int, str],
) -> dict[str, Any]:
    """The figures of one run, all in percent.

    `mean_iou` counts, for each class, only the queries that show it, as PANet's published
    evaluation does: a pixel given to an absent class costs that class nothing. `mean_iou_star`
    counts it (MFNet's mIoU*). A class without any pixel has None.

    Binary-IoU is the mean of the background's IoU and of all other classes' together, of which
    there are three definitions. They are one for one way whose queries all show it:

    - `binary_iou`: counts are summed over the classes; a pixel of one class given to another is
      an error.
    - `binary_iou_shown`: so they are, but a class counts only in queries that show it, as in
      PANet's published code (util/metric.py, lines 62 and 109), and so does the background.
    - `binary_iou_merged`: all classes are one foreground, so that a pixel of one class given to
      another is right (PANet sec. 4.1's words).

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
    return {
        "mean_iou": float(np.nanmean(list(per_class.values()))),
        "mean_iou_star": float(np.nanmean(list(per_class_star.values()))),
        **_binary_ious(counts),
        "per_class": {name: None if np.isnan(x) else x for name, x in per_class.items()},
    }


def _binary_ious(counts: Int[AnyArray, "episode class 3"]) -> dict[str, float]:
    """Binary-IoU by its three definitions, in percent; see `run_metrics`."""
    background, classes = counts[:, 0], counts[:, 1:]
    has_background = background[:, 0] + background[:, 2] > 0
    # What is missed of the background is wrongly foreground, and the other way round.
    true = classes[..., 0].sum() + classes[..., 2].sum()
    missed, wrong = background[:, 1].sum(), background[:, 2].sum()
    pairs = {
        "binary_iou": (background.sum(0), classes.sum((0, 1))),
        "binary_iou_shown": (background[has_background].sum(0), classes[_shown(counts)].sum(0)),
        "binary_iou_merged": (background.sum(0), np.array([true - missed, wrong, missed])),
    }
    return {name: float(np.mean([iou(part) for part in pair])) for name, pair in pairs.items()}


def best_threshold(
    counts: Int[AnyArray, "episode threshold class 3"],
    classes: Int[AnyArray, "episode way"],
    thresholds: Sequence[float],
) -> float:
    """The threshold at which the mean over classes of their IoU is greatest."""
    shown = _shown(counts[:, 0])
    ious = []
    for class_id in np.unique(classes):
        episode, way = np.nonzero((classes == class_id) & shown)
        ious.append(iou(counts[episode, :, way + 1].sum(0)))
    return float(thresholds[int(np.argmax(np.nanmean(ious, axis=0)))])


def _shown(counts: Int[AnyArray, "episode class 3"]) -> Bool[AnyArray, "episode way"]:
    """Which ways the query's ground truth shows: those with true pixels, found or missed."""
    return counts[:, 1:, 0] + counts[:, 1:, 2] > 0
