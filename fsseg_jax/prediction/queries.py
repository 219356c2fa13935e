"""Images to segment: all in a folder and below."""

import collections
import logging
import os
import pathlib
import stat
from collections.abc import Collection, Iterator, Set

from fsseg_jax.data.listing import HIDDEN
from fsseg_jax.data.sources.folder import SUFFIXES
from fsseg_jax.errors import UserError
from fsseg_jax.prediction.output import Query

logger = logging.getLogger(__name__)


def find_queries(folder: pathlib.Path, without: Collection[pathlib.Path] = ()) -> list[Query]:
    """All images in a folder and below, sorted, except hidden ones and those in `without`.

    Links are followed. Other files, and links that lead nowhere, are left out, counted and named.

    Raises:
        UserError: there are none, or a folder cannot be read.
    """
    check_folder(folder, "--query")
    # By their real paths, as they may be given as links or relative to another folder.
    left_out = {os.path.realpath(path) for path in without}
    if os.path.realpath(folder) in left_out:
        raise UserError(f"--query = {folder} is --truth or in --out: give it a folder of its own.")
    queries, others, lost = [], [], []
    for path in _files(folder, left_out):
        if os.path.realpath(path) in left_out:
            continue
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() not in SUFFIXES:
            others.append(name)
            continue
        try:
            status = path.stat()
        except OSError:  # of a broken link, or of a file that has just been removed
            lost.append(name)
            continue
        if stat.S_ISREG(status.st_mode):
            queries.append(Query(path, name, status.st_size, status.st_mtime_ns))
        else:
            lost.append(name)
    _tell(folder, "their names are no images'", others)
    _tell(folder, "they are broken links, or no regular files", lost)
    if not queries:
        raise UserError(f"--query = {folder} holds no images ({', '.join(SUFFIXES)}): add some.")
    return sorted(queries, key=lambda query: query.name)


def _tell(folder: pathlib.Path, reason: str, names: Collection[str]) -> None:
    """Logs what is left out, if anything is."""
    if names:
        logger.info("%s: left out as %s: %d, such as %s", folder, reason, len(names), min(names))


def _files(folder: pathlib.Path, left_out: Set[str]) -> Iterator[pathlib.Path]:
    """All visible files in a folder and below, and where links in it lead.

    Each folder is visited once, by its own name if that is below `folder`, and none above `folder`
    is: links in a circle end.
    """

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}).") from None

    def is_open(path: str) -> bool:
        real = pathlib.Path(os.path.realpath(path))
        places = (real, *real.parents) if os.path.islink(path) else (real,)
        return left_out.isdisjoint(map(str, places))

    whole, seen, again = os.path.realpath(folder), set(), []
    links = collections.deque([str(folder)])
    while links:
        link = links.popleft()
        real = os.path.realpath(link)
        if real in seen or (seen and pathlib.Path(whole).is_relative_to(real)):
            again.append(os.path.relpath(link, folder))
            continue
        for place, folders, files in os.walk(link, onerror=fail):
            seen.add(os.path.realpath(place))
            visible = [name for name in folders if not name.startswith(HIDDEN)]
            below = {name: os.path.join(place, name) for name in sorted(visible)}
            below = {name: path for name, path in below.items() if is_open(path)}
            links += [path for path in below.values() if os.path.islink(path)]
            folders[:] = [
                name
                for name, path in below.items()
                if not os.path.islink(path) and os.path.realpath(path) not in seen
            ]
            yield from (pathlib.Path(place, name) for name in files if not name.startswith("."))
    _tell(folder, "the folders that they link to are taken already, or above", again)


def check_folder(folder: pathlib.Path, option: str) -> None:
    """Raises UserError unless the folder of an option is there."""
    if not os.path.isdir(folder):
        raise UserError(f"{option} = {folder}: there is no such folder.")
