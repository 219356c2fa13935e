"""Evaluates a run on its held-out classes: python -m fsseg_jax.evaluate --workdir=runs/panet

With --config=FILE and a folder without checkpoints, a freshly initialised model is evaluated.
Writes results.json, episodes.csv and report.html to --out, by default to the folder `evaluation` of
the run; if overrides ask for another setting than the run's, or there was no training, to one named
after the setting and its protocol below it, such as `evaluation/1way-5shot-fold0-c1ac3204`.

With --table=NAME a published table is filled from the runs below --workdir (by default `runs`),
next to the published figures: results.json, table.txt and table.html in `tables/NAME` there.
--table=list lists all tables; --rows, --folds and --shots choose a part of one.
`fsseg_jax.reproduce` trains missing runs.
"""

import logging
import pathlib

from fsseg_jax import command_line
from fsseg_jax.config import override
from fsseg_jax.data import open_source
from fsseg_jax.devices import check_agreement, describe, is_first_process, make_mesh
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.protocol import protocol
from fsseg_jax.evaluation.published import TABLES, overview
from fsseg_jax.evaluation.run import evaluate, setting_folder
from fsseg_jax.evaluation.summary import comparisons, summary
from fsseg_jax.evaluation.tables.cells import choose, named
from fsseg_jax.evaluation.tables.fill import fill
from fsseg_jax.models import create_model
from fsseg_jax.training.checkpoints import LAST, Checkpoints, available, load_variables

logger = logging.getLogger("fsseg_jax.evaluate")  # as a program, the module has another name


def main() -> None:
    """The program."""
    arguments, overrides = command_line.parse(
        __doc__,
        workdir="the folder of the run; with --table, that of all runs",
        config=True,
        optional_workdir=True,
        table="a published table, such as panet-1; list shows all of them",
        **command_line.PART,
        out={
            **command_line.FOLDER,
            "help": "output folder; by default in that of the run",
        },
    )
    path, workdir, table = arguments.config, arguments.workdir, arguments.table
    if table is not None and table not in TABLES:
        print(overview())
        if table == "list":
            return
        raise UserError(f"--table = {table}: there is no such table; choose one of these.")
    if table is None and workdir is None:
        raise UserError("--workdir is missing: name the folder of a run.")
    config = command_line.first_config(path, overrides)
    command_line.start(config)
    command_line.check_processes(config, workdir=workdir)
    mesh = make_mesh(config.devices)
    logger.info(describe(mesh))
    if table is not None:
        if path is not None:
            raise UserError("--config and --table: table rows have their own configs; omit one.")
        places = choose(named(table), arguments.rows, arguments.folds, arguments.shots)
        fill(table, workdir or pathlib.Path("runs"), overrides, mesh, places)
        return
    if path is None:
        checkpoints = Checkpoints(workdir)
        which = available(checkpoints, LAST)
        if which is None:
            raise UserError(
                f"--workdir = {workdir} holds no checkpoint: train there first, or give --config "
                "to evaluate a freshly initialised model."
            )
        config = override(checkpoints.describe(which)[0], overrides)
    command_line.check_processes(config, workdir=workdir, out=arguments.out)
    source = open_source(config.data, "test")
    check_agreement({"data": source.contents()})
    model = create_model(config)
    loaded = load_variables(config, model, workdir, mesh, source)
    described = protocol(config, source, model, loaded.config, loaded.checkpoint)
    own = setting_folder(loaded.config, config, described["hash"])
    folder = arguments.out or workdir / "evaluation" / own
    logger.info("evaluating %s: %s", config.method, loaded.words)
    results = evaluate(config, model, loaded, source, mesh, folder)
    if not is_first_process():
        return
    for name, value in results["per_class"].items():
        print(f"{name:>16} {'-' if value is None else format(value, '5.1f')}")
    print("\n".join(comparisons(results)))
    print(summary(results))
    print(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    command_line.run(main)
