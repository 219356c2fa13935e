"""Fills a published table with the runs of a folder: `fsseg_jax.evaluate --table=panet-1`.

For every row, fold and setting (ways, shots) the run is found whose configuration is the row's,
and evaluated by the table's protocol; what lacks a run or its data is missing in the result, with
the command that would give it. A second call evaluates only what has changed.
"""

import html
import json
import logging
import pathlib
import shlex
import string
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fsseg_jax.config import config_file, differences, load_config, override
from fsseg_jax.data import open_source
from fsseg_jax.data.source import Source
from fsseg_jax.devices import is_first_process
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.evaluator import evaluate, write_whole
from fsseg_jax.evaluation.protocol import protocol
from fsseg_jax.evaluation.published import TABLES, Fold, Row, Setting, Table
from fsseg_jax.evaluation.report import SCORES, STYLE
from fsseg_jax.models import choose_stages, create_model
from fsseg_jax.training.checkpoints import (
    BEST,
    LAST,
    Checkpoints,
    available,
    load_variables,
)

# Fields that say where, how and how long a model was trained, but not which one it is. Those that
# matter to a score are in its protocol, where differences are told.
FREE = (
    *("train.", "eval.", "init", "dtype", "seed", "platform", "devices", "image_size"),
    *("backbone_statistics", "annotation_width", "data.root", "data.pipeline", "data.device"),
    *("data.train_", "data.split", "data.min_pixels", "data.held_out", "data.augment"),
    *("data.sampling", "data.border"),
)
DATA = "DATA"  # the folder of a data set in commands, where the user has named none

logger = logging.getLogger(__name__)


class Run(NamedTuple):
    """A trained model in a folder."""

    folder: pathlib.Path
    config: ConfigDict
    step: int


class Cell(NamedTuple):
    """One evaluation of a table."""

    row: Row
    setting: Setting
    fold: int
    run: Run | None  # None where there is no such run, or the row is of an untrained model
    results: dict[str, Any] | None
    neutral: dict[str, Any]  # the protocol but for what the row itself asks for


def fill(name: str, workdir: pathlib.Path, overrides: Sequence[str], mesh: Mesh) -> dict[str, Any]:
    """Evaluates what the table `name` needs, and writes what came out.

    The files, in `workdir/tables/name`: `results.json`, `table.txt`, `table.html`, and a folder an
    evaluation.

    Args:
        name: of the table; see `published.TABLES`.
        workdir: the folder that holds the runs, at any depth. Where there is no such folder, all
            that has to be trained is missing, and nothing is written.
        overrides: `--config.field=value`, for all evaluations.
        mesh: the devices.

    Returns:
        the contents of `results.json`.

    Raises:
        UserError: there is no such table, or an evaluation fails.
    """
    if name not in TABLES:
        raise UserError(f"--table = {name}: choose one of {', '.join(TABLES)}.")
    table = TABLES[name]
    for row in table.rows:  # wrong overrides are told before anything is evaluated
        if row.config:
            override(training_config(row, table.settings[0], table.folds[0]), overrides)
    folder = workdir / "tables" / name
    runs = list(find_runs(workdir))
    logger.info("%s; %d runs in %s", table.title, len(runs), workdir)
    sources: dict[str, Source] = {}
    cells = [
        _cell(table, row, setting, fold, runs, overrides, mesh, folder, sources)
        for row in table.rows
        for setting in row.settings
        for fold in table.folds
    ]
    results = _results(table, cells, workdir, overrides)
    if not is_first_process():
        return results
    text = as_text(results)
    print(text)
    if workdir.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "table.txt", text)
        write_whole(folder / "table.html", _as_html(results))
        write_whole(folder / "results.json", json.dumps(results, indent=1))
        print(f"report: {folder / 'table.html'}")
    return results


def find_runs(workdir: pathlib.Path) -> Iterator[Run]:
    """The trained models below a folder, but for those that a warning names."""
    for folder in sorted(path.parent for path in workdir.rglob("checkpoints") if path.is_dir()):
        checkpoints = Checkpoints(folder)
        which = next((w for w in (LAST, BEST) if checkpoints.step(w) is not None), None)
        if which is None:
            continue
        try:
            config, info = checkpoints.describe(which)
        except UserError as error:
            logger.warning("%s is left out: %s", folder, error)
        else:
            yield Run(folder, config, info["step"])


def training_config(row: Row, setting: Setting, fold: int) -> ConfigDict:
    """The configuration whose training a cell needs."""
    return override(load_config(_file(row)), training_overrides(row, setting, fold))


