"""The results of a table next to the published figures, as text, HTML and JSON."""

import base64
import html
import json
import pathlib
import shlex
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from fsseg_jax.config import differences, override
from fsseg_jax.evaluation.published import Fold, Table
from fsseg_jax.evaluation.report import HEAD, SCORES, STYLE
from fsseg_jax.evaluation.tables.cells import (
    Cell,
    config_path,
    data_root,
    protocol_overrides,
    published_episodes,
    slug,
    trained_setting,
    training_config,
    training_overrides,
)
from fsseg_jax.files import write_text

DATA = "DATA"  # stands for the folder of the data set in commands, unless the user named one
# Settings of a training that are reported elsewhere, or that do not change the model.
UNTOLD = (
    *("train.steps", "train.epochs", "train.log_every", "train.save_every", "train.eval_"),
    *("train.steps_per_dispatch", "train.warmup", "model.metric_from_epoch"),
    *("train.decay_every", "train.select_on", "train.test_before", "eval.", "init", "platform"),
    *("devices", "seed", "distributed", "compilation_cache", "rematerialise", "model.stages"),
    *("data.root", "data.pipeline", "data.device", "data.fold", "data.split"),
)
# Settings of a result that are marked if they are not the paper's, besides the training's length.
MARKED = ("image_size", "eval.runs", "eval.episodes", "eval.episodes_file")
CURVES = "curves.png"  # the file next to a table in which `reproduce` draws learning curves


def collect(
    table: Table,
    cells: Sequence[Cell],
    workdir: pathlib.Path,
    overrides: Sequence[str],
    command: str = "",
) -> dict[str, Any]:
    """Our figures and the published ones, missing cells, and inconsistent protocols.

    Args:
        cells: those of the table to show, see `cells.locate`.
        overrides: overrides from the command line, for the commands that produce missing cells.
        command: a command that produces all of them, if there is one.
    """
    rows = []
    for row in dict.fromkeys(cell.place.row for cell in cells):
        figures = []
        for setting in row.settings:
            own = [
                cell for cell in cells if cell.place.row is row and cell.place.setting == setting
            ]
            figures += [_figure(table, own, metric) for metric in row.metrics(setting) if own]
        rows.append(
            {"label": row.label, "figures": figures, "others": row.others, "note": row.note}
        )
    missing: dict[str, list[str]] = {}
    for cell in cells:
        if cell.results is None and cell.place.row.config:
            words = command or _command(table, cell, workdir, overrides)
            missing.setdefault(words, []).append(str(cell.place))
    return {
        "table": table.name,
        "title": table.title,
        "rows": rows,
        "missing": [{"cells": names, "command": command} for command, names in missing.items()],
        "failed": {str(cell.place): cell.failure for cell in cells if cell.failure},
        "mixed": mixed([cell for cell in cells if cell.results]),
    }


def _figure(table: Table, cells: Sequence[Cell], metric: str) -> dict[str, Any]:
    """Figures of one metric of a row in one setting, by fold."""
    row, setting, _ = cells[0].place
    done = {cell.place.fold: cell.results for cell in cells if cell.results}

    def by_fold(values: dict[int, float]) -> dict[str, float | None]:
        known: dict[Fold, float | None] = {cell.place.fold: None for cell in cells}
        known |= values
        whole = set(values) == set(table.folds)  # a mean over fewer folds is another figure
        known["mean"] = float(np.mean(list(values.values()))) if whole else None
        return {str(fold): value for fold, value in known.items()}

    ours = {fold: results[metric] for fold, results in done.items()}
    at_best = {
        fold: results["thresholded"][metric]
        for fold, results in done.items()
        if "thresholded" in results
    }
    folds: list[Fold] = [*(cell.place.fold for cell in cells), "mean"]
    paper: dict[Fold, float | None] = {
        fold: row.published.get((setting, fold, metric)) for fold in folds
    }
    others = {str(cell.place.fold): words for cell in cells if (words := deviations(table, cell))}
    if others:  # then the mean is one of such figures, too
        others["mean"] = list(dict.fromkeys(word for words in others.values() for word in words))
    return {
        "setting": f"{setting[0]}-way {setting[1]}-shot",
        "deviations": others,
        "metric": SCORES[metric],
        "ours": by_fold(ours),
        **({"at the best threshold": by_fold(at_best)} if at_best else {}),
        "paper": {str(fold): value for fold, value in paper.items()},
        "places": {
            str(fold): str(table.place(row, setting, fold, metric))
            for fold, value in paper.items()
            if value is not None
        },
        "protocols": sorted({results["protocol"]["hash"] for results in done.values()}),
        "episodes": sorted({results["episodes_hash"] for results in done.values()}),
        "runs": [str(cell.run.folder) for cell in cells if cell.run],
        "weights": [results["checkpoint"] for results in done.values()],
        "training": {
            str(cell.place.fold): training_facts(cell) for cell in cells if cell.run is not None
        },
    }


