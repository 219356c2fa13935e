"""The data of a training: what it sees, and what it is tested on."""

import logging
from typing import NamedTuple

from ml_collections import ConfigDict

from fsseg_jax.checksums import checksum_of
from fsseg_jax.data import class_ids, open_source, training_items
from fsseg_jax.data.sampling import Items, check_items
from fsseg_jax.data.source import Source
from fsseg_jax.errors import UserError

logger = logging.getLogger(__name__)


class Data(NamedTuple):
    """The data for training and testing."""

    source: Source  # training images
    test: Source  # images for tests and selection
    items: Items  # training items, see `training_items`
    epoch: int  # number of episodes in one pass over them
    base: list[str]  # names of the training classes
    contents: str  # checksum of `source` and `test`


def open_data(config: ConfigDict) -> Data:
    """Opens the data of a configuration.

    Raises:
        UserError: the data are broken, or selection would score images that training sees.
    """
    source, test = open_source(config.data, "train"), open_source(config.data, "test")
    shared = set(source.photographs()) & set(test.photographs())
    named = {name: config.data[name] for name in ("split", "train_split") if config.data[name]}
    if shared and "base" in config.train.select_on and named:
        words = " and ".join(f"data.{name} = {split}" for name, split in named.items())
        raise UserError(
            f"{words}: selection on base classes would score images that training sees: choose "
            "other splits, or train.select_on = novel (use protocols that test on training images "
            "only in evaluate)."
        )
    if shared and source.nothing_held_out:
        raise UserError(
            f"data.folds = {config.data.folds} holds out no classes, but data.split and "
            "data.train_split name the same images: choose different ones, or leave them empty."
        )
    items = training_items(config.data, source)
    novel = class_ids(test, config.data.fold, "novel")
    if len(novel) < config.ways:
        logger.warning(
            "ways = %d, but fold %d holds out %d classes, too few to test this model on: lower "
            "ways or data.folds",
            *(config.ways, config.data.fold, len(novel)),
        )
    # The pipeline checks this too, but arrays of an episode's size are made before it is opened.
    check_items(
        *(items, source.class_names, config.ways, config.shots, "data.train_min_pixels"),
        held_back=source.held_back,
    )
    base = [source.class_names[c] for c in class_ids(source, config.data.fold, "base")]
    contents = checksum_of({"train": source.contents(), "test": test.contents()})
    return Data(source, test, items, items.epoch(config.data.sampling), base, contents)
