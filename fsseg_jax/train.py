"""Trains a model: python -m fsseg_jax.train --config=panet_vgg16 --workdir=runs/panet

--config is a Python file with get_config(), such as those in configs/, or the name of one of these.

The same command continues a run that was stopped. Exit status: 0 when training is complete, 143
after SIGTERM and 130 after Ctrl-C (with a checkpoint, unless a second one ends it at once), 2 for
wrong input.
"""

import collections
import contextlib
import logging
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fsseg_jax import command_line
from fsseg_jax.checksums import checksum_of, checksums
from fsseg_jax.config import differences, load_config, override
from fsseg_jax.data import training_pipeline
from fsseg_jax.devices import (
    check_agreement,
    check_divides,
    describe,
    is_first_process,
    make_mesh,
    put,
    replicated,
)
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.run import evaluate
from fsseg_jax.evaluation.selection import Selection
from fsseg_jax.evaluation.summary import summary
from fsseg_jax.files import lock, writing
from fsseg_jax.models import Method, create_model
from fsseg_jax.progress import progress
from fsseg_jax.training.checkpoints import (
    BEST,
    LAST,
    Checkpoints,
    Loaded,
    load_variables,
    selected,
)
from fsseg_jax.training.data import Data, open_data
from fsseg_jax.training.state import (
    TrainState,
    abstract_state,
    initial_state,
    learning_rate,
    make_dispatch,
    make_optimizer,
    make_step,
    split_frozen,
    with_steps,
)
from fsseg_jax.training.stop import NAMES, Stopped, StopRequest
from fsseg_jax.training.summaries import Summaries

logger = logging.getLogger("fsseg_jax.train")  # as a program, the module has another name

# Steps in flight (but at least one dispatch): enough to keep the devices busy, and few enough for
# accurate progress, early notice of a loss that is not finite, and a quick stop on signals.
IN_FLIGHT = 2


def main() -> int:
    """Runs the program; returns its exit status."""
    arguments, overrides = command_line.parse(__doc__)
    if arguments.config is None:
        raise UserError("--config is missing: name one, as in --config=panet_vgg16.")
    config = override(load_config(arguments.config), overrides)
    command_line.start(config)
    command_line.check_processes(config, workdir=arguments.workdir)
    with contextlib.ExitStack() as stack:
        if is_first_process():
            with writing(arguments.workdir):
                arguments.workdir.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((arguments.workdir / ".lock").open("w"))
            lock(file.fileno(), arguments.workdir, option="--workdir")
        stop = StopRequest()
        return 0 if train(config, arguments.workdir, stop) else 128 + stop.signal


def train(config: ConfigDict, workdir: pathlib.Path, stop: StopRequest | None = None) -> bool:
    """Trains, continuing from the newest checkpoint in `workdir` if there is one.

    Args:
        stop: notices signals during training; one of its own by default.

    Returns:
        whether training is complete; False if a signal stopped it, with a checkpoint.

    Raises:
        UserError: the configuration or the data are wrong, or the loss became infinite or NaN.

    Examples:
        >>> import tempfile
        >>> small = ["image_size=32", "devices=1", "data.shapes.train=96", "data.shapes.val=96"]
        >>> small += ["data.train_min_pixels=1", "data.min_pixels=1", "train.batch_size=2"]
        >>> small += ["train.steps=2", "train.warmup=0", "train.eval_episodes=2"]
        >>> small += ["train.test_before_and_after=False"]
        >>> config = override(load_config("quickstart"), [f"--config.{field}" for field in small])
        >>> with tempfile.TemporaryDirectory() as workdir:
        ...     complete = train(config, pathlib.Path(workdir))
        ...     Checkpoints(pathlib.Path(workdir)).names()
        ['best', 'last']
        >>> complete
        True
    """
    mesh = make_mesh(config.devices)
    logger.info(describe(mesh))
    check_divides(config.train.batch_size, mesh, config.train.accumulate)
    create_model(config)  # reports wrong options before the data are read
    data = open_data(config)
    check_agreement({"data": data.contents})
    config = with_steps(config, data.epoch)
    if config.train.warmup >= config.train.steps:
        words = "train.warmup = %d: the learning rate still rises when training ends, at step %d"
        logger.warning(words, config.train.warmup, config.train.steps)
    checkpoints = open_checkpoints(config, workdir, data)
    model, state = begin_or_resume(config, checkpoints, data, mesh)
    check_stored_predictions(config, state)
    loop = Loop(config, workdir, data, mesh, checkpoints, model, stop or StopRequest())

    def test(loaded: Loaded, folder: str) -> str:
        return summary(evaluate(config, model, loaded, data.test, mesh, workdir / folder))

    tested = "held-back images" if data.test.nothing_held_out else "held-out classes"
    if config.train.test_before_and_after and not loop.start:
        before = test(Loaded(state.variables, "untrained"), "evaluation_before")
        logger.info("%s before training: %s", tested, before)
    if not loop.run(state):
        return False
    if config.train.test_before_and_after:
        after = test(load_variables(config, model, workdir, mesh, data.test), "evaluation")
        logger.info("%s after training: %s", tested, after)
        logger.info("report: %s", workdir / "evaluation" / "report.html")
    return True


