"""What a table lacks, and how long that takes."""

import json
import logging
import math
import pathlib
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from fsseg_jax.config import load_config, override
from fsseg_jax.data.source import Source
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.published import Table
from fsseg_jax.evaluation.tables.cells import (
    Cell,
    Place,
    Run,
    config_path,
    find_runs,
    folder_of,
    locate,
    protocol_overrides,
    table_folder,
    test_source,
    training_overrides,
)
from fsseg_jax.evaluation.tables.report import percent
from fsseg_jax.files import write_text
from fsseg_jax.reproduction.plan import Planner, Training
from fsseg_jax.reproduction.processes import Children, Failure, run_program
from fsseg_jax.reproduction.settings import SELECTION_EPISODES, SELECTIONS
from fsseg_jax.training import curves

PLAN = "plan.json"
# Of a measurement: values of episodes a second, the first of which has the compilation in it, and
# seconds between the first and the last, unless there are many.
VALUES, SECONDS, MANY = 3, 6.0, 40
# The forward pass of a photograph, of the time of a training episode, which has two photographs and
# a backward pass that takes about twice as long.
FORWARD = 1 / 6
TEST_STARTUP = 0.6  # of a test, of a training's, which has a step to compile

logger = logging.getLogger("fsseg_jax.reproduce")


class Speed(NamedTuple):
    """What a moment of a training has shown."""

    rate: float  # episodes a second
    startup: float  # seconds until the first step is done, with its compilation


