"""Segments files and writes the results, while the next ones are segmented."""

import collections
import contextlib
import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from fsseg_jax.data.images import read_image
from fsseg_jax.data.parallel import cores
from fsseg_jax.errors import UserError
from fsseg_jax.prediction.memory import room_for
from fsseg_jax.prediction.output import OVERLAYS, Predictions, Query
from fsseg_jax.prediction.result import Result
from fsseg_jax.prediction.segmenter import Segmenter
from fsseg_jax.progress import progress

logger = logging.getLogger(__name__)


def segment_files(
    segmenter: Segmenter,
    predictions: Predictions,
    queries: Sequence[Query],
    batch_size: int,
    quiet: bool = False,
) -> dict[str, str]:
    """Segments images and writes the results; returns why images were skipped, by their names.

    Args:
        quiet: whether to leave it to the caller to tell what happens.
    """
    paths = (query.path for query in queries)
    results = segmenter.results(paths, predictions.instances, batch_size)

    def finish(query: Query, result: Result | UserError) -> dict[str, Any] | UserError:
        with contextlib.ExitStack() as stack:
            try:
                if isinstance(result, UserError):
                    raise result
                shape, image = result.mask.shape, None
                if OVERLAYS in predictions.save:
                    stack.enter_context(room_for(query.path, shape[1], shape[0]))
                    image = read_image(query.path)
                if image is not None and image.shape[:2] != shape:
                    raise UserError(f"{query.path} has changed meanwhile: start the command again.")
            except UserError as error:
                return error
            return predictions.write(query, image, result)

    skipped: dict[str, str] = {}
    waiting: collections.deque[tuple[Query, Future]] = collections.deque()
    with (
        ThreadPoolExecutor(cores()) as pool,
        progress("images", len(queries), quiet=quiet) as finished,
    ):

        def settle() -> None:
            query, future = waiting.popleft()
            result = future.result()
            finished.update()
            if not isinstance(result, UserError):
                predictions.note(result)
                return
            predictions.remove(query)
            if not quiet:
                logger.warning("skipped: %s", result)
            skipped[query.name] = str(result)

        for query, result in zip(queries, results, strict=True):
            waiting.append((query, pool.submit(finish, query, result)))
            if len(waiting) > cores():
                settle()
        while waiting:
            settle()
    return skipped
