"""Memory is asked for before it is taken: large images wait for each other, or are told."""

import contextlib
import threading
from collections.abc import Iterator

import jax

from fsseg_jax.cpu.memory import free_memory
from fsseg_jax.errors import UserError

SMALL = 2**22  # pixels of images that never wait
# Bytes that a pixel takes while its image is decoded, converted, resized or painted over.
BYTES = 20

_changed = threading.Condition()
_held = 0  # bytes that the images in work need


@contextlib.contextmanager
def room_for(name: str, width: int, height: int) -> Iterator[None]:
    """A context for work on an image; it begins when the memory for it is free.

    Several images are in work at once while they need at most half of what is free.

    Raises:
        UserError: not even one image fits.
    """
    global _held
    needed = width * height * BYTES
    if width * height <= SMALL:
        yield
        return
    with _changed:
        _changed.wait_for(lambda: not _held or _held + needed <= free_memory() / 2)
        if not _held:
            check(needed, f"{name} is {width} x {height} pixels", "make it smaller")
        _held += needed
    try:
        yield
    finally:
        with _changed:
            _held -= needed
            _changed.notify_all()


def check(needed: int, what: str, remedy: str) -> None:
    """Raises UserError unless so many bytes are free."""
    if needed > (free := free_memory()):
        raise UserError(
            f"{what}, which needs {needed / 2**30:.2f} GiB of memory, but {free / 2**30:.2f} GiB "
            f"are free: {remedy}."
        )


@contextlib.contextmanager
def on_devices(what: str, remedy: str) -> Iterator[None]:
    """Turns the error of a device whose memory is full into UserError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"{what} need more memory than the devices have: {remedy}.") from None
