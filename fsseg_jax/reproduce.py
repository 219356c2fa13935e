"""Reproduces a published table: python -m fsseg_jax.reproduce --table=panet-1 --workdir=runs

Finds the runs in --workdir that the table needs, trains those that are missing, tests them, and
updates the table after every cell: table.txt, table.html, results.json and learning curves in
`tables/NAME` there, next to the published figures. --table=list lists all tables: those of the
papers, `methods` (the five methods on PASCAL-5i) and `shapes` (on synthetic images, which needs no
data).

The same command continues where it was stopped. A training that fails is named in the table with
its reason, and the others continue.

    --rows, --folds, --shots  choose a part of the table
    --dry_run                 lists what would be done, and how long it takes
    --minutes=N               shortens all trainings so that everything fits into this time
    --episodes=N              shortens all trainings to so many episodes each
    --checkpoints=DIR         writes the trained models, as save_pretrained does, with model cards
                              and an overview of all models in DIR, DIR/README.md
    --weights=vgg16=FILE,...  reads pretrained weights from files instead of from the hub
    --at_once=N               number of simultaneous trainings; by default one on each GPU

Exit status: 0 when the table is complete, 1 when something failed, 143 after SIGTERM and 130 after
Ctrl-C, 2 for wrong input.
"""

import argparse
import logging
import math
import pathlib
import shlex
import sys
import time

import jax

from fsseg_jax import command_line
from fsseg_jax.config import joined
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.published import overview
from fsseg_jax.evaluation.tables.cells import choose, fields_of, named, table_folder
from fsseg_jax.evaluation.tables.report import as_text
from fsseg_jax.files import lock
from fsseg_jax.reproduction.agenda import Agenda
from fsseg_jax.reproduction.machine import share, survey
from fsseg_jax.reproduction.plan import Planner, check_free, read_weights
from fsseg_jax.reproduction.processes import Children, Stopped
from fsseg_jax.reproduction.runner import Reproduction

logger = logging.getLogger("fsseg_jax.reproduce")  # as a program, the module has another name


def main() -> int:
    """Runs the program; returns its exit status."""
    began = time.monotonic()
    arguments, overrides = command_line.parse(
        __doc__,
        config=False,
        workdir="the folder of the runs, `runs` by default",
        optional_workdir=True,
        table="a published table, such as panet-1; list names them all",
        **command_line.PART,
        dry_run={"action": "store_true", "help": "only list what would be done"},
        minutes={"type": float, "metavar": "N", "help": "time for everything"},
        episodes={"type": int, "metavar": "N", "help": "episodes of each training"},
        checkpoints={**command_line.FOLDER, "help": "where to write the trained models"},
        weights="pretrained weights by backbone, as in vgg16=FILE,resnet50_caffe=FILE",
        at_once={"type": int, "metavar": "N", "help": "number of simultaneous trainings"},
    )
    if arguments.table in (None, "list"):
        print(overview())
        if arguments.table == "list":
            return 0
        raise UserError("--table is missing: choose one of these.")
    table = named(arguments.table)
    places = choose(table, arguments.rows, arguments.folds, arguments.shots)
    for name in ("minutes", "episodes", "at_once"):
        number = getattr(arguments, name)
        if number is not None and not 0 < number < math.inf:
            raise UserError(f"--{name} = {number}: it must be a number above 0.")
    if arguments.minutes and arguments.episodes:
        raise UserError("--minutes and --episodes: both limit the trainings; leave one out.")
    overrides, weights = joined(overrides), read_weights(arguments.weights)
    check_free(overrides, places)
    # The programs that are started compute; this one must not take an accelerator from them.
    jax.config.update("jax_platforms", "cpu")
    workdir = arguments.workdir or pathlib.Path("runs")
    folder = table_folder(workdir, table)
    for path in filter(None, [folder, arguments.checkpoints]):  # fails before hours of training
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path} cannot be written to ({error}): choose another.") from None
    with (folder / ".lock").open("w") as file, Children() as children:
        lock(file.fileno(), folder, option="--workdir")
        try:
            fields = fields_of(overrides)
            machine = survey(children, folder / "machine.txt", fields.get("platform", ""))
            logger.info("%s on %s", table.title, machine.words)
            devices = fields.get("devices", "")
            devices = int(devices) if devices.isdecimal() else 0  # others fail later
            slots, own = share(machine, arguments.at_once, devices)
            planner = Planner(own, overrides, weights, budget(arguments), workdir)
            agenda = Agenda(table, places, planner, children, slots)
            return reproduce(agenda, arguments, began)
        except Stopped:
            logger.info("stopped; the same command continues")
            return children.status or 0


def budget(arguments: argparse.Namespace) -> str:
    """The budget as a part of folder names; empty if there is none."""
    if arguments.minutes:
        return f"{arguments.minutes:g}min"
    return f"{arguments.episodes}episodes" if arguments.episodes else ""


def reproduce(agenda: Agenda, arguments: argparse.Namespace, began: float) -> int:
    """Plans and does what a table needs; returns the exit status."""
    agenda.find()
    if arguments.episodes:
        agenda.limit_episodes(arguments.episodes)
    if arguments.minutes:
        agenda.limit_minutes(arguments.minutes, began, keep=not arguments.dry_run)
    if arguments.dry_run:
        agenda.measure()
        print("\n".join(agenda.describe()))
        return 0
    command = shlex.join(["python", "-m", "fsseg_jax.reproduce", *sys.argv[1:]])
    results = Reproduction(agenda, command, arguments.checkpoints).run()
    print(as_text(results))
    print(f"report: {agenda.folder / 'table.html'}")
    return 1 if results["failed"] else 0


if __name__ == "__main__":
    command_line.run(main)
