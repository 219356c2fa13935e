"""Memory of the machine, which is that of a CPU's arrays."""

import ctypes
import math
import mmap
import sys

import numpy as np
from jaxtyping import UInt8

# glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_memory() -> None:
    """Lets freed memory stay with the process, where the C library is glibc.

    XLA on a CPU frees its temporaries after each call. glibc would give large ones back to the
    system at once, which then clears each page of them anew: up to half of a training step's time.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is not None:
        # All threads share one heap (they would get others, of limited size), nothing is mapped
        # by itself, and the heap does not shrink.
        for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)):
            mallopt(option, value)


def shared_bytes(shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
    """An array of zeros in pages of its own, unlike NumPy's: JAX takes such an array for its own on
    a CPU, instead of copying it."""
    return np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)
