"""The speeds of trainings, and how a time is divided among them."""

import logging
import math
import pathlib
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fsseg_jax.errors import UserError
from fsseg_jax.reproduction.plan import Training
from fsseg_jax.reproduction.processes import Children, run_program
from fsseg_jax.training import curves

# A measurement ends when there are so many values of episodes per second, the first of which
# includes the compilation, and so many seconds between the first and the last or many values.
VALUES, SECONDS, MANY = 3, 6.0, 40

logger = logging.getLogger("fsseg_jax.reproduce")


class Speed(NamedTuple):
    """The measured speed of a training."""

    rate: float  # episodes per second
    startup: float  # seconds until the first step is done, including compilation


def measure(training: Training, children: Children, slot: Mapping[str, str]) -> Speed:
    """Measures the speed of a training by running it for a few seconds.

    Raises:
        Failure: the training failed.
    """
    each = training.each
    never = 10**6 // each * each
    fields = {"steps": never, "log_every": each, "save_every": never, "eval_every": never}
    overrides = [f"--config.train.{name}={value}" for name, value in fields.items()]
    arguments = [f"--config={training.file}", *training.overrides, *overrides]
    logger.info("measuring the speed of %s", training.kind)
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
        options = {"enough": enough, "echo": False}  # its progress bar would be misleading
        run_program(children, "train", workdir, slot, arguments, **options)
        first, *others = points()
    rate = statistics.median(point.value for point in others)
    logger.info("%s: %.3g episodes per second", training.kind, rate)
    startup = first.time - began - each * training.batch_size / rate
    return Speed(rate, max(0.0, startup))


def divide(
    seconds: float,
    trainings: Sequence[Training],
    speeds: Mapping[str, Speed],
    spent: Mapping[str, float],
    slots: int = 1,
) -> dict[str, int]:
    """Divides a time among trainings.

    Each gets the same time. If one needs less, because its configuration has fewer steps, the rest
    is divided among the others.

    Args:
        seconds: for everything.
        speeds: by kind of training.
        spent: seconds, by name, for startup and evaluations.
        slots: number of trainings that run simultaneously at full speed.

    Returns:
        the number of steps of each training, by name.

    Raises:
        UserError: there is not enough time for a single step.
    """
    left = slots * seconds - sum(spent[training.name] for training in trainings)
    # A training uses only one slot, so that they are done in several rounds.
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


def duration_text(seconds: float) -> str:
    """Such as "12.5 minutes"."""
    minutes = seconds / 60
    return f"{minutes:.1f} minutes" if minutes < 100 else f"{minutes / 60:.1f} hours"
