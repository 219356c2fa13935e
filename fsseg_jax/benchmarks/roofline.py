"""A lower bound of the time of a function: the times of its convolutions and matrix products.

They are counted exactly, including the iterations of `scan` loops, before compilation.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fsseg_jax.benchmarks.measure import Peak, abstract

# Primitives that are counted, and their names in results.
KINDS = {"conv_general_dilated": "conv", "dot_general": "dot"}


class Operation(NamedTuple):
    """All convolutions or matrix products of one shape."""

    name: str  # includes the shapes
    dtype: str
    count: int
    flops: int  # total
    bytes: int  # total of their inputs and outputs
    seconds: float  # lower bound of their total time
    limit: str  # what determines that bound: "compute" or "memory"


class Roofline(NamedTuple):
    """Lower bounds of the times of convolutions and matrix products; all else is left out."""

    operations: list[Operation]  # the longest first
    unknown_loops: int  # loops of unknown length, whose bodies are counted once

    @property
    def flops(self) -> int:
        """FLOPs of all operations."""
        return sum(operation.flops for operation in self.operations)

    @property
    def seconds(self) -> float:
        """Lower bound of the time of all operations, one after another."""
        return sum(operation.seconds for operation in self.operations)

    @property
    def memory_limited(self) -> float:
        """The part of `seconds`, 0..1, that memory determines."""
        limited = sum(x.seconds for x in self.operations if x.limit == "memory")
        return limited / self.seconds if self.operations else 0.0


def roofline(
    function: Callable[..., Any], *arguments: Any, peak: Peak, devices: int = 1
) -> Roofline:
    """The convolutions and matrix products of a function, with lower bounds of their times.

    The bound is the longer of the time to multiply at the peak and the time to read inputs and
    write outputs once. Element-wise work, reductions and pooling are left out: compilers fuse them
    with these operations, and a real program can only take longer.

    Args:
        *arguments: its arguments, or their shapes.
        peak: peak performance of one device.
        devices: number of devices that share the work.
    """
    counts: dict[tuple[str, str], list[int]] = {}
    unknown = 0
    for equation, times in _equations(jax.make_jaxpr(function)(*abstract(arguments)).jaxpr):
        primitive = equation.primitive.name
        unknown += primitive == "while"
        if primitive not in KINDS:
            continue
        inputs, outputs = ([v.aval for v in side] for side in (equation.invars, equation.outvars))
        shapes = ["x".join(map(str, x.shape)) or "1" for x in (*inputs, *outputs)]
        name = f"{KINDS[primitive]} {shapes[0]} * {shapes[1]} -> {shapes[2]}"
        entry = counts.setdefault((name, inputs[0].dtype.name), [0, 0, 0])
        size = sum(x.size * x.dtype.itemsize for x in (*inputs, *outputs))
        for column, value in enumerate((1, flops_of(equation), size)):
            entry[column] += times * value

    operations = []
    for (name, dtype), (count, flops, size) in counts.items():
        computing = flops / (peak.of(dtype) * devices)
        moving = size / (peak.bandwidth * devices)
        limit = "memory" if moving > computing else "compute"
        seconds = max(computing, moving)
        operations.append(Operation(name, dtype, count, flops, size, seconds, limit))
    return Roofline(sorted(operations, key=lambda x: -x.seconds), unknown)


def _equations(jaxpr: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
    """All equations whose results are used, including nested ones, and how often each runs."""
    used, needed = {v for v in jaxpr.outvars if not hasattr(v, "val")}, []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or not used.isdisjoint(equation.outvars):
            needed.append(equation)
            used.update(v for v in equation.invars if not hasattr(v, "val"))
    for equation in reversed(needed):
        yield equation, times
        name, parameters = equation.primitive.name, equation.params
        inner = times
        if name == "scan":
            inner *= parameters["length"]
        elif name == "shard_map":  # shapes inside are those of one device
            inner *= parameters["mesh"].size
        if name == "cond":
            # Only one branch runs: assume the one with most multiplications.
            branches = [list(_equations(x.jaxpr, inner)) for x in parameters["branches"]]
            yield from max(branches, key=lambda found: sum(n * flops_of(x) for x, n in found))
            continue
        for value in parameters.values():
            value = getattr(value, "jaxpr", value)
            if hasattr(value, "eqns"):
                yield from _equations(value, inner)


def flops_of(equation: Any) -> int:
    """FLOPs of a convolution or matrix product; 0 for other equations."""
    inputs = [v.aval for v in equation.invars]
    if equation.primitive.name == "conv_general_dilated":
        return convolution_flops(inputs, equation.outvars[0].aval, equation.params)
    return product_flops(inputs, equation.params) if equation.primitive.name in KINDS else 0


def convolution_flops(inputs: Sequence[Any], output: Any, parameters: dict[str, Any]) -> int:
    """Two FLOPs for each multiplication by an input value, but none for padding or for the zeros of
    input dilation, so that the gradients of a convolution count as much as the convolution."""
    lhs, kernel = inputs
    numbers = parameters["dimension_numbers"]
    pairs = 1  # (output position, kernel position) that meet an input value
    for axis, (low, _) in enumerate(parameters["padding"]):
        size, window, positions = (
            x.shape[dimensions[2 + axis]]
            for x, dimensions in (
                (lhs, numbers.lhs_spec),
                (kernel, numbers.rhs_spec),
                (output, numbers.out_spec),
            )
        )
        holes = parameters["lhs_dilation"][axis]
        seen = (
            np.arange(positions)[:, None] * parameters["window_strides"][axis]
            + np.arange(window) * parameters["rhs_dilation"][axis]
            - low
        )
        inside = (seen >= 0) & (seen <= (size - 1) * holes) & (seen % holes == 0)
        pairs *= int(inside.sum())
    batch, features = (output.shape[dimension] for dimension in numbers.out_spec[:2])
    # The kernel of a grouped convolution has the input channels of one group only.
    return 2 * pairs * batch * features * kernel.shape[numbers.rhs_spec[1]]


def product_flops(inputs: Sequence[Any], parameters: dict[str, Any]) -> int:
    """Two FLOPs for each multiplication of a `dot_general`."""
    lhs, rhs = inputs
    (_, contracted), (_, batch) = parameters["dimension_numbers"]
    free = [n for axis, n in enumerate(rhs.shape) if axis not in (*contracted, *batch)]
    return 2 * lhs.size * math.prod(free)
