"""What people who use a model need: `load` one, show it supports, segment photographs.

`forward` is the pure function of arrays below it: an episode's supports and queries to logits.
"""

import collections
import functools
import itertools
import os
import pathlib
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Float, Num, UInt8
from ml_collections import ConfigDict
from PIL import Image

from fsseg_jax import sharing
from fsseg_jax.config import config_file, config_names, load_config, override
from fsseg_jax.data.pictures import as_label, as_photograph, boxes_label
from fsseg_jax.data.source import Photograph, cores, fitted, square
from fsseg_jax.devices import make_mesh, map_over_devices, put, replicated, split
from fsseg_jax.episode import IGNORE, UNLABELLED, normalise
from fsseg_jax.errors import UserError
from fsseg_jax.models import Method, choose_stages, create_model, init_variables
from fsseg_jax.models.method import join_ways
from fsseg_jax.models.resize import interpolation_matrix, resize

# ----------------------------------------------------------------------------- the function


@functools.partial(jax.jit, static_argnums=0)
def forward(
    model: Method,
    variables: Any,
    support_images: Num[Array, "way shot height width 3"],
    support_labels: UInt8[Array, "way shot height width"],
    query_images: Num[Array, "query height width 3"],
) -> Float[Array, "query height width class"]:
    """Logits of queries, a pure function that composes with `jit`, `vmap` and `grad`.

    Where the variables were trained for other numbers of ways or shots, and depend on them, the
    model segments by single ways, joined as MFNet sec. IV-C does, or by single shots, whose
    probabilities are averaged.

    Args:
        model: a method.
        variables: its.
        support_images: N ways by K shots, RGB in 0..255, uint8 or float; of any size that the
            model takes.
        support_labels: 0 background, n where way n's class is, 255 ignored, 254 where nobody has
            marked anything.
        query_images: as the supports.

    Returns:
        a channel a class, the background first, at the queries' size.

    Raises:
        UserError: the variables are for other ways or shots, and no part of the episode has those.
    """
    features = _encode(model, variables, support_images)
    logits = _segment(model, variables, features, support_labels, query_images)
    return resize(logits, query_images.shape[1:3], model.align_corners)


def _encode(model: Method, variables: Any, images: Num[Array, "way shot height width 3"]) -> Any:
    """Features of supports: arrays with the axes way and shot."""
    flat = normalise(images.reshape(-1, *images.shape[2:]))
    features = model.apply(variables, flat, method="encode")
    return jax.tree.map(lambda x: x.reshape(*images.shape[:2], *x.shape[1:]), features)


def _segment(
    model: Method,
    variables: Any,
    features: Any,
    labels: UInt8[Array, "way shot height width"],
    queries: Num[Array, "query height width 3"],
) -> Float[Array, "query h w class"]:
    """Logits of queries at the resolution of the model's own."""
    images = normalise(queries)
    query_features = model.apply(variables, images, method="encode")
    ways, shots = labels.shape[:2]
    one_way, one_shot = _passes(model, variables, ways, shots)

    def pass_(features: Any, labels: Array, query: tuple[Any, Array]) -> Array:
        output = model.apply(variables, features, labels, *query, method="segment")
        return output.logits.astype(jnp.float32)

    def by_shots(features: Any, labels: Array, query: tuple[Any, Array]) -> Array:
        if not one_shot:
            return pass_(features, labels, query)
        single = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0)[:, :, None], (features, labels))
        logits = jax.vmap(pass_, in_axes=(0, 0, None))(*single, query)
        return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - jnp.log(shots)

    def by_ways(query: tuple[Any, Array]) -> Array:
        if not one_way:
            return by_shots(features, labels, query)
        # The other ways are background, as in binary passes (`support_labels`).
        way = jnp.arange(1, ways + 1)[:, None, None, None]
        marked = (labels == IGNORE) | (labels == UNLABELLED)
        binary = jnp.where(marked, labels, labels == way).astype(jnp.uint8)
        single = jax.tree.map(lambda x: x[:, None], (features, binary))
        return join_ways(jax.vmap(by_shots, in_axes=(0, 0, None))(*single, query))

    return jax.vmap(by_ways)((query_features, images))


def _passes(model: Method, variables: Any, ways: int, shots: int) -> tuple[bool, bool]:
    """Whether an episode has to be segmented by single ways, and by single shots."""
    have = {name: x.shape for name, x in flatten_dict(variables).items()}
    for one_way, one_shot in itertools.product((False, True), repeat=2):
        needed = _needed(model, 1 if one_way else ways, 1 if one_shot else shots)
        if needed.items() <= have.items():
            return one_way, one_shot
    raise UserError(
        f"{ways} ways with {shots} shots: the parameters of this {type(model).__name__} are for "
        "another number of ways; use as many as it was trained with."
    )


