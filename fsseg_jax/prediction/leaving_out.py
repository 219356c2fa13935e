"""Predicts each support from the others: how good predictions are, before there are any."""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from PIL import Image
from scipy import stats

from fsseg_jax.devices import put, replicated
from fsseg_jax.episode import IGNORE
from fsseg_jax.prediction.calibration import (
    Calibration,
    CrossValidation,
    LeftOut,
    background,
    calibrated,
    iou_of,
    plain,
    that_show,
)
from fsseg_jax.prediction.fitted import Shown, by_showing, spread
from fsseg_jax.prediction.forward import Segmented
from fsseg_jax.prediction.pictures import classes_in
from fsseg_jax.prediction.programs import Programs
from fsseg_jax.prediction.supports import episode_rows

logger = logging.getLogger(__name__)

# Parts of the sides of the crops of a single support.
CROPS = (0.75, 0.6)
VIEWS = 1 + len(CROPS)


def rows_without(
    labels: Sequence[UInt8[np.ndarray, "size size"]], left_out: int, shots: int
) -> Int[np.ndarray, "way shot"] | None:
    """The supports of each way without one of them, as many as `shots` by repeating some, so that
    one program serves all; None if the others do not show all classes."""
    others = [i for i in range(len(labels)) if i != left_out]
    ways = max(number for label in labels for number in classes_in(label))
    shown = {number for i in others for number in classes_in(labels[i])}
    if shown != {*range(1, ways + 1)}:
        return None
    rows = np.array(others)[episode_rows([labels[i] for i in others])]
    return np.stack([np.resize(row, shots) for row in rows])


def leave_out(
    programs: Programs,
    variables: Any,
    shown: Shown,
    encoded: Sequence[Any],
    shots: int,
    align_corners: bool,
) -> list[LeftOut]:
    """Each support, predicted from the others; none if there are no others.

    Args:
        programs: of the model.
        encoded: features of each support, with two leading axes of one.
        shots: how many supports each class has.
        align_corners: of the model.
    """
    show, show_none = by_showing(shown)
    found = []
    for i in sorted(spread(show) + spread(show_none)):
        rows = rows_without([*shown.labels], i, shots)
        if rows is None:
            continue
        features = jax.tree.map(lambda *x, rows=rows: jnp.concatenate(x, axis=1)[0][rows], *encoded)
        features, labels = put((features, shown.labels[rows]), replicated(programs.mesh))
        summary = programs.summarise(variables, features, labels)
        query = jax.tree.map(lambda x: x[0, 0], encoded[i])
        segmented = programs.segment_encoded(variables, summary, labels, query, shown.images[i])
        one = of_square(segmented, shown.images[i], shown.labels[i], i, align_corners)
        if segmented.likeness is not None:
            known = variables, summary, query, segmented.logits
            one = _with_backgrounds(one, functools.partial(programs.likeness, *known))
        found.append(one)
    return found


def _with_backgrounds(
    one: LeftOut, likeness: Callable[[Bool[np.ndarray, "h w"]], Float[Array, " way"]]
) -> LeftOut:
    """A support, and how like each class its background is: what is found there alone.

    Args:
        likeness: a function of the positions of the square that count.
    """
    backgrounds = np.full(len(one.likeness), np.nan)
    for number in classes_in(one.label):
        far = background(one, number)
        among = np.zeros(one.square.shape[:2], bool)
        among[: far.shape[0], : far.shape[1]] = far
        if among.any():
            backgrounds[number - 1] = likeness(among)[number - 1]
    return one._replace(backgrounds=backgrounds)


def of_square(
    segmented: Segmented,
    image: UInt8[np.ndarray, "size size 3"],
    label: UInt8[np.ndarray, "size size"],
    support: int,
    align_corners: bool,
) -> LeftOut:
    """What was predicted for a support, of whose square a border may not be a part."""
    height, width = filled(image, label)
    logits, likeness = jax.device_get(segmented)
    unknown = np.zeros(logits.shape[-1] - 1)
    likeness = unknown if likeness is None else likeness
    given = label[:height, :width], support, align_corners, len(label)
    return LeftOut(logits, *given, likeness, unknown)


