"""The effect of each choice of a protocol: python -m fsseg_jax.evaluation.choices --config=FILE

Evaluates one model, by default the freshly initialised one of --config, under every published
protocol, and under one protocol with one choice changed at a time: how episodes are drawn, how
images are resized, how masks are compared. Episodes are 1-way 1-shot unless the configuration says
otherwise; the definitions of binary-IoU differ only for 2 ways, which have rows of their own.

    python -m fsseg_jax.evaluation.choices --config=configs/panet_vgg16.py --workdir=runs/choices \\
        --config.data.root=VOCdevkit/VOC2012

Images are encoded once for all rows that resize them alike, and kept in temporary files until the
last of these rows: about 3 MB each with VGG-16 at 417 px, or 13 GB for trainaug.

Writes choices.json and choices.txt after every row; the same command continues. --rows and --folds
choose some of them, as in --rows=base,border --folds=0,1. Overrides apply after the protocol and
before the changes of a row.
"""

import json
import logging
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fsseg_jax import command_line
from fsseg_jax.checksums import checksum_of
from fsseg_jax.config import load_config, override
from fsseg_jax.config.presets import PRESETS
from fsseg_jax.data import open_source
from fsseg_jax.data.source import Source
from fsseg_jax.devices import describe, make_mesh
from fsseg_jax.errors import UserError, brief
from fsseg_jax.evaluation.metrics import MEANS
from fsseg_jax.evaluation.parts import Store
from fsseg_jax.evaluation.protocol import protocol, protocol_episodes
from fsseg_jax.evaluation.scoring import Scoring
from fsseg_jax.evaluation.summary import summarise
from fsseg_jax.files import write_text
from fsseg_jax.models import create_model
from fsseg_jax.training.checkpoints import Checkpoints, available, load_variables

# As a program, the module has another name.
logger = logging.getLogger("fsseg_jax.evaluation.choices")


CHECKSUM = "checksum"  # of the other fields of choices.json


class Row(NamedTuple):
    """A protocol with changes, and the figure of it to show."""

    label: str
    protocol: tuple[str, ...]
    changes: tuple[str, ...] = ()
    border: str = ""  # instead of `eval.border`
    metric: str = "mean_iou"


# The protocol that the others are compared with: validation images, a class and then an image at
# random, no small objects, squares, ignored borders.
BASE = ("eval.protocol=mfnet", "eval.runs=1")
_TWO_WAYS = ("ways=2",)
_OWN = ("eval.fit=own", "eval.scored_at=photograph")
ROWS = {
    **{name: Row(f"protocol {name}", (f"eval.protocol={name}",)) for name in PRESETS},
    "base": Row("base (validation, class uniform, 2,048 px, squares)", BASE),
    "border": Row("border counts as background", BASE, border="background"),
    "filter": Row("no area filter", BASE, ("data.min_pixels=1",)),
    "items": Row("items in turn", BASE, ("eval.sampling=items",)),
    "photographs": Row("images in turn", BASE, ("eval.sampling=photographs",)),
    "size": Row("masks at each image's size", BASE, ("eval.scored_at=photograph",)),
    "letterbox": Row(
        "letterboxed, at each image's size",
        BASE,
        ("eval.fit=letterbox", "eval.scored_at=photograph"),
    ),
    "own": Row("queries at their own size", BASE, _OWN),
    "scales": Row("and at 0.7, 1 and 1.3 of it", BASE, (*_OWN, "eval.scales=0.7,1.0,1.3")),
    "split": Row("images of trainaug", BASE, ("data.split=trainaug",)),
    "seed": Row("another seed", BASE, ("eval.seed=1",)),
    "binary": Row("binary-IoU", BASE, metric="binary_iou"),
    "two_ways": Row("2 ways: mean-IoU", BASE, _TWO_WAYS),
    "star": Row("2 ways: mIoU*", BASE, _TWO_WAYS, metric="mean_iou_star"),
    "binary_2": Row("2 ways: binary-IoU, classes summed", BASE, _TWO_WAYS, metric="binary_iou"),
    "binary_2_shown": Row(
        "2 ways: binary-IoU, classes that are shown", BASE, _TWO_WAYS, metric="binary_iou_shown"
    ),
    "binary_2_merged": Row(
        "2 ways: binary-IoU, classes merged", BASE, _TWO_WAYS, metric="binary_iou_merged"
    ),
}


