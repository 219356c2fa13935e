"""Host memory, which is also where arrays on a CPU are."""

import contextlib
import ctypes
import math
import mmap
import pathlib
import sys

import numpy as np
import psutil
from jaxtyping import UInt8

# Files with the limit, the use and the statistics of a container, in Linux's two versions of them.
_CONTAINERS = (
    tuple(f"/sys/fs/cgroup/memory.{name}" for name in ("max", "current", "stat")),
    tuple(
        f"/sys/fs/cgroup/memory/memory.{name}"
        for name in ("limit_in_bytes", "usage_in_bytes", "stat")
    ),
)
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


def free_memory() -> int:
    """Bytes of memory that this process can still take, within the limits of its container."""
    free = psutil.virtual_memory().available
    for limit, used, about in _CONTAINERS:
        with contextlib.suppress(OSError, ValueError):  # there is no limit
            cached = dict(line.split() for line in pathlib.Path(about).read_text().splitlines())
            taken = int(pathlib.Path(used).read_text()) - int(cached.get("inactive_file", 0))
            free = min(free, int(pathlib.Path(limit).read_text()) - taken)
    return max(free, 0)


def shared_bytes(shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
    """An array of zeros in pages of its own, unlike NumPy's: on a CPU, JAX uses such an array as it
    is instead of copying it."""
    return np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)
