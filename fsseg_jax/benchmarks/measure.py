"""Measures compiled programs: their time by turns, their work, and what hardware allows.

Work is XLA's count of all operations (`roofline.py` has ours, of convolutions and matrix products
one by one), in the program as it is written: compiled GPU programs hide convolutions in library
calls of no known cost.
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
from tqdm import tqdm

GIB = 2**30

# ----------------------------------------------------------------------------- time


def by_turns(
    functions: Sequence[Callable[[], Any]], repeats: int, warm_up: int = 1, description: str = ""
) -> Float[np.ndarray, "repeat function"]:
    """Seconds of functions that are called by turns, so that what slows the machine slows all.

    Args:
        functions: each returns what it computes or waits for it itself; results of JAX are
            waited for.
        repeats: rows of the result.
        warm_up: rounds before, which are not counted.
        description: of the progress bar, which work of more than a second has.
    """
    seconds = np.empty((warm_up + repeats, len(functions)))
    rounds = tqdm(range(warm_up + repeats), description, unit="round", delay=1, leave=None)
    for row in rounds:
        for column, function in enumerate(functions):
            started = time.perf_counter()
            jax.block_until_ready(function())
            seconds[row, column] = time.perf_counter() - started
    return seconds[warm_up:]


# ----------------------------------------------------------------------------- the hardware


class Peak(NamedTuple):
    """What one device can do at best."""

    flops: dict[str, float]  # FLOP/s by dtype: of multiplications; sums are in float32
    bandwidth: float  # bytes/s of its memory
    source: str  # of the figures

    def of(self, dtype: Any) -> float:
        """FLOP/s in a type; in one without units of its own, that of float32."""
        return self.flops.get(jnp.dtype(dtype).name, self.flops["float32"])


# Published dense figures: bfloat16 and float32 in TFLOP/s, memory in GB/s. Float32 is what JAX's
# default precision allows: TF32 on NVIDIA's Ampere and later, one bfloat16 pass on TPUs. From
# NVIDIA's data sheets (where only the figure with sparsity is given: half of it), its Ampere GA102
# and Ada white papers (tensor cores summing in float32), and Google Cloud's pages of TPU versions.
# A device of JAX is half a chip on TPU v2 and v3.
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
# What is measured where nothing is published: sides of a product and bytes of a copy, large enough
# to fill the device.
SIDE = {"cpu": 2048, "other": 8192}
COPY = {"cpu": 2**28, "other": 2**30}


@functools.cache
def peaks(device: jax.Device, dtype: str = "float32") -> Peak:
    """Published figures of a device, or for CPUs and whatever has none: measured ones.

    Args:
        device: one of `jax.devices()`.
        dtype: measured beside float32.
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


class Memory(NamedTuple):
    """Bytes of a compiled program on each device."""

    arguments: int
    outputs: int
    temporary: int
    aliased: int  # outputs that take the place of arguments

    @property
    def peak(self) -> int:
        """All that must be there at once."""
        return self.arguments + self.outputs + self.temporary - self.aliased


def memory(compiled: Any) -> Memory | None:
    """What a compiled program needs, as the compiler planned it; None where it does not tell."""
    planned = compiled.memory_analysis()
    if planned is None:
        return None
    return Memory(
        *(planned.argument_size_in_bytes, planned.output_size_in_bytes),
        *(planned.temp_size_in_bytes, planned.alias_size_in_bytes),
    )


def peak_memory(device: jax.Device) -> tuple[int, str]:
    """The most bytes that were in use in this process so far, and where they lie.

    This never goes down: `memory` tells the programs of one process apart.
    """
    in_use = (device.memory_stats() or {}).get("peak_bytes_in_use")
    if in_use is not None:
        return in_use, "of the device"
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "of the process"


# ----------------------------------------------------------------------------- work, by XLA


def abstract(tree: Any) -> Any:
    """Shapes and types of arrays, without the devices that they are on."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


class Work(NamedTuple):
    """What a function does, by XLA's count."""

    flops: float
    # Of every operation's inputs and outputs. Compiled programs join operations and keep what is
    # between them: this is an upper bound of what memory has to move.
    bytes: float


def work(function: Callable[..., Any], *arguments: Any) -> Work:
    """The work of a function of arrays (or of their shapes), on all devices together.

    The body of a loop counts once: give the part without the loop, and multiply. (`roofline`
    knows how often a `scan` goes round.)
    """
    cost = jax.jit(function).lower(*abstract(arguments)).cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost or {}
    return Work(cost.get("flops", math.nan), cost.get("bytes accessed", math.nan))
