"""What is missing in a table, and how long it takes."""

import json
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fsseg_jax.checksums import checksum_of
from fsseg_jax.errors import UserError, brief
from fsseg_jax.evaluation.published import Table
from fsseg_jax.evaluation.tables.cells import (
    Cell,
    Place,
    Run,
    find_runs,
    folder_of,
    locate,
    table_folder,
)
from fsseg_jax.evaluation.tables.report import percent
from fsseg_jax.files import write_text
from fsseg_jax.reproduction.estimates import Estimates
from fsseg_jax.reproduction.plan import Planner, Training
from fsseg_jax.reproduction.processes import Children, Failure
from fsseg_jax.reproduction.speed import Speed, divide, duration_text, measure

PLAN = "plan.json"
CHECKSUM = "checksum"  # of its other fields; earlier versions wrote none


def read_plan(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The `speeds` by machine and kind of training, and the `steps` of trainings, in a file.

    Raises:
        UserError: the file is damaged.
    """
    plan: dict[str, dict[str, Any]] = {"speeds": {}, "steps": {}}
    if not path.is_file():
        return plan
    try:
        plan |= json.loads(path.read_bytes())
        known = plan.pop(CHECKSUM, None)
        if known is not None and known != checksum_of(plan):
            raise ValueError("its checksum is another")
        speeds = [Speed(*values) for own in plan["speeds"].values() for values in own.values()]
        if not all(0 < speed.rate < math.inf and 0 <= speed.startup < math.inf for speed in speeds):
            raise ValueError("a speed is none")
        if not all(type(n) is int and n > 0 for n in plan["steps"].values()):
            raise ValueError("a number of steps is none")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({brief(str(error))}): remove it, and times are measured again."
        ) from None
    return plan


def write_plan(path: pathlib.Path, plan: dict[str, dict[str, Any]]) -> None:
    """Writes what `read_plan` reads."""
    write_text(path, json.dumps({**plan, CHECKSUM: checksum_of(plan)}, indent=1))


class Agenda:
    """What exists of a table, what is missing, and how long it takes.

    Args:
        places: the requested places of the table, see `cells.choose`.
        slots: environments of simultaneous programs, see `machine.share`.
    """

    def __init__(
        self,
        table: Table,
        places: Sequence[Place],
        planner: Planner,
        children: Children,
        slots: Sequence[Mapping[str, str]],
    ) -> None:
        self.table, self.places, self.planner = table, list(places), planner
        self.children, self.slots = children, slots
        self.workdir, self.folder = planner.workdir, table_folder(planner.workdir, table)
        self.estimates = Estimates(table, planner)
        self.failures: dict[Place, str] = {}
        self.runs: dict[Place, Run] = {}
        self.missing: dict[str, Training] = {}  # by name
        self.needed_by: dict[str, list[Place]] = {}  # by name of the training, missing or not
        self.others: list[Place] = []  # places that were not requested, but tested earlier

    def find(self) -> None:
        """Finds existing runs and missing trainings.

        Raises:
            UserError: an override is wrong, or there is something wrong with the data.
        """
        runs = list(find_runs(self.workdir))
        for place in self.places:
            if not (place.row.config and place.row.trained):
                continue
            training = self.planner.training(place)
            self.needed_by.setdefault(training.name, []).append(place)
            if run := self.planner.existing(training, runs):
                self.runs[place] = run
            else:
                begun = next((r for r in runs if r.folder == self.workdir / training.name), None)
                training = self.planner.continued(training, begun) if begun else training
                self.missing.setdefault(training.name, training)
        for row in self.table.rows:
            for setting in row.settings if row.config else ():
                for fold in self.table.folds:
                    self._take_along(Place(row, setting, fold), runs)

    def _take_along(self, place: Place, runs: Sequence[Run]) -> None:
        """Adds a place that was not requested to `others` if it was tested earlier."""
        if place in self.places or not folder_of(self.workdir, self.table, place).is_dir():
            return
        if place.row.trained:
            if (run := self.planner.complete(place, runs)) is None:
                return
            self.runs[place] = run
            self.needed_by.setdefault(self.planner.name(place), []).append(place)
        self.others.append(place)

    def cell(self, place: Place) -> Cell:
        """The current state of a cell."""
        if not place.row.config:
            return Cell(place)
        overrides, run = self.planner.testing(place), self.runs.get(place)
        cell = locate(self.table, place, run, overrides, self.workdir, self.estimates.sources)
        return cell._replace(failure=self.failures.get(place, ""))

    # ---------------------------------------------------------------------------------- budgets

    def limit_episodes(self, episodes: int) -> None:
        """Shortens each missing training to so many episodes."""
        for name, training in self.missing.items():
            if not training.done:
                steps = max(1, round(episodes / training.batch_size))
                self.missing[name] = self.planner.limited(training, steps)

    def limit_minutes(self, minutes: float, began: float, keep: bool = True) -> None:
        """Shortens missing trainings so that everything fits into a time, by measuring their speed.

        The speeds on a machine and the steps of each training are stored in a file, so that the
        same command continues with them.

        Args:
            minutes: from `began` to the end of the last test.
            began: as measured by `time.monotonic`.
            keep: whether to store the numbers of steps as well as the speeds.

        Raises:
            UserError: there is not enough time for a single step.
        """
        path = self.folder / PLAN
        plan = read_plan(path)
        machine = f"{self.planner.machine.words}, {len(self.slots)} at a time"
        known = plan["speeds"].setdefault(machine, {})
        new = [t for t in self.missing.values() if not t.done and t.name not in plan["steps"]]
        for kind in dict.fromkeys(training.kind for training in new):
            if kind not in known and (speed := self._measured(kind)):
                known[kind] = speed
                write_plan(path, plan)
        speeds = {kind: Speed(*values) for kind, values in known.items()}
        self.estimates.speeds = speeds
        self._limit(plan["steps"])
        new = [training for training in new if training.name in self.missing]
        if new:
            seconds = 60 * minutes - (time.monotonic() - began)
            seconds -= self._other_work(new) / self.in_parallel
            spent = {training.name: self._rest(training) for training in new}
            steps = divide(seconds, new, speeds, spent, self.in_parallel)
            self._limit(steps)
            if keep:
                plan["steps"] |= steps
                write_plan(path, plan)

    def _limit(self, steps: Mapping[str, int]) -> None:
        """Shortens trainings, given by name, that have not begun."""
        for name, training in self.missing.items():
            if name in steps and not training.done:
                self.missing[name] = self.planner.limited(training, steps[name])

    def _other_work(self, new: Sequence[Training]) -> float:
        """Seconds for everything but some trainings and their tests."""
        there = [*self.untrained(), *(place for place in self.places if place in self.runs)]
        tests = [self.estimates.test(place) for place in there if not self.cell(place).results]
        names = {training.name for training in new}
        trainings = [
            self.estimates.steps(training) + self._rest(training)
            for name, training in self.missing.items()
            if name not in names and training.kind in self.estimates.speeds
        ]
        return sum(tests) + sum(trainings)

    @property
    def in_parallel(self) -> int:
        """Number of programs that run at full speed, because each has its own devices."""
        return len({json.dumps(slot, sort_keys=True) for slot in self.slots})

    def measure(self) -> None:
        """Measures the speed of missing trainings for the estimates of `describe`."""
        for kind in dict.fromkeys(training.kind for training in self.missing.values()):
            if kind not in self.estimates.speeds and (speed := self._measured(kind)):
                self.estimates.speeds[kind] = speed

    def _measured(self, kind: str) -> Speed | None:
        """Measures a speed; returns None, with the reason in `failures`, if that fails."""
        training = next(t for t in self.missing.values() if t.kind == kind)
        try:
            return measure(training, self.children, self.slots[0])
        except Failure as failure:
            self._failed(kind, str(failure))
            return None

    def _failed(self, kind: str, why: str) -> None:
        """Moves all missing trainings of a kind to `failures`."""
        for name in [name for name, training in self.missing.items() if training.kind == kind]:
            del self.missing[name]
            self.failures |= dict.fromkeys(self.needed_by[name], why)

    def untrained(self) -> list[Place]:
        """Requested places of rows that are not trained."""
        return [place for place in self.places if place.row.config and not place.row.trained]

    def _rest(self, training: Training) -> float:
        """Seconds of everything but the steps of a training, with its tests."""
        return self.estimates.rest(training, self.needed_by[training.name])

    def describe(self) -> list[str]:
        """The plan: a line for each training and each test, with the time where it is known."""
        lines, total = [], 0.0
        for training in self.missing.values():
            steps, episodes = training.steps, training.steps * training.batch_size
            line = f"train {training.name}: {steps:,} steps of {training.batch_size}"
            part = percent(steps / training.whole)
            line += f" ({episodes:,} episodes, {part} of the published training)"
            line += f", from step {training.done:,}" if training.done else ""
            if training.kind in self.estimates.speeds:
                seconds = self.estimates.steps(training) + self._rest(training)
                total += seconds
                line += f", about {duration_text(seconds)} with its tests"
            lines.append(line)
        for place in self.places:
            if place in self.failures:
                lines.append(f"fails: {place}: {self.failures[place]}")
            elif not place.row.config:
                lines.append(f"leave out {place}: {place.row.note}")
            elif place in self.runs or not place.row.trained:
                what = self.runs[place].folder if place in self.runs else "not trained"
                done = "done: test" if self.cell(place).results else "test"
                lines.append(f"{done} {place}: {what}")
        total = duration_text(total / self.in_parallel)
        return [*lines, f"in all about {total} for what is trained, {len(self.slots)} at a time"]
