"""The folder of a run's checkpoints on the disk, without Orbax."""

import pathlib
import shutil

import jax
from jax.experimental import multihost_utils

from fsseg_jax.devices import check_agreement
from fsseg_jax.training.state import TrainState

LAST, BEST = "last", "best"  # there can also be "best_novel" and the like
_UNFINISHED = ".orbax-checkpoint-tmp"  # part of the names of folders that Orbax has not finished


def is_ours(name: str) -> bool:
    """Whether it is the name of a run's checkpoint, rather than of a copy that somebody made."""
    return name in (LAST, BEST) or name.startswith(f"{BEST}_")


def most(which: str) -> int:
    """How many checkpoints of a name are kept: two of the last, so that there is a good one if
    training has diverged, or one is damaged."""
    return 2 if which == LAST else 1


def clean(folder: pathlib.Path) -> None:
    """Removes what writers that were killed have left; only while nobody else writes.

    Raises:
        UserError: several processes see different checkpoints.
    """
    # Orbax's managers would wait for those of the other processes.
    folders = [path for path in sorted(folder.glob("*")) if is_ours(path.name)]
    if jax.process_index() == 0:
        left = [path for below in folders for path in below.glob(f"*{_UNFINISHED}*")]
        for below in folders:  # Orbax may have been killed while it removed the oldest
            left += _steps(below)[: -most(below.name)]
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("checkpoints are clean")
    steps = {below.name: [path.name for path in _steps(below)] for below in folders}
    check_agreement({f"checkpoints in {folder}": steps})


def check_room(folder: pathlib.Path, state: TrainState) -> None:
    """Raises OSError if a disk has no room for a state, which Orbax would find out with noise."""
    folder.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(folder).free, sum(x.nbytes for x in jax.tree.leaves(state))
    if free < needed:
        raise OSError(f"{free / 2**20:.0f} MiB are free, but it needs {needed / 2**20:.0f}")


def _steps(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folders of a checkpoint's steps, in ascending order."""
    found = [path for path in folder.glob("*") if path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))
