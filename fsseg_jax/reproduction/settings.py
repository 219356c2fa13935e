"""Settings that depend on the machine and on the number of steps."""

import math

from ml_collections import ConfigDict

from fsseg_jax.reproduction.machine import Machine

# Settings with which a short training on a pretrained backbone learns most: little dropout, ten
# times the learning rate where that does not diverge, and more steps with smaller batches. The
# published settings are for a hundred times as many steps: CANet predicts only background for
# thousands of episodes with them, and MFNet for 800 (docs/figures.md).
SHORT: dict[str, tuple[str, ...]] = {
    "canet": ("train.learning_rate=2.5e-2", "model.init_deviation=0.0", "model.dropout=0.1"),
    "sst": ("train.batch_size=4",),
    "ltafnet": ("model.dropout=0.1",),
    "mfnet": ("train.learning_rate=2.5e-2", "model.dropout=0.1"),
}
SHORT_PART = 0.1  # trainings of a smaller part of the published one use these settings
# Number of evaluations that select checkpoints in a shortened training, and episodes of each.
SELECTIONS, SELECTION_EPISODES = 5, 200
STEPS_PER_DISPATCH = 25  # at most; an accelerator would wait for the host between single steps
TOGETHER = 16  # episodes that an accelerator evaluates as one batch
DEVICE_SHARE = 0.25  # the part of a device's memory that images may take (data.pipeline = device)


def fast(config: ConfigDict, machine: Machine, images: int, steps: int) -> list[str]:
    """Overrides that change the speed of a training and its rounding, but nothing else.

    Devices hold the images where they fit. An accelerator computes in bfloat16, which has the range
    of float32, and runs many steps in a call.
    """
    needed = 3 * images * (config.data.device.size or config.image_size) ** 2
    fits = needed < DEVICE_SHARE * machine.memory
    fields = [f"data.pipeline={'device' if fits else 'tfdata'}"]
    if machine.count > 1:
        fields.append(shared_by(machine, config.train))
    if machine.platform != "cpu":
        fields.append("dtype=bfloat16")
    if machine.platform != "cpu" and fits:
        fields.append(f"train.steps_per_dispatch={dispatch(config, steps)}")
    return [f"--config.{field}" for field in fields]


def shared_by(machine: Machine, train: ConfigDict) -> str:
    """The field for the number of devices that share a batch: the largest that divides it."""
    return f"devices={math.gcd(train.batch_size // train.accumulate, machine.count)}"


def dispatch(config: ConfigDict, steps: int) -> int:
    """The largest possible number of steps in one dispatch."""
    train = config.train
    common = math.gcd(train.log_every, train.save_every, train.eval_every, steps)
    return max(n for n in range(1, STEPS_PER_DISPATCH + 1) if common % n == 0)


def rounded(steps: float, each: int) -> int:
    """A number of steps rounded to a multiple of `each`, which is at least that."""
    return max(1, round(steps / each)) * each


def schedule(config: ConfigDict, steps: int, scheduled: int) -> list[str]:
    """Overrides that scale the learning rate schedule.

    Args:
        scheduled: number of steps that the schedule was made for.
    """
    train, ratio = config.train, steps / scheduled
    fields = {"train.steps": steps, "train.warmup": round(train.warmup * ratio)}
    if train.schedule == "step":
        fields["train.decay_every"] = max(1, round(train.decay_every * ratio))
    return [f"--config.{name}={value}" for name, value in fields.items()]


def shortened(config: ConfigDict, steps: int, whole: int) -> list[str]:
    """Overrides that scale the other fields which count steps or epochs.

    Args:
        steps: of the training, a multiple of the steps in a dispatch.
        whole: number of steps of the published training, with batches of this size.
    """
    train, each = config.train, config.train.steps_per_dispatch
    every = math.ceil(steps / SELECTIONS / each) * each
    fields = {
        "train.eval_every": every,
        "train.save_every": math.ceil(every / 4 / each) * each,
        "train.log_every": rounded(min(train.log_every, steps / 40), each),
        "train.eval_episodes": min(train.eval_episodes, SELECTION_EPISODES),
    }
    if "metric_from_epoch" in config.model:
        fields["model.metric_from_epoch"] = config.model.metric_from_epoch * steps / whole
    return [f"--config.{name}={value}" for name, value in fields.items()]
