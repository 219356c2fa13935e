"""Trains and evaluates what a table needs, by the programs that anyone would call for it."""

import json
import logging
import math
import pathlib
import queue
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from fsseg_jax import segmenter, sharing
from fsseg_jax.config import load_config, override
from fsseg_jax.data.source import Source
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.cells import (
    Cell,
    Evaluation,
    Place,
    Run,
    config_path,
    find_runs,
    forget,
    keep,
    locate,
    protocol_overrides,
    table_folder,
    test_source,
    training_overrides,
)
from fsseg_jax.evaluation.evaluator import summary, write_whole
from fsseg_jax.evaluation.published import Table
from fsseg_jax.evaluation.table_report import (
    CURVES,
    collect,
    percent,
    training_facts,
    training_words,
    write,
)
from fsseg_jax.reproduction.plan import (
    DONE,
    SELECTION_EPISODES,
    SELECTIONS,
    Machine,
    Planner,
    Speed,
    Training,
    divide,
)
from fsseg_jax.reproduction.processes import Children, Failure
from fsseg_jax.training import curves

PLAN = "plan.json"
# Of a measurement: values of episodes a second, the first of which has the compilation in it, and
# seconds between the first and the last, unless there are many.
VALUES, SECONDS, MANY = 3, 6.0, 40
# The forward pass of a photograph, of the time of a training episode, which has two photographs and
# a backward pass that takes about twice as long.
FORWARD = 1 / 6
TEST_STARTUP = 0.6  # of a test, of a training's, which has a step to compile
SURVEY = """
import json, sys, jax, psutil
from fsseg_jax.devices import choose_platform
choose_platform(sys.argv[1])
device, *others = jax.devices()
memory = (device.memory_stats() or {}).get("bytes_limit") or psutil.virtual_memory().total
print(json.dumps([device.platform, device.device_kind, 1 + len(others), memory]))
"""
LICENCE = "apache-2.0"  # of this library, and of what it writes

logger = logging.getLogger("fsseg_jax.reproduce")


def survey(children: Children, log: pathlib.Path, platform: str = "") -> Machine:
    """What programs run on: asked by one, since whoever asks JAX takes the accelerator's memory.

    Args:
        children: see `Children`.
        log: a file for what it prints.
        platform: as `config.platform`.

    Raises:
        UserError: there is no such platform.
    """
    log.unlink(missing_ok=True)
    try:
        children.run([sys.executable, "-c", SURVEY, platform], log, echo=False)
    except Failure as failure:
        raise UserError(str(failure).rpartition("UserError: ")[2]) from None
    lines = [line for line in log.read_text().splitlines() if line.startswith("[")]
    return Machine(*json.loads(lines[-1]))


