"""Intersection over union, from pixel counts of single episodes.

The counts of an episode are the true positives, false positives and false negatives of each of its
N + 1 classes (background first). They are summed over the episodes of a run before division.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, UInt8

from fsseg_jax.episode import IGNORE, AnyArray
from fsseg_jax.errors import UserError

MEANS = ("mean_iou", "mean_iou_star", "binary_iou", "binary_iou_shown", "binary_iou_merged")


def pixel_counts(
    prediction: Integer[AnyArray, "height width"],
    label: UInt8[AnyArray, "height width"],
    ways: int,
    counted: Bool[Array, "height width"] | None = None,
) -> Int[Array, "class 3"]:
    """TP, FP and FN of each class of one episode, in pixels.

    Args:
        prediction, label: classes in episode numbering.
        ways: number of classes without the background, N.
        counted: the pixels that count; by default those whose label is not 255. Counted pixels of
            label 255 are background.

    Examples:
        >>> import numpy as np
        >>> prediction = np.array([[0, 1, 1], [0, 1, 0]])
        >>> label = np.array([[0, 1, 1], [1, 0, 255]], np.uint8)
        >>> pixel_counts(prediction, label, ways=1).tolist()  # of the background, and of the class
        [[1, 1, 1], [2, 1, 1]]
    """
    classes = jnp.arange(ways + 1)[:, None, None]
    valid = label != IGNORE if counted is None else counted
    label = jnp.where(label == IGNORE, 0, label)
    predicted = (prediction == classes) & valid
    true = (label == classes) & valid
    counts = [predicted & true, predicted & ~true, true & ~predicted]
    return jnp.stack([mask.sum((-2, -1)) for mask in counts], axis=-1)


def label_counts(
    prediction: UInt8[np.ndarray, "height width"],
    label: UInt8[np.ndarray, "height width"],
    ways: int,
) -> Int[np.ndarray, "class 3"]:
    """`pixel_counts` on the host, for images of any size, each of which JAX would compile for."""
    counted = label != IGNORE
    pairs = label[counted].astype(np.int64) * (ways + 1) + prediction[counted]
    table = np.bincount(pairs, minlength=(ways + 1) ** 2).reshape(ways + 1, -1)
    right = table.diagonal()
    return np.stack([right, table.sum(0) - right, table.sum(1) - right], axis=1)


def iou(counts: Int[AnyArray, "*batch 3"]) -> Float[np.ndarray, "*batch"]:
    """TP / (TP + FP + FN) in percent; NaN for a class without true or predicted pixels.

    Examples:
        >>> iou(np.array([[1, 1, 1], [2, 1, 1]])).round(1).tolist()
        [33.3, 50.0]
    """
    counts = np.asarray(counts, np.float64)
    union = counts.sum(-1)
    return np.divide(100 * counts[..., 0], union, out=np.full_like(union, np.nan), where=union > 0)


def episode_iou(counts: Int[AnyArray, "episode class 3"]) -> Float[np.ndarray, " episode"]:
    """The mean IoU over the classes that each query shows, in percent."""
    values = iou(np.where(_shown(counts)[..., None], counts[:, 1:], 0))
    seen = np.isfinite(values)
    return np.nansum(values, axis=1) / np.maximum(seen.sum(axis=1), 1)


def run_metrics(
    counts: Int[AnyArray, "episode class 3"],
    classes: Int[AnyArray, "episode way"],
    names: dict[int, str],
) -> dict[str, Any]:
    """The figures of one run, in percent.

    `mean_iou` counts, for each class, only the queries that show it, as PANet's published
    evaluation does: pixels wrongly predicted as a class that the query does not show cost nothing.
    In `mean_iou_star` (MFNet's mIoU*), they count. A class without any pixel has None.

    Binary-IoU is the mean of the IoU of the background and that of all other classes together. Its
    three definitions agree for one way if all queries show it:

    - `binary_iou`: counts are summed over the classes; confusing one class with another is an
      error.
    - `binary_iou_shown`: likewise, but a class, or the background, counts only in queries that show
      it, as in PANet's published code (util/metric.py, lines 62 and 109).
    - `binary_iou_merged`: all classes are one foreground, and confusing one with another is no
      error (the definition in PANet sec. 4.1).

    Args:
        counts: see `pixel_counts`.

    Raises:
        UserError: no query shows any of its classes.

    Examples:
        >>> # Two episodes of one way: the background, and the class.
        >>> counts = np.array([[[90, 5, 2], [10, 2, 5]], [[70, 0, 10], [30, 10, 0]]])
        >>> figures = run_metrics(counts, np.array([[1], [2]]), {1: "cat", 2: "dog"})
        >>> {name: round(value, 1) for name, value in figures["per_class"].items()}
        {'cat': 58.8, 'dog': 75.0}
        >>> round(figures["mean_iou"], 1), round(figures["binary_iou"], 1)
        (66.9, 80.3)
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
    """The three definitions of binary-IoU, in percent; see `run_metrics`."""
    background, classes = counts[:, 0], counts[:, 1:]
    has_background = background[:, 0] + background[:, 2] > 0
    # A false positive of the background is a false negative of the foreground, and vice versa.
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
    """The threshold with the greatest mean IoU over the classes."""
    shown = _shown(counts[:, 0])
    ious = []
    for class_id in np.unique(classes):
        episode, way = np.nonzero((classes == class_id) & shown)
        ious.append(iou(counts[episode, :, way + 1].sum(0)))
    return float(thresholds[int(np.argmax(np.nanmean(ious, axis=0)))])


def _shown(counts: Int[AnyArray, "episode class 3"]) -> Bool[AnyArray, "episode way"]:
    """The ways that the ground truth of the query shows, i.e. that have true pixels."""
    return counts[:, 1:, 0] + counts[:, 1:, 2] > 0
