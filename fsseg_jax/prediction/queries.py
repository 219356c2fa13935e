"""Images to segment: all in a folder and below, here or at a URL, or those that a file lists."""

import collections
import itertools
import logging
import os
import pathlib
import stat
from collections.abc import Collection, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor

from fsseg_jax.data.listing import HIDDEN, read_lines
from fsseg_jax.data.remote import is_url, list_url, read_url
from fsseg_jax.data.sources.folder import SUFFIXES
from fsseg_jax.errors import UserError
from fsseg_jax.prediction.output import Query

LISTS = ".txt"  # the suffix of a list at a URL; here, it is any file
STATS = 16  # files of a list that are looked up at once

logger = logging.getLogger(__name__)


def find_queries(place: pathlib.Path | str, without: Collection[pathlib.Path] = ()) -> list[Query]:
    """The images to segment, sorted by name, except those in `without`; see `Query`.

    Args:
        place: a folder; or a text file with a path or URL in each line, relative ones to its own
            folder; or the URL of a folder (`s3://...`, `gs://...`) or of such a text file.
        without: files and folders that are left out.

    Raises:
        UserError: there are none, or the folder or the list cannot be read.
    """
    if is_url(place):
        listed = str(place).endswith(LISTS)
        queries = _listed(place, _lines(str(place))) if listed else _in_url(str(place))
    elif os.path.isfile(place):
        queries = _listed(place, read_lines(pathlib.Path(place)))
    else:
        queries = _in_folder(pathlib.Path(place), without)
    if os.path.isfile(place) and without:
        left_out = {os.path.realpath(path) for path in without}
        queries = [query for query in queries if not _is_below(query.path, left_out)]
    queries.sort(key=lambda query: query.name)
    names = (query.name for query in queries)
    twice = [name for name, following in itertools.pairwise(names) if name == following]
    if twice:
        _tell(place, "they are listed more than once", twice)
        queries = [next(same) for _, same in itertools.groupby(queries, lambda query: query.name)]
    if not queries:
        raise UserError(f"--query = {place} holds no images ({', '.join(SUFFIXES)}): add some.")
    return queries


def _is_below(path: str, places: Set[str]) -> bool:
    real = pathlib.Path(os.path.realpath(path))
    return not places.isdisjoint(map(str, (real, *real.parents)))


def _lines(url: str) -> list[str]:
    text = read_url(url).getvalue().decode("utf-8-sig", errors="surrogateescape")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _listed(place: pathlib.Path | str, lines: Sequence[str]) -> list[Query]:
    """What a text file lists. A file that is not there is told when it is its turn."""
    url = is_url(place)
    folder = str(place).rpartition("/")[0] if url else os.path.dirname(os.path.abspath(place))

    def query(line: str) -> Query:
        if is_url(line) or is_url(folder):
            url = line if is_url(line) else f"{folder}/{line}"
            # A request for each would take hours: what has an address is taken as unchanged.
            return Query(url, _local_name(url.partition("://")[2]), 0, 0)
        path = os.path.normpath(os.path.join(folder, os.path.expanduser(line)))
        below = os.path.relpath(path, folder)
        name = _local_name(path if below.startswith("..") else below)
        try:
            status = os.stat(path)
        except OSError:
            return Query(path, name, 0, 0)
        return Query(path, name, status.st_size, status.st_mtime_ns)

    def several(lines: Sequence[str]) -> list[Query]:
        return [query(line) for line in lines]

    # Mostly waiting for the file system, if it is one of a network.
    with ThreadPoolExecutor(STATS) as pool:
        parts = [lines[i : i + 1000] for i in range(0, len(lines), 1000)]
        return list(itertools.chain.from_iterable(pool.map(several, parts)))


def _local_name(path: str) -> str:
    """A path or the rest of a URL as a name of files below a folder."""
    parts = (part for part in path.replace(os.sep, "/").split("/") if part not in ("", ".", ".."))
    return "/".join(parts)


def _in_url(url: str) -> list[Query]:
    """All images at a URL and below."""
    queries, others = [], []
    for file in list_url(url):
        name = _local_name(file.name)
        if file.url.lower().endswith(SUFFIXES):
            queries.append(Query(file.url, name, file.size, file.version))
        else:
            others.append(name)
    _tell(url, "their names are not those of images", others)
    return queries


def _in_folder(folder: pathlib.Path, without: Collection[pathlib.Path]) -> list[Query]:
    """All images in a folder and below, except hidden ones.

    Links are followed. Other files, and links that lead nowhere, are left out, counted and named.
    """
    check_folder(folder, "--query")
    # By their real paths, as they may be given as links or relative to another folder.
    left_out = {os.path.realpath(path) for path in without}
    if os.path.realpath(folder) in left_out:
        raise UserError(f"--query = {folder} is --truth or in --out: give it a folder of its own.")
    queries, others, lost = [], [], []
    start = os.path.join(folder, "")
    for path in _files(folder, left_out):
        if os.path.realpath(path) in left_out:
            continue
        name = path.removeprefix(start).replace(os.sep, "/")
        if not path.lower().endswith(SUFFIXES):
            others.append(name)
            continue
        try:
            status = os.stat(path)
        except OSError:  # of a broken link, or of a file that has just been removed
            lost.append(name)
            continue
        if stat.S_ISREG(status.st_mode):
            queries.append(Query(path, name, status.st_size, status.st_mtime_ns))
        else:
            lost.append(name)
    _tell(folder, "their names are not those of images", others)
    _tell(folder, "they are broken links, or no regular files", lost)
    return queries


def _tell(folder: pathlib.Path | str, reason: str, names: Collection[str]) -> None:
    """Logs what is left out, if anything is."""
    if names:
        logger.info("%s: left out as %s: %d, such as %s", folder, reason, len(names), min(names))


def _files(folder: pathlib.Path, left_out: Set[str]) -> Iterator[str]:
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
            yield from (os.path.join(place, name) for name in files if not name.startswith("."))
    _tell(folder, "the folders that they link to are taken already, or above", again)


def check_folder(folder: pathlib.Path, option: str) -> None:
    """Raises UserError unless the folder of an option is there."""
    if not os.path.isdir(folder):
        raise UserError(f"{option} = {folder}: there is no such folder.")
