"""Caches results in the user's cache folder until a file of the data set changes."""

import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import platformdirs

from fsseg_jax.data.parallel import parallel_map
from fsseg_jax.data.source import ClassTable
from fsseg_jax.files import keep


def fingerprint(files: Iterable[str | os.PathLike]) -> str:
    """Hashes the files' names, in order, their sizes and their modification times."""
    files = [os.fspath(path) for path in files]
    digest = hashlib.sha256("\n".join(files).encode())
    wanted = {}
    for path in files:
        wanted.setdefault(os.path.dirname(path), set()).add(os.path.basename(path))
    for folder in sorted(wanted):
        with os.scandir(folder or ".") as entries:  # one call per folder, not per file
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name in wanted[folder]:
                    status = entry.stat()
                    digest.update(f"{entry.path}:{status.st_size}:{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def kept_table(
    name: str, key: str, count: Callable[[Any], np.ndarray], arguments: Sequence[Any]
) -> ClassTable:
    """Computes a class table, or reads it from the user's cache folder.

    Args:
        name, key: name of the source, and a key that changes whenever the table does.
        count: counts the pixels of each class in one image, classes in the source's order.
        arguments: arguments of `count`, one per image.
    """
    cache = cache_folder("class_tables") / f"{name}-{key}.npz"
    if cache.is_file():
        with np.load(cache) as table:
            return ClassTable(table["photograph"], table["class_id"], table["pixels"])
    table = ClassTable.from_counts(parallel_map(count, arguments, f"class table of {name}"))

    def write(file: Any) -> None:
        np.savez(file, photograph=table.image, class_id=table.class_id, pixels=table.pixels)

    keep(cache, "the class table", write)
    return table


def cache_folder(kind: str) -> pathlib.Path:
    """The folder for cached results of a kind."""
    return pathlib.Path(platformdirs.user_cache_dir("fsseg_jax")) / kind