class Choices:
    """Evaluates rows, and caches what they share.

    Args:
        overrides: overrides from the command line, for all rows.
        workdir: folder of the run whose checkpoint is evaluated, if it has one.
    """

    def __init__(self, path: str, overrides: Sequence[str], mesh: Mesh, workdir: Any) -> None:
        self.path, self.overrides, self.mesh, self.workdir = path, overrides, mesh, workdir
        # All rows use the same checkpoint, whatever their protocols would choose.
        self.checkpoint = override(load_config(path), overrides).eval.checkpoint
        self.sources: dict[tuple[str, ...], Source] = {}  # by `_opened`
        self.stores: dict[tuple[str, ...], Store] = {}  # by `store_of`
        self.models: dict[tuple[int, int], tuple[Any, Any]] = {}  # by ways and fold
        self.known: dict[str, dict[str, Any]] = {}  # figures and hashes, by border

    def config(self, row: Row, fold: int) -> ConfigDict:
        """The configuration of a row on one fold."""
        start, end = (
            [f"--config.{field}" for field in fields]
            for fields in (row.protocol, (*row.changes, f"data.fold={fold}"))
        )
        return override(load_config(self.path), [*start, *self.overrides, *end])

    def store_of(self, row: Row) -> tuple[str, ...]:
        """A key that is equal for rows which need the same encoded images."""
        config = self.config(row, 0)
        squares = "letterbox" if config.eval.fit == "letterbox" else "stretch"
        return (*_opened(config), squares)

    def open(self, config: ConfigDict) -> Source:
        """The test images of a configuration."""
        key = _opened(config)
        if key not in self.sources:
            self.sources[key] = open_source(config.data, "test")
        return self.sources[key]

    def evaluate(self, row: Row, fold: int) -> dict[str, Any]:
        """The figure of a row on one fold, and the hash of its protocol."""
        key = json.dumps([(*row.protocol, *row.changes), fold])
        if key not in self.known:
            config = self.config(row, fold)
            source = self.open(config)
            if (config.ways, fold) not in self.models:
                model = create_model(config)
                chosen = config.copy_and_resolve_references()
                chosen.eval.checkpoint = self.checkpoint
                loaded = load_variables(chosen, model, self.workdir, self.mesh, source)
                self.models[config.ways, fold] = model, loaded
            model, loaded = self.models[config.ways, fold]
            store = self.stores.setdefault(
                self.store_of(row), Store(np.arange(len(source)), "choose fewer --rows")
            )
            by_seed = protocol_episodes(config, source)
            scoring = Scoring(
                config, model, loaded.variables, source, self.mesh, by_seed, store=store
            )
            self.known[key] = {"border": config.eval.border}
            for border, counts in scoring.counts[""].borders.items():
                figures = summarise(counts, by_seed, source.class_names)
                self.known[key][border] = {name: figures[name] for name in MEANS}
                told = config.copy_and_resolve_references()
                told.eval.border, told.eval.checkpoint = border, self.checkpoint
                described = protocol(told, source, model, loaded.config, loaded.checkpoint)
                self.known[key][border]["hash"] = described["hash"]
        known = self.known[key]
        figures = known[row.border or known["border"]]
        return {"score": figures[row.metric], "hash": figures["hash"]}


def _opened(config: ConfigDict) -> tuple[str, ...]:
    """A key that is equal for configurations with the same images and labels."""
    return (config.data.split, *map(str, config.data.coco.values()))


def as_text(results: dict[str, dict[str, float]], hashes: dict[str, str]) -> str:
    """The table: rows, folds, their mean, and its difference from that of `base`."""
    results = {name: results[name] for name in ROWS if name in results}
    folds = sorted({fold for scores in results.values() for fold in scores}, key=int)
    means = {
        name: float(np.mean(list(scores.values())))
        for name, scores in results.items()
        if len(scores) == len(folds)
    }
    width = max(len(ROWS[name].label) for name in results)
    head = "".join(f"{f'fold {fold}':>8}" for fold in folds)
    lines = [f"{'':{width}}{head}{'mean':>8}{'to base':>9}  protocol"]
    for name, scores in results.items():
        cells = "".join(f"{scores[f]:8.1f}" if f in scores else f"{'-':>8}" for f in folds)
        mean = f"{means[name]:8.1f}" if name in means else f"{'-':>8}"
        row = ROWS[name]
        compared = row.metric == "mean_iou" and row.changes != _TWO_WAYS and name in means
        apart = f"{means[name] - means['base']:+9.1f}" if compared and "base" in means else " " * 9
        lines.append(f"{row.label:{width}}{cells}{mean}{apart}  {hashes[name]}")
    return "\n".join(lines) + "\n"


