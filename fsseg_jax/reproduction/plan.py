"""The trainings that a table needs, their lengths and settings."""

import json
import math
import os
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from fsseg_jax.backbones import BACKBONES
from fsseg_jax.config import differences, joined, load_config, override
from fsseg_jax.data import open_source, training_items
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.tables.cells import (
    Place,
    Run,
    config_path,
    differing,
    fields_of,
    longest,
    published_episodes,
    slug,
    training_overrides,
)
from fsseg_jax.evaluation.tables.report import training_folder
from fsseg_jax.reproduction.machine import Machine
from fsseg_jax.reproduction.settings import (
    SHORT,
    SHORT_PART,
    TOGETHER,
    dispatch,
    fast,
    rounded,
    schedule,
    shared_by,
    shortened,
)
from fsseg_jax.training.state import with_steps

# Overrides of places and devices, which do not change what is trained.
PLACES = ("data.root", "platform", "devices", "distributed", "compilation_cache", "eval.")
# Fields that may change when a training is continued, for example on another machine.
CHANGEABLE = (*PLACES, "init", "dtype", "rematerialise", "data.pipeline", "data.device")
# Fields in which a run may differ from a training that the table needs and still replace it.
ALIKE = (
    *(*CHANGEABLE, "data.split", "data.min_pixels", "train.log_every", "train.save_every"),
    *("train.eval_", "train.accumulate", "train.steps", "train.epochs", "train.select_on"),
    "train.test_before",
)
LONG_NAME = 40  # characters; longer overrides are replaced by a checksum in folder names
DONE = "complete"  # a file in the folder of a training that has ended


class Training(NamedTuple):
    """A training that a table needs.

    Attributes:
        name: of its folder.
        kind: its name without fold and budget; the steps of one kind take the same time.
        place: a place of the table that needs it.
        overrides: changes to the configuration of the row.
        config: the configuration with these overrides.
        whole: number of steps of the published training, with batches of this training's size.
        scheduled: number of steps that the schedule in the row's configuration was made for.
        own: the user's overrides, without the number of steps.
        done: number of steps that its folder contains already.
    """

    name: str
    kind: str
    place: Place
    overrides: list[str]
    config: ConfigDict
    whole: int
    scheduled: int
    own: list[str]
    done: int = 0

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.config.train.steps

    @property
    def each(self) -> int:
        """Steps in one dispatch."""
        return self.config.train.steps_per_dispatch

    @property
    def batch_size(self) -> int:
        """Episodes in one step."""
        return self.config.train.batch_size

    @property
    def file(self) -> str:
        """The configuration file of the row."""
        return config_path(self.place.row)


def read_weights(words: str | None) -> dict[str, str]:
    """Parses `--weights`.

    Raises:
        UserError: the format is wrong, or there is no such file or backbone.
    """
    weights = {}
    for word in filter(None, (words or "").split(",")):
        backbone, equals, path = word.partition("=")
        if not equals:
            raise UserError(f"--weights: {word}: expected backbone=file, as in vgg16=vgg16.pth.")
        if backbone not in BACKBONES:
            raise UserError(f"--weights: {backbone}: expected one of {', '.join(BACKBONES)}.")
        if not os.path.isfile(os.path.expanduser(path)):
            raise UserError(f"--weights: {path}: there is no such file.")
        weights[backbone] = os.path.expanduser(path)
    return weights


def check_free(overrides: Sequence[str], places: Sequence[Place]) -> None:
    """Raises UserError for overrides of fields in which the columns or the rows of the table
    differ."""
    options = {"data.fold": "--folds", "shots": "--shots", "ways": "--rows"}
    rows = {place.row.label: place.row for place in places if place.row.config}.values()
    about = {name for row in rows for name in fields_of(row.train)}
    tests = [fields_of(row.test) for row in rows]
    for name in {name for test in tests for name in test}:
        if len({test.get(name) for test in tests}) > 1:
            about.add(name)
    if len({load_config(config_path(row)).backbone for row in rows}) > 1:
        about |= {"backbone", "init"}  # --weights gives each backbone its own
    for name, value in fields_of(overrides).items():
        if name in options:
            raise UserError(f"--config.{name}: the table's columns set it; use {options[name]}.")
        if name in about and (name, value) != ("init", ""):
            raise UserError(f"--config.{name}: the table's rows differ in it; choose by --rows.")


