"""The cells of a table: their runs, how they are evaluated, and existing results."""

import json
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import xxhash
from ml_collections import ConfigDict

from fsseg_jax.config import config_file, differences, joined, load_config, override
from fsseg_jax.config.checks import flatten
from fsseg_jax.data import open_source
from fsseg_jax.data.source import Source
from fsseg_jax.errors import UserError, brief
from fsseg_jax.evaluation.metrics import MEANS
from fsseg_jax.evaluation.protocol import protocol
from fsseg_jax.evaluation.published import TABLES, Row, Setting, Table
from fsseg_jax.files import write_text
from fsseg_jax.models import create_model
from fsseg_jax.training.checkpoints import LAST, Checkpoints, available

# Fields of where, how and how long a model was trained, which may differ between a run and its row.
# Those that affect a score are in its protocol, which reports differences.
FREE = (
    *("train.", "eval.", "init", "dtype", "seed", "platform", "devices", "image_size"),
    *("backbone_statistics", "annotation_width", "data.root", "data.pipeline", "data.device"),
    *("data.train_", "data.split", "data.min_pixels", "data.held_out", "data.augment"),
    *("data.sampling", "data.border"),
    *("model.dropout", "model.init_deviation", "model.metric_from_epoch"),
)
RESULTS = "results.json"
KEY = "key.json"  # the file next to results with everything that they depend on

logger = logging.getLogger(__name__)


class Run(NamedTuple):
    """A trained model in a folder."""

    folder: pathlib.Path
    config: ConfigDict
    step: int
    info: dict[str, Any]  # other metadata of its last checkpoint

    @property
    def episodes(self) -> int:
        """Number of episodes that it was trained on."""
        return self.step * self.config.train.batch_size

    @property
    def finished(self) -> bool:
        """Whether the training is complete."""
        return self.step >= self.config.train.steps > 0


class Place(NamedTuple):
    """The place of one of our figures in a table."""

    row: Row
    setting: Setting
    fold: int

    def __str__(self) -> str:
        """Such as "PANet, 1-way 1-shot, fold 0"."""
        return f"{self.row.label}, {self.setting[0]}-way {self.setting[1]}-shot, fold {self.fold}"


class Evaluation(NamedTuple):
    """The evaluation that gives a figure."""

    config: ConfigDict
    arguments: list[str]  # overrides of the run's configuration, or of the row's file
    source: Source
    target: pathlib.Path  # folder of the results
    key: list[Any]  # everything that the results depend on
    neutral: dict[str, Any]  # the protocol without the settings that the row is about


class Cell(NamedTuple):
    """A place of a table with its run, evaluation and results."""

    place: Place
    run: Run | None = None  # None if there is none, or the model is not trained
    evaluation: Evaluation | None = None  # None if the run or the data are missing
    results: dict[str, Any] | None = None
    failure: str = ""  # why training, testing or exporting the model failed


def choose(
    table: Table, rows: str | None = None, folds: str | None = None, shots: str | None = None
) -> list[Place]:
    """Chooses places of a table, by default all of them.

    Args:
        rows: labels of rows, separated by commas.
        folds: numbers of folds, separated by commas.
        shots: numbers of shots, separated by commas.

    Raises:
        UserError: the table has no such row, fold or number of shots.
    """
    wanted = _rows(rows, table)
    some_folds = _numbers("folds", folds, table.folds)
    all_shots = [shots for row in table.rows for _, shots in row.settings]
    some_shots = _numbers("shots", shots, all_shots)
    places = [
        Place(row, setting, fold)
        for row in wanted
        for setting in row.settings
        if setting[1] in some_shots
        for fold in some_folds
    ]
    if not places:
        raise UserError(f"--rows = {rows} has no figures of --shots = {shots}: choose others.")
    return places


def _numbers(option: str, words: str | None, there: Sequence[int]) -> list[int]:
    """Parses an option of numbers, all of which must be in `there`."""
    there = list(dict.fromkeys(there))
    if words is None:
        return there
    numbers = [int(word) if word.strip().isdecimal() else None for word in words.split(",")]
    if set(numbers) - set(there):
        known = ", ".join(map(str, there))
        raise UserError(f"--{option} = {words}: expected some of {known}, separated by commas.")
    return [number for number in there if number in numbers]


