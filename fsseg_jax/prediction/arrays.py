"""Checks of the arrays that `forward` is given."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fsseg_jax.episode import IGNORE, UNLABELLED
from fsseg_jax.errors import UserError

NAMES = "support_images", "support_labels", "query_images"
NORMALISED = 4  # fractional values up to this, and below 0, are those of normalised images
BRIGHT = 2 * 255  # changed images may leave 0..255, but not by as much


def is_array(value: Any) -> bool:
    """Whether it is an array of JAX, which may be traced, or of NumPy."""
    return isinstance(value, np.ndarray | jax.Array)


def check_arrays(support_images: Any, support_labels: Any, query_images: Any) -> None:
    """Raises UserError unless these are arguments of `forward`."""
    arrays = dict(zip(NAMES, (support_images, support_labels, query_images), strict=True))
    for name, array in arrays.items():
        if not is_array(array):
            raise UserError(f"{name} is of type {type(array).__name__}: give an array.")
        kinds = [jnp.integer, jnp.bool_ if name == NAMES[1] else jnp.floating]
        if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
            good = "class numbers" if name == NAMES[1] else "RGB in 0..255, as uint8 or float32"
            raise UserError(f"{name} is an array of {array.dtype}: give {good}.")
    shapes = [array.shape for array in arrays.values()]
    good = [*map(len, shapes)] == [5, 4, 4] and shapes[0][:4] == shapes[1]
    # The number of queries may be 0, or a symbol.
    if not good or {shapes[0][-1], shapes[2][-1]} != {3} or 0 in (*shapes[0], *shapes[2][1:]):
        given = ", ".join(f"{name} {shape}" for name, shape in zip(NAMES, shapes, strict=True))
        raise UserError(
            f"shapes of {given}: they must be (way, shot, height, width, 3), (way, shot, height, "
            "width) and (query, height, width, 3)."
        )
    ways = shapes[0][0]
    if ways >= UNLABELLED:
        raise UserError(f"support_images has {ways} ways: there are at most {UNLABELLED - 1}.")
    _check_labels(_known(support_labels), ways)
    for name in (NAMES[0], NAMES[2]):
        _check_image(_known(arrays[name]), name)


def _known(array: Any) -> np.ndarray | None:
    """The values of an array, if they are in this process's own memory."""
    if isinstance(array, np.ndarray):
        return array
    if isinstance(array, jax.core.Tracer) or not array.is_fully_addressable:
        return None
    on_host = {device.platform for device in array.devices()} == {"cpu"}
    return np.asarray(array) if on_host else None


def _check_labels(labels: np.ndarray | None, ways: int) -> None:
    if labels is None or labels.dtype == bool:
        return
    good = (labels >= 0) & (labels <= ways) | (labels == IGNORE) | (labels == UNLABELLED)
    if not good.all():
        raise UserError(
            f"support_labels has the value {labels[~good][0]}, but support_images has {ways} "
            f"{'way' if ways == 1 else 'ways'}: use 0 for the background, n for the class of way "
            f"n, {IGNORE} for ignored pixels and {UNLABELLED} for those without an annotation."
        )


def _check_image(values: np.ndarray | None, name: str) -> None:
    if values is None or not values.size or values.dtype == np.uint8:
        return
    low, high = float(values.min()), float(values.max())
    largest = max(-low, high)
    if jnp.issubdtype(values.dtype, jnp.integer):
        good = low >= 0 and high <= 255
    else:
        good = largest <= BRIGHT  # not NaN either
        scaled = 0 < high <= 1 or (low < 0 and largest <= NORMALISED)
        good &= not scaled or bool((values == np.rint(values)).all())
    if not good:
        raise UserError(
            f"{name} has values in {low:.4g}..{high:.4g}: give RGB in 0..255, neither scaled to "
            "0..1 nor normalised."
        )
