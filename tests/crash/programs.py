"""The programs that are killed, and what each must have made in the end."""

import json
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import small_tables
import tiny
from drawn import draw, files_of, inside, save

from fsseg_jax.training import curves
from fsseg_jax.training.checkpoint_folder import LAST
from fsseg_jax.training.checkpoints import Checkpoints

LAUNCHER = pathlib.Path(__file__).parents[2] / "launch" / "local.py"
IMAGES = 24  # that are segmented
STEPS = 12  # of a training
# What is named by chance or by the time.
BY_CHANCE = [
    (r"events\.out\.tfevents\.[^/]*", "events"),
    (r"/d/[0-9a-f]{32}$", "/d/data"),
    (r"/(class_tables/\w+)-[0-9a-f]{16}-", r"/\1-"),
    (rf"(checkpoints/last)/(?!{STEPS}\b)\d+", r"\1/earlier"),  # a stop saves at its own step
]
Result = dict[str, Any]


class Program(NamedTuple):
    """A program of the library.

    Args:
        command: that for a folder, in which it works.
        result: what it has made there, by name; the same whenever it was killed.
        statuses: its exit status when a program that it has started was killed.
    """

    name: str
    command: Callable[[pathlib.Path], list[str]]
    result: Callable[[pathlib.Path], Result]
    statuses: Sequence[int] = ()


def _python(program: str, *words: Any) -> list[str]:
    return [sys.executable, "-m", f"fsseg_jax.{program}", *map(str, words)]


# ----------------------------------------------------------------------------- training

TRAINING = [f"--config={tiny.__file__}", "--config.data.pipeline=device"]
TRAINING += [
    f"--config.train.{field}" for field in (f"steps={STEPS}", "batch_size=2", "eval_episodes=2")
]


def train(folder: pathlib.Path) -> list[str]:
    """One process."""
    return _python("train", *TRAINING, f"--workdir={folder / 'run'}")


def train_together(folder: pathlib.Path) -> list[str]:
    """Two processes, of a device each."""
    start = [sys.executable, str(LAUNCHER), "--processes=2", "--cpu-devices=1", "--grace=2", "--"]
    return [*start, *train(folder), "--config.devices=0"]


def trained(folder: pathlib.Path) -> Result:
    """All arrays of all checkpoints and what is known of them, and the learning curves."""
    workdir = folder / "run"
    checkpoints = Checkpoints(workdir)
    last = list((checkpoints.folder / LAST).glob("*"))
    made: Result = {"kept of the last": len(last)}
    for which in checkpoints.names():
        config, info = checkpoints.describe(which)
        info.pop("seconds", None)
        made |= {f"{which}: config": config.to_json(), f"{which}: info": json.dumps(info)}
        made |= {f"{which}: {name}": array for name, array in _arrays(checkpoints, which).items()}
    for name, curve in curves.read(workdir).items():
        # A mean of steps is one of fewer where training went on from a step between two means.
        values = {step: point.value for step, point in curve.items()}
        made[f"curve of {name}"] = values if name.startswith("selection/") else sorted(values)
    return made


def _arrays(checkpoints: Checkpoints, which: str) -> dict[str, Any]:
    """The arrays of a checkpoint, without what the library does when it reads them."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    found = {}
    with ocp.StandardCheckpointer() as reader:
        for part in ("variables", "training"):
            folder = checkpoints.folder / which / str(checkpoints.step(which)) / part
            like = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
                reader.metadata(folder).item_metadata.tree,
            )
            leaves = jax.tree_util.tree_leaves_with_path(reader.restore(folder, like))
            found |= {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}
    return {name: (x.dtype.str, x.shape, x.tobytes()) for name, x in found.items()}


# ----------------------------------------------------------------------------- other programs


def predict(folder: pathlib.Path) -> list[str]:
    """With random weights, which are the same at each start."""
    if not (folder / "support").exists():
        image, boxes = draw(0, "red")
        save(folder / "support" / "red" / "0.png", image)
        save(folder / "support" / "red" / "0_mask.png", inside(boxes["red"]))
        for number in range(IMAGES):
            save(folder / "query" / f"{number % 3}" / f"{number}.jpg", draw(number, "red")[0])
    places = [f"--{name}={folder / name}" for name in ("support", "query", "out")]
    return _python("predict", f"--workdir={tiny.__file__}", *places, "--batch_size=2")


def predicted(folder: pathlib.Path) -> Result:
    """All files, but for the journal, whose lines are in the order in which images were done, and
    tell when they were written."""
    names = files_of(folder / "out") - {"journal.jsonl"}
    return {name: (folder / "out" / name).read_bytes() for name in names}


def reproduce(folder: pathlib.Path) -> list[str]:
    """Two rows of a table, one of them trained."""
    return small_tables.command(folder / "runs", "--episodes=24")


def reproduced(folder: pathlib.Path) -> Result:
    """The table."""
    return {
        f"{row['label']}: {name}": value
        for row in small_tables.figures(folder / "runs")
        for name, value in row.items()
    }


PROGRAMS = (
    Program("train", train, trained),
    Program("predict", predict, predicted),
    Program("two processes", train_together, trained, statuses=(128 + 9, 143, 130)),
    Program("reproduce", reproduce, reproduced, statuses=(1,)),
)


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names of what is in only one of two results, or not the same in both."""
    return sorted(n for n in {*one, *other} if n not in one or n not in other or one[n] != other[n])


def files(folder: pathlib.Path) -> set[str]:
    """The names of all files and folders, as if none were named by chance."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    for pattern, instead in BY_CHANCE:
        names = {re.sub(pattern, instead, name) for name in names}
    return names
