"""Traces the file operations of a Python process in one folder, and signals it before one of them.

Python imports this at its start where the folder of this file is on PYTHONPATH. An operation is a
line of RECORD bytes in the trace, so that its number is that of the line, in whichever process.
What compiled code writes (the arrays of checkpoints, by tensorstore) is not seen.
"""

import os
import signal
import sys

RECORD = 240  # bytes
FOLDERS = {"os.rename": 2, "os.mkdir": 2, "os.remove": 1, "os.rmdir": 1}  # the place of `dir_fd`
WRITING = os.O_WRONLY | os.O_RDWR


def _changed(event: str, arguments: tuple) -> str | None:
    """The path that an operation is about to change; None if it only reads."""
    if event == "open":
        path, _, flags = arguments
        return os.fsdecode(path) if flags & WRITING and not isinstance(path, int) else None
    path, folder = os.fsdecode(arguments[0]), arguments[FOLDERS[event]]
    return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path) if folder >= 0 else path


def _install(folder: str, trace: int, number: int, name: str) -> None:
    def hook(event: str, arguments: tuple) -> None:
        if event != "open" and event not in FOLDERS:
            return
        path = _changed(event, arguments)
        if path is None or not os.path.abspath(path).startswith(folder):
            return
        record = f"{event} {os.path.abspath(path).removeprefix(folder)}".encode()[: RECORD - 1]
        os.write(trace, record.ljust(RECORD - 1) + b"\n")
        if os.lseek(trace, 0, os.SEEK_CUR) == number * RECORD:
            os.kill(os.getpid(), signal.Signals[name])

    sys.addaudithook(hook)


if "CRASH_TRACE" in os.environ:
    _install(
        os.environ["CRASH_FOLDER"],
        os.open(os.environ["CRASH_TRACE"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666),
        int(os.environ["CRASH_AT"]),
        os.environ["CRASH_SIGNAL"],
    )
