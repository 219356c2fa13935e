"""Measures compiled programs: time, work and memory, and the peak performance of devices.

Work is XLA's count of all operations (`roofline.py` counts convolutions and matrix products one by
one) in the program before compilation: compiled GPU programs hide convolutions in library calls of
unknown cost.
"""

import functools
import math
import platform
import re
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fsseg_jax.progress import tracked

GIB = 2**30

# ----------------------------------------------------------------------------- time


def by_turns(
    functions: Sequence[Callable[[], Any]], repeats: int, warm_up: int = 1, description: str = ""
) -> Float[np.ndarray, "repeat function"]:
    """Seconds of functions that are called by turns, so that other load slows all of them alike.

    Args:
        functions: the functions to time; the arrays that they return are waited for.
        repeats: number of rows of the result.
        warm_up: number of earlier rounds, which are not counted.
    """
    seconds = np.empty((warm_up + repeats, len(functions)))
    rounds = warm_up + repeats
    for row in tracked(range(rounds), description, rounds, "round", nested=True):
        for column, function in enumerate(functions):
            started = time.perf_counter()
            jax.block_until_ready(function())
            seconds[row, column] = time.perf_counter() - started
    return seconds[warm_up:]


# ----------------------------------------------------------------------------- the hardware


class Peak(NamedTuple):
    """The peak performance of one device."""

    flops: dict[str, float]  # FLOP/s by dtype of the factors; sums are in float32
    bandwidth: float  # bytes/s of its memory
    source: str  # where the figures come from

    def of(self, dtype: Any) -> float:
        """FLOP/s in a dtype, or those of float32 if the device has no units for the dtype."""
        return self.flops.get(jnp.dtype(dtype).name, self.flops["float32"])


# Published dense figures: bfloat16 and float32 in TFLOP/s, memory in GB/s. Float32 means JAX's
# default precision: TF32 on NVIDIA's Ampere and later, one bfloat16 pass on TPUs. Sources: NVIDIA's
# data sheets (half of the figure with sparsity where only that is given), its Ampere GA102 and Ada
# white papers (tensor cores summing in float32), and Google Cloud's pages of TPU versions. On TPU
# v2 and v3, a device of JAX is half a chip.
_PUBLISHED = (
    (r"NVIDIA H200 NVL", 835.5, 417.5, 4800),
    (r"NVIDIA H200", 989.4, 494.7, 4800),
    (r"NVIDIA H100 PCIe", 756, 378, 2000),
    (r"NVIDIA H100 NVL", 835.5, 417.5, 3900),
    (r"NVIDIA H100 80GB HBM3", 989.4, 494.7, 3350),
    (r"NVIDIA A100-(SXM4|PCIE)-40GB", 312, 156, 1555),
    (r"NVIDIA A100-SXM4-80GB", 312, 156, 2039),
    (r"NVIDIA A100 80GB PCIe", 312, 156, 1935),
    (r"NVIDIA L4", 121, 60, 300),
    (r"NVIDIA GeForce RTX 3090", 71, 35.6, 936),
    (r"NVIDIA GeForce RTX 4090", 165.2, 82.6, 1008),
    (r"(NVIDIA )?Tesla T4", None, 8.1, 320),  # no bfloat16
    (r"(NVIDIA )?Tesla V100-SXM2.*", None, 15.7, 900),
    (r"TPU v2", 22.5, 22.5, 300),
    (r"TPU v3", 61.5, 61.5, 450),
    (r"TPU v4", 275, 275, 1228),
    (r"TPU v5 lite|TPU v5e", 197, 197, 819),
    (r"TPU v5|TPU v5p", 459, 459, 2765),
    (r"TPU v6 lite|TPU v6e", 918, 918, 1640),
)
# Sizes of the measurement for devices without published figures: the side of a matrix product and
# the bytes of a copy, large enough to keep the device busy.
SIDE = {"cpu": 2048, "other": 8192}
COPY = {"cpu": 2**28, "other": 2**30}


@functools.cache
def peaks(device: jax.Device, dtype: str = "float32") -> Peak:
    """The published figures of a device, or measured ones if there are none, as for CPUs.

    Args:
        dtype: dtype to measure in addition to float32.
    """
    for pattern, bfloat16, float32, memory in _PUBLISHED:
        if re.fullmatch(pattern, device.device_kind):
            flops = {"float32": float32 * 1e12}
            if bfloat16:
                flops["bfloat16"] = bfloat16 * 1e12
            return Peak(flops, memory * 1e9, "published, dense")
    kind = "cpu" if device.platform == "cpu" else "other"
    side, count = SIDE[kind], COPY[kind] // 4
    with jax.default_device(device):
        product = jax.jit(lambda x: x @ x)
        matrices = {name: jnp.ones((side, side), name) for name in {"float32", dtype}}
        array = jnp.ones(count)
        copy = jax.jit(lambda x: -x)
        functions = [functools.partial(product, x) for x in matrices.values()]
        functions.append(functools.partial(copy, array))
        seconds = by_turns(functions, 5, description="measuring peaks").min(axis=0)
    flops = {name: 2 * side**3 / s for name, s in zip(matrices, seconds, strict=False)}
    words = f"measured: a product of {side} x {side}, a copy of {4 * count >> 20} MiB"
    return Peak(flops, 2 * array.nbytes / seconds[-1], words)


def memory(compiled: Any) -> int | None:
    """The bytes of each device that a program needs at the same time, as the compiler planned; None
    if it does not report any."""
    planned = compiled.memory_analysis()
    if planned is None:
        return None
    results = planned.output_size_in_bytes - planned.alias_size_in_bytes  # beside the arguments
    return planned.argument_size_in_bytes + results + planned.temp_size_in_bytes


def peak_memory(device: jax.Device) -> tuple[int, str]:
    """The largest number of bytes in use so far, and whether it is of the device or the process.

    This never decreases; use `memory` to compare programs of one process.
    """
    in_use = (device.memory_stats() or {}).get("peak_bytes_in_use")
    if in_use is not None:
        return in_use, "of the device"
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "of the process"


# ----------------------------------------------------------------------------- work, by XLA


def abstract(tree: Any) -> Any:
    """Shapes and dtypes of arrays, without their devices."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


class Work(NamedTuple):
    """The work of a function, by XLA's count."""

    flops: float
    # Inputs and outputs of every operation. Compilation fuses operations, and their intermediate
    # results never reach memory: this is an upper bound of the bytes that memory moves.
    bytes: float


def work(function: Callable[..., Any], *arguments: Any) -> Work:
    """The work of a function of arrays, or of their shapes, on all devices together.

    The body of a loop is counted once: pass the body alone, and multiply. (`roofline` takes the
    length of a `scan` into account.)
    """
    cost = jax.jit(function).lower(*abstract(arguments)).cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost or {}
    return Work(cost.get("flops", math.nan), cost.get("bytes accessed", math.nan))
