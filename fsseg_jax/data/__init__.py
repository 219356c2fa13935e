"""Sources by name, and the training batches that are made from them."""

from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from fsseg_jax.data.shapes import Shapes
from fsseg_jax.data.source import Source
from fsseg_jax.data.voc import VOC
from fsseg_jax.episode import Items, check_items
from fsseg_jax.errors import UserError

SOURCES = {
    "shapes": lambda data, split: Shapes(
        split or "train",
        data.shapes.val if split == "val" else data.shapes.train,
        data.shapes.pixels,
    ),
    "voc": lambda data, split: VOC(data.root, split),
}


def open_source(data: ConfigDict, split: str) -> Source:
    """The source that `config.data` names.

    Args:
        data: `config.data`.
        split: a split of it, as `data.split` or `data.train_split`; empty for the source's own
            training split.

    Raises:
        UserError: the name is unknown, the fold is, or the data are not as they should be.
    """
    if data.name not in SOURCES:
        raise UserError(f"data.name = {data.name!r}: choose one of {', '.join(SOURCES)}.")
    source = SOURCES[data.name](data, split)
    if not 0 <= data.fold < len(source.folds):
        raise UserError(f"data.fold = {data.fold}: {data.name} has 0..{len(source.folds) - 1}.")
    return source


def class_ids(source: Source, fold: int, which: str) -> tuple[int, ...]:
    """The classes of a fold: those it holds out ("novel") or all others ("base")."""
    novel = source.folds[fold]
    if which == "novel":
        return novel
    return tuple(c for c in source.class_names if c not in novel)


def training_items(data: ConfigDict, source: Source) -> Items:
    """What training draws from: the base classes, by `config.data`'s rules."""
    without = class_ids(source, data.fold, "novel") if data.held_out_photographs == "drop" else ()
    return source.table.items(class_ids(source, data.fold, "base"), data.train_min_pixels, without)


def training_batches(config: ConfigDict, source: Source, items: Items, start: int) -> Iterator[Any]:
    """This process's slices of the training batches from step `start` on.

    Raises:
        UserError: the pipeline is unknown, a class has too few photographs, or a file is broken.
    """
    check_items(items, source.class_names, config.ways, config.shots, "data.train_min_pixels")
    if config.data.pipeline != "tfdata":
        raise UserError(f"data.pipeline = {config.data.pipeline!r}: choose tfdata.")
    # TensorFlow is imported here alone, so that everything else works without it.
    from fsseg_jax.data import tfdata

    return tfdata.batches(
        source,
        items,
        ways=config.ways,
        shots=config.shots,
        batch_size=config.train.batch_size,
        image_size=config.image_size,
        seed=config.seed,
        augmentation=config.data.augment,
        start=start,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
