"""Starts a program, and kills it where chance has it."""

import contextlib
import enum
import os
import pathlib
import random
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import psutil

from .hook.sitecustomize import RECORD

HOOK = pathlib.Path(__file__).with_name("hook")
WHOLE, AFTERWARDS = 600, 60  # seconds that a program may take, and to end once it was signalled
LATER = 1.0  # seconds at most between an operation of files and a kill at a random time


class Moment(enum.StrEnum):
    """When a program is killed."""

    OPERATION = "before a file operation"
    TIME = "at a random time"


class Kind(NamedTuple):
    """What kills a program."""

    signal: signal.Signals
    moment: Moment

    def __str__(self) -> str:
        return f"{self.signal.name} {self.moment}"


KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
# A deck that kinds are dealt from: nothing can prepare for SIGKILL, so there is more of it.
DECK = [Kind(s, m) for m in Moment for s in (KILL, KILL, KILL, TERM, INT)]


class Kill(NamedTuple):
    """A kill of a kind, near the operation of files of this number, counted from 1."""

    kind: Kind
    operation: int
    rng: random.Random


class End(NamedTuple):
    """How a program ended."""

    status: int | None  # as `Popen.returncode` has it; None if it had to be ended
    operations: list[str]  # of files in its folder, in order
    killed: bool

    def strange(self, kind: Kind | None, others: Sequence[int] = ()) -> bool:
        """Whether this is no status for a program that was killed in this way, or not at all.

        `others` are statuses of a program one of whose processes was killed.
        """
        if not self.killed or kind is None:
            return self.status != 0
        return self.status not in (0, -kind.signal, 128 + kind.signal, *others)


def run(
    command: Sequence[str],
    folder: pathlib.Path,
    log: pathlib.Path,
    environment: Mapping[str, str],
    kill: Kill | None = None,
) -> End:
    """Runs a program until it and all that it has started have ended.

    Args:
        folder: the program works in it, and its operations there are counted.
        log: what the program prints is added to it.
    """
    trace = log.with_suffix(".trace")
    trace.write_bytes(b"")
    here = kill is not None and kill.kind.moment == Moment.OPERATION
    variables = {
        "CRASH_FOLDER": f"{folder}{os.sep}",
        "CRASH_TRACE": str(trace),
        "CRASH_AT": str(kill.operation if kill and here else 0),
        "CRASH_SIGNAL": kill.kind.signal.name if kill else KILL.name,
        "PYTHONPATH": os.pathsep.join([str(HOOK), os.environ.get("PYTHONPATH", "")]),
    }
    with log.open("ab") as printed:
        process = subprocess.Popen(
            command,
            env=os.environ | variables | dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            start_new_session=True,
        )
    killed, deadline = False, time.monotonic() + WHOLE
    try:
        while process.poll() is None and time.monotonic() < deadline:
            if kill and not killed and trace.stat().st_size >= kill.operation * RECORD:
                killed = here or _kill_later(process, kill, trace)
                deadline = time.monotonic() + AFTERWARDS
            time.sleep(0.005)
        status = process.poll()
        while (left := _started_with(trace)) and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        for other in _started_with(trace):
            _send(other, KILL)
        process.wait()
    operations = [line.rstrip() for line in trace.read_text(errors="replace").splitlines()]
    killed |= kill is not None and here and len(operations) >= kill.operation
    return End(None if left else status, operations, killed)


def _kill_later(process: subprocess.Popen, kill: Kill, trace: pathlib.Path) -> bool:
    """Kills a program after a while, or one or all of the programs that it has started; returns
    whether there was still something to kill."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(kill.rng.uniform(0, LATER))
        return False  # it has ended
    root = psutil.Process(process.pid)
    programs = [other for other in _started_with(trace) if _is_program(other) or other == root]
    if process.poll() is not None or not programs:
        return False
    # A scheduler or a terminal asks the one that it has started.
    asked = [[root]] if kill.kind.signal != KILL else [*([one] for one in programs), programs]
    for victim in kill.rng.choice(asked):
        _send(victim, kill.kind.signal)
    return True


def _started_with(trace: pathlib.Path) -> list[psutil.Process]:
    """The processes of a program that still run, by their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            running = process.status() != psutil.STATUS_ZOMBIE
            if running and process.environ().get("CRASH_TRACE") == str(trace):
                found.append(process)
    return found


def _is_program(process: psutil.Process) -> bool:
    """Whether it is a program of the library, and not what only watches one."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline()[1:2] == ["-m"]
    return False


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
