"""Evaluations whose encoded images do not fit into memory: parts, and the images they share."""

import functools
import logging
import math
import tempfile
from collections.abc import Hashable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from fsseg_jax.data.cache import cache_folder
from fsseg_jax.data.source import Source
from fsseg_jax.episode import EpisodeIds
from fsseg_jax.errors import UserError
from fsseg_jax.models import Method

LOOKED_AT = 8  # images that are read to estimate their size

logger = logging.getLogger(__name__)


def scaled_side(size: int, scale: float, patch: int = 1) -> int:
    """The side of a scaled query: `size` at scale 1, otherwise 8 n + 1, so that the corners of
    features at stride 8 lie on pixels, or whole patches (see `Method.patch`)."""
    if scale == 1:
        return size
    if patch > 1:
        return patch * max(1, round(size * scale / patch))
    return 8 * max(4, round((size * scale - 1) / 8)) + 1


def portions(
    config: ConfigDict, model: Method, variables: Any, source: Source, episodes: EpisodeIds
) -> list[Int[np.ndarray, " _"]]:
    """Divides episodes into parts whose encoded images fit into `eval.cache`; returns their rows.

    Episodes of one class stay together, because they share images.
    """
    options, channels = config.eval, 3 + source.label_type.itemsize

    def size(sides: Iterable[int]) -> int:
        """Bytes of an image at these sizes."""
        total = 0
        for side in dict.fromkeys(sides):
            image = jax.ShapeDtypeStruct((side, side, 3), np.float32)
            encode = functools.partial(model.apply, method="encode")
            features = jax.eval_shape(encode, variables, image)
            values = sum(x.size for x in jax.tree.leaves(features))
            total += values * jnp.dtype(options.feature_dtype).itemsize + side * side * channels
        return total

    queries = np.unique(episodes.query)
    if options.fit == "own":
        largest = _largest(source, queries)
        sides = [math.ceil(largest * scale) for scale in options.scales]
    else:
        sides = [scaled_side(config.image_size, scale, model.patch) for scale in options.scales]
        sides = [side for side in sides if side != config.image_size]  # the squares serve
    square, views = size([config.image_size]), size(sides)
    limit = options.cache * 2**30
    images = np.unique(episodes.images)
    total = len(images) * square + len(queries) * views
    if total <= limit:
        return [np.arange(len(episodes))]
    parts, held, turned = [[]], set(), set()
    for row in np.lexsort(episodes.classes.T[::-1]):
        own = set(episodes.images[row].tolist())
        more, queried = held | own, turned | {int(episodes.query[row])}
        if parts[-1] and len(more) * square + len(queried) * views > limit:
            parts.append([])
            more, queried = own, {int(episodes.query[row])}
        parts[-1].append(row)
        held, turned = more, queried
    logger.info(
        "%d encoded images need %.1f GiB: scoring in %d parts of up to eval.cache = %g GiB",
        *(len(images), total / 2**30, len(parts), options.cache),
    )
    return [np.sort(part) for part in parts]


def _largest(source: Source, queries: Int[np.ndarray, " query"]) -> int:
    """The longest side of some of the queries."""
    looked_at = queries[np.unique(np.linspace(0, len(queries) - 1, LOOKED_AT).astype(int))]
    return max(max(source.read(int(index)).label.shape) for index in looked_at)


def shared_images(
    episodes: EpisodeIds, parts: list[Int[np.ndarray, " _"]]
) -> Int[np.ndarray, " _"]:
    """The images that several parts of the episodes need, in ascending order."""
    seen = [np.unique(episodes.take(rows).images) for rows in parts]
    images, count = np.unique(np.concatenate(seen), return_counts=True)
    return images[count > 1]


class Store:
    """Keeps encoded images for other parts in a temporary file.

    The file has no name, so that its space is freed however the process ends.

    Args:
        images: the images to keep, in ascending order; others are ignored.
        remedy: how to use less space, for the error message when the disk is full.
    """

    def __init__(
        self,
        images: Int[np.ndarray, " image"],
        remedy: str = "raise eval.cache to hold more in memory",
    ) -> None:
        self.images, self.remedy = images, remedy
        self._files = {}  # by key
        self._known = {}

    def _rows(self, images: Int[np.ndarray, " row"]) -> Int[np.ndarray, " row"]:
        """Positions of images in the file, -1 for those that are not kept."""
        rows = np.searchsorted(self.images, images)
        rows = np.minimum(rows, len(self.images) - 1)
        return np.where(self.images[rows] == images, rows, -1)

    def has(self, key: Hashable, images: Int[np.ndarray, " row"]) -> Bool[np.ndarray, " row"]:
        """Whether images are there, at the size that `key` names."""
        if key not in self._known:
            return np.zeros(len(images), bool)
        rows = self._rows(images)
        return (rows >= 0) & self._known[key][rows]

    def put(self, key: Hashable, images: Int[np.ndarray, " row"], features: Any) -> None:
        """Stores those images that are to be kept; `features` may have more rows than `images`.

        Raises:
            UserError: the disk is full.
        """
        rows = self._rows(images) if len(self.images) else np.array([], int)
        if not (rows >= 0).any():
            return
        leaves = [np.asarray(x) for x in jax.tree.leaves(features)]
        if key not in self._files:
            folder = cache_folder("encoded")
            folder.mkdir(parents=True, exist_ok=True)
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), features)
            file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  as long as self
            self._files[key] = file, like
            self._known[key] = np.zeros(len(self.images), bool)
        file, like = self._files[key]
        try:
            for position in np.flatnonzero(rows >= 0):
                file.seek(rows[position] * _bytes(like))
                for leaf in leaves:
                    _write(file, leaf[position])
        except OSError as error:
            raise UserError(
                f"{cache_folder('encoded')} has no space for encoded images "
                f"({error.strerror}): free some, or {self.remedy}."
            ) from None
        self._known[key][rows[rows >= 0]] = True

    def get(self, key: Hashable, images: Int[np.ndarray, " row"]) -> Any:
        """The features of images that are there, on the host."""
        file, like = self._files[key]
        leaves, structure = jax.tree.flatten(like)
        stacked = [np.empty((len(images), *x.shape), x.dtype) for x in leaves]
        for position, row in enumerate(self._rows(images)):
            file.seek(row * _bytes(like))
            for leaf in stacked:
                file.readinto(leaf[position].reshape(-1).view(np.uint8).data)
        return jax.tree.unflatten(structure, stacked)


def _write(file: Any, array: np.ndarray) -> None:
    left = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    while left:  # an almost full disk takes a part, then raises
        left = left[file.write(left) :]


def _bytes(like: Any) -> int:
    """Bytes of one image."""
    return sum(x.size * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(like))