def training_overrides(row: Row, setting: Setting, fold: int) -> list[str]:
    """What a cell's training changes in the row's configuration."""
    ways, shots = setting
    fields = [*row.train, f"ways={ways}", f"shots={row.train_shots or shots}", f"data.fold={fold}"]
    return [f"--config.{field}" for field in fields]


def _file(row: Row) -> str:
    """The file of a row's configuration, wherever this package is installed."""
    path = config_file(pathlib.Path(row.config).stem)
    if path is None:
        raise UserError(f"configs/{row.config} is missing: install the package anew.")
    return path


def matches(run: Run, wanted: ConfigDict, row: Row) -> bool:
    """Whether a run trained the model that `wanted` describes."""
    tested = {field.split("=")[0] for field in row.test}
    if run.config.method != wanted.method:
        return False
    for name, (old, new) in differences(run.config, wanted).items():
        chosen = name == "model.stages" and not new  # by the weights that were there
        different = json.dumps(old) != json.dumps(new)
        if different and not (chosen or name in tested or name.startswith(FREE)):
            return False
    return True


def _cell(
    table: Table,
    row: Row,
    setting: Setting,
    fold: int,
    runs: Sequence[Run],
    overrides: Sequence[str],
    mesh: Mesh,
    folder: pathlib.Path,
    sources: dict[str, Source],
) -> Cell:
    """Evaluates one cell, unless the same evaluation is there already."""
    if not row.config:
        return Cell(row, setting, fold, None, None, {})
    wanted = training_config(row, setting, fold)
    run = None
    if row.trained:
        fitting = [run for run in runs if matches(run, wanted, row)]
        if not fitting:
            return Cell(row, setting, fold, None, None, {})
        run = max(fitting, key=lambda run: run.step)  # the one that was trained longest
    ways, shots = setting
    fields = [*table.protocol, f"ways={ways}", f"shots={shots}", f"data.fold={fold}"]
    start = [f"--config.{field}" for field in fields]
    base = wanted if run is None else run.config
    config = override(base, [*start, *(f"--config.{field}" for field in row.test), *overrides])
    root = config.data.root
    if not (root and pathlib.Path(root).is_dir()) and not _root(overrides):
        return Cell(row, setting, fold, run, None, {})  # a folder that the user names must exist
    if run is None:
        choose_stages(config)

    opened = json.dumps(config.data.to_dict() | {"fold": 0}, sort_keys=True)
    if opened not in sources:
        sources[opened] = open_source(config.data, "test")
    source = sources[opened]
    model = create_model(config)
    target = folder / "cells" / _slug(f"{row.label} {ways}-way {shots}-shot fold {fold}")
    workdir = target if run is None else run.folder
    trained = None if run is None else run.config
    stamp, which = (None, None) if run is None else _stamp(run, config.eval.checkpoint)
    plain = override(base, [*start, *overrides])
    neutral = protocol(plain, source, model, _neutral(trained, row), which)
    # All that the result depends on: a longer training replaces the weights.
    episodes = pathlib.Path(config.eval.episodes_file)
    listed = episodes.read_text() if episodes.is_file() else None
    fields = {**config.to_dict(), "platform": "", "devices": 0}
    key = json.loads(json.dumps([fields, stamp, source.fingerprint, source.digest(), listed]))
    if (results := _kept(target, key)) is None:
        loaded = load_variables(config, model, workdir, mesh, source)
        logger.info("%s, %d-way %d-shot, fold %d: %s", row.label, *setting, fold, loaded.words)
        results = evaluate(config, model, loaded, source, mesh, target)
        if is_first_process():
            write_whole(target / "key.json", json.dumps(key))
    return Cell(row, setting, fold, run, results, neutral)


def _root(overrides: Sequence[str]) -> str:
    """The override that names the folder of the data set; empty where there is none."""
    return next((o for o in overrides if o.startswith("--config.data.root=")), "")


def _neutral(trained: ConfigDict | None, row: Row) -> ConfigDict | None:
    """A training's configuration without what its row is about."""
    if trained is None or not row.train:
        return trained
    plain = load_config(_file(row))
    copy = ConfigDict(trained.to_dict())
    for field in row.train:
        name = field.split("=")[0]
        copy.update_from_flattened_dict({name: _get(plain, name)})
    return copy