def _rows(words: str | None, table: Table) -> list[Row]:
    """Parses labels of rows, separated by commas; some labels contain commas themselves."""
    if words is None:
        return list(table.rows)
    known = {row.label.lower(): row for row in table.rows}
    parts, found = [part.strip().lower() for part in words.split(",")], []
    while parts:
        for count in range(len(parts), 0, -1):
            if (label := ", ".join(parts[:count])) in known:
                found.append(known[label])
                parts = parts[count:]
                break
        else:
            labels = "; ".join(row.label for row in table.rows)
            raise UserError(f"--rows: {table.name} has no row {parts[0]!r}; it has {labels}.")
    return [row for row in table.rows if row in found]


def named(name: str) -> Table:
    """The table called `name`.

    Raises:
        UserError: there is no such table.
    """
    if name not in TABLES:
        raise UserError(f"--table = {name}: choose one of {', '.join(TABLES)}.")
    return TABLES[name]


def find_runs(workdir: pathlib.Path) -> Iterator[Run]:
    """The trained models below a folder; warns of those that cannot be read."""
    for folder in sorted(path.parent for path in workdir.rglob("checkpoints") if path.is_dir()):
        checkpoints = Checkpoints(folder)
        which = available(checkpoints, LAST)
        if which is None:
            continue
        try:
            config, info = checkpoints.describe(which)
        except (UserError, OSError, ValueError) as error:  # OSError, ValueError: half written
            logger.warning("%s is ignored: %s", folder, error)
        else:
            yield Run(folder, config, info["step"], info)


def longest(runs: Sequence[Run]) -> Run | None:
    """The run with the longest training."""
    return max(runs, key=lambda run: run.step, default=None)


def training_config(place: Place) -> ConfigDict:
    """The configuration of the training that a place needs."""
    return override(load_config(config_path(place.row)), training_overrides(place))


def training_overrides(place: Place) -> list[str]:
    """Overrides of the row's configuration for training."""
    ways, shots = trained_setting(place)
    fields = [*place.row.train, f"ways={ways}", f"shots={shots}", f"data.fold={place.fold}"]
    return [f"--config.{field}" for field in fields]


def trained_setting(place: Place) -> Setting:
    """Ways and shots in training."""
    return place.setting[0], place.row.train_shots or place.setting[1]


def config_path(row: Row) -> str:
    """The file of a row's configuration, in the repository or the installed package."""
    name, _, argument = row.config.partition(":")
    path = config_file(":".join([pathlib.Path(name).stem, *filter(None, [argument])]))
    if path is None:
        raise UserError(f"configs/{name} is missing: install the package again.")
    return path


def published_episodes(place: Place, epoch: int | None) -> int | None:
    """Number of episodes in the published training of a place; None if that is not known.

    Args:
        epoch: number of episodes in an epoch, if known.
    """
    train = training_config(place).train
    if train.steps:
        return train.steps * train.batch_size
    return epoch and epoch * (place.row.epochs or train.epochs)


def matches(run: Run, wanted: ConfigDict, row: Row) -> bool:
    """Whether a run is the model that `wanted` describes.

    Args:
        row: row of the table, whose overrides for testing are ignored.
    """
    tested, trained = fields_of(row.test), fields_of(row.train)
    return run.config.method == wanted.method and all(
        name in tested or (name.startswith(FREE) and name not in trained)
        for name in differing(run, wanted)
    )


def differing(run: Run, wanted: ConfigDict) -> list[str]:
    """The fields in which a run differs from a configuration, except stages that depend on the
    pretrained weights."""
    return [
        name
        for name, (old, new) in differences(run.config, wanted).items()
        if json.dumps(old) != json.dumps(new) and not (name == "model.stages" and not new)
    ]


def fields_of(overrides: Sequence[str]) -> dict[str, str]:
    """Fields and values of overrides, with or without `--config.`."""
    pairs = (override.removeprefix("--config.").partition("=") for override in joined(overrides))
    return {name: value for name, _, value in pairs}