class Agenda:
    """What there is of a table, what is missing, and how long that takes.

    Args:
        table: see `published.TABLES`.
        places: of it, see `cells.choose`.
        planner: what is needed, and with which settings.
        children: runs the programs.
        slots: environments of the programs that run at the same time.
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
        self.sources: dict[str, Source] = {}
        self.speeds: dict[str, Speed] = {}
        self.failures: dict[Place, str] = {}
        self.runs: dict[Place, Run] = {}
        self.missing: dict[str, Training] = {}  # by name
        self.needed_by: dict[str, list[Place]] = {}  # the places of each training, missing or not
        self.others: list[Place] = []  # of the table, tested earlier by calls like this one

    def find(self) -> None:
        """Finds the runs that there are, and the trainings that are missing.

        Raises:
            UserError: an override is wrong, or the data are.
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
        """Notes a place that is not asked for, if it was tested."""
        if place in self.places or not folder_of(self.workdir, self.table, place).is_dir():
            return
        if place.row.trained:
            if (run := self.planner.complete(place, runs)) is None:
                return
            self.runs[place] = run
            self.needed_by.setdefault(self.planner.name(place), []).append(place)
        self.others.append(place)

    def cell(self, place: Place) -> Cell:
        """A cell as it is now."""
        if not place.row.config:
            return Cell(place)
        overrides, run = self.planner.testing(place), self.runs.get(place)
        cell = locate(self.table, place, run, overrides, self.workdir, self.sources)
        return cell._replace(failure=self.failures.get(place, ""))

    # ---------------------------------------------------------------------------------- budgets

    def limit_episodes(self, episodes: int) -> None:
        """Plans trainings of so many episodes each."""
        for name, training in self.missing.items():
            if not training.done:
                steps = max(1, round(episodes / training.batch_size))
                self.missing[name] = self.planner.limited(training, steps)

    def limit_minutes(self, minutes: float, began: float, keep: bool = True) -> None:
        """Plans trainings that fill a time, all together, from a measurement of each kind.

        The speeds of a machine and the steps of each training are kept in a file, so that the same
        words go on with them.

        Args:
            minutes: from `began` to the end of all.
            began: of `time.monotonic`.
            keep: whether the steps are kept as well.

        Raises:
            UserError: there is no time for any step.
        """
        path = self.folder / PLAN
        plan = json.loads(path.read_text()) if path.is_file() else {"speeds": {}, "steps": {}}
        machine = f"{self.planner.machine.words}, {len(self.slots)} at a time"
        known = plan["speeds"].setdefault(machine, {})
        new = [t for t in self.missing.values() if not t.done and t.name not in plan["steps"]]
        for kind in dict.fromkeys(training.kind for training in new):
            if kind not in known and (speed := self._measured(kind)):
                known[kind] = speed
                write_text(path, json.dumps(plan, indent=1))
        self.speeds = {kind: Speed(*values) for kind, values in known.items()}
        self._limit(plan["steps"])
        new = [training for training in new if training.name in self.missing]
        if new:
            seconds = 60 * minutes - (time.monotonic() - began)
            seconds -= self._other_work(new) / self.in_parallel
            spent = {training.name: self._other_seconds(training) for training in new}
            steps = divide(seconds, new, self.speeds, spent, self.in_parallel)
            self._limit(steps)
            if keep:
                plan["steps"] |= steps
                write_text(path, json.dumps(plan, indent=1))

    def _limit(self, steps: Mapping[str, int]) -> None:
        """Limits trainings, by name, which have not begun."""
        for name, training in self.missing.items():
            if name in steps and not training.done:
                self.missing[name] = self.planner.limited(training, steps[name])

    def _other_work(self, new: Sequence[Training]) -> float:
        """Seconds of what there is to do beside some trainings and their tests."""
        there = [*self.untrained(), *(place for place in self.places if place in self.runs)]
        tests = [self._test_seconds(place) for place in there if not self.cell(place).results]
        names = {training.name for training in new}
        trainings = [
            (training.steps - training.done) * training.batch_size / self.speeds[training.kind].rate
            + self._other_seconds(training)
            for name, training in self.missing.items()
            if name not in names and training.kind in self.speeds
        ]
        return sum(tests) + sum(trainings)

    @property
    def in_parallel(self) -> int:
        """How many programs run each as fast as alone: those that have devices of their own."""
        return len({json.dumps(slot, sort_keys=True) for slot in self.slots})

    def measure(self) -> None:
        """Measures each kind of training that is missing, for the estimates of `describe`."""
        for kind in dict.fromkeys(training.kind for training in self.missing.values()):
            if kind not in self.speeds and (speed := self._measured(kind)):
                self.speeds[kind] = speed

    def _measured(self, kind: str) -> Speed | None:
        """Trains for a moment; None, and the reason in `failures`, where that fails."""
        training = next(t for t in self.missing.values() if t.kind == kind)
        each = training.each
        never = 10**6 // each * each
        fields = {"steps": never, "log_every": each, "save_every": never, "eval_every": never}
        overrides = [f"--config.train.{name}={value}" for name, value in fields.items()]
        arguments = [f"--config={training.file}", *training.overrides, *overrides]
        logger.info("measuring a moment of %s", kind)

        with tempfile.TemporaryDirectory() as folder:
            workdir = pathlib.Path(folder)

            def points() -> list[curves.Point]:
                return list(curves.read(workdir).get("train/episodes_per_second", {}).values())

            def enough() -> bool:
                known = points()
                if len(known) < VALUES:
                    return False
                return known[-1].time - known[0].time > SECONDS or len(known) > MANY

            began = time.time()
            try:
                # Without its progress bar, which would never end.
                options = {"enough": enough, "echo": False}
                run_program(self.children, "train", workdir, self.slots[0], arguments, **options)
            except Failure as failure:
                self._failed(kind, str(failure))
                return None
            first, *others = points()
        rate = statistics.median(point.value for point in others)
        logger.info("%s: %.3g episodes a second", kind, rate)
        startup = first.time - began - each * training.batch_size / rate
        return Speed(rate, max(0.0, startup))

    def _failed(self, kind: str, why: str) -> None:
        """Notes the failure of all missing trainings of a kind."""
        for name in [name for name, training in self.missing.items() if training.kind == kind]:
            del self.missing[name]
            self.failures |= dict.fromkeys(self.needed_by[name], why)

    def untrained(self) -> list[Place]:
        """Places of models that are not trained."""
        return [place for place in self.places if place.row.config and not place.row.trained]

    def _other_seconds(self, training: Training) -> float:
        """What a training and its tests take beside its steps, roughly."""
        train, speed = training.config.train, self.speeds[training.kind]
        selections = math.ceil((training.steps - training.done) / train.eval_every)
        episodes = train.eval_episodes
        if self.planner.budget:  # which may not have been applied yet
            selections = min(selections, SELECTIONS)
            episodes = min(episodes, SELECTION_EPISODES)
        scored = selections * len(train.select_on.split("+"))
        scored *= self._scoring(training.config, episodes, 1, speed)
        tests = [self._test_seconds(place, speed) for place in self.needed_by[training.name]]
        return speed.startup + scored + sum(tests)

    def _test_seconds(self, place: Place, speed: Speed | None = None) -> float:
        """What a test takes, roughly; of a model of unknown speed as of the others' mean."""
        known = self.speeds.values()
        speed = speed or Speed(*(statistics.fmean(values) for values in zip(*known, strict=True)))
        arguments = [*training_overrides(place), *protocol_overrides(self.table, place)]
        arguments += [f"--config.{field}" for field in place.row.test]
        arguments += self.planner.testing(place)
        config = override(load_config(config_path(place.row)), arguments)
        episodes, shots = config.eval.episodes * config.eval.runs, place.setting[1]
        seconds = self._scoring(config, episodes, shots, speed)
        if config.eval.threshold:
            seconds += self._scoring(config, config.train.eval_episodes, shots, speed)
        return TEST_STARTUP * speed.startup + seconds

    def _scoring(self, config: ConfigDict, episodes: int, shots: int, speed: Speed) -> float:
        """Seconds of encoding photographs and scoring episodes."""
        photographs = min(episodes * (1 + shots), len(test_source(config, self.sources)))
        return (photographs + episodes) * FORWARD / speed.rate

    def describe(self) -> list[str]:
        """The plan, a line for each training and each test, and the time of it where measured."""
        lines, total = [], 0.0
        for training in self.missing.values():
            steps, episodes = training.steps, training.steps * training.batch_size
            line = f"train {training.name}: {steps:,} steps of {training.batch_size}"
            part = percent(steps / training.whole)
            line += f" ({episodes:,} episodes, {part} of the published training)"
            line += f", from step {training.done:,}" if training.done else ""
            if speed := self.speeds.get(training.kind):
                left = (steps - training.done) * training.batch_size
                seconds = left / speed.rate + self._other_seconds(training)
                total += seconds
                line += f", about {_duration(seconds)} with its tests"
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
        total = _duration(total / self.in_parallel)
        return [*lines, f"in all about {total} for what is trained, {len(self.slots)} at a time"]


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.1f} minutes" if minutes < 100 else f"{minutes / 60:.1f} hours"


