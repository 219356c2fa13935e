"""The training loop: one story from a configuration to checkpoints."""

import collections
import logging
import math
import pathlib
import signal
import threading
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tensorboardX
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from fsseg_jax import config as configuration
from fsseg_jax.data import open_source, training_batches, training_items
from fsseg_jax.devices import describe, make_mesh, put_batch, replicated
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.evaluator import Evaluator, evaluate, summary
from fsseg_jax.evaluation.metrics import run_metrics
from fsseg_jax.evaluation.protocol import draw_episodes
from fsseg_jax.models import create_model, init_variables
from fsseg_jax.training.checkpoints import BEST, LAST, Checkpoints
from fsseg_jax.training.state import TrainState, learning_rate, make_optimizer, make_step

logger = logging.getLogger(__name__)

# Steps in flight: enough to keep the devices busy, and few enough that progress is true and a
# loss that is not finite is noticed at once.
IN_FLIGHT = 2


class StopRequest:
    """Whether SIGTERM has come, while the context is open; a second one ends the process."""

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> "StopRequest":
        self._previous = None
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _receive(self, *_: object) -> None:
        self.received = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def initial_state(model: nn.Module, config: ConfigDict, init: str) -> TrainState:
    """The state before the first step; `init` as `config.init`, or empty for random weights."""
    key = jax.random.key(config.seed)
    variables = init_variables(model, key, config.ways, config.shots, init)
    optimizer = make_optimizer(config.train).init(variables["params"])
    return TrainState(step=jnp.zeros((), jnp.int32), variables=variables, optimizer=optimizer)


def abstract_state(model: nn.Module, config: ConfigDict) -> TrainState:
    """The shapes of a state, for restoring one."""
    return jax.eval_shape(lambda: initial_state(model, config, init=""))


def train(config: ConfigDict, workdir: pathlib.Path) -> bool:
    """Trains as `config` says, from the newest checkpoint in `workdir` if there is one.

    Returns:
        whether training is complete; False if SIGTERM ended it, with a checkpoint.

    Raises:
        UserError: the configuration or the data are wrong, or the loss became infinite or NaN.
    """
    # ---------------------------------------------------------------- devices, data, model
    mesh = make_mesh(config.train.batch_size, config.devices)
    logger.info(describe(mesh))
    source = open_source(config.data, config.data.train_split)
    held_back = open_source(config.data, config.data.split)
    items = training_items(config.data, source)
    model = create_model(config)
    checkpoints = Checkpoints(workdir)
    start = checkpoints.step(LAST) or 0
    batches = training_batches(config, source, items, start)

    if start:
        checkpoints.check_same_model(LAST, config)
        saved, _ = checkpoints.describe(LAST)
        saved = configuration.from_saved(saved)
        for name, (old, new) in configuration.differences(saved, config).items():
            logger.info("changed since the checkpoint: %s was %s and is %s", name, old, new)
        state = checkpoints.restore(LAST, abstract_state(model, config), replicated(mesh))
        logger.info("resuming from step %d of %s", start, workdir)
    else:
        state = jax.device_put(initial_state(model, config, config.init), replicated(mesh))
    parameters = sum(x.size for x in jax.tree.leaves(state.variables["params"]))
    logger.info(
        "%s on %s: %.1f M learnable parameters; %d photographs, %d items of %d base classes",
        *(config.method, config.backbone, parameters / 1e6),
        *(len(source), len(items.photograph), len(items.class_id)),
    )

    if config.train.test_before_and_after and start == 0:
        folder = workdir / "evaluation_before"
        before = evaluate(config, model, state.variables, held_back, mesh, folder, "untrained")
        logger.info("held-out classes before training: %s", summary(before))

    step_function = make_step(
        model,
        make_optimizer(config.train),
        mesh,
        seed=config.seed,
        items=len(items.photograph),
        batch_size=config.train.batch_size,
    )
    selection = Selection(config, model, held_back, mesh, checkpoints)

    # ---------------------------------------------------------------- steps
    writer = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=start)
    schedule = learning_rate(config.train)
    batch_size, steps = config.train.batch_size, config.train.steps
    in_flight = collections.deque()
    losses, log_time = [], time.perf_counter()

    def settle(leave: int) -> None:
        """Waits until at most `leave` steps are in flight, and checks their losses."""
        while len(in_flight) > leave:
            step, metrics = in_flight.popleft()
            metrics = {name: float(value) for name, value in metrics.items()}
            if not math.isfinite(metrics["loss"]):
                kept = checkpoints.step(LAST)
                has = f"the checkpoint of step {kept} is kept" if kept else "nothing was saved"
                raise UserError(
                    f"the loss is {metrics['loss']} at step {step}: lower train.learning_rate "
                    f"({config.train.learning_rate}) or train in float32; {has}."
                )
            losses.append(metrics)

    progress = tqdm(
        total=steps * batch_size,
        initial=start * batch_size,
        desc="training",
        unit="episode",
        dynamic_ncols=True,
    )
    with StopRequest() as stop, progress, writer:
        for step in range(start + 1, steps + 1):
            state, metrics = step_function(state, put_batch(next(batches), mesh))
            in_flight.append((step, metrics))
            settle(IN_FLIGHT)
            progress.update(batch_size)

            if step % config.train.log_every == 0 or step == steps:
                settle(0)
                means = {name: np.mean([loss[name] for loss in losses]) for name in losses[0]}
                means["learning_rate"] = float(schedule(step - 1))
                now = time.perf_counter()
                means["episodes_per_second"] = len(losses) * batch_size / (now - log_time)
                for name, value in means.items():
                    writer.add_scalar(f"train/{name}", value, step)
                progress.set_postfix(step=step, loss=f"{means['loss']:.3f}")
                losses, log_time = [], now
            is_last = step == steps or stop.received
            if step % config.train.eval_every == 0 or step == steps:
                settle(0)
                score = selection.score(state)
                writer.add_scalar(f"selection/{config.train.select_on}_mean_iou", score, step)
                log_time = time.perf_counter()
            if step % config.train.save_every == 0 or is_last:
                settle(0)
                checkpoints.save(LAST, state, config)
            if is_last:
                break

    if stop.received and step < steps:
        logger.info("stopped by SIGTERM at step %d, saved; the same command continues", step)
        return False
    logger.info("trained %d steps: %s", steps, workdir)

    # ---------------------------------------------------------------- what came of it
    if config.train.test_before_and_after:
        folder = workdir / "evaluation"
        variables, words = load_variables(config, model, workdir, mesh)
        after = evaluate(config, model, variables, held_back, mesh, folder, words)
        logger.info("held-out classes after training: %s", summary(after))
        logger.info("report: %s", folder / "report.html")
    return True


