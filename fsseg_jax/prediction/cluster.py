"""Segments images on a Ray cluster, whose workers see the images and the folder of results.

The driver deals chunks of images to workers, and again those of workers that died. A worker that is
lost is replaced, on another node if its own is gone. Who is done with an image writes its files,
whole, and then notes it in a journal of its own: whatever dies, an image is either noted or done
again, to the same files. (Ray Data would read the list and restart workers too, but it keeps all
rows in its object store, and gives a chunk that kills its worker to the next one without end.)
"""

import collections
import importlib
import itertools
import logging
import pathlib
import pickle
import platform
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from fsseg_jax import devices
from fsseg_jax.checksums import checksum_of_code
from fsseg_jax.data.parallel import cores
from fsseg_jax.errors import UserError
from fsseg_jax.prediction.output import Predictions, Query
from fsseg_jax.prediction.segmenter import Segmenter
from fsseg_jax.prediction.segmenting import segment_files
from fsseg_jax.progress import progress

LOCAL = "local"  # instead of an address: a cluster of this machine, for this command alone
BATCHES = (
    8  # in a chunk: more are lost with a worker, fewer have their beginning and end more often
)
AHEAD = 2  # chunks that a worker has, so that it reads one while it writes the other
TRIES = 3  # of a chunk, and then of each of its images, before that is skipped
ANSWER = 10  # seconds that a cluster has to answer
PATIENCE = 60  # seconds without any worker before it is told
STORE = 2**27  # bytes of the object store of a local cluster, which holds only the model

logger = logging.getLogger(__name__)


class Work(NamedTuple):
    """What all workers need, besides the names of images."""

    segmenter: bytes  # with its supports, pickled, as a device has to be chosen before it is made
    machine: ConfigDict  # see `devices.start`
    out: pathlib.Path
    facts: Mapping[str, Any]  # see `Predictions`
    save: Collection[str]
    batch_size: int  # images a device
    code: str  # a checksum


class Worker:
    """A process of the cluster with a device.

    Args:
        part: the number of its journal, which no other worker has.
    """

    def __init__(self, work: Work, part: int) -> None:
        self._work, self._part = work, part

    def prepare(self) -> None:
        """Takes the device and loads the model onto it.

        It is not a part of `__init__`, whose errors Ray turns into a death of unknown cause.

        Raises:
            UserError: this computer has another version of the code, or lacks something.
        """
        work = self._work
        if checksum_of_code() != work.code:
            raise UserError(
                f"{platform.node()} has other code of fsseg_jax than this computer: install the "
                "same version on all nodes of the cluster."
            )
        devices.start(work.machine)
        self._segmenter: Segmenter = pickle.loads(work.segmenter)
        self._predictions = Predictions(
            work.out, work.facts, work.save, part=self._part, read=False
        )

    def segment(self, chunk: Sequence[tuple[Query, str]]) -> dict[str, str]:
        """Segments images, whose output names the driver has chosen; returns why images were
        skipped, by name."""
        for query, output in chunk:
            self._predictions.give_name(query, output)
        queries = [query for query, _ in chunk]
        size = self._work.batch_size * self._segmenter.mesh.size
        return segment_files(self._segmenter, self._predictions, queries, size, quiet=True)


class Chunk(NamedTuple):
    """Images that a worker is given at once."""

    queries: tuple[Query, ...]
    tries: int = 0


class Deck:
    """The chunks that are still to be dealt.

    A chunk whose worker died may be what killed it: it is dealt to a worker that has nothing else,
    and if that dies as well, image by image, until what kills workers is known and skipped.
    """

    def __init__(self, queries: Sequence[Query], size: int) -> None:
        self._new = self._chunks(queries, size)
        self._next = next(self._new, None)
        self._again: collections.deque[Chunk] = collections.deque()
        self.skipped: dict[str, str] = {}

    @staticmethod
    def _chunks(queries: Sequence[Query], size: int) -> Iterator[Chunk]:
        return (Chunk((*queries[i : i + size],)) for i in range(0, len(queries), size))

    def __bool__(self) -> bool:
        return bool(self._again) or self._next is not None

    def deal(self, has: Sequence[Chunk]) -> Chunk | None:
        """A chunk for a worker that has some already, if there is one for it."""
        if not has and self._again:
            return self._again.popleft()
        if len(has) >= AHEAD or any(chunk.tries for chunk in has):
            return None
        dealt, self._next = self._next, next(self._new, None)
        return dealt

    def lost(self, chunk: Chunk, reason: str) -> int:
        """Takes back a chunk whose worker died; returns how many images are given up."""
        if chunk.tries + 1 < TRIES:
            self._again.append(Chunk(chunk.queries, chunk.tries + 1))
        elif len(chunk.queries) > 1:
            self._again.extend(Chunk((query,), 1) for query in chunk.queries)
        else:
            query = next(iter(chunk.queries))
            self.skipped[query.name] = f"{query.path} ended {TRIES} workers ({reason})."
            logger.warning("skipped: %s", self.skipped[query.name])
            return 1
        return 0