def _get(config: ConfigDict, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config


def _stamp(run: Run, which: str) -> tuple[str, str]:
    """Names a checkpoint of a run and its time; and which of them it is."""
    checkpoints = Checkpoints(run.folder)
    which = available(checkpoints, which)
    path = checkpoints.folder / which / str(checkpoints.step(which))
    return f"{path}, {path.stat().st_mtime_ns}", which


def _kept(target: pathlib.Path, key: list[Any]) -> dict[str, Any] | None:
    """The results of an earlier evaluation of the same."""
    files = target / "key.json", target / "results.json"
    if not all(file.is_file() for file in files):
        return None
    kept, results = (json.loads(file.read_text()) for file in files)
    return results if kept == key else None


def _slug(words: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in words.lower()).split())


# ----------------------------------------------------------------------------- what came out


def _results(
    table: Table, cells: Sequence[Cell], workdir: pathlib.Path, overrides: Sequence[str]
) -> dict[str, Any]:
    """Ours and the published figures, cell by cell; what is missing, and what is mixed."""
    rows = []
    for row in table.rows:
        figures = []
        for setting in row.settings:
            own = [cell for cell in cells if (cell.row, cell.setting) == (row, setting)]
            metrics = dict.fromkeys(m for s, _, m in row.published if s == setting)
            for metric in metrics:
                ours: dict[Fold, float | None] = {
                    cell.fold: cell.results and cell.results[metric] for cell in own
                }
                known = [value for value in ours.values() if value is not None]
                ours["mean"] = float(np.mean(known)) if len(known) == len(ours) else None
                paper = {f: row.published.get((setting, f, metric)) for f in ours}
                figures.append(
                    {
                        "setting": f"{setting[0]}-way {setting[1]}-shot",
                        "metric": SCORES[metric],
                        "ours": {str(fold): value for fold, value in ours.items()},
                        "paper": {str(fold): value for fold, value in paper.items()},
                        "places": {
                            str(fold): str(table.place(row, setting, fold, metric))
                            for fold, value in paper.items()
                            if value is not None
                        },
                        "protocols": sorted(
                            {cell.results["protocol"]["hash"] for cell in own if cell.results}
                        ),
                        "runs": [str(cell.run.folder) for cell in own if cell.run],
                        "weights": [cell.results["checkpoint"] for cell in own if cell.results],
                    }
                )
        rows.append(
            {"label": row.label, "figures": figures, "others": row.others, "note": row.note}
        )
    missing: dict[str, list[str]] = {}
    for cell in cells:
        if cell.results is None and cell.row.config:
            missing.setdefault(_command(table, cell, workdir, overrides), []).append(_place(cell))
    return {
        "table": table.name,
        "title": table.title,
        "rows": rows,
        "missing": [{"cells": names, "command": command} for command, names in missing.items()],
        "mixed": mixed([cell for cell in cells if cell.results]),
    }


def _command(table: Table, cell: Cell, workdir: pathlib.Path, overrides: Sequence[str]) -> str:
    """What gives a missing cell: its training, or this table with the data it needs."""
    root = _root(overrides) or f"--config.data.root={DATA}"
    if cell.run or not cell.row.trained:
        where = [f"--table={table.name}", f"--workdir={workdir}", root]
        return shlex.join(["python", "-m", "fsseg_jax.evaluate", *where])
    # Where the data and the weights are is the user's.
    own = [root, *(o for o in overrides if o.startswith("--config.init"))]
    fields = training_overrides(cell.row, cell.setting, cell.fold)
    trained = (cell.setting[0], cell.row.train_shots or cell.setting[1])
    label = _slug(" ".join([pathlib.Path(cell.row.config).stem, *cell.row.train]))
    label += f"-{trained[0]}way-{trained[1]}shot-fold{cell.fold}"
    file = pathlib.Path(_file(cell.row))
    if file.is_relative_to(pathlib.Path.cwd()):
        file = file.relative_to(pathlib.Path.cwd())
    where = [f"--config={file}", f"--workdir={workdir / label}"]
    return shlex.join(["python", "-m", "fsseg_jax.train", *where, *fields, *own])


def mixed(cells: Sequence[Cell]) -> list[str]:
    """A sentence for every setting that is not the same in all cells that have it.

    What a row is about does not count, nor does the number of shots of the training, which is the
    row's as well.
    """
    own = {"hash", "training episodes", "corners", "ignored pixels of supports"}
    names = dict.fromkeys(name for cell in cells for name in cell.neutral if name not in own)
    sentences = []
    for name in names:
        values: dict[str, list[Cell]] = {}
        for cell in cells:
            if name in cell.neutral:
                values.setdefault(str(cell.neutral[name]), []).append(cell)
        if len(values) > 1:
            parts = [
                f"{value} in {' and '.join(dict.fromkeys(_place(cell) for cell in those))}"
                for value, those in values.items()
            ]
            sentences.append(f"{name}: {'; '.join(parts)}")
    return sentences


