"""Measures training steps: python -m fsseg_jax.benchmarks.train

Reports for a step of each method at its published setting, from random weights: time, work, speed
relative to the peak of the devices, memory, and how much longer the step takes when a pipeline
makes its batches. Images are synthetic unless --config has data.

    --torch   compares with PyTorch, if it is installed, by turns in this process
    --layers  lists the convolutions and matrix products of a step that take longest
"""

import importlib.util
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fsseg_jax import command_line
from fsseg_jax.benchmarks import comparison, programs, workloads
from fsseg_jax.benchmarks.measure import abstract, by_turns, memory, peaks
from fsseg_jax.benchmarks.roofline import roofline
from fsseg_jax.data import open_source, training_items
from fsseg_jax.data.source import Source
from fsseg_jax.devices import check_divides, make_mesh
from fsseg_jax.episode import Episode
from fsseg_jax.models import METHODS, create_model
from fsseg_jax.training.state import (
    abstract_state,
    initial_state,
    make_optimizer,
    make_step,
    with_steps,
)

REPEATS, WARM_UP = 11, 2  # dispatches
LAYERS = 12  # number of operations that --layers lists


def step_row(
    config: ConfigDict, batch: Episode, source: Source | None, mesh: Mesh, repeats: int
) -> dict[str, Any]:
    """Measures a step on a constant batch and, given a source, steps with each pipeline."""
    size, count = config.train.batch_size, config.train.steps_per_dispatch
    row = {"method": config.method, "batch_size": size, "steps_per_dispatch": count}
    items = 1 if source is None else training_items(config.data, source).epoch(config.data.sampling)
    pipelines = {"constant": workloads.constant(batch, mesh)}
    if source is not None:
        pipelines["device"] = workloads.open_pipeline(config, "device", source, mesh)
        if importlib.util.find_spec("tensorflow"):
            pipelines["tfdata"] = workloads.open_pipeline(config, "tfdata", source, mesh)
    try:
        tasks = [workloads.training(config, x, items, mesh) for x in pipelines.values()]
        name = f"{config.method}, batches of {size}"
        seconds = by_turns([task.run for task in tasks], repeats, WARM_UP, name) / count
    except jax.errors.JaxRuntimeError as error:
        if not workloads.out_of_memory(error):
            raise
        return {**row, "out_of_memory": True}
    row |= programs.timing(seconds[:, 0])
    row |= {"episodes_per_second": size / row["seconds"], "memory": memory(tasks[0].compiled)}
    ratios = np.median(seconds / seconds[:, :1], axis=0).tolist()
    row |= {"in_times_of_constant": dict(zip(pipelines, ratios, strict=True))}
    function, arguments = step_function(config, batch, items)
    devices = list(mesh.devices.flat)
    return row | programs.utilisation(function, arguments, row["seconds"], config.dtype, devices)


def step_function(config: ConfigDict, batch: Episode, items: int) -> tuple[Any, tuple[Any, Any]]:
    """A step, and the shapes of its arguments."""
    model = create_model(config)
    step = make_step(model, make_optimizer(config.train), **workloads.step_options(config, items))
    return step, (abstract_state(model, config, items), abstract(batch))


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    start = [row["method"], str(row["batch_size"])]
    if row.get("out_of_memory"):
        return [*start, "out of memory", *["-"] * 8]
    ratios = row["in_times_of_constant"]
    return [
        *start,
        programs.milliseconds(row),
        f"{row['episodes_per_second']:.2f}",
        *programs.utilisation_cells(row),
        *(f"{ratios[name]:.3f}" if name in ratios else "-" for name in ("device", "tfdata")),
    ]


HEADINGS = ["", "batch", "ms a step", "episodes/s", *programs.UTILISATION, "device", "tfdata"]