@functools.cache
def _needed(model: Method, ways: int, shots: int) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Shapes of the variables that episodes of these ways and shots are segmented with."""
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), ways, shots))
    return {name: x.shape for name, x in flatten_dict(shapes).items()}


# ----------------------------------------------------------------------------- the object


class Segmenter:
    """A model with its variables, ready to be shown supports and to segment photographs.

    Attributes:
        config: of the model; `image_size` and `eval.fit` say what squares photographs become.
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

    def fit(
        self,
        images: Sequence[Any],
        masks: Sequence[Any] | None = None,
        boxes: Sequence[Any] | None = None,
        classes: Sequence[str] = (),
    ) -> Self:
        """Encodes supports, in place of those of the last call.

        A photograph is a support of every class that it shows. Classes that have fewer than the
        one with most use theirs again.

        Args:
            images: photographs: paths, PIL images, or uint8 arrays of (height, width, 3).
            masks: one a photograph, of its size: see `pictures.as_label`. Numbers mean classes, so
                that several of them can be shown at once.
            boxes: instead of masks: of each photograph the box, or the boxes, around the class,
                (left, top, right, bottom) in pixels.
            classes: names of the classes 1, 2 ...; by default their numbers.

        Returns:
            the segmenter itself.

        Raises:
            UserError: there are no photographs, or one has no mask, one of another size or an empty
                one; or the model cannot take so many classes.
        """
        if (masks is None) == (boxes is None):
            raise UserError("fit: give one of masks and boxes, to outline the class.")
        name, outlines = ("masks", masks) if boxes is None else ("boxes", boxes)
        images, outlines = list(images), list(outlines)
        if not images:
            raise UserError("images = []: at least one photograph must show the class.")
        if len(images) != len(outlines):
            raise UserError(
                f"{name} has {len(outlines)} entries, but images has {len(images)}: each "
                "photograph needs one."
            )
        supports = []
        for i, (image, outline) in enumerate(zip(images, outlines, strict=True)):
            image = as_photograph(image, f"images[{i}]")
            supports.append(Photograph(image, _label(image, outline, name, i)))
        numbers = np.unique(np.concatenate([np.unique(label) for _, label in supports]))
        count = int(max(number for number in numbers if number not in (0, IGNORE)))
        if missing := sorted({*range(1, count + 1)} - {*numbers.tolist()}):
            raise UserError(
                f"{name}: no photograph shows class {missing[0]}, but one shows class {count}: "
                "number the classes 1, 2 ... without gaps."
            )
        if classes and len(classes) != count:
            raise UserError(f"classes = {tuple(classes)}: {name} show {count} classes.")
        squares = [self._square(support) for support in supports]
        shown = [
            [i for i, (_, label) in enumerate(squares) if (label == n).any()]
            for n in range(1, count + 1)
        ]
        shots = max(map(len, shown))
        rows = np.array([list(itertools.islice(itertools.cycle(row), shots)) for row in shown])
        _passes(self.model, self.variables, *rows.shape)
        pixels, labels = (np.stack(part) for part in zip(*squares, strict=True))
        encoded = [self._encode(self.variables, image[None, None]) for image in pixels]
        features = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1)[0][rows], *encoded)
        self._supports = put((features, labels[rows]), replicated(self.mesh))
        self.classes = tuple(classes) or tuple(map(str, range(1, count + 1)))
        return self

    def predict(self, images: Any, return_probabilities: bool = False, batch_size: int = 8) -> Any:
        """Segments photographs; each result has the size of its photograph.

        Args:
            images: one photograph, or any number of them in a list or another iterable (which
                `stream` takes one by one): paths, PIL images or uint8 arrays.
            return_probabilities: whether to return those too.
            batch_size: how many are segmented at once, over all devices.

        Returns:
            a mask, uint8 of (height, width): 0 background, n where class n is. With
            `return_probabilities` a pair of it and float32 probabilities of (height, width,
            class), the background first. A list of these for an iterable of photographs.

        Raises:
            UserError: `fit` was not called, or a photograph is none.
        """
        single = isinstance(images, str | os.PathLike | Image.Image) or (
            hasattr(images, "ndim") and np.ndim(images) < 4
        )
        results = self.stream([images] if single else images, return_probabilities, batch_size)
        return next(results) if single else list(results)

    def stream(
        self,
        images: Iterable[Any],
        return_probabilities: bool = False,
        batch_size: int = 8,
        skip_errors: bool = False,
    ) -> Iterator[Any]:
        """`predict`, one result after another, while the next photographs are read.

        Args:
            images: photographs.
            return_probabilities: see `predict`.
            batch_size: see `predict`.
            skip_errors: whether a photograph that cannot be read gives its UserError as its result
                instead of raising it.
        """
        if self._supports is None:
            raise UserError("predict: call fit first, with photographs that show the class.")
        if batch_size < 1:
            raise UserError(f"batch_size = {batch_size}: it must be at least 1.")
        size = -(-batch_size // self.mesh.size) * self.mesh.size
        return self._stream(images, return_probabilities, size, skip_errors)

    def _stream(
        self, images: Iterable[Any], probabilities: bool, size: int, skip_errors: bool
    ) -> Iterator[Any]:
        supports = self._supports
        finish = functools.partial(self._at_own_size, probabilities=probabilities)
        waiting: collections.deque[list[Future]] = collections.deque()
        with ThreadPoolExecutor(cores()) as pool:

            def read(numbered: tuple[int, Any]) -> tuple[np.ndarray, tuple[int, int]] | UserError:
                try:
                    image = as_photograph(numbered[1], f"images[{numbered[0]}]")
                except UserError as error:
                    return error
                shape = image.shape[:2]
                blank = Photograph(image, np.zeros(shape, np.uint8))
                return square(blank, self.config.image_size, self.config.eval.fit).image, shape

            def results(batch: list[Future]) -> Iterator[Any]:
                for future in batch:
                    result = future.result()
                    if isinstance(result, UserError) and not skip_errors:
                        raise result
                    yield result

            numbered = enumerate(images)
            reading = [pool.submit(read, item) for item in itertools.islice(numbered, size)]
            while reading:
                ahead = [pool.submit(read, item) for item in itertools.islice(numbered, size)]
                queries = [future.result() for future in reading]
                good = [query for query in queries if not isinstance(query, UserError)]
                if good:
                    # Few sizes, so that little is compiled: powers of two up to the whole batch.
                    room = self.mesh.size
                    while room < len(good):
                        room = min(2 * room, size)
                    pixels = np.stack([query[0] for query in good])
                    padded = pixels[np.arange(room) % len(good)]
                    logits = self._logits(self.variables, *supports, put(padded, split(self.mesh)))
                    logits = iter(np.asarray(logits))
                batch = [
                    pool.submit(lambda error: error, query)
                    if isinstance(query, UserError)
                    else pool.submit(finish, next(logits), query[1])
                    for query in queries
                ]
                waiting.append(batch)
                if len(waiting) > 1:
                    yield from results(waiting.popleft())
                reading = ahead
            for batch in waiting:
                yield from results(batch)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes the model into a folder that `load` reads: `config.json`, safetensors and a card.

        Raises:
            UserError: the folder cannot be written to.
        """
        sharing.save(folder, self.config, self.variables, pathlib.Path(folder).name)

    def push_to_hub(self, repository: str, private: bool = False) -> str:
        """Puts the model on the Hugging Face hub as `owner/name`, and returns its address.

        Raises:
            UserError: nobody is logged in, the name is not allowed, or there is no network.
        """
        with tempfile.TemporaryDirectory() as folder:
            sharing.save(folder, self.config, self.variables, repository.split("/")[-1])
            return sharing.upload(folder, repository, private)

    def _square(self, support: Photograph) -> Photograph:
        """A support as the network's square, in which every class that it shows has pixels."""
        size, fit = self.config.image_size, self.config.eval.fit
        image, label = square(support, size, fit)
        own = support.label.shape
        for number in np.setdiff1d(support.label, [*np.unique(label), IGNORE]):
            label = label.copy()
            scale = np.array(fitted(own, size, fit)) / own
            where = (np.argwhere(support.label == number) + 0.5) * scale
            label[tuple(where.astype(int).T)] = number
        return Photograph(image, label)

    @functools.cached_property
    def _encode(self) -> Any:
        return jax.jit(functools.partial(_encode, self.model))

    @functools.cached_property
    def _logits(self) -> Any:
        """Logits of a batch of squares, split over the devices."""

        def one(variables: Any, features: Any, labels: Array, query: Array) -> Array:
            return _segment(self.model, variables, features, labels, query[None])[0]

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
        """The result for one photograph, from the logits of its square."""
        # Of the square on the photograph; a letterboxed one has a border to cut off.
        extent = shape if self.config.eval.fit == "stretch" else (max(shape),) * 2
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


def _label(
    image: UInt8[np.ndarray, "height width 3"], outline: Any, name: str, i: int
) -> UInt8[np.ndarray, "height width"]:
    """The label of support number `i`."""
    height, width = image.shape[:2]
    if name == "boxes":
        return boxes_label(outline, (height, width), f"boxes[{i}]")
    label = as_label(outline, f"masks[{i}]")
    if label.shape != (height, width):
        raise UserError(
            f"masks[{i}] is {label.shape[1]} x {label.shape[0]} pixels, but images[{i}] is "
            f"{width} x {height}: they must be of one size."
        )
    if not ((label > 0) & (label < IGNORE)).any():
        raise UserError(f"masks[{i}] is empty: it must show the class, or be left out.")
    return label


# ----------------------------------------------------------------------------- loading


def load(model: str | os.PathLike, checkpoint: str = "best", **settings: Any) -> Segmenter:
    """Loads a model to segment photographs with.

    Args:
        model: the folder of a run (`runs/panet`), a model that `Segmenter.save_pretrained` wrote,
            in a folder or on the Hugging Face hub (`owner/name`), or a configuration: a file, or
            the name of one in `configs/`. "panet_vgg16" is useful with no training at all: PANet
            has no parameters but those of its ImageNet backbone.
        checkpoint: of a run: "best" or "last".
        **settings: fields of the configuration to change, as `image_size=321` or
            `init="vgg16.safetensors"`; nested ones as `**{"eval.fit": "letterbox"}`.

    Raises:
        UserError: there is no such model, a setting does not exist, or the weights cannot be had.
    """
    arguments = [f"--config.{name}={value}" for name, value in settings.items()]
    path = pathlib.Path(model).expanduser()
    if path.is_dir():
        if (path / sharing.CONFIG).is_file():
            return _ready(*sharing.read(path, arguments))
        return _ready(*_of_run(path, checkpoint, arguments))
    file = config_file(os.fspath(model))
    if file is not None:
        return _ready(*_untrained(override(load_config(file), arguments)))
    if os.fspath(model).count("/") == 1 and path.suffix != ".py":
        return _ready(*sharing.read(sharing.download(os.fspath(model)), arguments))
    raise UserError(
        f"model = {os.fspath(model)!r}: there is no such folder and no such configuration; choose "
        f"one of {', '.join(config_names())}, or owner/name of a model on the hub."
    )


def _untrained(config: ConfigDict) -> tuple[ConfigDict, Method, Any]:
    """A configuration with the variables that training would begin with."""
    choose_stages(config)
    model = create_model(config)
    key = jax.random.key(config.seed)
    variables = init_variables(model, key, config.ways, config.shots, config.init)
    own = sorted(set(variables["params"]) - {"backbone"})
    if own or not config.init:
        what = ", ".join(own) if config.init else "its backbone"
        warnings.warn(
            f"this {config.method} is not trained: {what} has random weights, and its masks mean "
            "nothing.",
            stacklevel=4,
        )
    return config, model, variables


def _of_run(
    folder: pathlib.Path, checkpoint: str, arguments: Sequence[str]
) -> tuple[ConfigDict, Method, Any]:
    """The model of a run, from its checkpoint."""
    # Here, because optimisers and checkpoints take seconds to import.
    from fsseg_jax.training.checkpoints import Checkpoints, available

    if checkpoint not in ("best", "last"):
        raise UserError(f"checkpoint = {checkpoint!r}: choose best or last.")
    checkpoints = Checkpoints(folder)
    which = available(checkpoints, checkpoint)
    if which is None:
        raise UserError(
            f"{folder} holds neither checkpoints nor a {sharing.CONFIG}: it is not the folder of "
            "a run, nor of a saved model."
        )
    saved, _ = checkpoints.describe(which)
    config = override(saved, arguments)
    model = create_model(config)
    initialise = functools.partial(init_variables, model, jax.random.key(0))
    like = jax.eval_shape(lambda: initialise(saved.ways, saved.shots))
    return config, model, checkpoints.restore_variables(which, like, replicated(make_mesh(1)))


def _ready(config: ConfigDict, model: Method, variables: Any) -> Segmenter:
    return Segmenter(config, model, variables, make_mesh())
