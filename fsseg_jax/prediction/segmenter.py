"""A model that is shown supports and then segments images."""

import collections
import contextlib
import functools
import itertools
import os
import pathlib
import tempfile
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from fsseg_jax.data.parallel import cores
from fsseg_jax.data.source import LabelledImage
from fsseg_jax.data.squares import fitted, square
from fsseg_jax.devices import map_over_devices, put, replicated, split
from fsseg_jax.errors import UserError
from fsseg_jax.models import Method
from fsseg_jax.models.resize import interpolation_matrix
from fsseg_jax.prediction import sharing
from fsseg_jax.prediction.forward import encode_supports, forward, passes, segment
from fsseg_jax.prediction.pictures import as_image, is_image
from fsseg_jax.prediction.supports import episode_rows, read_supports, square_support


class Segmenter:
    """A model with its variables, ready to be shown supports and to segment images.

    Threads may share one: each call of `predict` or `stream` uses the supports of the last `fit`
    before it.

    Attributes:
        config: of the model; `image_size` and `eval.fit` say what squares images become.
        model: the method.
        variables: its, on the devices.
        forward: the jitted function `forward` of this model: support images, support labels and
            query images to logits.
        classes: names of the classes of `fit`, in the order of their numbers.
    """

    def __init__(self, config: ConfigDict, model: Method, variables: Any, mesh: Mesh) -> None:
        # Its gradient stops nowhere: freezing is for training.
        self.config, self.model = config, model.clone(freeze_backbone=False)
        self.mesh = mesh
        self.variables = put(variables, replicated(mesh))
        self.forward = jax.tree_util.Partial(functools.partial(forward, self.model), self.variables)
        self.classes: tuple[str, ...] = ()
        self._supports = None
        # Programs for several devices must reach all of them in one order.
        self._one_by_one = threading.Lock()

    def fit(
        self,
        images: Any,
        masks: Any = None,
        boxes: Any = None,
        classes: Sequence[str] = (),
    ) -> Self:
        """Encodes supports, in place of those of the last call.

        An image is a support of every class that it shows. Classes that have fewer than the
        one with most use theirs again.

        Args:
            images: images: paths, PIL images, or uint8 arrays of (height, width, 3). A single
                one need not stand in a list, nor need what outlines it.
            masks: one an image, of its size: see `pictures.as_label`. Numbers mean classes, so
                that several of them can be shown at once.
            boxes: instead of masks: of each image the box, or the boxes, around the class,
                (left, top, right, bottom) in pixels.
            classes: names of the classes 1, 2 ...; by default their numbers.

        Returns:
            the segmenter itself.

        Raises:
            UserError: there are no images, or one has no mask, one of another size or an empty
                one; or the model cannot take so many classes.
        """
        supports = read_supports(images, masks, boxes)
        rows = episode_rows([label for _, label in supports])
        ways, shots = rows.shape
        name = "masks" if boxes is None else "boxes"
        if classes and len(classes) != ways:
            raise UserError(
                f"classes = {(*classes,)}: {len(classes)} names, but {name} number {ways} "
                f"{'class' if ways == 1 else 'classes'}."
            )
        size, fit = self.config.image_size, self.config.eval.fit
        squares = [
            square_support(support, f"{name}[{i}]", size, fit) for i, support in enumerate(supports)
        ]
        passes(self.model, self.variables, ways, shots)
        pixels, labels = (np.stack(part) for part in zip(*squares, strict=True))
        encoded = [self._encode(self.variables, image[None, None]) for image in pixels]
        features = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1)[0][rows], *encoded)
        self._supports = put((features, labels[rows]), replicated(self.mesh))
        self.classes = (*classes,) or tuple(map(str, range(1, ways + 1)))
        return self

    def predict(self, images: Any, return_probabilities: bool = False, batch_size: int = 8) -> Any:
        """Segments images; each result has the size of its image.

        Args:
            images: one image, or any number of them in a list or another iterable (which
                `stream` takes one by one): paths, PIL images or uint8 arrays.
            return_probabilities: whether to return those too.
            batch_size: how many are segmented at once, over all devices.

        Returns:
            a mask, uint8 of (height, width): 0 background, n where class n is. With
            `return_probabilities` a pair of it and float32 probabilities of (height, width,
            class), the background first. A list of these for an iterable of images.

        Raises:
            UserError: `fit` was not called, or an image is none.
        """
        single = is_image(images)
        stream = self.stream([images] if single else images, return_probabilities, batch_size)
        results = list(stream)
        return results[0] if single else results

    def stream(
        self,
        images: Iterable[Any],
        return_probabilities: bool = False,
        batch_size: int = 8,
        skip_errors: bool = False,
    ) -> Iterator[Any]:
        """`predict`, one result after another, while the next images are read.

        Memory is bounded: no more than three batches of images are taken before their first
        result is given.

        Args:
            images: images, which are taken in the thread that takes the results.
            return_probabilities: see `predict`.
            batch_size: see `predict`.
            skip_errors: whether an image that cannot be read gives its UserError as its result
                instead of raising it.

        Raises:
            UserError: `fit` was not called; later, an image is none.
        """
        if self._supports is None:
            raise UserError("predict: call fit first, with images that show the class.")
        if not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise UserError(f"batch_size = {batch_size}: it must be an integer of at least 1.")
        if is_image(images) or not isinstance(images, Iterable):
            kind = type(images).__name__
            raise UserError(f"images is of type {kind}: give an iterable of images.")
        size = -(-batch_size // self.mesh.size) * self.mesh.size
        results = self._stream(images, self._supports, return_probabilities, size)
        return results if skip_errors else _raising(results)

    def _stream(
        self, images: Iterable[Any], supports: tuple[Any, Array], probabilities: bool, size: int
    ) -> Generator[Any]:
        """Results, and the errors of images that cannot be read.

        Three things happen at once: the next batch is read, this one is on the devices, and the
        last one is brought to the images' own sizes.
        """
        waiting: collections.deque[list[Future]] = collections.deque()
        numbered, room = enumerate(images), self.mesh.size
        pool = ThreadPoolExecutor(cores())
        try:

            def read() -> list[Future]:
                return [pool.submit(self._read, *pair) for pair in itertools.islice(numbered, size)]

            reading = read()
            while reading:
                ahead = read()
                queries = [future.result() for future in reading]
                good = [query for query in queries if isinstance(query, _Query)]
                # Few sizes, so that little is compiled: powers of two up to the whole batch, and
                # the last batch is as large as the others.
                while room < len(good):
                    room = min(2 * room, size)
                logits = self._logits_of(good, supports, room)
                waiting.append(
                    [
                        pool.submit(self._at_own_size, next(logits), query.shape, probabilities)
                        if isinstance(query, _Query)
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
            # Of who does not want the rest, what is not being read need not be.
            pool.shutdown(cancel_futures=True)

    def _read(self, number: int, image: Any) -> "_Query | UserError":
        try:
            image = as_image(image, f"images[{number}]")
        except UserError as error:
            return error
        shape = image.shape[:2]
        blank = LabelledImage(image, np.zeros(shape, np.uint8))
        return _Query(square(blank, self.config.image_size, self.config.eval.fit).image, shape)

    def _logits_of(
        self, queries: Sequence["_Query"], supports: tuple[Any, Array], room: int
    ) -> Iterator[Float[np.ndarray, "h w class"]]:
        """Logits of each query, computed with as many more as there is room for."""
        if not queries:
            return iter(())
        pixels = np.stack([query.pixels for query in queries])
        placed = put(pixels[np.arange(room) % len(queries)], split(self.mesh))
        with self._one_by_one:
            logits = self._logits(self.variables, *supports, placed)
        return iter(np.asarray(logits))

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes the model into a folder that `load` reads: `config.json`, safetensors and a card.

        Raises:
            UserError: the folder cannot be written to.
        """
        name = pathlib.Path(folder).expanduser().resolve().name
        sharing.save(folder, self.config, self.variables, name)

    def push_to_hub(self, repository: str, private: bool = False) -> str:
        """Puts the model on the Hugging Face hub as `owner/name`, and returns its address.

        Raises:
            UserError: nobody is logged in, the name is not allowed, or there is no network.
        """
        with tempfile.TemporaryDirectory() as folder:
            sharing.save(folder, self.config, self.variables, repository)
            return sharing.upload(folder, repository, private)

    @functools.cached_property
    def _encode(self) -> Any:
        return jax.jit(functools.partial(encode_supports, self.model))

    @functools.cached_property
    def _logits(self) -> Any:
        """Logits of a batch of squares, split over the devices."""

        def one(variables: Any, features: Any, labels: Array, query: Array) -> Array:
            return segment(self.model, variables, features, labels, query[None])[0]

        def all_of(variables: Any, features: Any, labels: Array, queries: Array) -> Array:
            together = len(queries) // self.mesh.size
            mapped = map_over_devices(one, self.mesh, batched=1, together=together)
            return mapped(variables, features, labels, queries)

        return jax.jit(all_of)

    def _at_own_size(
        self,
        logits: Float[np.ndarray, "h w class"],
        shape: tuple[int, int],
        probabilities: bool,
    ) -> Any:
        """The result for one image, from the logits of its square."""
        # How many pixels of the image the whole square would be: a letterboxed one has a
        # border, of which the evaluation takes up to 7 pixels for image, as PFENet's code.
        size = self.config.image_size
        inside = fitted(shape, size, self.config.eval.fit)
        extent = [round(n * size / part) for n, part in zip(shape, inside, strict=True)]
        rows, columns = (
            interpolation_matrix(n, whole, self.model.align_corners)[:part]
            for n, whole, part in zip(logits.shape, extent, shape, strict=False)
        )
        large = rows @ np.moveaxis(logits, -1, 0) @ columns.T  # (class, height, width)
        mask = np.argmax(large, axis=0).astype(np.uint8)
        if not probabilities:
            return mask
        np.exp(large - large.max(axis=0), out=large)
        return mask, np.moveaxis(large / large.sum(axis=0), 0, -1)


class _Query(NamedTuple):
    """An image to segment."""

    pixels: UInt8[np.ndarray, "size size 3"]  # as the network's square
    shape: tuple[int, int]  # its own height and width


def _raising(results: Generator[Any]) -> Iterator[Any]:
    """The results up to the first error, which is raised."""
    with contextlib.closing(results):
        for result in results:
            if isinstance(result, UserError):
                raise result
            yield result
