"""What people who use a model need: `load` one, show it supports, segment photographs.

`forward` is the pure function of arrays below it: an episode's supports and queries to logits.
"""

import collections
import contextlib
import functools
import itertools
import os
import pathlib
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from fsseg_jax.config import CHOICES, config_file, config_names, load_config, override
from fsseg_jax.data.parallel import cores
from fsseg_jax.data.pictures import as_label, as_photograph, boxes_label
from fsseg_jax.data.source import Photograph
from fsseg_jax.data.squares import fitted, square
from fsseg_jax.devices import (
    choose_platform,
    make_mesh,
    map_over_devices,
    put,
    replicated,
    split,
)
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
        UserError: shapes do not fit each other; or the variables are for other ways or shots, and
            no part of the episode has those.
    """
    shapes = support_images.shape, support_labels.shape, query_images.shape
    if [*map(len, shapes)] != [5, 4, 4] or shapes[0][:4] != shapes[1]:
        names = "support_images", "support_labels", "query_images"
        given = ", ".join(f"{name} {shape}" for name, shape in zip(names, shapes, strict=True))
        raise UserError(
            f"shapes of {given}: they must be (way, shot, height, width, 3), (way, shot, height, "
            "width) and (query, height, width, 3)."
        )
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
        logits = _each(lambda row: pass_(*row, query), single)
        return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - jnp.log(shots)

    def by_ways(query: tuple[Any, Array]) -> Array:
        if not one_way:
            return by_shots(features, labels, query)
        # The other ways are background, as in binary passes (`support_labels`).
        way = jnp.arange(1, ways + 1)[:, None, None, None]
        marked = (labels == IGNORE) | (labels == UNLABELLED)
        binary = jnp.where(marked, labels, labels == way).astype(jnp.uint8)
        single = jax.tree.map(lambda x: x[:, None], (features, binary))
        return join_ways(_each(lambda row: by_shots(*row, query), single))

    return _each(by_ways, (query_features, images))


def _each(function: Callable[[Any], Array], rows: Any) -> Array:
    """`function` of each row: of all at once, but on CPUs of one after another.

    A CPU gains nothing from more at once. And maps of ways, shots and queries in a `jax.vmap` would
    have more axes than some versions of jaxlib bear: `devices.avoid_corruption` would help, but is
    not there where an exported program runs.
    """
    if jax.default_backend() == "cpu":
        return jax.lax.map(function, rows)
    return jax.vmap(function)(rows)


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

    Threads may share one: each call of `predict` or `stream` uses the supports of the last `fit`
    before it.

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

        A photograph is a support of every class that it shows. Classes that have fewer than the
        one with most use theirs again.

        Args:
            images: photographs: paths, PIL images, or uint8 arrays of (height, width, 3). A single
                one need not stand in a list, nor need what outlines it.
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
            given = "neither" if masks is None else "both"
            raise UserError(f"masks and boxes: {given} was given; one of them outlines the class.")
        name, outlines = ("masks", masks) if boxes is None else ("boxes", boxes)
        if _is_photograph(images):
            images, outlines = [images], [outlines]
        images, outlines, classes = _listed(images, "images"), _listed(outlines, name), (*classes,)
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
            raise UserError(
                f"classes = {classes}: {len(classes)} names, but {name} number {count} "
                f"{'class' if count == 1 else 'classes'}."
            )
        squares = [self._square(support, f"{name}[{i}]") for i, support in enumerate(supports)]
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
        self.classes = classes or tuple(map(str, range(1, count + 1)))
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
        single = _is_photograph(images)
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
        """`predict`, one result after another, while the next photographs are read.

        Memory is bounded: no more than three batches of photographs are taken before their first
        result is given.

        Args:
            images: photographs, which are taken in the thread that takes the results.
            return_probabilities: see `predict`.
            batch_size: see `predict`.
            skip_errors: whether a photograph that cannot be read gives its UserError as its result
                instead of raising it.

        Raises:
            UserError: `fit` was not called; later, a photograph is none.
        """
        if self._supports is None:
            raise UserError("predict: call fit first, with photographs that show the class.")
        if not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise UserError(f"batch_size = {batch_size}: it must be an integer of at least 1.")
        if _is_photograph(images) or not isinstance(images, Iterable):
            kind = type(images).__name__
            raise UserError(f"images is of type {kind}: give an iterable of photographs.")
        size = -(-batch_size // self.mesh.size) * self.mesh.size
        return self._stream(images, self._supports, return_probabilities, size, skip_errors)

    def _stream(
        self,
        images: Iterable[Any],
        supports: tuple[Any, Array],
        probabilities: bool,
        size: int,
        skip_errors: bool,
    ) -> Iterator[Any]:
        finish = functools.partial(self._at_own_size, probabilities=probabilities)
        waiting: collections.deque[list[Future]] = collections.deque()
        with contextlib.ExitStack() as stack:
            pool = ThreadPoolExecutor(cores())
            # Of who does not want the rest, what is not being read need not be.
            stack.callback(pool.shutdown, cancel_futures=True)

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

            room = self.mesh.size
            numbered = enumerate(images)
            reading = [pool.submit(read, item) for item in itertools.islice(numbered, size)]
            while reading:
                ahead = [pool.submit(read, item) for item in itertools.islice(numbered, size)]
                queries = [future.result() for future in reading]
                good = [query for query in queries if not isinstance(query, UserError)]
                if good:
                    # Few sizes, so that little is compiled: powers of two up to the whole batch,
                    # and the last batch is as large as the others.
                    while room < len(good):
                        room = min(2 * room, size)
                    pixels = np.stack([query[0] for query in good])
                    padded = pixels[np.arange(room) % len(good)]
                    placed = put(padded, split(self.mesh))
                    with self._one_by_one:
                        logits = self._logits(self.variables, *supports, placed)
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

    def _square(self, support: Photograph, name: str) -> Photograph:
        """A support as the network's square, in which every class that it shows has pixels."""
        size, fit = self.config.image_size, self.config.eval.fit
        image, label = square(support, size, fit)
        own, label = support.label.shape, label.copy()
        scale = np.array(fitted(own, size, fit)) / own
        numbers = np.setdiff1d(support.label, [0, IGNORE])
        for number in np.setdiff1d(numbers, label):
            where = (np.argwhere(support.label == number) + 0.5) * scale
            label[tuple(where.astype(int).T)] = number
        if hidden := np.setdiff1d(numbers, label).tolist():
            raise UserError(
                f"{name} shows class {hidden[0]} in so few pixels that it coincides with another "
                f"class at image_size = {size}: crop the photograph, or load the model with a "
                "larger image_size."
            )
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
        # How many pixels of the photograph the whole square would be: a letterboxed one has a
        # border, of which the evaluation takes up to 7 pixels for photograph, as PFENet's code.
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


