"""Writing files so that nobody ever finds half of one, with errors in one sentence."""

import contextlib
import io
import logging
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator

from fsseg_jax.errors import UserError

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[io.BufferedWriter]:
    """A file to be written, which takes its name when it is complete; otherwise it is removed.

    Raises:
        UserError: it cannot be written.
    """
    # Always the same name, so that what a killed process has left is written over; and a short one.
    with writing(path), _whole(path, f"{zlib.crc32(os.fsencode(path.name)):08x}") as file:
        yield file


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a file that is there whole or not at all; see `replacing`."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: pathlib.Path, text: str) -> None:
    """`write_bytes` of a text as UTF-8."""
    write_bytes(path, text.encode())


def keep(path: pathlib.Path, what: str, write: Callable[[io.BufferedWriter], None]) -> None:
    """Writes a file, as `replacing` does, of something that can be made again.

    Several processes may do so at once. Where it cannot be written, a warning says so.

    Args:
        path: of the file.
        what: it holds, for the warning.
        write: gets the file.
    """
    try:
        with _whole(path, f"{os.getpid()}") as file:
            write(file)
    except OSError as error:
        logger.warning("%s cannot be kept for the next time: %s", what, error)


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


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Tells errors of the files below `path` in one sentence, as UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be written ({error.strerror or error}): make room, "
            "or choose another folder; then the same command continues."
        ) from None


def lock(file: int, folder: pathlib.Path, option: str = "--out") -> None:
    """Keeps other processes from writing into a folder, as long as `file` in it is open.

    Raises:
        UserError: one does so already.
    """
    try:
        import fcntl  # not on Windows

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{option} = {folder} is being written by another process: wait for its end, or choose "
            "another."
        ) from None
    except (ImportError, OSError):  # nor on every file system
        return
