"""Measures predictions: python -m fsseg_jax.benchmarks.predict

Times each method at its published setting, from random weights, on one device: whole episodes
(supports and query), and queries of one episode whose supports are encoded already. The row of
queries with batch size 1 is the latency of a query.

    --torch   compares whole episodes with PyTorch, if it is installed, by turns in this process
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, UInt8
from ml_collections import ConfigDict

from fsseg_jax import command_line
from fsseg_jax.benchmarks import comparison, programs, workloads
from fsseg_jax.benchmarks.measure import by_turns, memory, peaks
from fsseg_jax.devices import make_mesh
from fsseg_jax.episode import Episode, normalise
from fsseg_jax.models import METHODS, Method, create_model, init_variables
from fsseg_jax.prediction.forward import encode_supports, summarise

REPEATS, WARM_UP = 11, 2
BATCH_SIZES = (1, 8)


def segment_queries(model: Method) -> Callable[..., UInt8[Array, "query height width"]]:
    """A function of variables, summarised supports, their labels, and images: it predicts."""

    def segment(
        variables: Any,
        summary: Any,
        labels: UInt8[Array, "way shot height width"],
        images: UInt8[Array, "query height width 3"],
    ) -> UInt8[Array, "query height width"]:
        def one(image: UInt8[Array, "height width 3"]) -> UInt8[Array, "height width"]:
            pixels = normalise(image)
            query = model.apply(variables, pixels, method="encode")
            output: Any = model.apply(variables, summary, labels, query, pixels, method="segment")
            return workloads.winners(model, output.logits, image.shape[:2])

        return jax.vmap(one)(images)

    return segment


def measured(
    config: ConfigDict,
    what: str,
    size: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    repeats: int,
) -> dict[str, Any]:
    """Measures a function on one device; returns a row of the table."""
    row = {"method": config.method, "what": what, "batch_size": size}
    try:
        program = workloads.compile(function, *arguments)
        seconds = by_turns([program.run], repeats, WARM_UP, f"{config.method}, {what}")[:, 0]
    except jax.errors.JaxRuntimeError as error:
        if not workloads.out_of_memory(error):
            raise
        return {**row, "out_of_memory": True}
    row |= programs.timing(seconds)
    row |= {"per_second": size / row["seconds"], "memory": memory(program.compiled)}
    devices = jax.devices()[:1]
    return row | programs.utilisation(function, arguments, row["seconds"], config.dtype, devices)


def beside_torch(
    config: ConfigDict, variables: Any, batch: Episode, repeats: int
) -> list[dict[str, Any]] | None:
    """Compares predictions of whole episodes with PyTorch's; see `comparison.beside_torch`."""

    def compiled(config: ConfigDict) -> workloads.Program:
        return workloads.compile(workloads.prediction(create_model(config)), variables, batch)

    return comparison.beside_torch(config, variables, batch, "predict", compiled, repeats)


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    start = [row["method"], row["what"], str(row["batch_size"])]
    if row.get("out_of_memory"):
        return [*start, "out of memory", *["-"] * 6]
    rate = f"{row['per_second']:.2f}"
    return [*start, programs.milliseconds(row), rate, *programs.utilisation_cells(row)]


HEADINGS = ["", "", "batch", "ms", "a second", *programs.UTILISATION]


def main() -> None:
    """Runs the program."""
    arguments, overrides = programs.parse(
        __doc__,
        ("torch",),
        batch_sizes="episodes or queries in a batch, separated by commas; 1,8 by default",
    )
    repeats = programs.numbers(arguments.repeats, "repeats", [REPEATS])[0]
    sizes = programs.numbers(arguments.batch_sizes, "batch_sizes", BATCH_SIZES)
    if arguments.torch:
        comparison.share_with_torch()
    configs = programs.settings(arguments, overrides, ",".join(METHODS))
    mesh = make_mesh(1)
    models = [create_model(config) for config in configs]
    print(programs.hardware(mesh, sorted({config.dtype for config in configs})))
    rows, comparisons = [], {}
    for config, model in zip(configs, models, strict=True):
        print(programs.words(config))
        batch = workloads.made_episodes(config, max(sizes))
        variables = init_variables(model, jax.random.key(0), config.ways, config.shots)
        supports, labels = batch.support_image[0], batch.support_label[0]
        encode = functools.partial(encode_supports, model)
        features = jax.jit(encode)(variables, supports)
        summary = jax.jit(functools.partial(summarise, model))(variables, features, labels)
        count = config.ways * config.shots
        rows.append(
            measured(config, "encode supports", count, encode, (variables, supports), repeats)
        )
        for size in sizes:
            part = jax.tree.map(lambda x, size=size: x[:size], batch)
            whole = workloads.prediction(model), (variables, part)
            queries = segment_queries(model), (variables, summary, labels, part.query_image)
            for what, task in (("episodes", whole), ("queries", queries)):
                rows.append(measured(config, what, size, *task, repeats))
            if arguments.torch and "seconds" in rows[-2]:  # of whole episodes
                found = beside_torch(config, variables, part, repeats)
                comparisons |= {f"{config.method}, {size}": found} if found else {}
    print(programs.table(HEADINGS, [cells(row) for row in rows]))
    print(programs.LEGEND)
    programs.finish(
        *(arguments.json, "predict", mesh, configs),
        predictions=rows,
        torch=comparisons,
        peaks={c.dtype: peaks(mesh.devices.flat[0], c.dtype)._asdict() for c in configs},
    )


if __name__ == "__main__":
    command_line.run(main)