def without(overrides: Sequence[str], *fields: str) -> list[str]:
    """The overrides of all other fields."""
    return [override for override in joined(overrides) if not fields_of([override]).keys() & fields]


class Planner:
    """Determines the training that a place of a table needs, and the run that replaces it.

    Args:
        weights: files of pretrained weights by backbone, see `read_weights`.
        budget: suffix of folder names, which distinguishes trainings with different budgets.
        workdir: the folder of all runs.
    """

    def __init__(
        self,
        machine: Machine,
        overrides: Sequence[str],
        weights: Mapping[str, str],
        budget: str = "",
        workdir: pathlib.Path = pathlib.Path(),
    ) -> None:
        self.machine, self.overrides, self.weights = machine, list(overrides), weights
        self.budget, self.workdir = budget, workdir
        self._data: dict[str, tuple[int, int]] = {}

    def own(self, place: Place) -> list[str]:
        """The user's overrides for a place, with the weights of its backbone or of a variant."""
        backbone = load_config(config_path(place.row)).backbone
        fitting = [name for name in self.weights if name.startswith(backbone)]
        if not fitting:
            return list(self.overrides)
        name = min(fitting, key=len)
        weights = [f"--config.backbone={name}", f"--config.init={self.weights[name]}"]
        return [*weights, *self.overrides]

    def testing(self, place: Place) -> list[str]:
        """Overrides for the evaluation of a place."""
        # Thresholds are chosen on the same number of episodes for all rows.
        episodes = load_config(config_path(place.row)).train.eval_episodes
        fields = [f"--config.train.eval_episodes={episodes}"]
        if self.machine.platform != "cpu":
            fields += [f"--config.eval.together={TOGETHER}", "--config.dtype=bfloat16"]
        return [*fields, *self.own(place)]

    def training(self, place: Place) -> Training:
        """The training that a place needs, without a budget.

        Args:
            place: in a row that is trained.

        Raises:
            UserError: an override is wrong, or there is something wrong with the data.
        """
        base, own, file = training_overrides(place), self.own(place), config_path(place.row)
        row = override(load_config(file), base)
        asked = override(load_config(file), joined([*base, *own]))
        images, epoch = self._sizes(asked)
        batch_size = asked.train.batch_size
        scheduled = with_steps(row, epoch).train.steps
        if {"train.steps", "train.epochs"} & fields_of(own).keys():
            steps = with_steps(asked, epoch).train.steps
        else:  # the same number of episodes with any batch size
            steps = math.ceil(scheduled * row.train.batch_size / batch_size)
        own = without(own, "train.steps", "train.epochs")
        added = fast(asked, self.machine, images, steps)
        added.append("--config.train.test_before_and_after=False")  # the table has its own tests
        if "novel" not in row.train.select_on:  # for the learning curves
            added.append(f"--config.train.select_on={row.train.select_on}+novel")
        overrides = joined([*base, *added, *schedule(row, steps, scheduled), *own])
        config = override(load_config(file), overrides)
        whole = math.ceil(published_episodes(place, epoch) / batch_size)
        kind = training_folder(place, self.suffix(place)).replace(f"-fold{place.fold}", "", 1)
        return Training(self.name(place), kind, place, overrides, config, whole, scheduled, own)

    def limited(self, training: Training, steps: int) -> Training:
        """A shorter training, which uses the settings `SHORT` if it is shorter than `SHORT_PART`.

        Args:
            steps: number of steps, with the batch size of `training`.
        """
        if steps >= training.steps:
            return training
        file, own, config = training.file, training.own, training.config
        whole, overrides = training.whole, training.overrides
        row = override(load_config(file), training_overrides(training.place))
        # Some configurations have fewer steps than the published training.
        if steps < SHORT_PART * min(whole, training.steps) and config.init:
            short = [f"--config.{field}" for field in SHORT.get(config.method, ())]
            overrides = joined([*overrides, *short, *own])
            # The number of devices may not divide the smaller batch.
            train = override(row, without(overrides, "devices")).train
            if self.machine.count > 1:
                overrides.append(f"--config.{shared_by(self.machine, train)}")
            overrides = joined([*overrides, *own])
            config = override(load_config(file), overrides)
            ratio = training.batch_size / config.train.batch_size
            steps, whole = max(1, round(steps * ratio)), max(1, round(whole * ratio))
        steps = rounded(steps, config.train.steps_per_dispatch)
        fitted = [*schedule(row, steps, training.scheduled), *shortened(config, steps, whole)]
        overrides = joined([*overrides, *fitted, *own])
        config = override(load_config(file), overrides)
        return training._replace(overrides=overrides, config=config, whole=whole)

    def continued(self, training: Training, run: Run) -> Training:
        """A training that has begun, with the settings that it began with.

        Args:
            run: in its folder.
        """
        changed = {
            name: new
            for name, (_, new) in differences(training.config, run.config).items()
            if not name.startswith(CHANGEABLE) and name not in ("model.stages", "train.epochs")
        }
        changed["train.steps_per_dispatch"] = 1
        if training.each > 1:
            changed["train.steps_per_dispatch"] = dispatch(run.config, run.config.train.steps)
        if self.machine.count > 1 and "devices" not in fields_of(training.own):
            field, _, value = shared_by(self.machine, run.config.train).partition("=")
            changed[field] = value
        fields = [f"--config.{name}={value}" for name, value in changed.items()]
        overrides = joined([*training.overrides, *fields])
        config = override(load_config(training.file), overrides)
        whole = max(1, round(training.whole * training.batch_size / config.train.batch_size))
        return training._replace(overrides=overrides, config=config, whole=whole, done=run.step)

    def complete(self, place: Place, runs: Sequence[Run]) -> Run | None:
        """The run in the folder of a place's training, if it is complete.

        Args:
            place: in a row that is trained.
        """
        folder = self.workdir / self.name(place)
        own = (run for run in runs if run.folder == folder and run.finished)
        return next((run for run in own if (folder / DONE).is_file()), None)

    def existing(self, training: Training, runs: Sequence[Run]) -> Run | None:
        """A run that makes a training unnecessary: the complete run of that training, or any other
        run with the same settings that is at least as long as the training without a budget.
        """
        own = self.complete(training.place, runs)
        return own or longest([run for run in runs if self._alike(run, training)])

    def _alike(self, run: Run, training: Training) -> bool:
        wanted = training.config
        if run.folder == self.workdir / training.name or not run.finished:
            return False
        if run.episodes < training.steps * training.batch_size:
            return False
        if run.config.method != wanted.method or bool(run.config.init) != bool(wanted.init):
            return False
        free = (*ALIKE, *fields_of(training.place.row.test))
        return all(name.startswith(free) for name in differing(run, wanted))

    def name(self, place: Place) -> str:
        """The folder of a place's training, below `workdir`."""
        budget = f"-{self.budget}" if self.budget else ""
        return training_folder(place, self.suffix(place) + budget)

    def suffix(self, place: Place) -> str:
        """The suffix of folder names that distinguishes different overrides."""
        fields = fields_of(self.own(place))
        if "init" in fields:  # the weights may be moved to another folder
            fields["init"] = pathlib.Path(fields["init"]).name or "random"
        fields = {name: value for name, value in fields.items() if not name.startswith(PLACES)}
        words = " ".join(f"{name}={value}" for name, value in fields.items())
        words = slug(words.replace("=-", "=minus "))  # a slug of -1 alone would be that of 1
        if len(words) > LONG_NAME:
            words = f"{zlib.crc32(words.encode()):08x}"
        return f"-{words}" if words else ""

    def _sizes(self, config: ConfigDict) -> tuple[int, int]:
        """Number of training images, and of episodes in an epoch."""
        key = json.dumps(config.data.to_dict(), sort_keys=True)
        if key not in self._data:
            source = open_source(config.data, "train")
            items = training_items(config.data, source)
            self._data[key] = len(source), items.epoch(config.data.sampling)
        return self._data[key]