def _is_photograph(images: Any) -> bool:
    """Whether something is one photograph, not several."""
    one = isinstance(images, str | bytes | os.PathLike | Image.Image)
    return one or getattr(images, "ndim", None) in (2, 3)


def _listed(values: Any, name: str) -> list[Any]:
    if not isinstance(values, Iterable) or isinstance(values, str | bytes):
        raise UserError(f"{name} = {values!r}: give a list, with one entry a photograph.")
    return list(values)


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
        checkpoint: of a run: "best", "last" or another of `config.eval.checkpoint`; where it is
            not there, the nearest to it.
        **settings: fields of the configuration to change, as `image_size=321` or
            `init="vgg16.safetensors"`; nested ones as `**{"eval.fit": "letterbox"}`. All devices
            of the best platform are used, unless `devices` or `platform` are among them.

    Raises:
        UserError: there is no such model, a setting does not exist, or the weights cannot be had.
    """
    if checkpoint not in CHOICES["eval.checkpoint"]:
        words = " or ".join(CHOICES["eval.checkpoint"])
        raise UserError(f"checkpoint = {checkpoint!r}: choose {words}.")
    arguments = [f"--config.{name}={value}" for name, value in settings.items()]
    if "platform" in settings:
        choose_platform(settings["platform"])
    config, module, variables = _found(os.fspath(model), checkpoint, arguments)
    return Segmenter(
        config, module, variables, make_mesh(config.devices if "devices" in settings else 0)
    )


def _found(model: str, checkpoint: str, arguments: Sequence[str]) -> tuple[ConfigDict, Method, Any]:
    """What `load` loads."""
    path = pathlib.Path(model).expanduser()
    if (path / sharing.CONFIG).is_file():
        return sharing.read(path, arguments)
    if path.is_dir():
        return _of_run(path, checkpoint, arguments)
    file = config_file(model)
    if file is not None:
        return _untrained(override(load_config(file), arguments))
    if model.count("/") == 1 and path.suffix != ".py":
        return sharing.read(sharing.download(model), arguments)
    raise UserError(
        f"model = {model!r}: there is no such folder and no such configuration; choose one of "
        f"{', '.join(config_names())}, or owner/name of a model on the hub."
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

    checkpoints = Checkpoints(folder)
    which = available(checkpoints, checkpoint)
    if which is None:
        raise UserError(
            f"{folder} holds neither checkpoints nor a {sharing.CONFIG}: it is not the folder of "
            "a run, nor of a saved model."
        )
    saved, _ = checkpoints.describe(which)
    config = sharing.changed(saved, arguments)
    model = create_model(config)
    initialise = functools.partial(init_variables, model, jax.random.key(0))
    like = jax.eval_shape(lambda: initialise(saved.ways, saved.shots))
    return config, model, checkpoints.restore_variables(which, like, replicated(make_mesh(1)))