def locate(
    table: Table,
    place: Place,
    run: Run | None,
    overrides: Sequence[str],
    workdir: pathlib.Path,
    sources: dict[str, Source],
) -> Cell:
    """A cell with its evaluation, and its results if they exist.

    Args:
        run: its model; None if there is none, or the row needs none.
        workdir: folder that contains the tables.
        sources: cache of opened data sets, see `test_source`.
    """
    row = place.row
    if not row.config or (row.trained and run is None):
        return Cell(place)
    start = protocol_overrides(table, place)
    arguments = [*start, *(f"--config.{field}" for field in row.test), *overrides]
    base = training_config(place) if run is None else run.config
    config = override(base, arguments)
    root, needed = config.data.root, config.data.name != "shapes"
    if needed and not (root and pathlib.Path(root).is_dir()) and not data_root(overrides):
        return Cell(place, run)  # but a folder that the user names must exist
    if run is None:
        arguments = [*training_overrides(place), *arguments]

    source = test_source(config, sources)
    target = folder_of(workdir, table, place)
    trained = None if run is None else run.config
    stamp, which = (None, None) if run is None else _stamp(run, config.eval.checkpoint)
    plain = override(base, [*start, *overrides])
    neutral = protocol(plain, source, create_model(config), _neutral(trained, row), which)
    # The stamp is part of the key because a longer training replaces the weights.
    episodes = pathlib.Path(config.eval.episodes_file)
    listed = episodes.read_text() if episodes.is_file() else None
    fields = {**config.to_dict(), "platform": "", "devices": 0}
    key = json.loads(json.dumps([fields, stamp, source.fingerprint, source.digest(), listed]))
    evaluation = Evaluation(config, arguments, source, target, key, neutral)
    return Cell(place, run, evaluation, kept(evaluation))


def protocol_overrides(table: Table, place: Place) -> list[str]:
    """Overrides for the evaluation of a place, without those of its row."""
    ways, shots = place.setting
    fields = [*table.protocol, f"ways={ways}", f"shots={shots}", f"data.fold={place.fold}"]
    return [f"--config.{field}" for field in fields]


def test_source(config: ConfigDict, sources: dict[str, Source]) -> Source:
    """The test images of a configuration; opens them unless `sources` has them."""
    opened = json.dumps(config.data.to_dict() | {"fold": 0}, sort_keys=True)
    if opened not in sources:
        sources[opened] = open_source(config.data, "test")
    return sources[opened]


def table_folder(workdir: pathlib.Path, table: Table) -> pathlib.Path:
    """The folder of a table."""
    return workdir / "tables" / table.name


def folder_of(workdir: pathlib.Path, table: Table, place: Place) -> pathlib.Path:
    """The folder of the results of a place."""
    return table_folder(workdir, table) / "cells" / slug(str(place))


def data_root(overrides: Sequence[str]) -> str:
    """The override of the folder of the data set; empty if there is none."""
    return next((o for o in overrides if o.startswith("--config.data.root=")), "")


def _neutral(trained: ConfigDict | None, row: Row) -> ConfigDict | None:
    """The configuration of a training without the settings that its row is about."""
    if trained is None or not row.train:
        return trained
    plain = flatten(load_config(config_path(row)))
    copy = ConfigDict(trained.to_dict())
    copy.update_from_flattened_dict({name: plain[name] for name in fields_of(row.train)})
    return copy


def _stamp(run: Run, which: str) -> tuple[str, str]:
    """The path and time of a checkpoint, and its name."""
    checkpoints = Checkpoints(run.folder)
    found = available(checkpoints, which)
    assert found is not None  # `find_runs` returns runs with checkpoints
    path = checkpoints.folder / found / str(checkpoints.step(found))
    return f"{path}, {path.stat().st_mtime_ns}", found


def keep(evaluation: Evaluation) -> None:
    """Writes the key next to the results, for `kept`, with their checksum."""
    digest = xxhash.xxh3_64_hexdigest((evaluation.target / RESULTS).read_bytes())
    write_text(evaluation.target / KEY, json.dumps({"key": evaluation.key, RESULTS: digest}))


def forget(evaluation: Evaluation) -> None:
    """Marks existing results as outdated."""
    (evaluation.target / KEY).unlink(missing_ok=True)


def kept(evaluation: Evaluation) -> dict[str, Any] | None:
    """The results of an earlier evaluation with the same key, or None, also if they are damaged."""
    files = evaluation.target / KEY, evaluation.target / RESULTS
    if not all(file.is_file() for file in files):
        return None
    try:
        key, content = json.loads(files[0].read_bytes()), files[1].read_bytes()
        results, digest = json.loads(content), xxhash.xxh3_64_hexdigest(content)
        if isinstance(key, list):  # of an earlier version
            key = {"key": key, RESULTS: digest}
            _ = results["protocol"]["hash"], results["episodes_hash"], results["checkpoint"]
            _ = [format(results[name], ".1f") for name in MEANS]
        if key[RESULTS] != digest:
            raise ValueError("its checksum is another")
        return results if key["key"] == evaluation.key else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        logger.warning("%s is damaged, and evaluated again: %s", files[1], brief(str(error)))
        return None


def slug(words: str) -> str:
    """Text as a file name."""
    return "-".join("".join(c if c.isalnum() else " " for c in words.lower()).split())