def deviations(table: Table, cell: Cell) -> list[str]:
    """What of a result is not the paper's: image size, length of the training, test episodes."""
    if cell.evaluation is None or cell.results is None:
        return []
    tested = [f"--config.{field}" for field in cell.place.row.test]
    wanted = override(
        training_config(cell.place), [*protocol_overrides(table, cell.place), *tested]
    )
    changed = differences(wanted, cell.evaluation.config)
    words = [f"{name} = {changed[name][1]}" for name in MARKED if name in changed]
    part = training_facts(cell)["part"] if cell.run is not None else None
    if part is not None and round(part, 2) != 1:
        words.append(f"{percent(part)} of the training")
    return words


def training_facts(cell: Cell) -> dict[str, Any]:
    """The training of a cell's run, compared with the published one.

    `part` is the number of episodes relative to that of the published training on these images.
    """
    run = cell.run
    assert run is not None  # callers pass cells with runs
    published = training_config(cell.place)
    whole = published_episodes(cell.place, run.info.get("epoch"))
    seconds = run.info.get("seconds")
    changed = {
        name: new
        for name, (_, new) in differences(published, run.config).items()
        if not name.startswith(UNTOLD)
    }
    if bool(run.config.init) != bool(published.init):
        changed["init"] = run.config.init or "random"
    return {
        "steps": run.step,
        "batch_size": run.config.train.batch_size,
        "episodes": run.episodes,
        "part": whole and run.episodes / whole,
        "minutes": seconds and seconds / 60,
        "devices": run.info.get("devices", "").removeprefix("devices: "),
        "seed": run.config.seed,
        "changed": json.loads(json.dumps(changed)),
    }


def training_words(facts: dict[str, Any]) -> str:
    """`training_facts` in one line."""
    words = f"trained on {facts['episodes']:,} episodes"
    if facts["part"] is not None:
        words += f" ({percent(facts['part'])} of the published training)"
    words += f", {facts['steps']:,} steps of {facts['batch_size']}"
    if facts["minutes"] is not None:
        words += f", {facts['minutes']:.1f} minutes"
    if facts["devices"]:
        words += f", {facts['devices']}"
    words += f", seed {facts['seed']}"
    changed = ", ".join(f"{name}={value}" for name, value in facts["changed"].items())
    return f"{words}; {changed}" if changed else words


def percent(part: float) -> str:
    """A ratio in percent: with two digits if it is small, otherwise as an integer."""
    return f"{100 * part:.2g} %" if part < 0.1 else f"{100 * part:.0f} %"


def training_folder(place: Any, suffix: str = "") -> str:
    """The name of the folder of a place's training."""
    ways, shots = trained_setting(place)
    label = slug(" ".join([place.row.config.replace(".py", ""), *place.row.train]))
    return f"{label}-{ways}way-{shots}shot-fold{place.fold}{suffix}"


