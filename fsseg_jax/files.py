"""Atomic writing of files, and locks, with errors in one sentence."""

import contextlib
import io
import logging
import os
import pathlib
import platform
import re
import shutil
import zlib
from collections.abc import Callable, Iterator

import psutil

from fsseg_jax.errors import UserError

_PARTIAL = re.compile(r"\.[0-9a-f]{8}\.partial")  # what `replacing` writes to

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[io.BufferedWriter]:
    """Opens a file for writing that gets its name when it is complete, and is removed otherwise.

    Raises:
        UserError: the file cannot be written.
    """
    # The temporary name is always the same, so that a file left by a killed process is overwritten.
    if not path.name or os.path.isdir(path):
        raise UserError(f"{path} is a folder: name a file.")
    with writing(path), _whole(path, f"{zlib.crc32(os.fsencode(path.name)):08x}") as file:
        yield file


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a whole file or none; see `replacing`."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes text as UTF-8, like `write_bytes`; bytes of names that are not become `\\udc..`."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def keep(path: pathlib.Path, what: str, write: Callable[[io.BufferedWriter], None]) -> None:
    """Writes a cache file atomically; if that fails, it only logs a warning about `what` it holds.

    Several processes may write the same file at once.
    """
    try:
        remove_left(path.parent)
        with _whole(path, _own_name()) as file:
            write(file)
    except OSError as error:
        logger.warning("%s cannot be kept for the next time in %s: %s", what, path, error)


def temporary_folder(path: pathlib.Path) -> pathlib.Path:
    """Makes a folder in which this process prepares what becomes the cache folder `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_left(path.parent)
    folder = path.with_name(f".{_own_name()}.partial")
    shutil.rmtree(folder, ignore_errors=True)  # of a process that had the same number
    folder.mkdir()
    return folder


def remove_left(folder: pathlib.Path) -> None:
    """Removes what processes of this computer that were killed have left in a cache folder."""
    for path in folder.glob(".*.partial"):
        host, _, number = path.name[1 : -len(".partial")].rpartition("-")
        dead = host == platform.node() and number.isdecimal() and not psutil.pid_exists(int(number))
        if dead and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif dead:
            path.unlink(missing_ok=True)


def _own_name() -> str:
    """A name that no other process takes, not even of another computer with the same folder."""
    return f"{platform.node()}-{os.getpid()}"


@contextlib.contextmanager
def _whole(path: pathlib.Path, name: str) -> Iterator[io.BufferedWriter]:
    partial = path.with_name(f".{name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def remove_partial(folder: pathlib.Path) -> None:
    """Removes what killed processes have left of files in a folder and below that were never
    complete; no process may be writing there.

    Raises:
        UserError: they cannot be removed.
    """
    with writing(folder):
        for place, _, files in os.walk(folder):
            for name in files:
                if _PARTIAL.fullmatch(name):
                    pathlib.Path(place, name).unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Turns errors of files below `path` into UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be written ({error.strerror or error}): make room, "
            "or choose another folder; then the same command continues."
        ) from None


def lock(file: int, folder: pathlib.Path, option: str = "--out") -> None:
    """Keeps other processes from writing into a folder, as long as `file` in it is open.

    This is not filelock's lock, because that falls back to marker files where a file system has no
    locks, and a killed process would leave them behind.

    Raises:
        UserError: another process is writing into the folder.
    """
    try:
        import fcntl  # not on Windows

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{option} = {folder} is being written by another process{_holder(file)}: wait for it "
            "to end, or choose another folder."
        ) from None
    except (ImportError, OSError):  # nor supported by every file system
        return


def _holder(file: int) -> str:
    """Who has locked a file, where Linux tells it."""
    try:
        locks = pathlib.Path("/proc/locks").read_text().splitlines()
        wanted = f":{os.fstat(file).st_ino}"
        held = (line.split() for line in locks if " FLOCK " in line and "->" not in line)
        return next(f" (pid {fields[4]})" for fields in held if fields[5].endswith(wanted))
    except (OSError, IndexError, StopIteration):
        return ""