def segment_on_cluster(
    address: str,
    workers: int | None,
    work: Work,
    predictions: Predictions,
    queries: Sequence[Query],
) -> dict[str, str]:
    """Segments images on the workers of a cluster; returns why images were skipped, by name.

    Args:
        address: "auto", "local", or that of a cluster.
        workers: how many; by default one for each GPU, or for each node if there are none.

    Raises:
        UserError: Ray is not installed, the cluster is not there, or workers fail at once.
    """
    ray = _connect(address)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        nodes = sum(node["Alive"] for node in ray.nodes())
        count = min(workers or gpus or nodes, len(queries))
        logger.info("Ray: %d nodes, %d GPUs; %d workers", nodes, gpus, count)
        actor = ray.remote(Worker).options(
            num_cpus=1,
            num_gpus=1 if gpus else 0,
            max_concurrency=AHEAD,
            scheduling_strategy="SPREAD",
        )
        deck = Deck(queries, BATCHES * work.batch_size)
        return _Driver(ray, actor, ray.put(work), predictions, deck).run(count, len(queries))
    finally:
        ray.shutdown()  # which ends the workers


class _Driver:
    """Deals chunks to workers until there are none."""

    def __init__(
        self, ray: Any, actor: Any, work: Any, predictions: Predictions, deck: Deck
    ) -> None:
        self._ray, self._actor, self._work = ray, actor, work
        self._predictions, self._deck = predictions, deck
        self._parts = itertools.count(1)
        # By what Ray calls the result: the worker, and its chunk unless it is being prepared.
        self._pending: dict[Any, tuple[Any, Chunk | None]] = {}
        self._lost: set[Any] = set()  # workers
        self._deaths = 0  # since something was done

    def run(self, workers: int, images: int) -> dict[str, str]:
        """Starts the workers, and returns why images were skipped."""
        ray, skipped = self._ray, {}
        for _ in range(workers):
            self._start()
        with progress("images", images) as done_images:
            while self._deck or any(chunk for _, chunk in self._pending.values()):
                done, _ = ray.wait(list(self._pending), num_returns=1, timeout=PATIENCE)
                if not done and not any(chunk for _, chunk in self._pending.values()):
                    logger.warning("no worker has started yet: has the cluster room for one?")
                for reference in done:
                    worker, chunk = self._pending.pop(reference)
                    try:
                        found = ray.get(reference)
                    except ray.exceptions.RayTaskError as error:
                        raise _own(error) from None
                    except ray.exceptions.RayError as error:
                        done_images.update(self._bury(worker, chunk, workers, error))
                        continue
                    self._deaths = 0
                    for name, reason in (found or {}).items():
                        logger.warning("skipped: %s", reason)
                        skipped[name] = reason
                    done_images.update(len(chunk.queries) if chunk else 0)
                    self._deal(worker)
        return skipped | self._deck.skipped

    def _start(self) -> None:
        worker = self._actor.remote(self._work, next(self._parts))
        self._pending[worker.prepare.remote()] = worker, None

    def _deal(self, worker: Any) -> None:
        """Gives a worker as many chunks as it should have."""
        has = [chunk for other, chunk in self._pending.values() if other is worker and chunk]
        while (chunk := self._deck.deal(has)) is not None:
            has.append(chunk)
            named = [(query, self._predictions.output(query)) for query in chunk.queries]
            self._pending[worker.segment.remote(named)] = worker, chunk

    def _bury(self, worker: Any, chunk: Chunk | None, workers: int, error: Exception) -> int:
        """Replaces a worker that died, and returns how many images are given up."""
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        if worker not in self._lost:
            self._lost.add(worker)
            self._deaths += 1
            logger.warning("a worker is lost and replaced: %s", reason)
            if self._deaths > TRIES * workers:
                raise UserError(
                    f"workers end again and again ({reason}): see Ray's logs, and start the "
                    "command again; it continues."
                )
            self._start()
        if chunk is None:
            return 0
        given_up = self._deck.lost(chunk, reason)
        self._deaths = 0 if given_up else self._deaths
        for other in {other for other, _ in self._pending.values()} - self._lost:
            if all(chunk or other is not w for w, chunk in self._pending.values()):  # prepared
                self._deal(other)
        return given_up


def _own(error: Any) -> Exception:
    """Our error of what a worker was asked for, from Ray's."""
    return error.cause if isinstance(error.cause, UserError) else error


def _connect(address: str) -> Any:
    """Ray, connected to a cluster.

    Raises:
        UserError: it is not installed, or there is no cluster.
    """
    try:
        ray = importlib.import_module("ray")  # no import statement, as few have it
    except ImportError:
        raise UserError("--ray needs Ray: pip install 'fsseg_jax[ray]', on all nodes.") from None
    remedy = f"start one by `ray start --head`, give its address, or --ray={LOCAL}"
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:  # Ray itself would wait for minutes
        try:
            socket.create_connection((host, int(port)), timeout=ANSWER).close()
        except (OSError, OverflowError) as error:
            raise UserError(f"--ray = {address}: nobody answers ({error}): {remedy}.") from None
    alone: dict[str, Any] = {}
    if address == LOCAL:
        alone = {"num_cpus": cores(), "object_store_memory": STORE, "include_dashboard": False}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.WARNING, **alone)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"--ray = {address}: there is no cluster ({reason}): {remedy}.") from None
    return ray


def make_work(
    segmenter: Segmenter,
    predictions: Predictions,
    facts: Mapping[str, Any],
    machine: ConfigDict,
    batch_size: int,
) -> Work:
    """What workers need to segment as `segmenter` would, which has its supports."""
    return Work(
        *(pickle.dumps(segmenter), machine, predictions.folder.resolve(), facts),
        *(predictions.save, batch_size, checksum_of_code()),
    )
