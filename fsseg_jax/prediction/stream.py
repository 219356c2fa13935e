"""Segments a stream of images in batches: reading, the network and resizing overlap."""

import collections
import contextlib
import functools
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image

from fsseg_jax.data.parallel import cores
from fsseg_jax.data.source import LabelledImage
from fsseg_jax.data.squares import square
from fsseg_jax.errors import UserError, brief
from fsseg_jax.evaluation.parts import scaled_side
from fsseg_jax.prediction.forward import Segmented
from fsseg_jax.prediction.pictures import as_image, is_image
from fsseg_jax.prediction.result import CRF_SIDE

# Bytes of results that are ready or in work before they are taken; one may have more.
RESULTS = 2**30


class Query(NamedTuple):
    """An image to segment."""

    # As the network's square, at each of `eval.scales`.
    views: tuple[UInt8[np.ndarray, "size size 3"], ...]
    shape: tuple[int, int]  # height and width of the image itself
    small: UInt8[np.ndarray, "height width 3"] | None = None  # for DenseCRF, if it is asked for


def check_images(images: Any, batch_size: Any) -> None:
    """Raises UserError unless `images` is an iterable of images, and `batch_size` a size."""
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise UserError(f"batch_size = {brief(batch_size)}: it must be an integer of at least 1.")
    one = is_image(images) or getattr(images, "ndim", None) == 0
    if one or not isinstance(images, Iterable):
        kind = type(images).__name__
        raise UserError(f"images is of type {kind}: give an iterable of images.")


def in_batches(
    images: Iterable[Any],
    read: Callable[[int, Any], Query | UserError],
    compute: Callable[[Sequence[Query], int], Iterator[Any]],
    finish: Callable[[Any, Query], Any],
    result_bytes: Callable[[tuple[int, int]], int],
    batch_size: int,
    least: int = 1,
) -> Generator[Any]:
    """Results in order, with the errors of images that cannot be read in their places.

    While a batch is on the devices, the next one is read, and the results of the previous one are
    brought to the size of their images.

    Args:
        images: images in any form that `read` accepts.
        read: a function of the position of an image and the image.
        compute: a function of queries, and of how many to compute at once, which segments them.
        finish: a function of what `compute` gave for an image and the query: the result.
        result_bytes: a function of the shape of an image, which returns the size of its result.
        batch_size, least: the largest and the smallest number of images to compute at once.
    """
    numbered, room, unfinished = enumerate(images), least, 0
    pool = ThreadPoolExecutor(cores())
    results = _Results(pool)
    try:

        def start() -> list[Future]:
            return [pool.submit(read, *pair) for pair in itertools.islice(numbered, batch_size)]

        reading = start()
        while reading:
            ahead = start()
            queries = [future.result() for future in reading]
            good = [query for query in queries if isinstance(query, Query)]
            # Few sizes, so that little is compiled: powers of two up to the whole batch, and the
            # last batch is as large as the others.
            while room < len(good):
                room = min(2 * room, batch_size)
            segmented = compute(good, room) if good else iter(())
            for query in queries:
                if isinstance(query, Query):
                    size = result_bytes(query.shape)
                    results.add(size, functools.partial(finish, next(segmented), query))
                else:
                    results.add(0, functools.partial(lambda error: error, query))
            yield from (results.take() for _ in range(unfinished))
            unfinished, reading = len(queries), ahead
        yield from (results.take() for _ in range(unfinished))
    finally:
        # A caller that stops early does not need images that are not being read yet.
        pool.shutdown(cancel_futures=True)


class _Results:
    """Results in order, which threads compute ahead of time while they need little memory."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool, self._bytes = pool, 0
        self._started: collections.deque[tuple[int, Future]] = collections.deque()
        self._waiting: collections.deque[tuple[int, Callable[[], Any]]] = collections.deque()

    def add(self, size: int, function: Callable[[], Any]) -> None:
        """Adds a function that returns a result of so many bytes."""
        self._waiting.append((size, function))
        self._start()

    def take(self) -> Any:
        """The first result that has not been taken."""
        size, future = self._started.popleft()
        result = future.result()
        self._bytes -= size
        self._start()
        return result

    def _start(self) -> None:
        while self._waiting and (not self._started or self._bytes + self._waiting[0][0] <= RESULTS):
            size, function = self._waiting.popleft()
            self._bytes += size
            self._started.append((size, self._pool.submit(function)))


def mapped(
    function: Callable[[Any], Any], results: Generator[Any], raise_errors: bool
) -> Iterator[Any]:
    """A function of each result; errors among them are raised, or stay in their places."""
    with contextlib.closing(results):
        for result in results:
            if not isinstance(result, UserError):
                yield function(result)
            elif raise_errors:
                raise result
            else:
                yield result


def read_query(number: int, image: Any, config: ConfigDict, patch: int = 1) -> Query | UserError:
    """The image at position `number` as the network's squares, whose sides are multiples of
    `patch`, or the error that reading gave."""
    try:
        image = as_image(image, f"images[{number}]")
    except UserError as error:
        return error
    shape = image.shape[:2]
    blank = LabelledImage(image, np.zeros(shape, np.uint8))
    sides = [scaled_side(config.image_size, scale, patch) for scale in sorted(config.eval.scales)]
    views = tuple(square(blank, side, config.eval.fit).image for side in sides)
    small = None
    if config.eval.crf.iterations:
        picture = Image.fromarray(image)
        picture.thumbnail((CRF_SIDE, CRF_SIDE))
        small = np.asarray(picture)
    return Query(views, shape, small)


def of_views(
    queries: Sequence[Query],
    flip: bool,
    compute: Callable[[UInt8[np.ndarray, "query side side 3"]], Segmented],
) -> Iterator[list[Segmented]]:
    """What `compute` gives for each query at each scale, and, with `flip`, for its mirror images,
    with logits that are mirrored back."""
    views = []
    for squares in zip(*(query.views for query in queries), strict=True):
        pixels = np.stack(squares)
        views.append(compute(pixels))
        if flip:
            mirrored = compute(pixels[:, :, ::-1])
            views.append(mirrored._replace(logits=mirrored.logits[:, :, ::-1]))
    each = [jax.tree.map(lambda x, i=i: x[i], views) for i in range(len(queries))]
    return iter(each)
