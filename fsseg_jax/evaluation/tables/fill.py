"""Fills a published table with the runs of a folder: `fsseg_jax.evaluate --table=panet-1`.

For every row, fold and setting (ways, shots), the run with the row's configuration is evaluated
under the table's protocol. Cells without a run or data are missing in the result, which names the
commands that produce them. A second call evaluates only what has changed.
"""

import logging
import pathlib
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from fsseg_jax.config import override
from fsseg_jax.data.source import Source
from fsseg_jax.devices import is_first_process
from fsseg_jax.evaluation.run import evaluate
from fsseg_jax.evaluation.tables.cells import (
    Cell,
    Evaluation,
    Place,
    choose,
    find_runs,
    forget,
    keep,
    locate,
    longest,
    matches,
    named,
    training_config,
)
from fsseg_jax.evaluation.tables.report import as_text, collect, write
from fsseg_jax.models import create_model
from fsseg_jax.training.checkpoints import load_variables

logger = logging.getLogger(__name__)


def fill(
    name: str,
    workdir: pathlib.Path,
    overrides: Sequence[str],
    mesh: Mesh,
    places: Sequence[Place] | None = None,
) -> dict[str, Any]:
    """Evaluates what a table needs, and writes the results; see `write`.

    Args:
        name: name of the table; see `published.TABLES`.
        workdir: folder that contains the runs, at any depth. If it does not exist, all trained
            models are missing, and nothing is written.
        overrides: `--config.field=value`, for all evaluations.
        places: places of the table, see `choose`; all by default.

    Returns:
        the contents of `results.json`.

    Raises:
        UserError: there is no such table, or an evaluation fails.
    """
    table = named(name)
    places = choose(table) if places is None else places
    for place in places:  # reports wrong overrides before anything is evaluated
        if place.row.config:
            override(training_config(place), overrides)
    runs = list(find_runs(workdir))
    logger.info("%s; %d runs in %s", table.title, len(runs), workdir)
    sources: dict[str, Source] = {}
    cells = []
    for place in places:
        run = None
        if place.row.config and place.row.trained:
            wanted = training_config(place)
            run = longest([run for run in runs if matches(run, wanted, place.row)])
        cell = locate(table, place, run, overrides, workdir, sources)
        if cell.evaluation and cell.results is None:
            cell = _evaluated(cell, cell.evaluation, mesh)
        cells.append(cell)
    results = collect(table, cells, workdir, overrides)
    if is_first_process():
        print(as_text(results))
        if workdir.is_dir():
            print(f"report: {write(results, workdir / 'tables' / name)}")
    return results


def _evaluated(cell: Cell, evaluation: Evaluation, mesh: Mesh) -> Cell:
    """The cell with the results of its evaluation."""
    config, _, source, target, *_ = evaluation
    model = create_model(config)
    workdir = target if cell.run is None else cell.run.folder
    loaded = load_variables(config, model, workdir, mesh, source)
    logger.info("%s: %s", cell.place, loaded.words)
    forget(evaluation)
    results = evaluate(config, model, loaded, source, mesh, target)
    if is_first_process():
        keep(evaluation)
    return cell._replace(results=results)
