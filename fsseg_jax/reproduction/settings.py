"""Settings that follow from the machine and from how many steps there are."""

import math

from ml_collections import ConfigDict

from fsseg_jax.reproduction.machine import Machine

# Settings with which a training of a small part of the published one, on a pretrained backbone,
# learns most: little dropout, ten times the rate where that does not diverge, and more steps of
# smaller batches. At published settings, which are made for a hundred times as many steps, CANet
# calls nothing the object for thousands of episodes, and MFNet for 800 (docs/figures.md).
SHORT: dict[str, tuple[str, ...]] = {
    "canet": ("train.learning_rate=2.5e-2", "model.init_deviation=0.0", "model.dropout=0.1"),
    "sst": ("train.batch_size=4",),
    "ltafnet": ("model.dropout=0.1",),
    "mfnet": ("train.learning_rate=2.5e-2", "model.dropout=0.1"),
}
SHORT_PART = 0.1  # of the published training, below which these are taken
# Of a shortened training: evaluations that select checkpoints, and episodes of each.
SELECTIONS, SELECTION_EPISODES = 5, 200
# At most, on an accelerator, which would wait for the host between single steps.
STEPS_PER_DISPATCH = 25
TOGETHER = 16  # episodes that an accelerator evaluates as one batch
DEVICE_SHARE = 0.25  # of a device's memory, for the photographs of data.pipeline = device


def fast(config: ConfigDict, machine: Machine, photographs: int, steps: int) -> list[str]:
    """Overrides that change nothing of a training but its speed, and its rounding.

    Photographs are held on the devices where they fit; an accelerator computes in bfloat16, whose
    range is that of float32, and does many steps a call. As many devices share a batch as divide
    it.

    Args:
        config: of the training.
        machine: which it will run on.
        photographs: how many there are.
        steps: of the training.
    """
    needed = 3 * photographs * (config.data.device.size or config.image_size) ** 2
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
    """The field that says how many devices share a batch: as many as divide it."""
    return f"devices={math.gcd(train.batch_size // train.accumulate, machine.count)}"


def dispatch(config: ConfigDict, steps: int) -> int:
    """The most steps that one dispatch may have."""
    train = config.train
    common = math.gcd(train.log_every, train.save_every, train.eval_every, steps)
    return max(n for n in range(1, STEPS_PER_DISPATCH + 1) if common % n == 0)


def rounded(steps: float, each: int) -> int:
    """A number of steps, at least one dispatch of `each`, as whole dispatches."""
    return max(1, round(steps / each)) * each


def schedule(config: ConfigDict, steps: int, scheduled: int) -> list[str]:
    """Overrides that scale all that a schedule counts in steps.

    Args:
        config: whose schedule it is.
        steps: how many there will be.
        scheduled: how many it is made for.
    """
    train, ratio = config.train, steps / scheduled
    fields = {"train.steps": steps, "train.warmup": round(train.warmup * ratio)}
    if train.schedule == "step":
        fields["train.decay_every"] = max(1, round(train.decay_every * ratio))
    return [f"--config.{name}={value}" for name, value in fields.items()]


def shortened(config: ConfigDict, steps: int, whole: int) -> list[str]:
    """Overrides that fit to fewer steps what else is counted in them, or in epochs.

    Args:
        config: of the training.
        steps: how many to do, whole dispatches.
        whole: how many the published training has, in batches of this one.
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