def open_checkpoints(config: ConfigDict, workdir: pathlib.Path, data: Data) -> Checkpoints:
    """Opens the checkpoints of a run, and sets those aside that it no longer selects.

    Raises:
        UserError: they are from a different training, or from more steps, or the last one is gone.
    """
    checkpoints = Checkpoints(workdir, trained_on=data.base, contents=data.contents)
    checkpoints.clean()
    for which in (LAST, BEST):
        if checkpoints.step(which) is not None:
            checkpoints.check_same(which, config, "data.name", "data.fold")
            if checkpoints.describe(which)[1].get("trained_on", data.base) != data.base:
                raise UserError(
                    f"{workdir} holds a checkpoint that was trained on other classes than "
                    f"{data.source.name} has now: choose another --workdir."
                )
    start = checkpoints.step(LAST) or 0
    if start:
        checkpoints.check_data(config)
    if (left := checkpoints.names()) and LAST not in left:
        folder = checkpoints.folder
        raise UserError(
            f"{workdir} has no last checkpoint, and a new training would replace the others "
            f"({', '.join(left)}): choose another --workdir, or copy {folder / left[0]} to "
            f"{folder / LAST} to go on from step {checkpoints.step(left[0])}."
        )
    if start > config.train.steps:
        raise UserError(
            f"train.steps = {config.train.steps}, but {workdir} is already at step {start}: raise "
            "it or choose another --workdir."
        )
    for name in sorted({*checkpoints.names()} - {LAST, *selected(config.train.select_on)}):
        checkpoints.set_aside(name, f"train.select_on no longer names {name}")
    return checkpoints


def begin_or_resume(
    config: ConfigDict, checkpoints: Checkpoints, data: Data, mesh: Mesh
) -> tuple[Method, TrainState]:
    """The model, and the state of the newest checkpoint, or the initial one if there is none.

    `config.model.stages` is filled in if it is empty.

    Raises:
        UserError: pretrained weights cannot be loaded or do not fit.
    """
    count = len(data.items.image)
    start = checkpoints.step(LAST)
    if start:
        saved, _ = checkpoints.describe(LAST)
        for name, (old, new) in differences(saved, config).items():
            logger.info("changed since the checkpoint: %s was %s and is now %s", name, old, new)
        model = create_model(config)
        state = checkpoints.restore(LAST, abstract_state(model, config, count), replicated(mesh))
        logger.info("resuming from step %d of %s", start, checkpoints.folder.parent)
    else:
        model = create_model(config)
        initial = initial_state(model, config, config.init, count)
        if config.init and jax.process_count() > 1:
            weights = checksums(initial.variables["params"]["backbone"])
            check_agreement({f"init = {config.init}, that is,": checksum_of(weights)})
        state = put(initial, replicated(mesh))
    parts = split_frozen(model, state.variables["params"])
    learnable, frozen = (sum(x.size for x in jax.tree.leaves(part)) / 1e6 for part in parts)
    logger.info(
        "%s on %s: %.2f M learnable parameters, %.2f M frozen; %d images, %d items of %d base "
        "classes",
        *(config.method, config.backbone, learnable, frozen),
        *(len(data.source), count, len(data.items.class_id)),
    )
    return model, state


def check_stored_predictions(config: ConfigDict, state: TrainState) -> None:
    """Raises UserError if augmentation moves queries whose predictions the method stores."""
    augment = config.data.augment
    moved = augment.flip or augment.rotation or tuple(augment.scale) != (1, 1)
    if state.rows is not None and augment.query and moved:
        raise UserError(
            f"data.augment.query = True, but {config.method} stores predictions in the query's "
            "coordinates: set it to False."
        )