def _folds(
    given: str | None, config: ConfigDict, source: Source, workdir: pathlib.Path
) -> list[str]:
    """The requested folds: by default all, or the one that a run holds out."""
    if given is None:
        checkpoints = Checkpoints(workdir)
        which = available(checkpoints, config.eval.checkpoint)
        if which is not None:
            return [str(checkpoints.describe(which)[0].data.fold)]
        return [str(fold) for fold in range(len(source.folds))]
    folds = given.split(",")
    if not all(fold.isdigit() and int(fold) < len(source.folds) for fold in folds):
        raise UserError(
            f"--folds = {given}: expected some of 0..{len(source.folds) - 1}, as in 0,1."
        )
    return folds


def _saved(path: pathlib.Path, command: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures by protocol, those by row, and the hashes in choices.json.

    Raises:
        UserError: it is damaged, or of another command.
    """
    try:
        saved = dict(json.loads(path.read_text()))
        known = saved.pop(CHECKSUM, None)  # earlier versions wrote none
        if known is not None and known != checksum_of(saved):
            raise ValueError("its checksum is another")
        if {name: saved.get(name) for name in command} != command or "hashes" not in saved:
            raise UserError(
                f"{path} has another --config, other overrides or an earlier version: "
                "choose another --workdir."
            )
        parts = [dict(saved[name]) for name in ("known", "rows", "hashes")]
        for figures in parts[0].values():
            shown = figures[figures["border"]]
            [format(shown[name], ".1f") for name in MEANS], shown["hash"]
        as_text(*parts[1:]), "".join(parts[2].values())
    except UserError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({brief(str(error))}): remove it, and its rows are evaluated again."
        ) from None
    return parts


def main() -> None:
    """Runs the program."""
    arguments, overrides = command_line.parse(
        __doc__,
        workdir="the folder of the results, and of the run to evaluate, if any",
        rows=f"some of {', '.join(ROWS)}, separated by commas",
        folds="numbers of folds, separated by commas",
    )
    if arguments.config is None:
        raise UserError("--config is missing: name a file, as in --config=configs/panet_vgg16.py.")
    config = override(load_config(arguments.config), overrides)
    # Only PASCAL-5i has trainaug.
    names = [name for name in ROWS if name != "split" or config.data.name == "voc"]
    if arguments.rows:
        names = arguments.rows.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        raise UserError(f"--rows = {unknown[0]}: choose some of {', '.join(ROWS)}.")
    command_line.start(config)
    mesh = make_mesh(config.devices)
    logger.info(describe(mesh))
    choices = Choices(arguments.config, overrides, mesh, arguments.workdir)
    path = arguments.workdir / "choices.json"
    command = {"config": arguments.config, "overrides": overrides}
    results: dict[str, dict[str, float]] = {}
    hashes: dict[str, str] = {}
    if path.is_file():
        choices.known, results, hashes = _saved(path, command)
    for name in names:  # reports missing data before anything is evaluated
        source = choices.open(choices.config(ROWS[name], 0))
    folds = _folds(arguments.folds, config, source, arguments.workdir)
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    # Rows that share encoded images are adjacent, so that those can be deleted; `base` is first.
    stores = {name: choices.store_of(ROWS[name]) for name in {*names, "base"}}
    names.sort(key=lambda name: (stores[name] != stores["base"], stores[name]))
    for position, name in enumerate(names):
        for fold in folds:
            cell = choices.evaluate(ROWS[name], int(fold))
            results.setdefault(name, {})[fold] = cell["score"]
            hashes[name] = cell["hash"]
            logger.info("%s, fold %s: %.1f", ROWS[name].label, fold, cell["score"])
            whole = {**command, "rows": results, "hashes": hashes, "known": choices.known}
            whole[CHECKSUM] = checksum_of(whole)
            write_text(path, json.dumps(whole, indent=1))
            write_text(path.with_suffix(".txt"), as_text(results, hashes))
        if stores[name] not in {stores[later] for later in names[position + 1 :]}:
            choices.stores.pop(stores[name], None)
    print(as_text(results, hashes), end="")


if __name__ == "__main__":
    command_line.run(main)
