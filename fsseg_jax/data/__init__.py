"""Opens sources by name, and makes training batches from them."""

import functools
import importlib.util
import itertools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from fsseg_jax.data.pipelines import device
from fsseg_jax.data.pipelines.recipe import Recipe
from fsseg_jax.data.sampling import Items, check_items
from fsseg_jax.data.source import Source
from fsseg_jax.data.sources.fss1000 import FSS1000
from fsseg_jax.data.sources.shapes import Shapes
from fsseg_jax.data.sources.voc import VOC
from fsseg_jax.devices import put, put_batches, replicated
from fsseg_jax.episode import Episode
from fsseg_jax.errors import UserError
from fsseg_jax.extensions import find

logger = logging.getLogger(__name__)


def _coco(data: ConfigDict, split: str) -> Source:
    from fsseg_jax.data.sources.coco import COCO

    if data.coco.masks == "category" and data.held_out_photographs == "drop":
        raise UserError(
            "data.held_out_photographs = drop needs all classes of an image, but "
            "data.coco.masks = category keeps only one: set data.held_out_photographs = keep."
        )
    return COCO(data.root, split, data.coco.folds, data.coco.masks)


def _folder(data: ConfigDict, split: str) -> Source:
    from fsseg_jax.data.sources.folder import Folder

    return Folder(data.root, split, data.folds)


def _tfds(data: ConfigDict, split: str) -> Source:
    from fsseg_jax.data.sources.tfds import TFDS, Features

    if data.coco.masks != "label":
        raise UserError(
            f"data.coco.masks = {data.coco.masks} needs COCO's own files, as TFDS labels have one "
            "class per pixel: set data.name = coco, or data.coco.masks = label."
        )
    return TFDS(
        data.tfds.name,
        data.root,
        split or "train",
        Features(data.tfds.image, data.tfds.label, data.tfds.instances),
        folds=data.folds,
        variant=data.coco.folds,
        allow_code=data.tfds.allow_code,
    )


SOURCES = {
    "shapes": lambda data, split: Shapes(
        split or "train",
        data.shapes.val if split == "val" else data.shapes.train,
        data.shapes.pixels,
    ),
    "voc": lambda data, split: VOC(data.root, split),
    "coco": _coco,
    "fss1000": lambda data, split: FSS1000(data.root, split),
    "folder": _folder,
    "tfds": _tfds,
}


def test_split(data: ConfigDict) -> str:
    """The split for tests and selection: `data.split`, or the data set's own name for it."""
    if data.split:
        return data.split
    name = data.tfds.name if data.name == "tfds" else data.name
    if name.startswith("fss1000"):
        return "test"
    return "validation" if data.name == "tfds" else "val"


def open_source(data: ConfigDict, which: str) -> Source:
    """Opens the source that `config.data` names.

    Args:
        data: `config.data`; its `name` is one of `SOURCES`, or a function or class elsewhere that
            takes `config.data` and a split; see `extensions.find`.
        which: "train" for the training split, "test" for the split of tests and selection.

    Raises:
        UserError: the name or the fold is unknown, or the data are invalid.

    Examples:
        >>> from fsseg_jax.config import load_config
        >>> data = load_config("quickstart").data  # made images of shapes
        >>> data.shapes.val = 96
        >>> source = open_source(data, "test")
        >>> len(source), len(source.class_names), len(source.folds)
        (96, 24, 4)
        >>> image, label = source.read(0)
        >>> image.shape, label.shape
        ((80, 80, 3), (80, 80))
    """
    split = data.train_split if which == "train" else test_split(data)
    source = find(data.name, SOURCES, "data.name")(data, split)
    if not 0 <= data.fold < len(source.folds):
        raise UserError(f"data.fold = {data.fold}: {data.name} has 0..{len(source.folds) - 1}.")
    return source


def class_ids(source: Source, fold: int, which: str) -> tuple[int, ...]:
    """The classes that a fold holds out for the test ("novel"), those that the source reserves
    for selection ("validation"), or all others ("base")."""
    novel, validation = source.folds[fold], source.validation
    if which == "novel" or (which == "base" and source.nothing_held_out):
        return novel
    if which == "validation":
        return validation
    return tuple(c for c in source.class_names if c not in (*novel, *validation))


