"""Several processes that segment images into one folder, each its part of them.

They compute on their own, with their own devices and a journal of their own. Only in the beginning
they wait for each other; in the end the first waits for the others, and they for it, since JAX ends
all of them when one is gone.
"""

import contextlib
import json
import logging
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import xxhash

from fsseg_jax.devices import check_agreement, is_first_process
from fsseg_jax.files import write_text, writing
from fsseg_jax.prediction.output import Predictions, Query

ENDED = "ended-*.json"  # why images were skipped, from a process that has done its part
PAUSE = 0.2  # seconds between looks into the folder

logger = logging.getLogger(__name__)


def own_part(queries: Sequence[Query]) -> Sequence[Query]:
    """The images of this process: every n-th, so that it does not depend on what is done."""
    return queries[jax.process_index() :: jax.process_count()]


def begin(
    open_part: Callable[[int], Predictions], queries: Sequence[Query], facts: Mapping[str, Any]
) -> Predictions:
    """Opens the folder of predictions: the first process alone, which cleans it, then the others.

    Args:
        open_part: a function that opens it for a process of some number.
        facts: what must be the same for all processes, besides the queries.

    Raises:
        UserError: it cannot be opened, or another process has other facts or queries.
    """
    first = open_part(0) if is_first_process() else None
    if first is not None:
        _remove(first.folder)
    digest = xxhash.xxh3_64()
    for query in queries:
        digest.update(f"{query.name}\0{query.size}\0".encode(errors="surrogateescape"))
    check_agreement({**facts, "images": f"{len(queries)} ({digest.hexdigest()})"})
    return open_part(jax.process_index()) if first is None else first


@contextlib.contextmanager
def all_ended(predictions: Predictions, skipped: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """A context of the first process, in which all have done their parts and are collected; yields
    why images were skipped by any of them, by name. The others may end after it."""
    everywhere = dict(skipped)
    if jax.process_count() > 1:
        logger.info("waiting for the other processes to do their parts")
        files = [_file(predictions.folder, n) for n in range(1, jax.process_count())]
        while not all(file.is_file() for file in files):
            time.sleep(PAUSE)
        for file in files:
            everywhere |= json.loads(file.read_bytes())
    predictions.collect(everywhere)
    yield everywhere
    if jax.process_count() > 1:
        _remove(predictions.folder)


def end(folder: pathlib.Path, skipped: Mapping[str, str]) -> None:
    """Tells the first process, from another one whose journal is closed, that its part is done, and
    waits until the first has ended, too."""
    file = _file(folder, jax.process_index())
    write_text(file, json.dumps(dict(skipped)))
    while file.is_file():
        time.sleep(PAUSE)


def _file(folder: pathlib.Path, process: int) -> pathlib.Path:
    return folder / ENDED.replace("*", str(process))


def _remove(folder: pathlib.Path) -> None:
    for path in folder.glob(ENDED):
        with writing(path):
            path.unlink(missing_ok=True)
