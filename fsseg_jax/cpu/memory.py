"""Host memory, which is also where arrays on a CPU are."""

import ctypes
import math
import mmap
import sys

import numpy as np
from jaxtyping import UInt8

# glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_memory() -> None:
    """Makes glibc keep freed memory in the process; does nothing with other C libraries.

    XLA on a CPU frees its temporaries after each call. glibc would return large ones to the system,
    which then clears every page again: up to half of a training step's time.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is not None:
        # All threads share one heap (others would be of limited size), no allocation has a mapping
        # of its own, and the heap does not shrink.
        for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)):
            mallopt(option, value)


def shared_bytes(shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
    """An array of zeros in pages of its own, unlike NumPy's: on a CPU, JAX uses such an array as it
    is instead of copying it."""
    return np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)