class Loop:
    """The training loop, with checkpoints, selection and summaries for TensorBoard."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: pathlib.Path,
        data: Data,
        mesh: Mesh,
        checkpoints: Checkpoints,
        model: Method,
        stop: StopRequest,
    ) -> None:
        self.config, self.workdir, self.checkpoints = config, workdir, checkpoints
        self.mesh, self.stop = mesh, stop
        self.steps, self.batch_size = config.train.steps, config.train.batch_size
        self.start, self.spent = checkpoints.step(LAST) or 0, 0.0  # seconds of earlier steps
        if self.start:
            self.spent = checkpoints.describe(LAST)[1].get("seconds", 0.0)
        self.pipeline = training_pipeline(config, data.source, data.items, mesh, self.start)
        self.selections = [
            Selection(config, model, data.test, mesh, checkpoints, name, self.start)
            for name in selected(config.train.select_on)
        ]
        step_function = make_step(
            model,
            make_optimizer(config.train),
            seed=config.seed,
            items=data.epoch,
            batch_size=self.batch_size,
            accumulate=config.train.accumulate,
        )
        draw, rematerialise = self.pipeline.draw, config.rematerialise
        self.dispatch = make_dispatch(step_function, draw, mesh, rematerialise=rematerialise)
        self.schedule: Callable[[int], Any] = learning_rate(config.train)
        folder = workdir / "tensorboard" if is_first_process() else None
        self.summaries = Summaries(folder, self.start + 1)
        # Information about training for the last checkpoint.
        self.known = {"epoch": data.epoch, "batch_size": self.batch_size, "devices": describe(mesh)}
        self.in_flight: collections.deque[tuple[int, Any, Any]] = collections.deque()
        self.losses: list[Any] = []  # since the last summary

    def run(self, state: TrainState) -> bool:
        """Trains; returns whether all steps were done, or False if a signal stopped it."""
        train, stop, step = self.config.train, self.stop, self.start
        self.log_time = time.perf_counter()
        self.began = self.log_time - self.spent  # as if there had been no interruption
        per_dispatch = train.steps_per_dispatch
        size = self.batch_size
        trained = progress("training", self.steps * size, "episode", self.start * size)
        with stop, trained, contextlib.suppress(Stopped):
            if step and (step % train.eval_every == 0 or step == self.steps):
                self.select(state, step)  # the run may have been stopped before selection
            while step < self.steps:
                # A run may resume from a step within a dispatch.
                count = per_dispatch - step % per_dispatch
                fed = self.pipeline.feed(count)
                if step == self.start:
                    trained.set_description("compiling")  # for minutes, on an accelerator
                with jax.transfer_guard("disallow"):  # all inputs are on the mesh already
                    state, metrics = self.dispatch(state, fed, count)
                trained.set_description("training", refresh=False)
                self.in_flight.append((step + 1, metrics, stop.ask(self.mesh)))
                self.settle(max(1, IN_FLIGHT // per_dispatch))
                step += count
                trained.update(count * self.batch_size)

                if step % train.log_every == 0 or step == self.steps:
                    loss = self.summarise(step)
                    trained.set_postfix(step=step, loss=f"{loss:.3f}")
                scores = step % train.eval_every == 0 or step == self.steps
                stopping = stop.received  # a signal may come at any line
                if scores or stopping or step % train.save_every == 0:
                    self.save(state)
                if stopping:
                    break
                if scores:
                    self.select(state, step)
            stop.agree(stop.ask(self.mesh))  # of several processes, during the last selection
        if stop.received:
            words = "stopped by %s at step %d, saved; the same command continues"
            logger.info(words, NAMES[stop.signal], step)
            return False
        logger.info("trained %d steps: %s", self.steps, self.workdir)
        return True

    def settle(self, leave: int = 0) -> None:
        """Waits until at most `leave` dispatches are in flight; checks losses and gradients of the
        others, and whether to stop.

        Raises:
            UserError: one is infinite or NaN.
        """
        while len(self.in_flight) > leave:
            first, metrics, asked = self.in_flight.popleft()
            metrics = jax.device_get(metrics)
            self.stop.agree(asked)
            finite = np.isfinite(metrics["loss"]) & np.isfinite(metrics["gradient_norm"])
            if not finite.all():
                bad = finite.argmin()
                raise UserError(
                    f"the loss is {metrics['loss'][bad]} and the gradient's norm "
                    f"{metrics['gradient_norm'][bad]} at step {first + bad}: lower "
                    f"train.learning_rate ({self.config.train.learning_rate}) or train in float32; "
                    f"{self.checkpoints.kept()}."
                )
            self.losses.append(metrics)

    def summarise(self, step: int) -> float:
        """Writes the mean metrics of the steps since the last summary; returns the loss."""
        self.settle()
        whole = jax.tree.map(lambda *parts: np.concatenate(parts), *self.losses)
        means = {name: values.mean() for name, values in whole.items()}
        means["learning_rate"] = float(self.schedule(step - 1))
        now = time.perf_counter()
        means["episodes_per_second"] = len(whole["loss"]) * self.batch_size / (now - self.log_time)
        self.summaries.add({f"train/{name}": value for name, value in means.items()}, step)
        self.losses, self.log_time = [], now
        return means["loss"]

    def save(self, state: TrainState) -> None:
        """Writes the last checkpoint; its `seconds` count only training steps."""
        self.settle()
        seconds = time.perf_counter() - self.began
        self.checkpoints.save(LAST, state, self.config, **self.known, seconds=seconds)

    def select(self, state: TrainState, step: int) -> None:
        """Scores a state on the classes that select checkpoints. A signal may interrupt it, because
        the state is already saved.

        Raises:
            Stopped: a signal was received.
        """
        paused = time.perf_counter()
        self.stop.at_once = True
        if self.stop.received:
            raise Stopped
        scores = {f"{s.which}_mean_iou": s.score(state) for s in self.selections}
        scores |= {f"{s.which}_at_best_threshold": s.at_best_threshold for s in self.selections}
        self.stop.at_once = False
        known = {f"selection/{name}": x for name, x in scores.items() if x is not None}
        self.summaries.add(known, step)
        for s in self.selections:
            pictures = {f"{s.which}_classes/{n}": x for n, x in enumerate(s.pictures)}
            self.summaries.add_pictures(pictures, step)
        paused = time.perf_counter() - paused  # not counted as training time
        self.log_time, self.began = self.log_time + paused, self.began + paused


if __name__ == "__main__":
    command_line.run(main)
