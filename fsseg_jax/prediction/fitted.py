"""What a segmenter knows of its supports, in memory and in the folder of a saved model."""

import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from jaxtyping import Array, UInt8
from ml_collections import ConfigDict

from fsseg_jax.checksums import checksums, verify
from fsseg_jax.errors import UserError, brief
from fsseg_jax.prediction.calibration import Calibration, CrossValidation
from fsseg_jax.prediction.pictures import classes_in
from fsseg_jax.prediction.supports import class_names

FILE = "supports.safetensors"
SAVE_AGAIN = "save the model again"


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
                "are left out; call fit.",
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
    if not all(each) or set().union(*each) != {*range(1, len(numbers) + 1)}:
        raise ValueError(f"labels show other classes than the {len(numbers)} of the configuration")
    if not all(type(number) is int for number in numbers):
        raise TypeError(f"numbers = {brief(numbers)}")
    return Shown(images, labels, class_names(facts["classes"], numbers, "labels"), numbers)