def _place(cell: Cell) -> str:
    return f"{cell.row.label}, {cell.setting[0]}-way {cell.setting[1]}-shot, fold {cell.fold}"


def as_text(results: dict[str, Any]) -> str:
    """A table of `fill` for the terminal."""
    lines = [results["title"], ""]
    head = None
    width = max(len(row["label"]) for row in results["rows"]) + 2
    for row in results["rows"]:
        for figure in row["figures"]:
            folds = list(figure["ours"])
            if (new := [figure["setting"], figure["metric"], folds]) != head:
                head = new
                names = "".join(f"{_column(fold):>9}" for fold in folds)
                lines += [f"{figure['setting']}, {figure['metric']}".ljust(width + 7) + names]
            for who in ("ours", "paper"):
                numbers = "".join(f"{_number(figure[who][fold], who):>9}" for fold in folds)
                label = row["label"] if who == "ours" else ""
                lines.append(f"  {label:<{width}}{who:<5}{numbers}")
        lines += [f"    {name}: {value} in the paper" for name, value in row["others"].items()]
        lines += [f"    {row['note']}"] if row["note"] else []
    hashes = {h for row in results["rows"] for f in row["figures"] for h in f["protocols"]}
    lines += ["", f"protocols: {', '.join(sorted(hashes)) or 'none'}"]
    lines += [f"warning: not all under one protocol: {line}" for line in results["mixed"]]
    if results["missing"]:
        lines += ["", "missing; these commands would give them:"]
        for entry in results["missing"]:
            lines += [f"  {'; '.join(entry['cells'])}", f"    {entry['command']}"]
    return "\n".join(lines) + "\n"


def _column(fold: str) -> str:
    return fold if fold == "mean" else f"fold {fold}"


def _number(value: float | None, who: str) -> str:
    if value is None:
        return "missing" if who == "ours" else "-"
    return f"{value:.1f}" if who == "ours" else str(value)  # with as many digits as the paper has


def _as_html(results: dict[str, Any]) -> str:
    blocks = []
    for row in results["rows"]:
        for figure in row["figures"]:
            folds = list(figure["ours"])
            cells = [
                "".join(f"<td>{_number(figure[who][fold], who)}</td>" for fold in folds)
                for who in ("ours", "paper")
            ]
            where = "; ".join(dict.fromkeys([*figure["runs"], *figure["weights"]]))
            caption = f"{row['label']} · {figure['setting']} · {figure['metric']}, %"
            blocks.append(
                f"<div class=card><h3>{html.escape(caption)}</h3><table><tr><th>"
                + "".join(f"<th>{_column(fold)}" for fold in folds)
                + f"</tr><tr><td>ours</td>{cells[0]}</tr><tr><td>paper</td>{cells[1]}</tr></table>"
                f"<small>{html.escape(_remarks(row))}</small>"
                f"<small>protocol {', '.join(figure['protocols']) or '-'}; "
                f"{html.escape(where) or 'no run'}</small></div>"
            )
    notes = "".join(
        f"<p>not all under one protocol: {html.escape(line)}</p>" for line in results["mixed"]
    )
    missing = "".join(
        f"<li style='display:block'>{html.escape('; '.join(entry['cells']))}<br>"
        f"<code>{html.escape(entry['command'])}</code></li>"
        for entry in results["missing"]
    )
    return string.Template(_PAGE).substitute(
        title=html.escape(results["title"]),
        style=STYLE,
        warnings=f"<h2>Warning</h2><div class=card>{notes}</div>" if notes else "",
        blocks="".join(blocks),
        missing=f"<h2>Missing</h2><div class=card><ul>{missing}</ul></div>" if missing else "",
    )


def _remarks(row: dict[str, Any]) -> str:
    """What else the paper reports of a row, and its note."""
    others = (f"{name}: {value} in the paper." for name, value in row["others"].items())
    return " ".join([*others, row["note"]])


_PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<meta http-equiv=Content-Security-Policy content="default-src 'none'; style-src 'unsafe-inline'">
<link rel=icon href="data:,"><title>$title</title><style>$style</style>
<header><h1>$title</h1></header>$warnings$blocks$missing</html>
"""
