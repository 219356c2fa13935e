"""Trains and evaluates what a table needs, by running the ordinary programs."""

import json
import logging
import pathlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.summary import summary
from fsseg_jax.evaluation.tables.cells import Cell, Place, Run, config_path, find_runs, forget, keep
from fsseg_jax.evaluation.tables.report import CURVES, collect, write
from fsseg_jax.prediction.loading import load
from fsseg_jax.reproduction import zoo
from fsseg_jax.reproduction.agenda import Agenda
from fsseg_jax.reproduction.plan import DONE, Training
from fsseg_jax.reproduction.processes import Failure, Stopped, run_program
from fsseg_jax.training import curves

logger = logging.getLogger("fsseg_jax.reproduce")


class Reproduction:
    """Does what is on an agenda and writes the results.

    Args:
        command: continues this reproduction; printed in the table.
        models: folder to write trained models to, or None.
    """

    def __init__(self, agenda: Agenda, command: str, models: pathlib.Path | None = None) -> None:
        self.agenda, self.command, self.models = agenda, command, models
        self._lock = threading.RLock()  # for everything that this process computes and writes

    def run(self) -> dict[str, Any]:
        """Does everything and returns the content of `results.json`.

        Raises:
            Stopped: this process was asked to stop.
        """
        agenda = self.agenda
        jobs: queue.SimpleQueue[Callable[[Mapping[str, str]], None]] = queue.SimpleQueue()
        for place in agenda.untrained():
            jobs.put(lambda slot, place=place: self._test([place], slot))
        for name, places in agenda.needed_by.items():
            asked = [place for place in places if place in agenda.runs and place in agenda.places]
            if training := agenda.missing.get(name):
                jobs.put(lambda slot, training=training: self._train(training, slot))
            elif asked:
                jobs.put(lambda slot, places=asked: self._test(places, slot))
        errors: list[BaseException] = []

        def work(slot: Mapping[str, str]) -> None:
            while not errors:
                try:
                    jobs.get_nowait()(slot)
                except queue.Empty:
                    return
                except BaseException as error:  # raised in the main thread
                    errors.append(error)
                    if len(agenda.slots) > 1 and not isinstance(error, Stopped):
                        logger.exception("ends when the programs that are running have ended")

        threads = [threading.Thread(target=work, args=(slot,)) for slot in agenda.slots]
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
        """Runs a training, and the tests of the trained model."""
        agenda = self.agenda
        places, folder = agenda.needed_by[training.name], agenda.workdir / training.name
        (folder / DONE).unlink(missing_ok=True)  # of a training whose checkpoints were deleted
        try:
            self._run("train", folder, slot, [f"--config={training.file}", *training.overrides])
        except Failure as failure:
            agenda.failures |= dict.fromkeys(places, str(failure))
            logger.warning("%s failed: %s", training.name, failure)
            self.write()
            return
        (folder / DONE).touch()
        with self._lock:
            agenda.runs |= dict.fromkeys(places, next(find_runs(folder)))
        self._test(places, slot)

    def _test(self, places: Sequence[Place], slot: Mapping[str, str]) -> None:
        """Runs the tests of a model that have no results yet."""
        failures = self.agenda.failures
        for place in places:
            try:
                self._evaluate(place, slot)
            except (Failure, UserError) as failure:
                failures[place] = str(failure)
                logger.warning("%s failed: %s", place, failure)
            self.write()
        if self.models and places[0] in self.agenda.runs:
            try:
                self._export(self.agenda.runs[places[0]], self.models)
            except UserError as error:
                failures[places[0]] = f"its model is not written: {error}"
                logger.warning("%s", error)
                self.write()

    def _evaluate(self, place: Place, slot: Mapping[str, str]) -> None:
        with self._lock:
            cell = self.agenda.cell(place)
        if cell.evaluation is None:
            raise Failure("its data are missing: name their folder by --config.data.root")
        if cell.results is not None:
            return
        evaluation, target, run = cell.evaluation, cell.evaluation.target, cell.run
        target.mkdir(parents=True, exist_ok=True)
        logger.info("testing %s", place)
        forget(evaluation)
        arguments = [f"--out={target}", *evaluation.arguments]
        if run is None:
            arguments.insert(0, f"--config={config_path(place.row)}")
        self._run("evaluate", run.folder if run else target, slot, arguments, log=target)
        with self._lock:
            keep(evaluation)
            results = json.loads((target / "results.json").read_text())
            logger.info("%s: %s", place, summary(results))

    def _run(
        self,
        program: str,
        workdir: pathlib.Path,
        slot: Mapping[str, str],
        arguments: Sequence[str],
        log: pathlib.Path | None = None,
    ) -> None:
        name = workdir.name if len(self.agenda.slots) > 1 else ""
        run_program(self.agenda.children, program, workdir, slot, arguments, log, name=name)

    def write(self) -> dict[str, Any]:
        """Writes the current table with learning curves, including places that were not requested
        but tested earlier."""
        agenda = self.agenda
        with self._lock:
            asked = [self._cell_or_failure(place) for place in agenda.places]
            others = [self._cell_or_failure(place) for place in agenda.others]
            cells = [*asked, *(cell for cell in others if cell.results)]
            rows, folds = list(agenda.table.rows), list(agenda.table.folds)
            cells.sort(key=lambda cell: (rows.index(cell.place.row), folds.index(cell.place.fold)))
            own = agenda.planner.overrides
            results = collect(agenda.table, cells, agenda.workdir, own, self.command)
            agenda.folder.mkdir(parents=True, exist_ok=True)
            picture = agenda.folder / CURVES
            if not curves.draw(self._trainings(), picture):
                picture.unlink(missing_ok=True)
            write(results, agenda.folder)
            return results

    def _trainings(self) -> dict[str, pathlib.Path]:
        """Folders of finished and current trainings by title."""
        agenda, trainings = self.agenda, {}
        for name, places in agenda.needed_by.items():
            run, training = agenda.runs.get(places[0]), agenda.missing.get(name)
            config = run.config if run else training and training.config
            if config is not None:
                labels = ", ".join(dict.fromkeys(place.row.label for place in places))
                title = f"{labels}, fold {places[0].fold}"
                title += f", {config.ways}-way {config.shots}-shot"
                trainings[title] = run.folder if run else agenda.workdir / name
        return trainings

    def _cell_or_failure(self, place: Place) -> Cell:
        try:
            return self.agenda.cell(place)
        except UserError as error:
            why = self.agenda.failures.get(place, str(error))
            return Cell(place, self.agenda.runs.get(place), failure=why)

    def _export(self, run: Run, models: pathlib.Path) -> None:
        """Writes a trained model into the folder of models."""
        agenda = self.agenda
        with self._lock:
            own = [place for place, other in agenda.runs.items() if other == run]
            tested = [cell for cell in map(self._cell_or_failure, own) if cell.results]
            if not tested:
                return
            # If tests use different checkpoints, that of the first one is written.
            which = next(x.evaluation.config.eval.checkpoint for x in tested if x.evaluation)
            model = load(run.folder, checkpoint=which, platform="cpu")
            model.config.platform = ""  # the model may be used on another platform
            name = agenda.planner.name(own[0])
            zoo.add(models, name, model, tested, agenda.table)
            logger.info("model: %s", models / name)
