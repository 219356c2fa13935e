"""The training loop: one story from a configuration to checkpoints."""

import collections
import contextlib
import logging
import math
import pathlib
import signal
import threading
import time
from typing import Any

import jax
import numpy as np
import tensorboardX
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from fsseg_jax import config as configuration
from fsseg_jax.data import class_ids, open_source, training_items, training_pipeline
from fsseg_jax.devices import check_divides, describe, is_first_process, make_mesh, put, replicated
from fsseg_jax.episode import episodes_hash
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.evaluator import Evaluator, Loaded, evaluate, summary
from fsseg_jax.evaluation.metrics import best_threshold, run_metrics
from fsseg_jax.evaluation.protocol import draw_episodes
from fsseg_jax.evaluation.scorer import THRESHOLDS
from fsseg_jax.models import Method, choose_stages, create_model
from fsseg_jax.training.checkpoints import BEST, LAST, Checkpoints, load_variables, selected
from fsseg_jax.training.state import (
    TrainState,
    abstract_state,
    initial_state,
    learning_rate,
    make_dispatch,
    make_optimizer,
    make_step,
    split_frozen,
)

logger = logging.getLogger(__name__)

# Steps in flight (but at least one dispatch): enough to keep the devices busy, and few enough that
# progress is true, a loss that is not finite is noticed at once, and SIGTERM need not wait.
IN_FLIGHT = 2


class Stopped(Exception):
    """SIGTERM has come at a moment when nothing needs to be finished."""


class StopRequest:
    """Whether SIGTERM has come, while the context is open; a second one ends the process.

    While `at_once` is set it raises Stopped instead of waiting to be asked. Several processes agree
    on the step after which all of them stop, whichever has got the signal.
    """

    def __init__(self) -> None:
        self.received = self.at_once = False

    def __enter__(self) -> "StopRequest":
        self._previous = None
        if jax.process_count() > 1:
            self._previous = signal.SIG_DFL  # JAX receives it until the context closes
        elif threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def agree(self, step: int) -> None:
        """Where there are several processes: sets `received` if all stop after this step."""
        if jax.process_count() > 1:
            self.received = multihost_utils.reached_preemption_sync_point(step)

    def _receive(self, *_: object) -> None:
        self.received = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.at_once:
            raise Stopped


