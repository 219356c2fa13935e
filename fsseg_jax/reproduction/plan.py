"""What a table needs: which trainings, on what machine, how long, and with which settings."""

import json
import math
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from fsseg_jax.backbones import BACKBONES
from fsseg_jax.config import differences, joined, load_config, override
from fsseg_jax.data import open_source, training_items
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.cells import (
    Place,
    Run,
    config_path,
    longest,
    published_episodes,
    slug,
    training_overrides,
)
from fsseg_jax.evaluation.table_report import training_folder
from fsseg_jax.training.loop import with_steps

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
STEPS_PER_DISPATCH = (
    25  # at most, on an accelerator, which would wait for the host between single steps
)
TOGETHER = 16  # episodes that an accelerator evaluates as one batch
DEVICE_SHARE = 0.25  # of a device's memory, for the photographs of data.pipeline = device
LONG_NAME = (
    40  # characters of overrides in a folder's name, above which their checksum stands there
)
# Overrides that say where things are and what they are computed on, not what is trained.
PLACES = ("data.root", "platform", "devices", "distributed", "compilation_cache", "eval.")
# Fields in which a run may differ from what a training would be and still be as good.
ALIKE = (
    *(*PLACES, "init", "dtype", "rematerialise", "data.pipeline", "data.device", "data.split"),
    *("data.min_pixels", "train.log_every", "train.save_every", "train.eval_", "train.accumulate"),
    *("train.steps", "train.epochs", "train.select_on", "train.test_before"),
)
DONE = "complete"  # a file in the folder of a training that came to its end


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
    scheduled: int  # steps that the schedule of the row's configuration is made for
    own: list[str]  # those overrides that are the user's, but for steps

    @property
    def steps(self) -> int:
        """How many there are."""
        return self.config.train.steps

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
        weights: pretrained weights by backbone; a row's backbone takes those of its name, or else
            of a variant of it.
    """
    backbone = load_config(config_path(place.row)).backbone
    fitting = sorted((name for name in weights if name.startswith(backbone)), key=len)
    if not fitting:
        return list(overrides)
    name = fitting[0]
    return [f"--config.backbone={name}", f"--config.init={weights[name]}", *overrides]


def read_weights(words: str | None) -> dict[str, str]:
    """`--weights` as a dictionary.

    Raises:
        UserError: it is not as it should be, or there is no such file or backbone.
    """
    weights = {}
    for word in filter(None, (words or "").split(",")):
        backbone, equals, path = word.partition("=")
        if not equals:
            raise UserError(f"--weights: {word}: expected backbone=file, as in vgg16=vgg16.pth.")
        if backbone not in BACKBONES:
            raise UserError(f"--weights: {backbone}: expected one of {', '.join(BACKBONES)}.")
        if not pathlib.Path(path).expanduser().is_file():
            raise UserError(f"--weights: {path}: there is no such file.")
        weights[backbone] = str(pathlib.Path(path).expanduser())
    return weights


def check_free(overrides: Sequence[str], places: Sequence[Place]) -> None:
    """Raises UserError for overrides of what the table itself says, which would be the same in
    all its columns, or rows, then."""
    options = {"data.fold": "--folds", "shots": "--shots", "ways": "--rows"}
    about = {field.split("=")[0] for place in places for field in place.row.train}
    for name in fields_of(overrides):
        if name in options:
            raise UserError(f"--config.{name}: the table's columns say it; use {options[name]}.")
        if name in about:
            raise UserError(f"--config.{name}: the table's rows differ in it; choose by --rows.")


def fields_of(overrides: Sequence[str]) -> dict[str, str]:
    """Overrides as fields and values."""
    pairs = (override.removeprefix("--config.").partition("=") for override in joined(overrides))
    return {name: value for name, _, value in pairs}


def without(overrides: Sequence[str], *fields: str) -> list[str]:
    """Overrides but for those of some fields."""
    return [override for override in joined(overrides) if not fields_of([override]).keys() & fields]


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
        fields.append(f"devices={math.gcd(config.train.batch_size, machine.count)}")
    if machine.platform != "cpu":
        fields.append("dtype=bfloat16")
    if machine.platform != "cpu" and fits:
        train = config.train
        common = math.gcd(train.log_every, train.save_every, train.eval_every, steps)
        each = max(n for n in range(1, STEPS_PER_DISPATCH + 1) if common % n == 0)
        fields.append(f"train.steps_per_dispatch={each}")
    return [f"--config.{field}" for field in fields]


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
        accelerated = [f"--config.eval.together={TOGETHER}", "--config.dtype=bfloat16"]
        return [*(accelerated if self.machine.platform != "cpu" else []), *self.own(place)]

    def training(self, place: Place) -> Training:
        """What a place needs to be trained, without a budget.

        Args:
            place: of a table, of a trained row.

        Raises:
            UserError: an override is wrong, or the data are.
        """
        base, own, file = training_overrides(place), self.own(place), config_path(place.row)
        row = override(load_config(file), base)
        asked = override(load_config(file), joined([*base, *own]))
        photographs, epoch = self._sizes(asked)
        batch_size = asked.train.batch_size
        scheduled = with_steps(row, epoch).train.steps
        if {"train.steps", "train.epochs"} & fields_of(own).keys():
            steps = with_steps(asked, epoch).train.steps
        else:  # as many episodes, whatever the batch
            steps = math.ceil(scheduled * row.train.batch_size / batch_size)
        own = without(own, "train.steps", "train.epochs")
        added = fast(asked, self.machine, photographs, steps)
        added.append("--config.train.test_before_and_after=False")  # tests are the table's
        if "novel" not in row.train.select_on:  # for the learning curves
            added.append(f"--config.train.select_on={row.train.select_on}+novel")
        overrides = joined([*base, *added, *schedule(row, steps, scheduled), *own])
        config = override(load_config(file), overrides)
        whole = math.ceil(published_episodes(place, epoch) / batch_size)
        name, kind = (training_folder(place, suffix) for suffix in self.suffixes(place))
        kind = kind.replace(f"-fold{place.fold}", "", 1)
        return Training(name, kind, place, overrides, config, whole, scheduled, own)

    def limited(self, training: Training, steps: int) -> Training:
        """A training of fewer steps, and below `SHORT_PART` with the settings for that (`SHORT`).

        Args:
            training: see `training`.
            steps: in batches of its own.
        """
        if steps >= training.steps:
            return training
        file, own, config = training.file, training.own, training.config
        whole, overrides = training.whole, training.overrides
        row = override(load_config(file), training_overrides(training.place))
        if steps < SHORT_PART * whole and row.init:
            short = [f"--config.{field}" for field in SHORT.get(config.method, ())]
            overrides = joined([*overrides, *short, *own])
            config = override(load_config(file), overrides)
            ratio = training.batch_size / config.train.batch_size
            steps, whole = max(1, round(steps * ratio)), max(1, round(whole * ratio))
        steps = rounded(steps, config.train.steps_per_dispatch)
        overrides += [*schedule(row, steps, training.scheduled), *shortened(config, steps, whole)]
        overrides = joined([*overrides, *own])
        config = override(load_config(file), overrides)
        return training._replace(overrides=overrides, config=config, whole=whole)

    def run(self, training: Training, runs: Sequence[Run]) -> Run | None:
        """A run that is there already: that training, complete, or one as long as without a budget
        and with the same settings.

        Args:
            training: see `training`.
            runs: those that there are.
        """
        for run in runs:
            if run.folder.name == training.name and (run.folder / DONE).is_file():
                return run
        return longest([run for run in runs if self._alike(run, training)])

    def _alike(self, run: Run, training: Training) -> bool:
        wanted, row = training.config, training.place.row
        if run.folder.name == training.name or not run.finished:
            return False
        if run.episodes < training.steps * training.batch_size:
            return False
        if run.config.method != wanted.method or bool(run.config.init) != bool(wanted.init):
            return False
        tested = tuple(field.split("=")[0] for field in row.test)
        return not any(
            json.dumps(old) != json.dumps(new)
            for name, (old, new) in differences(run.config, wanted).items()
            if not name.startswith(ALIKE + tested) and not (name == "model.stages" and not new)
        )

    def suffixes(self, place: Place) -> tuple[str, str]:
        """What tells the folders of the user's overrides from others, with the budget and
        without."""
        fields = fields_of(self.own(place))
        if "init" in fields:  # the same weights may be elsewhere tomorrow
            fields["init"] = pathlib.Path(fields["init"]).name or "random"
        fields = {name: value for name, value in fields.items() if not name.startswith(PLACES)}
        words = slug(" ".join(f"{name}={value}" for name, value in fields.items()))
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
            f"{(slots * seconds - left) / 60:.1f} minutes, {slots} at a time, and "
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
