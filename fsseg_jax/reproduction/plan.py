"""What a table needs: which trainings, on what machine, how long, and with which settings."""

import json
import math
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from fsseg_jax.config import joined, load_config, override
from fsseg_jax.data import open_source, training_items
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.cells import (
    Place,
    Run,
    config_path,
    longest,
    matches,
    slug,
    training_overrides,
)
from fsseg_jax.evaluation.table_report import training_folder
from fsseg_jax.training.loop import with_steps

# Settings with which a training of a small part of the published one learns most: little dropout,
# ten times the rate where that does not diverge, and more steps of smaller batches. At published settings CANet predicts
# nothing but background for thousands of episodes, and MFNet for 800: the figures are in
# docs/figures.md. Published settings are made for a hundred times as many steps.
SHORT: dict[str, tuple[str, ...]] = {
    "canet": ("train.learning_rate=2.5e-2", "model.init_deviation=0.0", "model.dropout=0.1"),
    "sst": ("train.batch_size=4",),
    "ltafnet": ("model.dropout=0.1",),
    "mfnet": ("train.learning_rate=2.5e-2", "model.dropout=0.1"),
}
SHORT_PART = 0.1  # of the published training, below which these are taken
# Of a shortened training: evaluations that select checkpoints, and episodes of each.
SELECTIONS, SELECTION_EPISODES = 5, 200
STEPS_PER_DISPATCH = (
    25  # at most, on an accelerator, which would wait for the host between single steps
)
TOGETHER = 16  # episodes that an accelerator evaluates as one batch
DEVICE_SHARE = 0.25  # of a device's memory, for the photographs of data.pipeline = device
LONG_NAME = (
    40  # characters of overrides in a folder's name, above which their checksum stands there
)
# Overrides that say where things are and what they are computed on, not what is computed.
PLACES = ("data.root", "init", "platform", "devices", "distributed", "compilation_cache", "eval.")


class Machine(NamedTuple):
    """What programs will run on."""

    platform: str  # cpu, gpu or tpu
    kind: str
    count: int  # of devices
    memory: int  # bytes of one device

    @property
    def words(self) -> str:
        """Such as "8 x gpu (NVIDIA H100)"."""
        return f"{self.count} x {self.platform} ({self.kind})"


class Training(NamedTuple):
    """One training that a table needs."""

    name: str  # of its folder
    kind: str  # its name without fold and budget: steps of a kind take the same time
    place: Place  # one of those that need it
    overrides: list[str]  # of the row's configuration
    config: ConfigDict  # with them
    whole: int  # steps of the published training, in batches of this one
    most: int  # steps without a budget: those of the published training, or what the user says

    @property
    def each(self) -> int:
        """Steps of one dispatch."""
        return self.config.train.steps_per_dispatch

    @property
    def batch_size(self) -> int:
        """Episodes a step."""
        return self.config.train.batch_size

    @property
    def file(self) -> str:
        """The row's configuration."""
        return config_path(self.place.row)


class Speed(NamedTuple):
    """What a moment of a training has shown."""

    rate: float  # episodes a second
    startup: float  # seconds until the first step is done, with its compilation


def own_overrides(place: Place, overrides: Sequence[str], weights: Mapping[str, str]) -> list[str]:
    """The user's overrides for a place.

    Args:
        place: of a table.
        overrides: of the command line.
        weights: pretrained weights by backbone; a row's backbone takes those of its name, or of a
            variant of it.
    """
    backbone = load_config(config_path(place.row)).backbone
    for name, path in weights.items():
        if name.startswith(backbone) or backbone.startswith(name):
            return [f"--config.backbone={name}", f"--config.init={path}", *overrides]
    return list(overrides)


def read_weights(words: str | None) -> dict[str, str]:
    """`--weights` as a dictionary.

    Raises:
        UserError: it is not as it should be, or there is no such file.
    """
    weights = {}
    for word in (words or "").split(","):
        if not word:
            continue
        backbone, equals, path = word.partition("=")
        if not equals:
            raise UserError(f"--weights: {word}: expected backbone=file, as in vgg16=vgg16.pth.")
        if not pathlib.Path(path).expanduser().is_file():
            raise UserError(f"--weights: {path}: there is no such file.")
        weights[backbone] = str(pathlib.Path(path).expanduser())
    return weights


