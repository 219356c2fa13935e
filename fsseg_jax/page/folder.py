"""The folder of a page: what is uploaded to it, and what it answers, while it is open.

Other users of the computer cannot look into it, other pages have folders of their own, and it goes
when the process ends. What a killed process left behind goes when the next page starts.
"""

import atexit
import contextlib
import functools
import os
import pathlib
import secrets
import shutil
import stat
import tempfile
import time

PREFIX = "fsseg_jax_demo_"
LOCK = "lock"  # a file that a page locks as long as it lives
STARTING = 3600  # seconds in which an empty folder may be that of a page that is just starting
TRIES = 10  # to remove a folder that is being written into
SMALLEST = 4096  # bytes that a file takes at least: many empty ones fill a disk, too

FOLDER = pathlib.Path(tempfile.gettempdir()).resolve() / f"{PREFIX}{secrets.token_hex(8)}"


@functools.cache
def create() -> pathlib.Path:
    """Creates the folder of this process, once, and sees to its removal."""
    _remove_abandoned(FOLDER.parent)
    FOLDER.mkdir(mode=0o700)  # fails if somebody else has made it
    atexit.register(remove)
    _lock_for_life(FOLDER)
    return FOLDER


def remove() -> None:
    """Removes the folder of this process."""
    _remove(FOLDER)


def _remove(folder: pathlib.Path) -> None:
    """Removes a folder, its lock last: if this is killed, the next page removes the rest. Threads
    of this process may still be writing into it."""
    for _ in range(TRIES):
        for path in [x for x in folder.glob("*") if x.name != LOCK]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()
        with contextlib.suppress(OSError):
            if {*os.listdir(folder)} <= {LOCK}:
                (folder / LOCK).unlink(missing_ok=True)
                folder.rmdir()
        if not folder.exists():
            return


def used() -> int:
    """Bytes that the folder takes."""
    total = 0
    for folder, _, names in os.walk(FOLDER):
        for name in names:
            with contextlib.suppress(OSError):  # removed meanwhile
                total += max(SMALLEST, os.lstat(os.path.join(folder, name)).st_size)
    return total


def _lock_for_life(folder: pathlib.Path) -> None:
    """Locks the folder until the process ends, however it does."""
    try:
        import fcntl  # not on Windows
    except ImportError:
        return
    # It gets its name when it is locked: nobody ever sees an unlocked one of a living process.
    new = folder / f"{LOCK}.new"
    file = os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # a file system without locks: the folder is never taken for an abandoned one
        os.close(file)
    else:
        new.rename(folder / LOCK)


def _remove_abandoned(parent: pathlib.Path) -> None:
    """Removes the folders of this user whose lock nobody holds."""
    try:
        import fcntl
    except ImportError:
        return
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                continue
            if not (folder / LOCK).exists() and time.time() > status.st_mtime + STARTING:
                folder.rmdir()  # of a page that was killed as it began or ended, if it is empty
            file = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its page lives
                _remove(folder)
            finally:
                os.close(file)