def divide(
    seconds: float,
    trainings: Sequence[Training],
    speeds: Mapping[str, Speed],
    spent: Mapping[str, float],
    slots: int = 1,
) -> dict[str, int]:
    """Steps of each training by its name, so that all of them together take a time.

    Each gets the same time; what one does not need, because its own configuration has fewer steps,
    is divided among the others.

    Args:
        seconds: for all of it.
        trainings: what is missing.
        speeds: by kind.
        spent: seconds by name that go to other things than steps: starting, and evaluations.
        slots: how many run at the same time, each as fast as alone.

    Raises:
        UserError: there is no time for any step.
    """
    left = slots * seconds - sum(spent[training.name] for training in trainings)
    # No training has two slots: all of them are done in so many rounds.
    longest_one = seconds if slots == 1 else seconds / math.ceil(len(trainings) / slots)
    if left <= 0 or any(spent[training.name] >= longest_one for training in trainings):
        raise UserError(
            f"--minutes: starting {len(trainings)} trainings and testing them takes about "
            f"{(seconds - left / slots) / 60:.1f} minutes, {slots} at a time, and "
            f"{seconds / 60:.1f} are left; give more, choose fewer with --rows, --folds or "
            "--shots, or test less with --config.eval.episodes."
        )
    steps: dict[str, int] = {}
    needed = {t.name: t.steps * t.batch_size / speeds[t.kind].rate for t in trainings}
    waiting = sorted(trainings, key=lambda training: needed[training.name])
    while waiting:
        training, share = waiting.pop(0), left / (len(waiting) + 1)
        share = min(share, longest_one - spent[training.name])
        seconds_a_step = training.batch_size / speeds[training.kind].rate
        count = max(1, int(share / seconds_a_step / training.each)) * training.each
        steps[training.name] = min(count, training.steps)
        left -= steps[training.name] * seconds_a_step
    return steps
