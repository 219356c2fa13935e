"""Segments a visitor's images from what is marked in some of them."""

import copy
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from fsseg_jax.data.source import LabelledImage
from fsseg_jax.episode import UNLABELLED
from fsseg_jax.errors import UserError
from fsseg_jax.page import folder, guard
from fsseg_jax.page.session import Planes, Session, names_of
from fsseg_jax.prediction.fitted import as_shown
from fsseg_jax.prediction.result import Result
from fsseg_jax.prediction.segmenter import Segmenter

PATIENCE = 1.0  # seconds after which a visitor who waits is told so
_one_by_one = threading.Lock()  # visitors take turns, so that memory is that of one


def find(session: Session, segmenter: Segmenter) -> Iterator[dict[str, Any]]:
    """Segments all images, and yields each as soon as it is done, as JSON.

    Those that cannot be segmented are yielded with an `error`. A line with `waiting` tells that
    another visitor's images are being segmented, and one with `fit` what `told` tells.

    Raises:
        UserError: nothing is marked, or the page is full.
    """
    session.check_marked()
    if folder.used() > guard.TOTAL:
        raise UserError(guard.FULL)
    while not _one_by_one.acquire(timeout=PATIENCE):
        yield {"waiting": True}
    try:
        with session.lock:  # not before: whoever waits needs no memory
            supports, version = session.supports(), session.version
            classes = names_of(session.classes, supports)
            pictures = list(session.pictures.values())
        numbers = [0, *classes]  # of the classes by those in the network
        network = np.full(256, UNLABELLED, np.uint8)
        network[numbers] = range(len(numbers))
        supports = [LabelledImage(image, network[label]) for image, label in supports]
        shown = as_shown(supports, [*classes.values()], segmenter.config)
        fitted = copy.copy(segmenter).fit_shown(shown)
        session.fit = told(fitted)
        yield {"fit": session.fit}
        files = [session.file(picture.number, "png") for picture in pictures]
        results = fitted.results(files, return_probabilities=True, batch_size=1)
        for picture, result in zip(pictures, results, strict=True):
            if isinstance(result, UserError):
                if picture.number in session.pictures:  # it has not been removed meanwhile
                    yield {"number": picture.number, "error": str(result)}
                continue
            session.keep(picture, planes_of(result, numbers), float(result.confidence), version)
            yield session.describe(picture)
    finally:
        _one_by_one.release()


def told(segmenter: Segmenter) -> dict[str, Any]:
    """What the examples tell of predictions, as JSON: the threshold, the mean of those of several
    classes; and how good each example is predicted from the others, in words, if it can be."""
    fitted = segmenter.fitted
    assert fitted is not None
    found, words = fitted.validation, None
    if found is not None and len(found.ious) > 1:  # one has no interval
        interval = f"{found.low:.0f} to {found.high:.0f}"
        words = (
            f"Leaving one out: {found.mean:.1f} mean IoU ({interval}) of {len(found.ious)} images"
        )
    return {"threshold": float(fitted.calibration.thresholds.mean()), "validation": words}


def planes_of(result: Result, numbers: Sequence[int]) -> Planes:
    """A prediction for which the page can choose another threshold.

    Args:
        result: the prediction, with probabilities.
        numbers: those of the classes on the page, the background's 0 first.

    Returns:
        the mask; the most probable class besides the background; and its probability, 255 for 1.
    """
    assert result.probabilities is not None
    page = np.array(numbers, np.uint8)
    objects = result.probabilities[..., 1:]
    best = page[objects.argmax(axis=-1) + 1]
    return np.stack([page[result.mask], best, as_bytes(objects.max(axis=-1))])


def as_bytes(values: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Values in 0..1 as the nearest of 256 steps."""
    return np.rint(255 * np.asarray(values)).astype(np.uint8)


def mask_of(planes: Planes, threshold: float | None) -> UInt8[np.ndarray, "height width"]:
    """The mask of a prediction: the model's own, or all whose probability is at least `threshold`.

    Args:
        planes: see `planes_of`.
        threshold: in 0..1; None for the model's own mask.
    """
    mask, best, probability = planes
    return mask if threshold is None else np.where(probability >= 255 * threshold, best, 0)
