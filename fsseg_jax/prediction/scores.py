"""How well masks agree with true ones, which users give as images, arrays or files."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Integer, UInt8

from fsseg_jax.data.masks import one_class
from fsseg_jax.episode import IGNORE, UNLABELLED
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.metrics import iou, label_counts
from fsseg_jax.prediction.pictures import mask_numbers


class Scores(NamedTuple):
    """The agreement of predicted masks with true ones, in percent.

    Examples:
        >>> predicted = np.array([[0, 1, 1], [0, 1, 0]], np.uint8)
        >>> true = np.array([[0, 1, 1], [1, 0, 255]], np.uint8)  # 255 is not counted
        >>> scores = compare([predicted], [true], classes=["mug"], numbers=[1])
        >>> scores.mean_iou, scores.per_class, scores.per_image
        (50.0, {'mug': 50.0}, [50.0])
    """

    mean_iou: float  # over the classes that true masks show, of pixels summed over all images
    per_class: dict[str, float | None]  # None for a class that no true mask shows
    # The mean over the classes that the true or the predicted mask of an image shows; 100 if
    # neither shows any, and None if all of the true mask is ignored.
    per_image: list[float | None]


def compare(
    predicted: Iterable[UInt8[np.ndarray, "_ _"]],
    masks: Sequence[Any],
    classes: Sequence[str],
    numbers: Sequence[int],
) -> Scores:
    """Compares predicted masks with true ones.

    Args:
        masks: a true mask for each, see `data.masks`; 254 and 255 are not counted.
        classes: names of the classes 1, 2 ...
        numbers: those that the classes have in `masks`; of one class, all but 0 is that.

    Raises:
        UserError: there are more or fewer masks than images, a mask cannot be read, has another
            size than its image or another number, or no mask shows a class.
    """
    counts = []
    for i, found in enumerate(predicted):
        if i == len(masks):
            raise UserError(f"masks has {i} entries, but there are more images: give one for each.")
        label = _in_order(mask_numbers(masks[i], f"masks[{i}]"), numbers, f"masks[{i}]")
        if label.shape != found.shape:
            (height, width), (rows, columns) = label.shape, found.shape
            raise UserError(
                f"masks[{i}] is {width} x {height} pixels, but images[{i}] is {columns} x {rows}: "
                "they must have the same size."
            )
        counts.append(label_counts(found, label, len(classes)))
    if len(counts) < len(masks):
        raise UserError(
            f"masks has {len(masks)} entries, but there are {len(counts)} images: give one for "
            "each."
        )
    total = np.sum(counts, axis=0) if counts else np.zeros((len(classes) + 1, 3), int)
    shown = total[1:, 0] + total[1:, 2] > 0
    if not shown.any():
        raise UserError("masks: none of them shows a class; give at least one that does.")
    ious = iou(total)[1:]
    return Scores(
        float(ious[shown].mean()),
        {name: float(ious[n]) if shown[n] else None for n, name in enumerate(classes)},
        [_of_image(one) for one in counts],
    )


def _of_image(counts: Int[np.ndarray, "class 3"]) -> float | None:
    if not counts.any():
        return None
    known = iou(counts)[1:]
    known = known[np.isfinite(known)]
    return float(known.mean()) if known.size else 100.0


def _in_order(
    label: Integer[np.ndarray, "height width"], numbers: Sequence[int], name: str
) -> UInt8[np.ndarray, "height width"]:
    """A label whose classes are 1, 2 ... in the order of `numbers`; what is not counted is 255."""
    if len(numbers) == 1:
        label = one_class(label)
        return np.where(label == UNLABELLED, IGNORE, label).astype(np.uint8)
    known = [0, *numbers, UNLABELLED, IGNORE]
    if other := np.setdiff1d(label, known).tolist():
        raise UserError(
            f"{name} has the number {other[0]}, but the supports show "
            f"{', '.join(map(str, numbers))}: use these, 0 for the background and {IGNORE} for "
            "what is not counted."
        )
    place = np.full(IGNORE + 1, IGNORE, np.uint8)
    place[known[:-2]] = np.arange(len(known) - 2)
    return place[label]