class Selection:
    """Keeps the checkpoint that scores best on validation photographs (`train.select_on`)."""

    def __init__(
        self,
        config: ConfigDict,
        model: nn.Module,
        source: Any,
        mesh: Mesh,
        checkpoints: Checkpoints,
    ) -> None:
        self.config, self.checkpoints = config, checkpoints
        which = config.train.select_on
        if which not in ("base", "novel"):
            raise UserError(f"train.select_on = {which!r}: choose base or novel.")
        episodes = draw_episodes(
            config, source, which, config.eval.seed, config.train.eval_episodes
        )
        self.evaluator = Evaluator(
            model,
            source,
            episodes,
            mesh,
            image_size=config.image_size,
            batch_size=config.eval.batch_size,
            feature_dtype=config.eval.feature_dtype,
        )
        self.names = source.class_names
        saved = checkpoints.step(BEST) is not None
        self.best = checkpoints.describe(BEST)[1]["mean_iou"] if saved else -1.0

    def score(self, state: TrainState) -> float:
        """The mean-IoU of a state in percent; the state is saved if it is the best so far."""
        cache = self.evaluator.encode(state.variables)
        counts = self.evaluator.score(state.variables, cache)
        metrics = run_metrics(counts, self.evaluator.episodes.classes, self.names)
        mean_iou = metrics["mean_iou"]
        which = self.config.train.select_on
        logger.info("step %d: mean-IoU %.1f on %s classes", state.step, mean_iou, which)
        if mean_iou > self.best:
            self.best = mean_iou
            self.checkpoints.save(
                BEST,
                state,
                self.config,
                mean_iou=mean_iou,
                selected_on=which,
                classes=sorted(metrics["per_class"]),
            )
        return mean_iou


def load_variables(
    config: ConfigDict, model: nn.Module, workdir: pathlib.Path, mesh: Mesh
) -> tuple[Any, str]:
    """The variables that `config.eval.checkpoint` names, or fresh ones where there are none.

    Returns:
        the variables, on the mesh, and in words which they are.

    Raises:
        UserError: the checkpoint is another model's, or `eval.checkpoint` is neither best nor
            last.
    """
    which = config.eval.checkpoint
    if which not in (BEST, LAST):
        raise UserError(f"eval.checkpoint = {which!r}: choose best or last.")
    checkpoints = Checkpoints(workdir)
    if checkpoints.step(LAST) is None and checkpoints.step(BEST) is None:
        state = jax.device_put(initial_state(model, config, config.init), replicated(mesh))
        weights = (
            f"weights of {pathlib.Path(config.init).name}" if config.init else "random weights"
        )
        return state.variables, f"freshly initialised ({weights})"
    if checkpoints.step(which) is None:
        other = LAST if which == BEST else BEST
        logger.info("%s holds no %s checkpoint yet: using the %s one", workdir, which, other)
        which = other
    checkpoints.check_same_model(which, config)
    _, info = checkpoints.describe(which)
    state = checkpoints.restore(which, abstract_state(model, config), replicated(mesh))
    selected = f", best on {info['selected_on']} classes" if which == BEST else ", the last"
    return state.variables, f"step {info['step']}{selected}"
