"""Options, settings, tables and files of the benchmark programs."""

import argparse
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from fsseg_jax import command_line
from fsseg_jax.benchmarks.measure import GIB, Peak, Work, peak_memory, peaks, work
from fsseg_jax.benchmarks.roofline import roofline
from fsseg_jax.config import config_file, load_config, override
from fsseg_jax.data.sources.shapes import Shapes
from fsseg_jax.devices import describe
from fsseg_jax.errors import UserError
from fsseg_jax.files import write_text
from fsseg_jax.models import METHODS

MADE = 240  # synthetic training images: ten with each class as their main one
OPTIONS = {
    "methods": f"some of {', '.join(METHODS)}, separated by commas",
    "repeats": "how often everything is timed, by turns",
    "json": {**command_line.FOLDER, "metavar": "FILE", "help": "a file to write the results to"},
}

# ----------------------------------------------------------------------------- settings


def published(method: str) -> ConfigDict:
    """The published training of a method on PASCAL-5i, evaluated at the threshold 0.5 alone."""
    path = config_file(f"{method}_vgg16" if method == "panet" else f"{method}_res50")
    if path is None:
        raise UserError(f"configs/ has no {method}: install the package again.")
    config = load_config(path)
    config.eval.threshold = ""
    config.data.shapes.train = MADE
    return config


