"""Reproduces a published table: python -m fsseg_jax.reproduce --table=panet-1 --workdir=runs

Finds what the table needs below --workdir, trains what is missing, tests it, and writes the table
beside the published figures after every cell: table.txt, table.html, results.json and learning
curves in `tables/NAME` there. --table=list names all tables: the papers', `methods` (the five side
by side on PASCAL-5i) and `shapes` (on photographs made by code, which needs no data).

The same words go on where it was stopped. A training that fails is named in the table with its
reason, and the others go on.

    --rows, --folds, --shots  choose a part of the table
    --dry_run                 lists what would be done, and how long it takes
    --minutes=N               shortens all trainings so that the whole fits into a time
    --episodes=N              shortens all trainings to so many episodes each
    --checkpoints=DIR         writes the trained models, with cards, as save_pretrained does
    --weights=vgg16=FILE,...  takes pretrained weights from files instead of from the hub
    --at_once=N               trainings at the same time; by default one on each GPU

Exit status: 0 when the table is complete, 1 when something failed, 143 after SIGTERM, 2 for wrong
input.
"""

import argparse
import logging
import os
import time
from collections.abc import Mapping

import jax

from fsseg_jax import command_line
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.cells import choose, named, table_folder
from fsseg_jax.evaluation.published import overview
from fsseg_jax.evaluation.table_report import as_text
from fsseg_jax.files import lock
from fsseg_jax.reproduction.plan import Machine, Planner, read_weights
from fsseg_jax.reproduction.processes import Children, Stopped
from fsseg_jax.reproduction.runner import Reproduction, survey

logger = logging.getLogger("fsseg_jax.reproduce")  # as a program, the module has another name


def main() -> int:
    """The program; returns its exit status."""
    began = time.monotonic()
    arguments, overrides = command_line.parse(
        __doc__,
        config=False,
        workdir="the folder of the runs",
        table="a published table, such as panet-1; list names them all",
        **command_line.PART,
        dry_run={"action": "store_true", "help": "only list what would be done"},
        minutes={"type": float, "metavar": "N", "help": "for all of it"},
        episodes={"type": int, "metavar": "N", "help": "of each training"},
        checkpoints={**command_line.FOLDER, "help": "where to write the trained models"},
        weights="pretrained weights by backbone, as in vgg16=FILE,resnet50_caffe=FILE",
        at_once={"type": int, "metavar": "N", "help": "trainings at the same time"},
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
        if number is not None and number <= 0:
            raise UserError(f"--{name} = {number}: it must be above 0.")
    if arguments.minutes and arguments.episodes:
        raise UserError("--minutes and --episodes: both limit the trainings; leave one.")
    weights = read_weights(arguments.weights)
    # The programs that are started compute; this one must not take an accelerator from them.
    jax.config.update("jax_platforms", "cpu")
    folder = table_folder(arguments.workdir, table)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file, Children() as children:
        lock(file.fileno(), folder, option="--workdir")
        try:
            platform = next((o for o in overrides if o.startswith("--config.platform=")), "=")
            machine = survey(children, folder / "machine.txt", platform.partition("=")[2])
            logger.info("%s on %s", table.title, machine.words)
            planner = Planner(machine, overrides, weights, budget(arguments))
            slots = environments(machine, arguments.at_once)
            models, workdir = arguments.checkpoints, arguments.workdir
            task = Reproduction(table, places, planner, workdir, children, slots, models)
            return reproduce(task, arguments, began)
        except Stopped:
            logger.info("stopped; the same command goes on")
            return children.status


def budget(arguments: argparse.Namespace) -> str:
    """The budget as it stands in names of folders; empty where there is none."""
    if arguments.minutes:
        return f"{arguments.minutes:g}min"
    return f"{arguments.episodes}episodes" if arguments.episodes else ""


def reproduce(task: Reproduction, arguments: argparse.Namespace, began: float) -> int:
    """Plans and does what a table needs; returns the exit status."""
    least = 0 if arguments.minutes else None
    if arguments.episodes:
        least = int(0.95 * arguments.episodes)  # as far as whole steps and dispatches come to it
    task.find(least)
    if arguments.episodes:
        task.limit_episodes(arguments.episodes)
    if arguments.minutes:
        task.limit_minutes(arguments.minutes, began)
    if arguments.dry_run:
        task.measure()
        print("\n".join(task.describe()))
        return 0
    results = task.run()
    print(as_text(results))
    print(f"report: {task.folder / 'table.html'}")
    return 1 if results["failed"] else 0


def environments(machine: Machine, at_once: int | None) -> list[Mapping[str, str]]:
    """What each of the programs that run at the same time finds in its environment.

    Several GPUs are dealt to them; other devices are all for each.
    """
    if machine.platform != "gpu" or machine.count == 1:
        return [{}] * (at_once or 1)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(n) for n in range(machine.count)]
    count = at_once or len(names)
    dealt = [names[n::count] or [names[n % len(names)]] for n in range(count)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(own)} for own in dealt]


if __name__ == "__main__":
    command_line.run(main)