def filled(
    image: UInt8[np.ndarray, "size size 3"], label: UInt8[np.ndarray, "size size"]
) -> tuple[int, int]:
    """Height and width of the part of a square that its image fills: a letterboxed one has a black
    border that is ignored, on the right or below."""
    there = (label != IGNORE) | image.any(axis=-1)
    height, width = (np.flatnonzero(there.any(axis=axis))[-1] + 1 for axis in (1, 0))
    return int(height), int(width)


def calibrate(left_out: Sequence[LeftOut], ways: int, threshold: float) -> Calibration:
    """The calibration of the supports, or that of a threshold which is given (above 0)."""
    if threshold > 0 or len(that_show(left_out)) < 2:
        if len(left_out) > len(that_show(left_out)):
            why = "predict.threshold is set" if threshold > 0 else "fewer than two others show it"
            logger.warning("images that do not show the class have no effect, as %s", why)
        return plain(ways, threshold or 0.5)
    return calibrated(left_out)


def validation(
    left_out: Sequence[LeftOut], calibration: Calibration, of_views: bool = False
) -> CrossValidation | None:
    """How well supports are predicted that were left out, or views of them; None without any that
    shows a class."""
    left_out = that_show(left_out)
    if not left_out:
        return None
    ious = 100 * np.array([iou_of(one, calibration) for one in left_out])
    mean, half = float(ious.mean()), 50.0
    numbers = tuple(one.support for one in left_out)
    if of_views:
        return CrossValidation((*ious.tolist(),), numbers, mean, None, None)
    if len(ious) > 1:
        half = float(stats.t.ppf(0.975, len(ious) - 1) * ious.std(ddof=1) / np.sqrt(len(ious)))
    ends = max(mean - half, 0), min(mean + half, 100)
    return CrossValidation((*ious.tolist(),), numbers, mean, *ends)


def views_of(shown: Shown) -> Shown:
    """`VIEWS` other views of each support: the mirror image, and crops around the classes.

    What is predicted for views of an image from itself is better than for other images, so that
    this is an upper bound; but a single support has nothing else.
    """
    images, labels = [], []
    for image, label in zip(shown.images, shown.labels, strict=True):
        if not classes_in(label):
            continue
        _, width = filled(image, label)
        for parts, whole in ((images, image), (labels, label)):  # a border stays on the right
            parts.append(np.concatenate([whole[:, :width][:, ::-1], whole[:, width:]], axis=1))
        size = len(image)
        places = np.argwhere(np.isin(label, classes_in(label)))
        distances = ((places - places.mean(axis=0)) ** 2).sum(axis=1)
        top, left = places[distances.argmin()]  # each crop shows some of a class
        for part in CROPS:
            side = round(part * size)
            y, x = (int(np.clip(c - side / 2, 0, size - side)) for c in (top, left))
            box = (x, y, x + side, y + side)
            square = Image.fromarray(image).crop(box).resize((size, size))
            images.append(np.asarray(square))
            smaller = Image.fromarray(label).crop(box)
            labels.append(np.asarray(smaller.resize((size, size), Image.Resampling.NEAREST)))
    return shown._replace(images=np.stack(images), labels=np.stack(labels))


def views_as(
    shown: Shown,
    views: Shown,
    batches: Sequence[Segmented],
    align_corners: bool,
) -> list[LeftOut]:
    """What was predicted for `views_of` supports, by the numbers of these. The first of each batch
    counts."""
    showing = [number for number, label in enumerate(shown.labels) if classes_in(label)]
    numbers = np.repeat(showing, VIEWS).tolist()
    segmented = [jax.tree.map(lambda x: x[0], batch) for batch in batches]
    parts = zip(segmented, views.images, views.labels, numbers, strict=True)
    return [of_square(*part, align_corners) for part in parts]
