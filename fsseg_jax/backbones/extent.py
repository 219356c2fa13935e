"""Images of several sizes through one compiled function.

An image is in the upper left corner of a larger canvas, and its height and width are arrays. What a
network computes for it is what it would compute for the image alone, whatever the size of the
canvas, up to the rounding of sums:

    with extent((512, 512), shape):
        features = model.apply(variables, image, method="encode")

Every layer of this library that makes maps smaller gives ceil(side / 2), and patches of p pixels
give ceil(side / p), so that the size of a map tells how often the canvas was halved, and thus which
part of the map is the image's. Layers that
see more than one position ask for that part here: windows see zeros outside of it, like padding;
means leave the rest out; resizing starts from its corners. The values of a map outside of it are
undefined.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fsseg_jax.episode import AnyArray


class _Extent(NamedTuple):
    canvas: tuple[int, ...]
    shape: Int[Array, "2"]
    patch: int


_current: contextvars.ContextVar[_Extent | None] = contextvars.ContextVar("extent", default=None)


@contextlib.contextmanager
def extent(canvas: tuple[int, ...], shape: Int[AnyArray, "2"], patch: int = 1) -> Iterator[None]:
    """Declares that maps of the canvas, at any resolution, hold an image of `shape` in the corner.

    It applies to what is traced inside the context, which is therefore opened inside the compiled
    function; a function compiled earlier must not be called in it. Maps of other sizes, such as
    those of supports, are whole: their sizes must not be among the canvas's (`fits`). Losses and
    training do not support it.

    Both are heights and widths in pixels; `shape` is at least 1 and fits the canvas. Maps may have
    been halved from the canvas, or from patches of `patch` pixels: see `Method.patch`.
    """
    token = _current.set(_Extent(tuple(canvas), jnp.asarray(shape), patch))
    try:
        yield
    finally:
        _current.reset(token)


def is_open() -> bool:
    """Whether there is an extent."""
    return _current.get() is not None


def fits(canvas: tuple[int, ...], size: int, patch: int = 1) -> bool:
    """Whether maps of a canvas can be distinguished from those of square supports of `size` pixels.

    If it is False, use a different canvas, for example one larger by 32 pixels. Maps of supports
    are never below 1/32 of their resolution.
    """
    supports = {
        _divided((size, size), stride) for stride in _strides((size,), patch) if stride <= 32
    }
    same = supports & {_divided(canvas, stride) for stride in _strides(canvas, patch)}
    return same <= {(1, 1)}  # a 1 x 1 map is the image's, with a canvas or without


def true_shape(size: tuple[int, ...]) -> Int[Array, "2"] | tuple[int, ...]:
    """The image's part of a map with the given height and width: an array if it is a map of the
    canvas, `size` itself otherwise."""
    current = _current.get()
    if current is not None:
        for stride in _strides(current.canvas, current.patch):
            if _divided(current.canvas, stride) == tuple(size):
                return -(-current.shape // stride)
    return tuple(size)


def inside(x: Float[AnyArray, "*batch h w channel"]) -> Int[Array, "2"] | tuple[int, ...]:
    """The image's part of a map: height and width, see `true_shape`."""
    return true_shape(x.shape[-3:-1])


def positions(x: Float[AnyArray, "*batch h w channel"]) -> Bool[Array, "h w 1"] | None:
    """Which positions of a map are the image's; None if all are."""
    shape = inside(x)
    if isinstance(shape, tuple):
        return None
    rows, columns = (jnp.arange(n) < own for n, own in zip(x.shape[-3:-1], shape, strict=True))
    return (rows[:, None] & columns)[..., None]


def masked(
    x: Float[AnyArray, "*batch h w channel"], value: float = 0.0
) -> Float[Array, "*batch h w channel"]:
    """A map with `value` outside of the image."""
    where, x = positions(x), jnp.asarray(x)
    return x if where is None else jnp.where(where, x, jnp.asarray(value, x.dtype))


def average(
    x: Float[AnyArray, "*batch h w channel"], keepdims: bool = False
) -> Float[Array, "... channel"]:
    """The mean of a map over the image's positions."""
    return jnp.mean(x, axis=(-3, -2), keepdims=keepdims, where=positions(x))


def _strides(canvas: tuple[int, ...], patch: int) -> list[int]:
    """By what a canvas may have been divided: first patches, since all of their features are."""
    powers = [2**level for level in range(max(canvas).bit_length() + 1)]
    return powers if patch == 1 else [*(patch * power for power in powers), *powers]


def _divided(size: tuple[int, ...], stride: int) -> tuple[int, ...]:
    """The height and width of a map at a stride."""
    return tuple(-(-side // stride) for side in size)