def _command(table: Table, cell: Cell, workdir: pathlib.Path, overrides: Sequence[str]) -> str:
    """The command that produces a missing cell: its training, or this table with its data."""
    made = cell.place.row.config.startswith("shapes")
    root = [] if made or data_root(overrides) else [f"--config.data.root={DATA}"]
    own = [*root, *overrides]
    if cell.run or not cell.place.row.trained:
        where = [f"--table={table.name}", f"--workdir={workdir}", *own]
        return shlex.join(["python", "-m", "fsseg_jax.evaluate", *where])
    name, _, argument = config_path(cell.place.row).partition(".py")
    file = pathlib.Path(f"{name}.py")
    if file.is_relative_to(pathlib.Path.cwd()):
        file = file.relative_to(pathlib.Path.cwd())
    where = [
        f"--config={file}{argument}",
        f"--workdir={workdir / training_folder(cell.place)}",
    ]
    overrides = [*training_overrides(cell.place), *own]
    return shlex.join(["python", "-m", "fsseg_jax.train", *where, *overrides])


def write(results: dict[str, Any], folder: pathlib.Path) -> pathlib.Path:
    """Writes `results.json`, `table.txt` and `table.html`; returns the path of the latter.

    Args:
        results: see `collect`.
        folder: created if it does not exist; learning curves in it become part of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "table.txt", as_text(results))
    curves = folder / CURVES
    write_text(
        folder / "table.html", _as_html(results, curves.read_bytes() if curves.is_file() else b"")
    )
    write_text(folder / "results.json", json.dumps(results, indent=1))
    return folder / "table.html"


def mixed(cells: Sequence[Cell]) -> list[str]:
    """A sentence for every protocol setting that differs between cells.

    Settings that a row is about are left out, as is the number of shots in training.
    """
    own = {"hash", "training episodes", "corners", "ignored pixels of supports"}
    told = [(cell, cell.evaluation.neutral) for cell in cells if cell.evaluation]
    names = dict.fromkeys(name for _, neutral in told for name in neutral if name not in own)
    sentences = []
    for name in names:
        values: dict[str, list[Cell]] = {}
        for cell, neutral in told:
            chosen = cell.run is not None or name != "checkpoint rule"  # untrained models have none
            if name in neutral and chosen:
                values.setdefault(str(neutral[name]), []).append(cell)
        if len(values) > 1:
            parts = [
                f"{value} in {' and '.join(dict.fromkeys(str(cell.place) for cell in those))}"
                for value, those in values.items()
            ]
            sentences.append(f"{name}: {'; '.join(parts)}")
    return sentences


# Lines of a figure, and their labels.
WHO = {"ours": "ours", "at the best threshold": "best", "paper": "paper"}
BEST = "best: ours at the threshold that is best on base classes"


def as_text(results: dict[str, Any]) -> str:
    """The result of `collect` as text."""
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
            for who in WHO:
                if who not in figure or (who == "paper" and not figure["places"]):
                    continue
                numbers = "".join(f"{_number(figure, who, fold):>9}" for fold in folds)
                label = row["label"] if who == "ours" else ""
                lines.append(f"  {label:<{width}}{WHO[who]:<5}{numbers}")
            lines += [f"    {line}" for line in (*_marks(figure), *_trainings(figure))]
        lines += [f"    {name}: {value} in the paper" for name, value in row["others"].items()]
        lines += [f"    {row['note']}"] if row["note"] else []
    lines += ["", *(f"failed: {place}: {why}" for place, why in results["failed"].items())]
    hashes = {h for row in results["rows"] for f in row["figures"] for h in f["protocols"]}
    if any("at the best threshold" in f for row in results["rows"] for f in row["figures"]):
        lines += [BEST]
    lines += ["", f"protocols: {', '.join(sorted(hashes)) or 'none'}"]
    lines += [f"warning: not all under one protocol: {line}" for line in results["mixed"]]
    if results["missing"]:
        lines += ["", "missing; these commands produce them:"]
        for entry in results["missing"]:
            lines += [f"  {'; '.join(entry['cells'])}", f"    {entry['command']}"]
    return "\n".join(lines) + "\n"


def _trainings(figure: dict[str, Any]) -> list[str]:
    """A line for each different training, with its folds."""
    lines: dict[str, list[str]] = {}
    for fold, facts in figure["training"].items():
        lines.setdefault(training_words(facts), []).append(fold)
    several = len(figure["training"]) > 1
    return [
        f"fold{'s' * (len(folds) > 1)} {', '.join(folds)}: {line}" if several else line
        for line, folds in lines.items()
    ]


def _column(fold: str) -> str:
    return fold if fold == "mean" else f"fold {fold}"


def _number(figure: dict[str, Any], who: str, fold: str) -> str:
    value = figure[who][fold]
    if value is None:
        return "missing" if who == "ours" and fold != "mean" else "-"
    if who == "paper":
        return str(value)  # with its digits
    return f"{value:.1f}{'*' * (fold in figure['deviations'])}"


def _marks(figure: dict[str, Any]) -> list[str]:
    """A line that explains the marks of a figure, if it has any."""
    mean = figure["deviations"].get("mean")
    return [f"* not as in the paper: {', '.join(mean)}"] if mean else []


def _as_html(results: dict[str, Any], curves: bytes) -> str:
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in results["rows"]:
        for figure in row["figures"]:
            head = (figure["setting"], figure["metric"], *figure["ours"])
            groups.setdefault(head, []).append(_lines(row, figure))
    blocks = [
        f"<h2>{html.escape(f'{setting}, {metric}, %')}</h2><div class=card><table><tr><th><th>"
        + "".join(f"<th>{_column(fold)}" for fold in folds)
        + f"</tr>{''.join(lines)}</table></div>"
        for (setting, metric, *folds), lines in groups.items()
    ]
    if any("at the best threshold" in f for row in results["rows"] for f in row["figures"]):
        blocks.append(f"<p>{BEST}</p>")
    notes = "".join(
        f"<p>not all under one protocol: {html.escape(line)}</p>" for line in results["mixed"]
    )
    failed = "".join(
        f"<p>{html.escape(place)}: {html.escape(why)}</p>"
        for place, why in results["failed"].items()
    )
    picture = base64.b64encode(curves).decode()
    missing = "".join(
        f"<li style='display:block'>{html.escape('; '.join(entry['cells']))}<br>"
        f"<code>{html.escape(entry['command'])}</code></li>"
        for entry in results["missing"]
    )
    return string.Template(_PAGE).substitute(
        head=HEAD,
        title=html.escape(results["title"]),
        style=STYLE,
        warnings=f"<h2>Warning</h2><div class=card>{notes}</div>" if notes else "",
        blocks="".join(blocks),
        failed=f"<h2>Failed</h2><div class=card>{failed}</div>" if failed else "",
        curves=f"<h2>Learning curves</h2><div class=card><img alt='learning curves' "
        f"src='data:image/png;base64,{picture}'></div>"
        if picture
        else "",
        missing=f"<h2>Missing</h2><div class=card><ul>{missing}</ul></div>" if missing else "",
    )


def _lines(row: dict[str, Any], figure: dict[str, Any]) -> str:
    """Lines of a table: the description of a figure, and the values of each source by fold."""
    who = [w for w in WHO if w in figure and (w != "paper" or figure["places"])]
    weights = "; ".join(dict.fromkeys([*figure["runs"], *figure["weights"]])) or "no run"
    known = [*_marks(figure), *_trainings(figure), _remarks(row)]
    known.append(f"protocol {', '.join(figure['protocols']) or '-'}; {weights}")
    about = "".join(f"<small>{html.escape(words)}</small>" for words in known if words)
    first = f"<td rowspan={len(who)}><b>{html.escape(row['label'])}</b>{about}</td>"
    lines = []
    for number, name in enumerate(who):
        values = "".join(f"<td>{_number(figure, name, fold)}</td>" for fold in figure[name])
        lines.append(f"<tr>{first if number == 0 else ''}<td>{WHO[name]}</td>{values}</tr>")
    return "".join(lines)


def _remarks(row: dict[str, Any]) -> str:
    """Other figures that the paper reports for a row, and its note."""
    others = (f"{name}: {value} in the paper." for name, value in row["others"].items())
    return " ".join([*others, row["note"]])


_PAGE = """$head<title>$title</title>
<style>$style th { white-space: nowrap }</style>
<header><h1>$title</h1></header>$warnings$failed$blocks$curves$missing</html>
"""
