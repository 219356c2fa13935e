"""Caches results in the user's cache folder until a file of the data set changes."""

import hashlib
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import platformdirs
import xxhash
from jaxtyping import Shaped

from fsseg_jax.data.parallel import parallel_map
from fsseg_jax.data.source import ClassTable
from fsseg_jax.errors import UserError
from fsseg_jax.files import keep

CHECKSUM = 8  # bytes
LARGE = 2**31  # bytes of a file whose verification may take seconds

logger = logging.getLogger(__name__)

# ----------------------------------------------------------------------------- keys


class Stamp(NamedTuple):
    """Identifies files without reading them."""

    fingerprint: str  # by their names, in order, their sizes and their modification times
    sizes: str  # by their sizes in order, which a copy of them has, too


def fingerprint(files: Iterable[str | os.PathLike]) -> str:
    """The `fingerprint` of the files' stamp; see `stamp`."""
    return stamp(files).fingerprint


def stamp(files: Iterable[str | os.PathLike]) -> Stamp:
    """The stamp of files.

    Raises:
        UserError: a folder or file cannot be read.
    """
    files = [os.fspath(path) for path in files]
    digest = hashlib.sha256(_bytes("\n".join(files)))
    wanted: dict[str, set[str]] = {}
    for path in files:
        wanted.setdefault(os.path.dirname(path), set()).add(os.path.basename(path))
    size_of = {}
    for folder in sorted(wanted):
        try:
            with os.scandir(folder or ".") as entries:  # one call per folder, not per file
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.name in wanted[folder]:
                        status = entry.stat()
                        line = f"{entry.path}:{status.st_size}:{status.st_mtime_ns}\n"
                        digest.update(_bytes(line))
                        size_of[os.path.join(folder, entry.name)] = status.st_size
        except OSError as error:
            raise UserError(
                f"{error.filename or folder} cannot be read ({error.strerror}): the data set has "
                "files there; restore them, or allow reading them."
            ) from None
    sizes = np.array([size_of.get(path, -1) for path in files], np.int64)
    return Stamp(digest.hexdigest()[:16], xxhash.xxh3_64_hexdigest(sizes.tobytes()))


def _bytes(text: str) -> bytes:
    """UTF-8, also of names of files that are not."""
    return text.encode(errors="surrogatepass")


def cache_folder(kind: str) -> pathlib.Path:
    """The folder for cached results of a kind."""
    return pathlib.Path(platformdirs.user_cache_dir("fsseg_jax")) / kind


# ----------------------------------------------------------------------------- tables and arrays


def kept_table(
    name: str, key: str, count: Callable[[Any], np.ndarray], arguments: Sequence[Any]
) -> ClassTable:
    """Computes a class table, or reads it from the user's cache folder.

    Args:
        name, key: name of the source, and a key that changes whenever the table does.
        count: counts the pixels of each class in one image, classes in the source's order.
        arguments: arguments of `count`, one per image.
    """

    def count_all() -> np.ndarray:
        counts = parallel_map(count, arguments, f"class table of {name}")
        table = ClassTable.from_counts(counts)
        return np.stack([table.image, table.class_id, table.pixels])

    cache = cache_folder("class_tables") / f"{name}-{key}.npy"
    return ClassTable(*np.array(kept_array(cache, "the class table", count_all)))


def kept_array(
    path: pathlib.Path, what: str, compute: Callable[[], Shaped[np.ndarray, "..."]]
) -> Shaped[np.ndarray, "..."]:
    """Maps an array from a cache file into memory, or computes and keeps it.

    Args:
        path: the cache file.
        what: what it holds, for the log.
        compute: computes the array if there is no such file, or if it is damaged.
    """
    array = load_array(path)
    if array is None:
        array = compute()
        keep(path, what, lambda file: save_array(file, array))
    return array


def save_array(file: BinaryIO, array: Shaped[np.ndarray, "..."]) -> None:
    """Writes a file of NumPy's format, followed by the XXH3 checksum of all that."""
    hashed = _Hashed(file)
    np.save(hashed, array)
    file.write(hashed.digest())


def load_array(path: str | os.PathLike) -> Shaped[np.ndarray, "..."] | None:
    """Maps an array that `save_array` wrote into memory, and verifies it.

    None if there is no such file, or if it is damaged, which is logged.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise OSError("it is not a regular file")  # a pipe would be waited for
        content = np.memmap(path, np.uint8, "r")
        if content.size > LARGE:
            logger.info("verifying %s, %.1f GiB", path, content.size / 2**30)
        if xxhash.xxh3_64_digest(content[:-CHECKSUM].data) != content[-CHECKSUM:].tobytes():
            raise ValueError("its checksum is wrong")
        return np.load(path, mmap_mode="r")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read (%s) and will be replaced.", path, error)
        return None


class _Hashed:
    """A file for `np.save` that hashes what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, xxhash.xxh3_64()

    def write(self, content: bytes) -> int:
        self._hash.update(content)
        return self._file.write(content)

    def digest(self) -> bytes:
        return self._hash.digest()