class Reproduction:
    """One table, on its way.

    Args:
        table: see `published.TABLES`.
        places: of it, see `cells.choose`.
        planner: what is needed, and with which settings.
        workdir: the folder of all runs.
        children: runs the programs.
        slots: environments of the programs that run at the same time.
        models: a folder that gets the trained models, or None.
    """

    def __init__(
        self,
        table: Table,
        places: Sequence[Place],
        planner: Planner,
        workdir: pathlib.Path,
        children: Children,
        slots: Sequence[Mapping[str, str]],
        models: pathlib.Path | None = None,
    ) -> None:
        self.table, self.places, self.planner = table, list(places), planner
        self.workdir, self.children, self.slots, self.models = workdir, children, slots, models
        self.folder = table_folder(workdir, table)
        self.sources: dict[str, Source] = {}
        self.speeds: dict[str, Speed] = {}
        self.failures: dict[Place, str] = {}
        self.runs: dict[Place, Run] = {}
        self.missing: dict[str, Training] = {}  # by name
        self.needed_by: dict[str, list[Place]] = {}  # the places of each training, missing or not
        self._lock = threading.RLock()  # of what this process computes and writes

    # ------------------------------------------------------------------------- what to do

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
            if run := self.planner.run(training, runs):
                self.runs[place] = run
            else:
                self.missing.setdefault(training.name, training)

    def limit_episodes(self, episodes: int) -> None:
        """Plans trainings of so many episodes each."""
        for name, training in self.missing.items():
            steps = max(1, round(episodes / training.batch_size))
            self.missing[name] = self.planner.limited(training, steps)

    def limit_minutes(self, minutes: float, began: float) -> None:
        """Plans trainings that fill a time, all together, from a measurement of each kind.

        What was decided is kept in a file, so that the same words go on with it.

        Args:
            minutes: from `began` to the end of all.
            began: of `time.monotonic`.

        Raises:
            UserError: there is no time for any step.
        """
        path = self.folder / PLAN
        plans = json.loads(path.read_text()) if path.is_file() else {}
        # Of this machine, used in this way; names of trainings have the minutes in them.
        words = f"{self.planner.machine.words}, {len(self.slots)} at a time"
        plan = plans.setdefault(words, {"speeds": {}, "steps": {}})
        new = [t for t in self.missing.values() if t.name not in plan["steps"]]
        for kind in dict.fromkeys(training.kind for training in new):
            if kind not in plan["speeds"] and (speed := self._measured(kind)):
                plan["speeds"][kind] = speed
                self._write(PLAN, plans)
        self.speeds = {kind: Speed(*values) for kind, values in plan["speeds"].items()}
        new = [training for training in new if training.name in self.missing]
        if new:
            seconds = 60 * minutes - (time.monotonic() - began)
            tests = [*self._untrained(), *self.runs]
            seconds -= sum(map(self._test_seconds, tests)) / self.at_once
            spent = {training.name: self._other_seconds(training) for training in new}
            plan["steps"] |= divide(seconds, new, self.speeds, spent, self.at_once)
            self._write(PLAN, plans)
        for name, training in self.missing.items():
            if name in plan["steps"]:
                self.missing[name] = self.planner.limited(training, plan["steps"][name])

    @property
    def at_once(self) -> int:
        """How many programs run as fast as one: those that have devices of their own."""
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
                overrides = [*training.overrides, *overrides]
                self._run("train", workdir, self.slots[0], training.file, overrides, enough=enough)
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

    def _untrained(self) -> list[Place]:
        return [place for place in self.places if place.row.config and not place.row.trained]

    def _other_seconds(self, training: Training) -> float:
        """What a training and its tests take beside its steps, roughly."""
        train, speed = training.config.train, self.speeds[training.kind]
        selections = math.ceil(training.steps / train.eval_every)
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
            if speed := self.speeds.get(training.kind):
                seconds = episodes / speed.rate + self._other_seconds(training)
                total += seconds
                line += f", about {_duration(seconds)} with its tests"
            lines.append(line)
        for place in self.places:
            if place in self.failures:
                lines.append(f"fails: {place}: {self.failures[place]}")
            elif place in self.runs:
                lines.append(f"test {place}: {self.runs[place].folder}")
            elif not place.row.config:
                lines.append(f"leave out {place}: {place.row.note}")
            elif not place.row.trained:
                lines.append(f"test {place}, which is not trained")
        total = _duration(total / self.at_once)
        return [*lines, f"in all about {total} for what is trained, {len(self.slots)} at a time"]

    # ------------------------------------------------------------------------- doing it

    def run(self) -> dict[str, Any]:
        """Does all that is to be done, and returns what is in `results.json`.

        Raises:
            Stopped: this process was asked to stop.
        """
        jobs: queue.SimpleQueue[Callable[[Mapping[str, str]], None]] = queue.SimpleQueue()
        there = [*self._untrained(), *self.runs]
        for place in [place for place in self.places if place in there]:
            jobs.put(lambda slot, place=place: self._test([place], slot))
        for training in self.missing.values():
            jobs.put(lambda slot, training=training: self._train(training, slot))
        errors: list[BaseException] = []

        def work(slot: Mapping[str, str]) -> None:
            while not errors:
                try:
                    jobs.get_nowait()(slot)
                except queue.Empty:
                    return
                except BaseException as error:  # told in the main thread
                    errors.append(error)

        threads = [threading.Thread(target=work, args=(slot,)) for slot in self.slots]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)  # signals are handled in between
        results = self.write()
        if errors:
            raise errors[0]
        return results

    def _train(self, training: Training, slot: Mapping[str, str]) -> None:
        """A training, and the tests of what came of it."""
        places, folder = self.needed_by[training.name], self.workdir / training.name
        try:
            self._run("train", folder, slot, training.file, training.overrides)
        except Failure as failure:
            self.failures |= dict.fromkeys(places, str(failure))
            logger.warning("%s failed: %s", training.name, failure)
            self.write()
            return
        (folder / DONE).touch()
        with self._lock:
            run = next(run for run in find_runs(folder))
            self.runs |= dict.fromkeys(places, run)
        self._test(places, slot)

    def _test(self, places: Sequence[Place], slot: Mapping[str, str]) -> None:
        """The tests of a model that are not there yet."""
        for place in places:
            try:
                cell = self.cell(place)
                if cell.evaluation is None:
                    raise Failure("its data are missing: name their folder by --config.data.root")
                if cell.results is None:
                    self._evaluate(cell.evaluation, self.runs.get(place), place, slot)
            except (Failure, UserError) as failure:
                self.failures[place] = str(failure)
                logger.warning("%s failed: %s", place, failure)
            self.write()
        if self.models and places[0] in self.runs:
            try:
                self._export(self.runs[places[0]])
            except UserError as error:
                self.failures[places[0]] = f"its model is not written: {error}"
                logger.warning("%s", error)
                self.write()

    def _evaluate(
        self, evaluation: Evaluation, run: Run | None, place: Place, slot: Mapping[str, str]
    ) -> None:
        target = evaluation.target
        target.mkdir(parents=True, exist_ok=True)
        workdir = target if run is None else run.folder
        file = config_path(place.row) if run is None else None
        logger.info("testing %s", place)
        forget(evaluation)
        out = [f"--out={target}"]
        self._run("evaluate", workdir, slot, file, [*out, *evaluation.arguments], log=target)
        with self._lock:
            keep(evaluation)
            results = json.loads((target / "results.json").read_text())
            logger.info("%s: %s", place, summary(results))

    def _run(
        self,
        program: str,
        workdir: pathlib.Path,
        slot: Mapping[str, str],
        file: str | None,
        arguments: Sequence[str],
        log: pathlib.Path | None = None,
        enough: Callable[[], bool] | None = None,
    ) -> None:
        """Runs a program of this package."""
        command = [sys.executable, "-m", f"fsseg_jax.{program}", f"--workdir={workdir}"]
        command += [f"--config={file}"] if file else []
        name = workdir.name if len(self.slots) > 1 else ""
        path = (log or workdir) / "log.txt"
        # What is only measured has a progress bar that would never end.
        self.children.run([*command, *arguments], path, slot, name, enough, echo=enough is None)

    # ------------------------------------------------------------------------- what came of it

    def cell(self, place: Place) -> Cell:
        """A cell as it is now."""
        with self._lock:
            if not place.row.config:
                return Cell(place)
            overrides, run = self.planner.testing(place), self.runs.get(place)
            cell = locate(self.table, place, run, overrides, self.workdir, self.sources)
            return cell._replace(failure=self.failures.get(place, ""))

    def write(self) -> dict[str, Any]:
        """Writes the table as it is now, with learning curves."""
        with self._lock:
            cells = [self._cell_or_failure(place) for place in self.places]
            results = collect(self.table, cells, self.workdir, self.planner.overrides)
            trainings = {}
            for name, places in self.needed_by.items():
                run = self.runs.get(places[0])
                folder = run.folder if run else self.workdir / name
                training = self.missing.get(name)
                config = run.config if run else training and training.config
                if config is not None:
                    title = f"{places[0].row.label}, fold {places[0].fold}"
                    title += f", {config.ways}-way {config.shots}-shot"
                    trainings[title] = folder
            self.folder.mkdir(parents=True, exist_ok=True)
            curves.draw(trainings, self.folder / CURVES)
            write(results, self.folder)
            return results

    def _cell_or_failure(self, place: Place) -> Cell:
        try:
            return self.cell(place)
        except UserError as error:
            return Cell(place, self.runs.get(place), failure=self.failures.get(place, str(error)))

    def _export(self, run: Run) -> None:
        """Writes a trained model as others can have it, with what is known of it."""
        with self._lock:
            cells = [self._cell_or_failure(place) for place, own in self.runs.items() if own == run]
            tested = [cell for cell in cells if cell.results]
            if not tested:
                return
            # Of several rules that choose a checkpoint, that of the first test.
            which = tested[0].evaluation.config.eval.checkpoint
            model = segmenter.load(run.folder, checkpoint=which, platform="cpu")
            folder = self.models / run.folder.name
            about = card(tested, self.table)
            sharing.save(folder, model.config, model.variables, folder.name, about, LICENCE)
            logger.info("model: %s", folder)

    def _write(self, name: str, content: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / name, json.dumps(content, indent=1))