def training_items(data: ConfigDict, source: Source) -> Items:
    """The items of the base classes, filtered as `config.data` specifies.

    Raises:
        UserError: all classes are held out.

    Examples:
        >>> from fsseg_jax.config import load_config
        >>> data = load_config("quickstart").data
        >>> data.shapes.train = 96
        >>> items = training_items(data, open_source(data, "train"))
        >>> items.class_id.tolist()  # fold 0 holds out classes 1 to 6
        [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24]
    """
    base = class_ids(source, data.fold, "base")
    if not base:
        raise UserError(
            f"data.folds = {data.folds} holds out all classes of {source.name}, and leaves none to "
            "train on: set data.folds = 0 to hold out none, or 2 or more."
        )
    held_out = set(source.class_names) - {*base}
    without = sorted(held_out) if data.held_out_photographs == "drop" else ()
    return source.table.items(base, data.train_min_pixels, without, data.sampling)


def chosen_pipeline(data: ConfigDict) -> str:
    """`data.pipeline`, or, where that is "auto", tfdata if TensorFlow is installed, else device."""
    if data.pipeline != "auto":
        return data.pipeline
    if importlib.util.find_spec("tensorflow"):
        return "tfdata"
    logger.info(
        "TensorFlow is not installed: data.pipeline = device, which holds all images in memory."
    )
    return "device"


class Pipeline(NamedTuple):
    """Makes training batches, partly on the host and partly in the compiled step."""

    # Number of steps -> what `draw` needs for them, on the mesh.
    feed: Callable[[int], Any]
    # That, how many of these steps are done, and the step's number -> the step's batch.
    draw: Callable[[Any, Int[Array, ""], Int[Array, ""]], Episode]


def training_pipeline(
    config: ConfigDict, source: Source, items: Items, mesh: Mesh, start: int = 0
) -> Pipeline:
    """Opens the pipeline that `config.data.pipeline` names, for the steps from `start` on.

    Raises:
        UserError: a class has too few images, a file is broken, TensorFlow is not installed
            ("tfdata"), or the images do not fit into memory ("device").

    Examples:
        >>> from fsseg_jax.config import load_config, override
        >>> from fsseg_jax.devices import make_mesh
        >>> small = ["--config.data.shapes.train=96", "--config.data.train_min_pixels=1"]
        >>> config = override(load_config("quickstart"), [*small, "--config.image_size=32"])
        >>> source = open_source(config.data, "train")
        >>> items = training_items(config.data, source)
        >>> pipeline = training_pipeline(config, source, items, make_mesh(devices=1))
        >>> fed = pipeline.feed(1)  # for one step, of which none is done: step 0
        >>> jax.jit(pipeline.draw)(fed, 0, 0).query_image.shape
        (8, 32, 32, 3)
    """
    check_items(items, source.class_names, config.ways, config.shots, "data.train_min_pixels")
    recipe = Recipe.from_config(config)
    if chosen_pipeline(config.data) == "device":
        sharded, cache = config.data.device.sharded, config.data.device.cache
        size = config.data.device.size or config.image_size
        pixels = device.load(
            source, size, mesh, recipe.annotation, recipe.border, sharded=sharded, cache=cache
        )
        data = device.DeviceData(pixels, put(items, replicated(mesh)))
        draw = functools.partial(device.draw_batch, recipe=recipe, mesh=mesh, sharded=sharded)
        return Pipeline(lambda count: data, lambda data, done, step: draw(data, step))

    try:  # imported only here, so that everything else works without TensorFlow
        from fsseg_jax.data.pipelines import tfdata
    except ModuleNotFoundError as error:
        raise UserError(
            f"data.pipeline = tfdata needs {error.name}, which is not installed: "
            "pip install tensorflow, or set data.pipeline = device."
        ) from None
    batches = tfdata.batches(source, items, recipe, start)
    return Pipeline(
        lambda count: put_batches(list(itertools.islice(batches, count)), mesh),
        lambda batches, done, step: jax.tree.map(lambda x: x[done], batches),
    )
