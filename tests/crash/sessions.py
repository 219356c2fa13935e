"""Sessions: a program is killed some times and then runs to its end, which is compared."""

import collections
import os
import pathlib
import random
import shutil
from collections.abc import Callable
from typing import NamedTuple

from .kills import DECK, End, Kill, Kind, run
from .programs import Program, differences, files

# Whether it is a fault too, and not only counted, that files are left which an uninterrupted run
# does not have, or that points of learning curves are missing.
STRICT = True
TOLD = 3  # differences


class Fault(NamedTuple):
    """Something that was lost or left, and the kills before it."""

    program: str
    what: str
    kills: tuple[str, ...]
    log: pathlib.Path


class Row(NamedTuple):
    """How often a program was killed in one way, and in how many of them something was lost."""

    kills: int = 0
    lost: int = 0
    stale: int = 0


class Attack:
    """Kills a program again and again.

    Args:
        folder: a folder for all that is written; that of a session with a fault is kept.
    """

    def __init__(self, program: Program, folder: pathlib.Path, seed: int) -> None:
        self.program, self.folder = program, folder
        self.rng = random.Random(f"{program.name} {seed}")
        self.rows: dict[Kind, Row] = {kind: Row() for kind in dict.fromkeys(DECK)}
        self.faults: list[Fault] = []
        self.stale: collections.Counter[str] = collections.Counter()
        self.sessions = 0
        self._deck: list[Kind] = []

    def begin(self) -> None:
        """Runs the program to its end, uninterrupted, for the result that all others must have."""
        folder = self.folder / "uninterrupted"
        end = self._start(folder)
        assert end.status == 0, folder.with_suffix(".log").read_text()[-2000:]
        self.result, self.files = self.program.result(folder), files(folder)
        self.operations = len(end.operations)
        assert self.operations, "no operation of files was seen"

    @property
    def kills(self) -> int:
        """How often the program was killed."""
        return sum(row.kills for row in self.rows.values())

    def session(self, kills: int, progress: Callable[[], object] = lambda: None) -> None:
        """Kills the program so many times, or until it is done, and compares what it has made.

        Args:
            progress: called after each kill.
        """
        folder = self.folder / f"{self.sessions}"
        self.sessions += 1
        done, met, what = 0, [], ""
        for number in range(kills + 1):
            kind = self._deal() if number < kills else None
            # Of an operation that is probably still to come.
            left = max(self.operations - done, self.operations // 4, 1)
            kill = kind and Kill(kind, self.rng.randint(1, left), self.rng)
            end = self._start(folder, kill)
            done += len(end.operations)
            if kill is not None and end.killed:
                met.append((kind, f"{kind} {kill.operation}, {end.operations[kill.operation - 1]}"))
                progress()
            if end.strange(kind, self.program.statuses):
                what = "did not end" if end.status is None else f"ended with status {end.status}"
                break
            if end.status == 0:
                break
        self._judge(folder, met, what)

    def _judge(self, folder: pathlib.Path, met: list[tuple[Kind, str]], what: str) -> None:
        """Compares what a session has made with what it should have made."""
        left = []
        if not what:
            lost = differences(self.program.result(folder), self.result)
            left = [*files(folder) - self.files, *(name for name in lost if "curve" in name)]
            lost = [name for name in lost if name not in left]
            what = f"{_first(lost)} not as they should be" if lost else ""
            self.stale.update(left)
        for kind, _ in met:
            row = self.rows[kind]
            self.rows[kind] = Row(row.kills + 1, row.lost + bool(what), row.stale + bool(left))
        if not what and left and STRICT:
            what = f"{_first(sorted(left))} left or incomplete"
        if what:
            log = folder.with_suffix(".log")
            self.faults.append(Fault(self.program.name, what, tuple(t for _, t in met), log))
        else:
            shutil.rmtree(folder)

    def _start(self, folder: pathlib.Path, kill: Kill | None = None) -> End:
        folder.mkdir(parents=True, exist_ok=True)
        environment = {
            "XDG_CACHE_HOME": str(folder / "cache"),
            "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR")
            or str(self.folder.parent / "compiled"),
        }
        log = folder.with_suffix(".log")
        return run(self.program.command(folder), folder, log, environment, kill)

    def _deal(self) -> Kind:
        if not self._deck:
            self._deck = self.rng.sample(DECK, len(DECK))
        return self._deck.pop()


def _first(names: list[str]) -> str:
    """The first of some names, and how many there are."""
    return f"{', '.join(names[:TOLD])} ({len(names)} in all)"