def parse(
    description: str | None, flags: Sequence[str] = (), **options: str
) -> tuple[argparse.Namespace, list[str]]:
    """Parses the command line of the process.

    Args:
        description: help text of the program, which describes the flags.
        flags: names of options without a value.
        **options: as for `command_line.parse`, in addition to `OPTIONS`.

    Returns:
        the options and flags, and the overrides of the configuration.

    Raises:
        UserError: the folder of `--json` does not exist.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in flags:
        parser.add_argument(f"--{name}", action="store_true")
    given, rest = parser.parse_known_args(sys.argv[1:])
    arguments, overrides = command_line.parse(
        description, rest, workdir=False, config=True, optional_workdir=False, **options, **OPTIONS
    )
    arguments = argparse.Namespace(**vars(arguments), **vars(given))
    if arguments.json and not arguments.json.parent.is_dir():
        raise UserError(f"--json = {arguments.json}: there is no such folder.")
    return arguments, overrides


def numbers(text: str | None, name: str, default: Sequence[int]) -> list[int]:
    """Parses an option of positive integers that are separated by commas.

    Raises:
        UserError: it has another format.
    """
    if text is None:
        return list(default)
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--{name} = {text}: expected integers above 0, separated by commas.")
    return [int(part) for part in parts]


def settings(
    arguments: argparse.Namespace, overrides: Sequence[str], default: str
) -> list[ConfigDict]:
    """The configurations to measure, with random weights, and with synthetic images where no data
    are given. Initialises JAX on their platform.

    Args:
        default: default of `--methods`.

    Raises:
        UserError: a name is unknown, or options contradict each other.
    """
    if arguments.config and arguments.methods:
        raise UserError("--config chooses the method: leave --methods out.")
    if arguments.config:
        config = load_config(arguments.config)
        if config.data.name != "shapes":
            config.data.shapes.train = MADE
        configs = [config]
    else:
        names = (arguments.methods or default).split(",")
        if unknown := [name for name in names if name not in METHODS]:
            raise UserError(f"--methods = {unknown[0]}: choose among {', '.join(METHODS)}.")
        configs = [published(name) for name in names]
    configs = [override(config, overrides) for config in configs]
    for config in configs:
        config.init = ""  # speed does not depend on the weights
        if config.data.name != "shapes" and not config.data.root:
            config.data.name, config.data.fold = "shapes", config.data.fold % len(Shapes.folds)
            config.data.shapes.pixels = config.image_size
            config.data.split = config.data.train_split = ""
            config.data.min_pixels = config.data.train_min_pixels = 1
    command_line.start(configs[0])
    return configs


def words(config: ConfigDict) -> str:
    """The settings of a row, in one line."""
    return (
        f"{config.method}: {config.backbone}, {config.image_size} px, {config.ways}-way "
        f"{config.shots}-shot, {config.dtype}"
    )


# ----------------------------------------------------------------------------- utilisation


def utilisation(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    seconds: float,
    dtype: str,
    devices: Sequence[jax.Device],
) -> dict[str, float]:
    """The work of a function, and its speed relative to the peak of the devices.

    Args:
        arguments: its arguments, or their shapes.
        devices: the devices that shared the work.
    """
    peak, count = peaks(devices[0], dtype), len(devices)
    total: Work = work(function, *arguments)
    bound = roofline(function, *arguments, peak=peak, devices=count)
    return {
        "flops": total.flops,
        "bytes": total.bytes,
        "teraflops": total.flops / seconds / 1e12,
        "of_peak": total.flops / seconds / (peak.of(dtype) * count),
        "of_bandwidth": total.bytes / seconds / (peak.bandwidth * count),
        "bound_seconds": bound.seconds,
        "of_bound": bound.seconds / seconds,
        "memory_limited": bound.memory_limited,
    }


def timing(seconds: Float[np.ndarray, " repeat"]) -> dict[str, float]:
    """Median and range of times."""
    return {
        "seconds": float(np.median(seconds)),
        "least": float(seconds.min()),
        "greatest": float(seconds.max()),
    }


def hardware(mesh: Mesh, dtypes: Sequence[str]) -> str:
    """The devices and their peak performance, as text."""
    found = {dtype: peaks(mesh.devices.flat[0], dtype) for dtype in dtypes}
    rates = ", ".join(f"{peak.of(dtype) / 1e12:.3g} {dtype}" for dtype, peak in found.items())
    peak: Peak = next(iter(found.values()))
    return (
        f"{describe(mesh)}\npeak of each: {rates} TFLOP/s, {peak.bandwidth / 1e9:.4g} GB/s "
        f"({peak.source})"
    )


LEGEND = """\
ms: median (least to greatest) of synchronous calls. TFLOP/s and peak: XLA's count of FLOPs divided
by that time. bytes: XLA's count of bytes relative to what memory can move in that time; an upper
bound, because compiled operations share bytes, and therefore sometimes above 100%. bound: the least
time of all convolutions and matrix products (`roofline.py`) relative to that time. GiB: memory of
the compiled program on each device."""


# ----------------------------------------------------------------------------- printing, writing


def milliseconds(row: dict[str, Any]) -> str:
    """Median and range of a row's times."""
    low, middle, high = (1e3 * row[name] for name in ("least", "seconds", "greatest"))
    digits = 2 if high < 10 else 1 if high < 1000 else 0
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def utilisation_cells(row: dict[str, Any]) -> list[str]:
    """The result of `utilisation`, under the headings `UTILISATION`."""
    return [
        f"{row['teraflops']:.3g}",
        *(f"{100 * row[name]:.0f}%" for name in ("of_peak", "of_bandwidth", "of_bound")),
        "-" if row["memory"] is None else f"{row['memory'] / GIB:.2f}",
    ]


UTILISATION = ["TFLOP/s", "peak", "bytes", "bound", "GiB"]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text in columns: the first is aligned to the left, the others to the right."""
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def finish(
    path: pathlib.Path | None, program: str, mesh: Mesh, configs: Any, **results: Any
) -> None:
    """Prints the most memory in use, and writes results with their settings unless `path` is
    empty."""
    peak, where = peak_memory(mesh.devices.flat[0])
    print(f"most memory in use, {where}: {peak / GIB:.2f} GiB")
    if not path:
        return
    contents = {
        "program": program,
        "jax": jax.__version__,
        "devices": [device.device_kind for device in mesh.devices.flat],
        "configs": {config.method: config.to_dict() for config in configs},
        **results,
        "peak_memory": peak,
    }
    write_text(path, json.dumps(contents, indent=1))
