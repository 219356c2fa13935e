"""What a segmenter knows of its supports, in memory and in the folder of a saved model."""

import logging
import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from jaxtyping import Array, UInt8
from ml_collections import ConfigDict

from fsseg_jax.checksums import checksums, verify
from fsseg_jax.data.source import LabelledImage
from fsseg_jax.errors import UserError, brief
from fsseg_jax.prediction.calibration import Calibration, CrossValidation
from fsseg_jax.prediction.marks import with_background
from fsseg_jax.prediction.pictures import classes_in, shows_none
from fsseg_jax.prediction.supports import class_names, square_support

FILE = "supports.safetensors"
SAVE_AGAIN = "save the model again"
# Supports that are left out at most, and as many that show no class: the time grows by the square
# of their number, and more than these change an estimate by little.
MOST = 10

logger = logging.getLogger(__name__)


class Shown(NamedTuple):
    """Supports as the network sees them, on the host: all else is made from these."""

    images: UInt8[np.ndarray, "support size size 3"]
    labels: UInt8[np.ndarray, "support size size"]  # see `Method.segment`
    classes: tuple[str, ...]  # names of the classes 1, 2 ...
    numbers: tuple[int, ...]  # those that the classes have in the user's own masks


class Fitted(NamedTuple):
    """What `Segmenter.fit` has made. Pickles hold all of it; a saved model holds `shown`, and the
    rest is made again when it is loaded."""

    shown: Shown
    # On the devices, as `labels`:
    summary: Any  # output of `forward.summarise`
    labels: UInt8[Array, "way shot size size"]
    calibration: Calibration
    validation: CrossValidation | None  # None if no support could be left out


def as_shown(
    supports: Sequence[LabelledImage],
    classes: Sequence[str],
    config: ConfigDict,
    numbers: Sequence[int] = (),
    name: str = "supports",
) -> Shown:
    """Supports as the network sees them. Their labels are numbers of classes, not masks of users,
    whose shades and white mean something else.

    Args:
        supports: images at their own size, with labels as of `Method.segment`: the classes
            1, 2 ..., 0 for the background, 254 where nothing is marked, and 255 where ignored. One
            that is background only is an example of images without the classes.
        classes: names of the classes.
        config: says how large the squares are, and how images become squares.
        numbers: those of the classes in the user's masks; by default 1, 2 ...
        name: what to call the supports in errors.

    Raises:
        UserError: nothing is known of one, or see `square_support`.
    """
    size, fit = config.image_size, config.eval.fit
    squares = []
    for i, support in enumerate(with_background(supports)):
        if not classes_in(support.label) and not shows_none(support.label):
            raise UserError(f"{name}[{i}] shows no class: mark one, or leave the image out.")
        squares.append(square_support(support, f"{name}[{i}]", size, fit))
    pixels, labels = (np.stack(part) for part in zip(*squares, strict=True))
    own = (*numbers,) or (*range(1, len(classes) + 1),)
    return Shown(pixels, labels, (*classes,), own)


def joined(first: Shown, more: Shown) -> Shown:
    """All supports; `more` has the classes of both, those of `first` first."""
    added = (*range(max(first.numbers) + 1, max(first.numbers) + 1 + len(more.classes)),)
    numbers = (*first.numbers, *added[: len(more.classes) - len(first.numbers)])
    images = np.concatenate([first.images, more.images])
    labels = np.concatenate([first.labels, more.labels])
    return Shown(images, labels, more.classes, numbers)


def check_shown(shown: Shown) -> None:
    """Raises UserError if there is a class that no support shows, or none at all."""
    there = {number for label in shown.labels for number in classes_in(label)}
    if not there:
        raise UserError("No support shows a class: mark it in at least one image.")
    for number, name in enumerate(shown.classes, 1):
        if number not in there:
            raise UserError(
                f"No support shows the class {name}: add one that does, or leave it out."
            )


def spread(numbers: Sequence[int]) -> list[int]:
    """At most `MOST` of them, evenly."""
    places = np.linspace(0, len(numbers) - 1, min(MOST, len(numbers))).astype(int)
    return [numbers[place] for place in places.tolist()]


def of_use(shown: Shown) -> Shown:
    """Supports without those that show no class but for `MOST` of these: only as many are left out,
    and for nothing else are they used."""
    show, show_none = by_showing(shown)
    used = spread(show_none)
    if len(used) == len(show_none):
        return shown
    words = "supports that show no class: %d, of which %d are used"
    logger.info(words, len(show_none), len(used))
    rows = sorted(show + used)
    return shown._replace(images=shown.images[rows], labels=shown.labels[rows])


def by_showing(shown: Shown) -> tuple[list[int], list[int]]:
    """The numbers of the supports that show a class, and of those that show none."""
    shows = np.array([bool(classes_in(label)) for label in shown.labels])
    return np.flatnonzero(shows).tolist(), np.flatnonzero(~shows).tolist()


def as_file(shown: Shown) -> tuple[bytes, dict[str, Any]]:
    """The contents of `FILE`, and what the configuration says about it."""
    arrays = {"images": shown.images, "labels": shown.labels}
    facts = {"classes": shown.classes, "numbers": shown.numbers, "checksums": checksums(arrays)}
    return safetensors.numpy.save(arrays), facts


def read(
    folder: pathlib.Path, facts: Any, saved: ConfigDict, config: ConfigDict, remedy: str
) -> Shown | None:
    """The supports of a saved model; None, with a warning, if `config` has squares of another kind.

    Args:
        facts: what the configuration says about them, see `as_file`.
        saved, config: the configuration of the saved model, and that which it is loaded with.
        remedy: what to do about a file that was changed.

    Raises:
        UserError: the file cannot be read, is damaged, or does not fit the configuration.
    """
    path = folder / FILE
    try:
        if not os.path.isfile(path):
            raise FileNotFoundError("there is no such file")
        arrays = safetensors.numpy.load_file(path)
        verify(arrays, facts["checksums"], str(path), remedy)
        shown = _checked(arrays, facts, saved.image_size)
    except UserError:
        raise
    except (OSError, safetensors.SafetensorError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({brief(error)}): {SAVE_AGAIN}.") from None
    for name, before, now in (
        ("image_size", saved.image_size, config.image_size),
        ("eval.fit", saved.eval.fit, config.eval.fit),
    ):
        if before != now:
            warnings.warn(
                f"{name} = {now}, but the supports saved with this model are for {before}: they "
                "are left out; give some anew.",
                stacklevel=5,
            )
            return None
    return shown


def _checked(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], size: int) -> Shown:
    """Supports that may come from anybody; raises an error unless they are sound."""
    images, labels, numbers = arrays["images"], arrays["labels"], tuple(facts["numbers"])
    count = len(images)
    good = count and images.shape == (count, size, size, 3) and labels.shape == images.shape[:3]
    if not good or {images.dtype, labels.dtype} != {np.dtype(np.uint8)}:
        raise ValueError(f"images are {images.dtype} {images.shape}, labels {labels.shape}")
    each = [classes_in(label) for label in labels]
    known = [shows_none(label) or bool(there) for label, there in zip(labels, each, strict=True)]
    if not all(known) or set().union(*each) != {*range(1, len(numbers) + 1)}:
        raise ValueError(f"labels show other classes than the {len(numbers)} of the configuration")
    if not all(type(number) is int for number in numbers):
        raise TypeError(f"numbers = {brief(numbers)}")
    return Shown(images, labels, class_names(facts["classes"], numbers, "labels"), numbers)
