"""Lists the files of data sets: what folders hold, and the names that files give."""

import collections
import os
import pathlib
import reprlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fsseg_jax.errors import UserError

HIDDEN = (".", "__MACOSX")  # what names of files that belong to no data set begin with
# Characters of a path, and bytes of each of its parts; systems allow no more.
LONGEST, LONGEST_PART = 4096, 255


class Listing(NamedTuple):
    """What is in a folder, sorted by name, without hidden files; links are what they lead to."""

    files: list[pathlib.Path]
    folders: list[pathlib.Path]
    broken: list[pathlib.Path]  # links that lead nowhere, and other things that are neither


def list_folder(folder: pathlib.Path) -> Listing:
    """Lists a folder.

    Raises:
        UserError: it cannot be read.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith(HIDDEN))
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read ({error.strerror}): allow reading it, or remove it."
        ) from None
    found = Listing([], [], [])
    for path in paths:
        kind = found.files if path.is_file() else found.folders if path.is_dir() else found.broken
        kind.append(path)
    return found


def list_below(folder: pathlib.Path) -> Listing:
    """The files of a folder and of all below, whatever links lead to; without folders."""
    files, folders, broken = list_folder(folder)
    seen, queue = {os.path.realpath(folder)}, collections.deque(folders)
    while queue:
        below = queue.popleft()
        if os.path.realpath(below) in seen:  # a link in a circle
            broken.append(below)
            continue
        seen.add(os.path.realpath(below))
        inside = list_folder(below)
        files, broken = [*files, *inside.files], [*broken, *inside.broken]
        queue += inside.folders
    return Listing(files, [], broken)


def left_out(paths: Sequence[object]) -> str:
    """How many files or parts of them are left out, and the first, for the log."""
    return f"{len(paths)} left out, beginning with {paths[0]}"


def is_part(name: str) -> bool:
    """Whether it can be the name of a file or folder in a folder, and of none elsewhere."""
    return not set(name) & set("/\\\0") and name not in ("", ".", "..") and _fits(name)


def _fits(part: str) -> bool:
    return len(part.encode(errors="surrogatepass")) <= LONGEST_PART


def check_name(name: str, where: str) -> None:
    """Checks the name of a file that another file gives: it must be inside of the data set.

    Links in the data set may lead anywhere: only the name counts.

    Args:
        name: a path below the data set's folder.
        where: what gives the name, for the error.

    Raises:
        UserError: the name is empty, absolute or no name at all, or has `..` in it.
    """
    windows = pathlib.PureWindowsPath(name)
    parts = {*pathlib.PurePosixPath(name).parts, *windows.parts}
    outside = ".." in parts or windows.root or pathlib.PurePath(name).anchor
    long = len(name) > LONGEST or not all(map(_fits, parts))
    if outside or not parts or "\0" in name or long:
        raise UserError(
            f"{where} = {reprlib.repr(name)}, but it must name a file inside of the data set's "
            "folder, relative to it and without '..'."
        )


def check_utf8(classes: Iterable[str], where: object) -> None:
    """Raises UserError unless the names of classes, which results contain, can be written."""
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{where} has a class of the name {name!a}, which is not UTF-8: rename it."
            ) from None


def read_lines(path: pathlib.Path) -> list[str]:
    """The lines of a text file, without those that are blank and spaces around the others.

    A file that is not UTF-8 names files as the system does (`os.fsdecode`).

    Raises:
        UserError: the file cannot be read, or is not text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): replace the file.") from None
    if b"\0" in content:
        raise UserError(f"{path} cannot be read (it is not text): replace the file.")
    text = content.decode("utf-8-sig", errors="surrogateescape")
    return [line.strip() for line in text.splitlines() if line.strip()]
