"""Segments a stream of images in batches: reading, the network and resizing overlap."""

import collections
import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from fsseg_jax.data.parallel import cores
from fsseg_jax.data.source import LabelledImage
from fsseg_jax.data.squares import fitted, square
from fsseg_jax.errors import UserError
from fsseg_jax.models.resize import interpolation_matrix
from fsseg_jax.prediction.pictures import as_image


class Query(NamedTuple):
    """An image to segment."""

    pixels: UInt8[np.ndarray, "size size 3"]  # as the network's square
    shape: tuple[int, int]  # height and width of the image itself


def in_batches(
    images: Iterable[Any],
    read: Callable[[int, Any], Query | UserError],
    compute: Callable[[Sequence[Query], int], Iterator[np.ndarray]],
    finish: Callable[[np.ndarray, tuple[int, int]], Any],
    batch_size: int,
    least: int = 1,
) -> Generator[Any]:
    """Results in order, with the errors of images that cannot be read in their places.

    While a batch is on the devices, the next one is read, and the results of the previous one are
    brought to the size of their images.

    Args:
        images: images in any form that `read` accepts.
        read: a function of the position of an image and the image.
        compute: a function of queries, and of how many to compute at once, which returns logits.
        finish: a function of the logits and the shape of an image, which returns the result.
        batch_size, least: the largest and the smallest number of images to compute at once.
    """
    waiting: collections.deque[list[Future]] = collections.deque()
    numbered, room = enumerate(images), least
    pool = ThreadPoolExecutor(cores())
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
            logits = compute(good, room) if good else iter(())
            waiting.append(
                [
                    pool.submit(finish, next(logits), query.shape)
                    if isinstance(query, Query)
                    else pool.submit(lambda error: error, query)
                    for query in queries
                ]
            )
            if len(waiting) > 1:
                yield from (future.result() for future in waiting.popleft())
            reading = ahead
        for batch in waiting:
            yield from (future.result() for future in batch)
    finally:
        # A caller that stops early does not need images that are not being read yet.
        pool.shutdown(cancel_futures=True)


def raising(results: Generator[Any]) -> Iterator[Any]:
    """The results up to the first error, which is raised."""
    with contextlib.closing(results):
        for result in results:
            if isinstance(result, UserError):
                raise result
            yield result


def read_query(number: int, image: Any, config: ConfigDict) -> Query | UserError:
    """The image at position `number` as the network's square, or the error that reading it gave."""
    try:
        image = as_image(image, f"images[{number}]")
    except UserError as error:
        return error
    shape = image.shape[:2]
    blank = LabelledImage(image, np.zeros(shape, np.uint8))
    return Query(square(blank, config.image_size, config.eval.fit).image, shape)


def at_own_size(
    logits: Float[np.ndarray, "h w class"],
    shape: tuple[int, int],
    config: ConfigDict,
    align_corners: bool,
    probabilities: bool,
) -> Any:
    """The mask of an image of `shape`, or the mask and probabilities, from logits of its square."""
    # The size of the whole square in pixels of the image: a letterboxed one has a border, of which
    # the evaluation counts up to 7 pixels as part of the image, as PFENet's code does.
    inside = fitted(shape, config.image_size, config.eval.fit)
    extent = [round(n * config.image_size / part) for n, part in zip(shape, inside, strict=True)]
    rows, columns = (
        interpolation_matrix(n, whole, align_corners)[:part]
        for n, whole, part in zip(logits.shape, extent, shape, strict=False)
    )
    large = rows @ np.moveaxis(logits, -1, 0) @ columns.T  # (class, height, width)
    mask = np.argmax(large, axis=0).astype(np.uint8)
    if not probabilities:
        return mask
    np.exp(large - large.max(axis=0), out=large)
    return mask, np.moveaxis(large / large.sum(axis=0), 0, -1)
