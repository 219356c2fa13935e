"""What the benchmark programs share: options, settings, tables and files."""

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
from fsseg_jax.benchmarks.measure import GIB, Peak, Work, peaks, work
from fsseg_jax.benchmarks.roofline import roofline
from fsseg_jax.config import default_config, load_config, override
from fsseg_jax.data.sources.shapes import Shapes
from fsseg_jax.devices import describe
from fsseg_jax.errors import UserError
from fsseg_jax.files import write_text
from fsseg_jax.models import METHODS

MADE = 240  # made photographs of training: ten with each class for their main one
OPTIONS = {
    "methods": f"some of {', '.join(METHODS)}, joined by commas",
    "repeats": "how often everything is timed, by turns",
    "json": "a file that gets the results too",
}

# ----------------------------------------------------------------------------- settings


def published(method: str) -> ConfigDict:
    """The published training of a method on PASCAL-5i as far as it matters to speed, from random
    weights. (`configs/` is no part of the installed package.)"""
    config = default_config(method)
    config.backbone = "vgg16" if method == "panet" else "resnet50"
    config.image_size = {"panet": 417, "mfnet": 473}.get(method, 321)
    config.ways = 2 if method == "mfnet" else 1
    config.train.batch_size = {"panet": 1, "sst": 16}.get(method, 4)
    scale, rotation = {
        "canet": ((1.0, 1.5), 0.0),
        "ltafnet": ((1.0, 1.5), 10.0),
        "mfnet": ((0.9, 1.1), 10.0),
    }.get(method, ((1.0, 1.0), 0.0))
    config.data.augment.scale, config.data.augment.rotation = scale, rotation
    config.data.augment.query = method != "canet"
    config.data.augment.crop_query = method != "ltafnet"
    config.train.new_layers_rate = 10.0 if method == "sst" else 1.0
    config.data.shapes.train = MADE
    return config


def parse(
    description: str | None, flags: Sequence[str] = (), **options: str
) -> tuple[argparse.Namespace, list[str]]:
    """The process's command line: options with a value, and flags (True or False).

    Args:
        description: of the program, which tells of the flags.
        flags: names of options without a value.
        **options: as `command_line.parse` has them; some of `OPTIONS` belong to every program.

    Returns:
        options, flags and overrides of the configuration.

    Raises:
        UserError: `--json` is in no folder.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in flags:
        parser.add_argument(f"--{name}", action="store_true")
    given, rest = parser.parse_known_args(sys.argv[1:])
    arguments, overrides = command_line.parse(
        description, rest, workdir=False, config=True, optional_workdir=False, **options, **OPTIONS
    )
    arguments = argparse.Namespace(**vars(arguments), **vars(given))
    if arguments.json and not pathlib.Path(arguments.json).expanduser().parent.is_dir():
        raise UserError(f"--json = {arguments.json}: there is no such folder.")
    return arguments, overrides


def numbers(text: str | None, name: str, default: Sequence[int]) -> list[int]:
    """An option of numbers from 1 on that are joined by commas.

    Raises:
        UserError: it is something else.
    """
    if text is None:
        return list(default)
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--{name} = {text}: expected numbers from 1 on, joined by commas.")
    return [int(part) for part in parts]


def settings(
    arguments: argparse.Namespace, overrides: Sequence[str], default: str
) -> list[ConfigDict]:
    """The configurations to measure, from random weights, on made photographs where no data are
    given. Starts JAX on their platform.

    Args:
        arguments: see `parse`.
        overrides: of every configuration.
        default: of `--methods`.

    Raises:
        UserError: something is unknown or does not fit together.
    """
    if arguments.config and arguments.methods:
        raise UserError("--config has a method of its own: leave --methods out.")
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
    """The settings of a row in a line."""
    return (
        f"{config.method}: {config.backbone}, {config.image_size} px, {config.ways}-way "
        f"{config.shots}-shot, {config.dtype}"
    )


# ----------------------------------------------------------------------------- what they reach


def utilisation(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    seconds: float,
    dtype: str,
    devices: Sequence[jax.Device],
) -> dict[str, float]:
    """What a time means: the work in it, and how near it comes to what the devices can do.

    Args:
        function: that was timed.
        arguments: of it, or their shapes.
        seconds: that it took.
        dtype: `config.dtype`.
        devices: that shared the work.
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
    """What the devices are, and what they can do at best."""
    found = {dtype: peaks(mesh.devices.flat[0], dtype) for dtype in dtypes}
    rates = ", ".join(f"{peak.of(dtype) / 1e12:.3g} {dtype}" for dtype, peak in found.items())
    peak: Peak = next(iter(found.values()))
    return (
        f"{describe(mesh)}\npeak of each: {rates} TFLOP/s, {peak.bandwidth / 1e9:.4g} GB/s "
        f"({peak.source})"
    )


LEGEND = """\
ms: median (least to greatest); each call is waited for. TFLOP/s and peak: XLA's count of FLOPs in
that time. bytes: XLA's count of bytes as a part of what memory moves in that time; an upper bound,
as compiled operations share bytes, hence at times above 100%. bound: the least time of all
convolutions and matrix products (`roofline.py`) as a part of that time. GiB: what the compiled
program needs on each device."""


# ----------------------------------------------------------------------------- printing, writing


def milliseconds(row: dict[str, Any]) -> str:
    """Median and range of a row's times."""
    low, middle, high = (1e3 * row[name] for name in ("least", "seconds", "greatest"))
    digits = 2 if high < 10 else 1 if high < 1000 else 0
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def utilisation_cells(row: dict[str, Any]) -> list[str]:
    """What `utilisation` says, under `UTILISATION`."""
    return [
        f"{row['teraflops']:.3g}",
        *(f"{100 * row[name]:.0f}%" for name in ("of_peak", "of_bandwidth", "of_bound")),
        "-" if row["memory"] is None else f"{row['memory'] / GIB:.2f}",
    ]


UTILISATION = ["TFLOP/s", "peak", "bytes", "bound", "GiB"]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, the others to the right."""
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def write_json(path: str | None, program: str, mesh: Mesh, configs: Any, **results: Any) -> None:
    """Writes results with their settings, if a file was asked for."""
    if not path:
        return
    contents = {
        "program": program,
        "jax": jax.__version__,
        "devices": [device.device_kind for device in mesh.devices.flat],
        "configs": {config.method: config.to_dict() for config in configs},
        **results,
    }
    write_text(pathlib.Path(path).expanduser(), json.dumps(contents, indent=1))