def train(config: ConfigDict, workdir: pathlib.Path) -> bool:
    """Trains as `config` says, from the newest checkpoint in `workdir` if there is one.

    Returns:
        whether training is complete; False if SIGTERM ended it, with a checkpoint.

    Raises:
        UserError: the configuration or the data are wrong, or the loss became infinite or NaN.
    """
    # ---------------------------------------------------------------- devices, data, model
    mesh = make_mesh(config.devices)
    logger.info(describe(mesh))
    check_divides(config.train.batch_size, mesh, config.train.accumulate)
    create_model(config)  # wrong options are told before the data are read
    source = open_source(config.data, "train")
    held_back = open_source(config.data, "test")
    shared = set(source.ids) & set(held_back.ids)
    if shared and "base" in config.train.select_on and config.data.split:
        raise UserError(
            f"data.split = {config.data.split}: selection on base classes would score photographs "
            "that training sees: choose another data.split, or train.select_on = novel (a protocol "
            "that tests on them is for evaluate)."
        )
    items = training_items(config.data, source)
    count, epoch = len(items.photograph), items.epoch(config.data.sampling)
    config = with_steps(config, epoch)
    base = [source.class_names[c] for c in class_ids(source, config.data.fold, "base")]
    checkpoints = Checkpoints(workdir, trained_on=base)
    start, spent = checkpoints.step(LAST) or 0, 0.0

    for which in (LAST, BEST):
        if checkpoints.step(which) is not None:
            checkpoints.check_same(which, config, "data.name", "data.fold")
            if checkpoints.describe(which)[1].get("trained_on", base) != base:
                raise UserError(
                    f"{workdir} holds a checkpoint that was trained on other classes than "
                    f"{source.name} has now: choose another --workdir."
                )
    if start > config.train.steps:
        raise UserError(
            f"train.steps = {config.train.steps}, but {workdir} is at step {start} already: raise "
            "it or choose another --workdir."
        )
    if start:
        saved, info = checkpoints.describe(LAST)
        spent = info.get("seconds", 0.0)
        config.model.stages = config.model.stages or saved.model.stages
        for name, (old, new) in configuration.differences(saved, config).items():
            logger.info("changed since the checkpoint: %s was %s and is %s", name, old, new)
        model = create_model(config)
        state = checkpoints.restore(LAST, abstract_state(model, config, count), replicated(mesh))
        logger.info("resuming from step %d of %s", start, workdir)
    else:
        choose_stages(config)
        model = create_model(config)
        state = initial_state(model, config, config.init, count)
        state = put(state, replicated(mesh))
    augment = config.data.augment
    moved = augment.flip or augment.rotation or tuple(augment.scale) != (1, 1)
    if state.rows is not None and augment.query and moved:
        raise UserError(
            f"data.augment.query = True, but {config.method} stores predictions in the query's "
            "coordinates: set it to False."
        )
    pipeline = training_pipeline(config, source, items, mesh, start)
    parts = split_frozen(model, state.variables["params"])
    learnable, frozen = (sum(x.size for x in jax.tree.leaves(part)) / 1e6 for part in parts)
    logger.info(
        "%s on %s: %.2f M learnable parameters, %.2f M frozen; %d photographs, %d items of %d base "
        "classes",
        *(config.method, config.backbone, learnable, frozen),
        *(len(source), count, len(items.class_id)),
    )

    for name in set(checkpoints.names()) - {LAST, *selected(config.train.select_on)}:
        logger.info("the checkpoint %s, which train.select_on no longer names, is deleted", name)
        checkpoints.delete(name)
    selections = [
        Selection(config, model, held_back, mesh, checkpoints, start, name, which)
        for name, which in selected(config.train.select_on).items()
    ]
    if config.train.test_before_and_after and start == 0:
        folder = workdir / "evaluation_before"
        untrained = Loaded(state.variables, "untrained")
        before = evaluate(config, model, untrained, held_back, mesh, folder)
        logger.info("held-out classes before training: %s", summary(before))

    step_function = make_step(
        model,
        make_optimizer(config.train),
        seed=config.seed,
        items=epoch,
        batch_size=config.train.batch_size,
        accumulate=config.train.accumulate,
    )
    rematerialise = config.rematerialise
    dispatch = make_dispatch(step_function, pipeline.draw, mesh, rematerialise=rematerialise)

    # ---------------------------------------------------------------- steps
    folder = str(workdir / "tensorboard")
    writer = tensorboardX.SummaryWriter(
        folder, purge_step=start + 1, write_to_disk=is_first_process()
    )
    schedule = learning_rate(config.train)
    batch_size, steps = config.train.batch_size, config.train.steps
    per_dispatch = config.train.steps_per_dispatch
    in_flight = collections.deque()
    losses, log_time = [], time.perf_counter()
    # What the last checkpoint tells of the training: the seconds are of steps alone.
    known = {"epoch": epoch, "batch_size": batch_size, "devices": describe(mesh)}
    began = time.perf_counter() - spent

    def settle(leave: int) -> None:
        """Waits until at most `leave` dispatches are in flight, and checks their losses."""
        while len(in_flight) > leave:
            first, metrics = in_flight.popleft()
            metrics = jax.device_get(metrics)
            finite = np.isfinite(metrics["loss"]) & np.isfinite(metrics["gradient_norm"])
            if not finite.all():
                bad = finite.argmin()
                kept = checkpoints.step(LAST)
                has = f"the checkpoint of step {kept} is kept" if kept else "nothing was saved"
                raise UserError(
                    f"the loss is {metrics['loss'][bad]} and the gradient's norm "
                    f"{metrics['gradient_norm'][bad]} at step {first + bad}: lower "
                    f"train.learning_rate ({config.train.learning_rate}) or train in float32; "
                    f"{has}."
                )
            losses.append(metrics)

    progress = tqdm(
        total=steps * batch_size,
        initial=start * batch_size,
        desc="training",
        unit="episode",
        dynamic_ncols=True,
    )

    def select(step: int) -> None:
        nonlocal log_time, began
        paused = time.perf_counter()
        # What is needed to resume is saved by now: SIGTERM may interrupt.
        stop.at_once = True
        if stop.received:
            raise Stopped
        scores = {f"{s.which}_mean_iou": s.score(state) for s in selections}
        scores |= {f"{s.which}_at_best_threshold": s.at_best_threshold for s in selections}
        stop.at_once = False
        for name, score in scores.items():
            if score is not None:
                writer.add_scalar(f"selection/{name}", score, step)
        writer.flush()
        paused = time.perf_counter() - paused  # which is no time of training
        log_time, began = log_time + paused, began + paused

    step = start
    with StopRequest() as stop, progress, writer, contextlib.suppress(Stopped):
        if start and (start % config.train.eval_every == 0 or start == steps):
            select(start)  # the run may have been stopped before it was done
        while step < steps:
            # A run may resume from a step between two dispatches.
            count = per_dispatch - step % per_dispatch
            fed = pipeline.feed(count)
            with jax.transfer_guard("disallow"):  # all that a step needs is on the mesh
                state, metrics = dispatch(state, fed, count)
            in_flight.append((step + 1, metrics))
            settle(max(1, IN_FLIGHT // per_dispatch))
            step += count
            progress.update(count * batch_size)
            stop.agree(step)

            if step % config.train.log_every == 0 or step == steps:
                settle(0)
                whole = jax.tree.map(lambda *parts: np.concatenate(parts), *losses)
                means = {name: values.mean() for name, values in whole.items()}
                means["learning_rate"] = float(schedule(step - 1))
                now = time.perf_counter()
                rate = len(whole["loss"]) * batch_size / (now - log_time)
                means["episodes_per_second"] = rate
                for name, value in means.items():
                    writer.add_scalar(f"train/{name}", value, step)
                writer.flush()  # a run that is killed has its curves up to here
                progress.set_postfix(step=step, loss=f"{means['loss']:.3f}")
                losses, log_time = [], now
            scores = step % config.train.eval_every == 0 or step == steps
            if scores or stop.received or step % config.train.save_every == 0:
                settle(0)
                seconds = time.perf_counter() - began
                checkpoints.save(LAST, state, config, **known, seconds=seconds)
            if stop.received:
                break
            if scores:
                select(step)

    if stop.received:
        logger.info("stopped by SIGTERM at step %d, saved; the same command continues", step)
        return False
    logger.info("trained %d steps: %s", steps, workdir)

    # ---------------------------------------------------------------- what came of it
    if config.train.test_before_and_after:
        folder = workdir / "evaluation"
        trained = load_variables(config, model, workdir, mesh, held_back)
        after = evaluate(config, model, trained, held_back, mesh, folder)
        logger.info("held-out classes after training: %s", summary(after))
        logger.info("report: %s", folder / "report.html")
    return True


def with_steps(config: ConfigDict, items: int) -> ConfigDict:
    """A copy of a configuration with `train.steps`, of as many epochs if there were none.

    Args:
        config: of the run.
        items: of one epoch, see `Items.epoch`.
    """
    config = config.copy_and_resolve_references()
    train = config.train
    if not train.steps:
        dispatches = train.epochs * items / (train.batch_size * train.steps_per_dispatch)
        train.steps = math.ceil(dispatches) * train.steps_per_dispatch
        of = "photographs" if config.data.sampling == "photographs" else "items"
        logger.info("%d epochs of %d %s are %d steps", train.epochs, items, of, train.steps)
        train.epochs = 0
    return config


class Selection:
    """Keeps the checkpoint `name`, which scores best on validation photographs of the classes
    `which` (`train.select_on`)."""

    def __init__(
        self,
        config: ConfigDict,
        model: Method,
        source: Any,
        mesh: Mesh,
        checkpoints: Checkpoints,
        start: int,
        name: str,
        which: str,
    ) -> None:
        self.config, self.checkpoints = config, checkpoints
        self.name, self.which = name, which
        episodes = draw_episodes(
            config, source, which, config.eval.seed, config.train.eval_episodes
        )
        self.episodes_hash = episodes_hash(episodes, source.ids)
        plain = config.copy_and_resolve_references()
        # Checkpoints are told apart at 0.5. A young model may rank pixels well before it calls any
        # of them the object: how well is told beside it. (DenseCRF leaves no probabilities.)
        plain.eval.threshold = "" if config.eval.crf.iterations else "base"
        self.evaluator = Evaluator(model, source, episodes, mesh, plain)
        self.names = source.class_names
        self.best = -1.0
        self.at_best_threshold: float | None = None  # mean-IoU of the last state, for its curve
        if checkpoints.step(name) is not None:
            _, info = checkpoints.describe(name)
            # Of another choice, or of steps that will be done again.
            if info["episodes_hash"] != self.episodes_hash or info["step"] > start:
                checkpoints.delete(name)
            else:
                self.best = info["mean_iou"]

    def score(self, state: TrainState) -> float:
        """The mean-IoU of a state in percent; the state is saved if it is the best so far."""
        caches = self.evaluator.encode(state.variables)
        counts = self.evaluator.score(state.variables, caches)
        border = self.config.eval.border
        classes = self.evaluator.episodes.classes
        metrics = run_metrics(counts.borders[border], classes, self.names)
        mean_iou, beside = metrics["mean_iou"], ""
        if counts.thresholds is not None:
            threshold = best_threshold(counts.thresholds, classes, THRESHOLDS)
            column = counts.thresholds[:, THRESHOLDS.index(threshold)]
            self.at_best_threshold = run_metrics(column, classes, self.names)["mean_iou"]
            beside = f", {self.at_best_threshold:.1f} at its best threshold, {threshold:.2f}"
        logger.info(
            "step %d: mean-IoU %.1f on %s classes%s (episodes %s)",
            *(state.step, mean_iou, self.which, beside, self.episodes_hash),
        )
        if mean_iou > self.best:
            self.best = mean_iou
            self.checkpoints.save(
                self.name,
                state,
                self.config,
                mean_iou=mean_iou,
                selected_on=self.which,
                classes=sorted(metrics["per_class"]),
                episodes_hash=self.episodes_hash,
            )
        return mean_iou
