"""Writing files so that nobody ever finds half of one, with errors in one sentence."""

import contextlib
import io
import os
import pathlib
import zlib
from collections.abc import Iterator

from fsseg_jax.errors import UserError


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[io.BufferedWriter]:
    """A file to be written, which takes its name when it is complete; otherwise it is removed.

    Raises:
        UserError: it cannot be written.
    """
    # Always the same name, so that what a killed process has left is written over; and a short one.
    partial = path.with_name(f".{zlib.crc32(os.fsencode(path.name)):08x}.partial")
    with writing(path):
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
            "or choose another --out; then the same command goes on."
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