def strict_fields(overrides: Sequence[str]) -> list[str]:
    """The fields in which a run must be as the user says to be one that the user asks for."""
    names = [o.split("=")[0].removeprefix("--config.") for o in joined(overrides)]
    return [name for name in names if not name.startswith(PLACES)]


def fast(config: ConfigDict, machine: Machine, photographs: int) -> list[str]:
    """Overrides that change nothing of a training but its speed, and its rounding.

    Photographs are held on the devices where they fit; an accelerator computes in bfloat16, whose
    range is that of float32, and does many steps a call.

    Args:
        config: of the training.
        machine: which it will run on.
        photographs: how many there are.
    """
    needed = 3 * photographs * (config.data.device.size or config.image_size) ** 2
    fits = needed < DEVICE_SHARE * machine.memory
    fields = [f"data.pipeline={'device' if fits else 'tfdata'}"]
    if machine.platform != "cpu":
        fields.append("dtype=bfloat16")
    if machine.platform != "cpu" and fits:
        train = config.train
        common = math.gcd(train.log_every, train.save_every, train.eval_every, train.steps)
        each = max(n for n in range(1, STEPS_PER_DISPATCH + 1) if common % n == 0)
        fields.append(f"train.steps_per_dispatch={each}")
    return [f"--config.{field}" for field in fields]


def rounded(steps: float, each: int) -> int:
    """A number of steps, at least one dispatch of `each`, as whole dispatches."""
    return max(1, round(steps / each)) * each


def shortened(config: ConfigDict, steps: int, whole: int) -> list[str]:
    """Overrides that scale a training, and all that counts steps in it, to fewer steps.

    Args:
        config: of the training.
        steps: how many to do, whole dispatches.
        whole: how many the published training has, in batches of this one.
    """
    part, train, each = steps / whole, config.train, config.train.steps_per_dispatch
    every = math.ceil(steps / SELECTIONS / each) * each
    fields = {
        "train.steps": steps,
        "train.eval_every": every,
        "train.save_every": math.ceil(every / 4 / each) * each,
        "train.log_every": rounded(min(train.log_every, steps / 40), each),
        "train.eval_episodes": min(train.eval_episodes, SELECTION_EPISODES),
        "train.warmup": round(train.warmup * part),
    }
    if train.schedule == "step":
        fields["train.decay_every"] = max(1, round(train.decay_every * part))
    if "metric_from_epoch" in config.model:
        fields["model.metric_from_epoch"] = config.model.metric_from_epoch * part
    return [f"--config.{name}={value}" for name, value in fields.items()]


