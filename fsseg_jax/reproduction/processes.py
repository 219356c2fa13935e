"""Child processes: they run the programs of this package, and end when this process ends."""

import contextlib
import io
import logging
import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from fsseg_jax.command_line import LEVELS
from fsseg_jax.progress import VARIABLE, on_terminal

LAST = 4096  # bytes of a log that are searched for the reason of a failure

# A separate process reads "PID" and "-PID" from its input until that is closed, which happens when
# the parent process has ended, and then kills the process groups that are still running.
_GUARD = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
left = set()
for line in sys.stdin:
    pid = int(line)
    left.add(pid) if pid > 0 else left.discard(-pid)
for pid in left:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


class Failure(Exception):
    """A program failed; the message is the reason."""


class Stopped(Exception):
    """This process was asked to stop."""


class Children:
    """Starts programs and waits for them, from any thread, while the context is open.

    SIGTERM and Ctrl-C are passed on to the children, so that a training can save a checkpoint; a
    second signal kills them. `status` is then the exit status of a process that was stopped.
    """

    def __init__(self) -> None:
        self.status: int | None = None
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.RLock()

    def __enter__(self) -> "Children":
        self._guard = subprocess.Popen(
            [sys.executable, "-c", _GUARD], stdin=subprocess.PIPE, text=True, start_new_session=True
        )
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        with self._lock:
            for child in self._running:
                _signal(child, signal.SIGKILL)
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()

    def _received(self, number: int, _: object) -> None:
        again = self.status is not None
        self.status = 128 + number
        for child in list(self._running):
            _signal(child, signal.SIGKILL if again else signal.SIGTERM)
        if again and not self._running:  # interrupts what this process itself is doing
            raise Stopped

    def run(
        self,
        command: Sequence[str],
        log: pathlib.Path,
        environment: Mapping[str, str] | None = None,
        name: str = "",
        enough: Callable[[], bool] | None = None,
        echo: bool = True,
    ) -> None:
        """Runs a program to its end.

        Args:
            log: file that the output of the program is appended to.
            environment: variables in addition to those of this process.
            name: prefix of each printed line; without one, output is passed on unchanged, including
                progress bars if this process has a terminal.
            enough: called twice a second; once it returns True, the program is killed, which is
                not a failure.
            echo: whether to print the output of the program.

        Raises:
            Failure: the program failed.
            Stopped: this process was asked to stop.
        """
        if self.status is not None:
            raise Stopped
        log.parent.mkdir(parents=True, exist_ok=True)
        begin = log.stat().st_size if log.exists() else 0
        bar = echo and not name and on_terminal()
        shown = {VARIABLE: "bar" if bar else "lines"}
        child = self._start(command, shown | dict(environment or {}))
        relay = threading.Thread(target=_relay, args=(child.stdout, log, name, echo), daemon=True)
        relay.start()
        status = self._wait(child, enough)
        relay.join()
        with self._lock:
            self._running.discard(child)
            self._tell(-child.pid)
        if self.status is not None:
            raise Stopped
        if status:
            raise Failure(reason(log, status, begin))

    def _start(self, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen:
        # With JAX's filter, the last line of a traceback would be about frames that it left out.
        unfiltered = {"JAX_TRACEBACK_FILTERING": "off"}
        child = subprocess.Popen(
            command,
            env=os.environ | unfiltered | dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # this process receives the terminal's Ctrl-C and passes it on
        )
        with self._lock:
            self._running.add(child)
            self._tell(child.pid)
        if self.status is not None:  # a signal arrived in the meantime
            _signal(child, signal.SIGTERM)
        return child

    def _wait(self, child: subprocess.Popen, enough: Callable[[], bool] | None) -> int:
        """Waits for a child and returns its exit status, which is 0 if it was killed because of
        `enough`."""
        sufficient = False
        while True:
            try:
                status = child.wait(0.5)
                return 0 if sufficient else status
            except subprocess.TimeoutExpired:
                if enough and not sufficient and enough():
                    sufficient = True
                    _signal(child, signal.SIGKILL)

    def _tell(self, pid: int) -> None:
        assert self._guard.stdin is not None
        self._guard.stdin.write(f"{pid}\n")
        self._guard.stdin.flush()


def run_program(
    children: Children,
    program: str,
    workdir: pathlib.Path,
    environment: Mapping[str, str],
    arguments: Sequence[str],
    log: pathlib.Path | None = None,
    **options: Any,
) -> None:
    """Runs a program of this package.

    Args:
        program: for example "train".
        workdir: its `--workdir`.
        environment: variables in addition to those of this process.
        log: folder of `log.txt`; `workdir` by default.
        **options: see `Children.run`.

    Raises:
        Failure: the program failed.
        Stopped: this process was asked to stop.
    """
    command = [sys.executable, "-m", f"fsseg_jax.{program}", f"--workdir={workdir}", *arguments]
    level = logging.getLevelName(logging.getLogger("fsseg_jax").level).lower()
    if level in LEVELS:
        command.append(f"--log_level={level}")
    children.run(command, (log or workdir) / "log.txt", environment, **options)


def reason(log: pathlib.Path, status: int, begin: int = 0) -> str:
    """Why a program failed: its error message, or the last line of its output.

    Args:
        log: file with its output.
        status: exit status, as in `Popen.returncode`.
        begin: position in the file where its output begins.
    """
    if status < 0:
        how = f"was killed by {signal.Signals(-status).name}"
        return f"{how}, perhaps for lack of memory" if status == -signal.SIGKILL else how
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - LAST))
        text = file.read().decode(errors="replace")
    lines = [line.rpartition("\r")[2].strip() for line in text.splitlines()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    last = next((line for line in reversed(lines) if line), f"ended with status {status}")
    return told[-1] if told else last


def _signal(child: subprocess.Popen, number: int) -> None:
    """Sends a signal to a child, which may have ended already; SIGKILL also goes to the processes
    that the child has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if number == signal.SIGKILL:
            os.killpg(child.pid, number)
        else:
            child.send_signal(number)


def _relay(printed: io.BufferedReader, log: pathlib.Path, name: str, echo: bool) -> None:
    """Copies the output of a program to its log and, if there still is one, to the terminal.

    It keeps reading if either fails; otherwise the program would block.
    """
    begun = b""
    with contextlib.suppress(OSError), log.open("ab", buffering=0) as file:
        while chunk := printed.read1():
            file.write(chunk)
            *lines, begun = (begun + chunk).split(b"\n")
            with contextlib.suppress(OSError, ValueError):
                if echo and not name:
                    sys.stderr.write(chunk.decode(errors="replace"))
                    sys.stderr.flush()
                for line in lines if echo and name else ():
                    text = line.decode(errors="replace").rpartition("\r")[2]  # a bar's last state
                    if text.strip():
                        tqdm.write(f"[{name}] {text}", file=sys.stderr)
    while printed.read1():
        pass