def layers(config: ConfigDict, batch: Episode, items: int, mesh: Mesh) -> str:
    """The operations of a step with the longest lower bounds."""
    function, arguments = step_function(config, batch, items)
    peak = peaks(mesh.devices.flat[0], config.dtype)
    found = roofline(function, *arguments, peak=peak, devices=mesh.size)
    rows = [
        [
            *(x.name, x.dtype, str(x.count), f"{x.flops / 1e9:.3g}", f"{x.bytes / 1e6:.3g}"),
            *(f"{1e6 * x.seconds:.1f}", f"{100 * x.seconds / found.seconds:.0f}%", x.limit),
        ]
        for x in found.operations[:LAYERS]
    ]
    unknown = f"; {found.unknown_loops} loops of unknown length are counted once" * (
        found.unknown_loops > 0
    )
    return (
        f"{programs.words(config)}, batches of {config.train.batch_size}: "
        f"{found.flops / 1e9:.4g} GFLOP in\n{sum(x.count for x in found.operations)} operations, "
        f"{1e3 * found.seconds:.4g} ms at best ({100 * found.memory_limited:.0f}% of it limited by "
        f"memory){unknown}; no element-wise work\n"
        + programs.table(["", "dtype", "n", "GFLOP", "MB", "us", "part", "limit"], rows)
    )


def beside_torch(
    config: ConfigDict, batch: Episode, items: int, mesh: Mesh, repeats: int
) -> list[dict[str, Any]] | None:
    """Compares our steps with PyTorch's on one device; see `comparison.beside_torch`."""
    variables = initial_state(create_model(config), config, "", items).variables
    pipeline = workloads.constant(batch, mesh)

    def compiled(config: ConfigDict) -> workloads.Program:
        return workloads.training(config, pipeline, items, mesh)

    steps = config.train.steps_per_dispatch
    given = config, variables, batch, "train_step", compiled
    return comparison.beside_torch(*given, repeats, steps)


def main() -> None:
    """Runs the program."""
    arguments, overrides = programs.parse(
        __doc__,
        ("torch", "layers"),
        batch_sizes="episodes in a step, separated by commas; by default the published number",
    )
    repeats = programs.numbers(arguments.repeats, "repeats", [REPEATS])[0]
    sizes = programs.numbers(arguments.batch_sizes, "batch_sizes", [])
    if arguments.torch:
        comparison.share_with_torch()
    configs = programs.settings(arguments, overrides, ",".join(METHODS))
    mesh = make_mesh(1 if arguments.torch else configs[0].devices)
    for config in configs:
        create_model(config)  # reports wrong options before anything is measured
        for size in sizes or [config.train.batch_size]:
            check_divides(size, mesh)
    print(programs.hardware(mesh, sorted({config.dtype for config in configs})))
    rows, comparisons, listed = [], {}, []
    for config in configs:
        print(f"{programs.words(config)}, {config.train.steps_per_dispatch} steps a dispatch")
        source = open_source(config.data, "train")
        epoch = training_items(config.data, source).epoch(config.data.sampling)
        config = with_steps(config, epoch)
        own = config.train.batch_size
        batch = workloads.made_episodes(config, max([own, *sizes]))
        for size in sizes or [own]:
            part = jax.tree.map(lambda x, size=size: x[:size], batch)
            changed = config.copy_and_resolve_references()
            changed.train.batch_size = size
            row = step_row(changed, part, source if size == own else None, mesh, repeats)
            rows.append(row)
            if arguments.layers:
                listed.append(layers(changed, part, epoch, mesh))
            if arguments.torch and "seconds" in row:
                found = beside_torch(changed, part, epoch, mesh, repeats)
                comparisons |= {f"{config.method}, {size}": found} if found else {}
    print(programs.table(HEADINGS, [cells(row) for row in rows]))
    print(programs.LEGEND)
    print("device, tfdata: time of a step with that pipeline relative to one on a constant batch")
    print(*listed, sep="\n")
    programs.finish(
        *(arguments.json, "train", mesh, configs),
        steps=rows,
        torch=comparisons,
        peaks={c.dtype: peaks(mesh.devices.flat[0], c.dtype)._asdict() for c in configs},
    )


if __name__ == "__main__":
    command_line.run(main)