class Planner:
    """Finds what a table's places have, and what has to be trained for them.

    Args:
        machine: see `Machine`.
        overrides: of the command line.
        weights: see `own_overrides`.
        budget: a suffix of folders, which tells trainings of one budget from those of another.
    """

    def __init__(
        self,
        machine: Machine,
        overrides: Sequence[str],
        weights: Mapping[str, str],
        budget: str = "",
    ) -> None:
        self.machine, self.overrides, self.weights = machine, list(overrides), weights
        self.budget = budget
        self._data: dict[str, tuple[int, int]] = {}

    def own(self, place: Place) -> list[str]:
        """The user's overrides for a place; see `own_overrides`."""
        return own_overrides(place, self.overrides, self.weights)

    def testing(self, place: Place) -> list[str]:
        """Overrides of the evaluation of a place."""
        together = f"--config.eval.together={TOGETHER}"
        return [*([together] if self.machine.platform != "cpu" else []), *self.own(place)]

    def training(self, place: Place) -> Training:
        """What a place needs to be trained, without a budget.

        Args:
            place: of a table, of a trained row.

        Raises:
            UserError: an override is wrong, or the data are.
        """
        base, own, file = training_overrides(place), self.own(place), config_path(place.row)
        published, asked = (
            override(load_config(file), base),
            override(load_config(file), base + own),
        )
        photographs, epoch = self._sizes(asked)
        added = fast(asked, self.machine, photographs)
        added.append("--config.train.test_before_and_after=False")  # tests are the table's
        if "novel" not in published.train.select_on:  # for the learning curves
            added.append(f"--config.train.select_on={published.train.select_on}+novel")
        overrides = joined([*base, *added, *own])
        config = override(load_config(file), overrides)
        episodes = with_steps(published, epoch).train.steps * published.train.batch_size
        whole = max(1, math.ceil(episodes / config.train.batch_size))
        said = {"train.steps", "train.epochs"} & {*strict_fields(own)}
        most = with_steps(config, epoch).train.steps if said else whole
        name, kind = (training_folder(place, suffix) for suffix in self.suffixes())
        kind = kind.replace(f"-fold{place.fold}", "", 1)
        return Training(name, kind, place, overrides, config, whole, most)

    def limited(self, training: Training, steps: int) -> Training:
        """A training of fewer steps, and below `SHORT_PART` with the settings for that.

        Args:
            training: see `training`.
            steps: in batches of its own.
        """
        if steps >= training.most:
            return training
        file, own = training.file, self.own(training.place)
        config, whole, overrides = training.config, training.whole, training.overrides
        if steps < SHORT_PART * whole:
            short = [f"--config.{field}" for field in SHORT.get(config.method, ())]
            overrides = joined([*overrides, *short, *own])
            config = override(load_config(file), overrides)
            ratio = training.batch_size / config.train.batch_size
            steps, whole = max(1, round(steps * ratio)), max(1, round(whole * ratio))
        steps = rounded(steps, config.train.steps_per_dispatch)
        overrides = joined([*overrides, *shortened(config, steps, whole), *own])
        config = override(load_config(file), overrides)
        return training._replace(overrides=overrides, config=config, whole=whole, most=steps)

    def run(self, training: Training, runs: Sequence[Run], least: int) -> Run | None:
        """A finished run that is what a training would give.

        Args:
            training: see `training`.
            runs: those that there are.
            least: how many episodes it must have seen.
        """
        strict, row = strict_fields(self.overrides), training.place.row
        good = [run for run in runs if run.finished and run.episodes >= least]
        return longest([run for run in good if matches(run, training.config, row, strict)])

    def suffixes(self) -> tuple[str, str]:
        """What tells the folders of the user's overrides from others, with the budget and
        without."""
        words = slug(" ".join(strict_words(self.overrides)))
        if len(words) > LONG_NAME:
            words = f"{zlib.crc32(words.encode()):08x}"
        plain = f"-{words}" if words else ""
        return f"{plain}-{self.budget}" if self.budget else plain, plain

    def _sizes(self, config: ConfigDict) -> tuple[int, int]:
        """Training photographs, and items of an epoch."""
        key = json.dumps(config.data.to_dict(), sort_keys=True)
        if key not in self._data:
            source = open_source(config.data, "train")
            items = training_items(config.data, source)
            self._data[key] = len(source), items.epoch(config.data.sampling)
        return self._data[key]


def strict_words(overrides: Sequence[str]) -> list[str]:
    """The overrides of `strict_fields`, as words for the name of a folder."""
    strict = strict_fields(overrides)
    words = [override.removeprefix("--config.") for override in joined(overrides)]
    return [word for word in words if word.split("=")[0] in strict]


def divide(
    seconds: float,
    trainings: Sequence[Training],
    speeds: Mapping[str, Speed],
    spent: Mapping[str, float],
) -> dict[str, int]:
    """Steps of each training by its name, so that all of them together take a time.

    Each gets the same time; what one does not need, because its published training takes less, is
    divided among the others.

    Args:
        seconds: for all of it, one after another.
        trainings: what is missing.
        speeds: by kind.
        spent: seconds by name that go to other things than steps: starting, and evaluations.

    Raises:
        UserError: there is no time for any step.
    """
    left = seconds - sum(spent[training.name] for training in trainings)
    if left <= 0:
        raise UserError(
            f"--minutes: starting {len(trainings)} trainings and testing them takes about "
            f"{(seconds - left) / 60:.1f} minutes, and {seconds / 60:.1f} are left; give more, "
            "choose fewer with --rows, --folds or --shots, or test less with "
            "--config.eval.episodes."
        )
    steps: dict[str, int] = {}
    needed = {t.name: t.most * t.batch_size / speeds[t.kind].rate for t in trainings}
    waiting = sorted(trainings, key=lambda training: needed[training.name])
    while waiting:
        training, share = waiting.pop(0), left / (len(waiting) + 1)
        seconds_a_step = training.batch_size / speeds[training.kind].rate
        count = max(1, int(share / seconds_a_step / training.each)) * training.each
        steps[training.name] = min(count, training.most)
        left -= steps[training.name] * seconds_a_step
    return steps
