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

PREFIX = "fsseg_jax_demo_"
LOCK = "lock"  # a file that a page locks as long as it lives
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
    shutil.rmtree(FOLDER, ignore_errors=True)


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
            file = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its page lives
                shutil.rmtree(folder)
            finally:
                os.close(file)