def card(cells: Sequence[Cell], table: Table) -> str:
    """Sections of a model card: training, figures with their protocols, and terms.

    Args:
        cells: of one run, with results.
        table: that they are of.
    """
    config = cells[0].run.config
    head = ("test", "mean-IoU, %", "the paper's", "weights", "episodes", "protocol")
    rows = [head, ["---"] * len(head)]
    for cell in cells:
        results, (row, setting, fold) = cell.results, cell.place
        paper = row.published.get((setting, fold, "mean_iou"))
        figures = [f"{results['mean_iou']:.1f}", "" if paper is None else str(paper)]
        listed = f"{len(results['runs'])} x {results['episodes']}, {results['episodes_hash']}"
        known = [results["checkpoint"], listed, results["protocol"]["hash"]]
        rows.append([str(cell.place), *figures, *known])
    weights = pathlib.Path(config.init).name if "." in config.init else config.init
    of = f" and pretrained weights ({weights})" if weights else ""
    figures = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"""## Training

For "{table.title}", row {cells[0].place.row.label}: {training_words(training_facts(cells[0]))}.
These are the weights of {cells[0].results["checkpoint"]}.

## Figures

On classes that training did not see:

{figures}

## Terms

The library and these files are under Apache-2.0. They are made from photographs of
{config.data.name}{of}, whose own terms apply.
"""


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.1f} minutes" if minutes < 100 else f"{minutes / 60:.1f} hours"
