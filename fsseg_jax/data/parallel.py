"""Parallel work on all processor cores, with progress."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fsseg_jax.progress import tracked


def cores() -> int:
    """The number of processor cores that this process may use."""
    limited = hasattr(os, "sched_getaffinity")  # not on macOS
    return len(os.sched_getaffinity(0)) if limited else os.cpu_count() or 1


def parallel_map(
    function: Callable[[Any], Any], arguments: Sequence[Any], description: str, unit: str = "image"
) -> list[Any]:
    """Maps `function` over the arguments, in order, on all cores, and reports progress.

    Threads suffice, as decoding, resizing and file access release the GIL.
    """
    with ThreadPoolExecutor(cores()) as pool:
        return list(tracked(pool.map(function, arguments), description, len(arguments), unit))
