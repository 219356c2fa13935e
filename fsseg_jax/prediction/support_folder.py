"""Supports of the command line: a folder of images of the classes, with annotations."""

import hashlib
import logging
import pathlib
from typing import NamedTuple

import numpy as np

from fsseg_jax.data.masks import CLASSES, warn_if_covering
from fsseg_jax.data.parallel import parallel_map
from fsseg_jax.data.source import LabelledImage
from fsseg_jax.data.sources.folder import Folder
from fsseg_jax.episode import IGNORE, UNLABELLED
from fsseg_jax.errors import UserError
from fsseg_jax.prediction.queries import check_folder

logger = logging.getLogger(__name__)


class Supports(NamedTuple):
    """The images that show the classes."""

    images: list[LabelledImage]  # labels are 1, 2 ... in the order of the classes
    classes: tuple[str, ...]
    digest: str  # of all pixels and labels
    files: frozenset[pathlib.Path]  # of their annotations


def read_supports(folder: pathlib.Path) -> Supports:
    """Reads supports with annotations that `Folder` supports, and the classes that they show.

    Raises:
        UserError: there are none, or one of them is broken.
    """
    check_folder(folder, "--support")
    source = Folder(folder, None, folds=1, marks=True)
    numbers = np.unique(source.table.class_id)
    if not 1 <= len(numbers) <= CLASSES:
        raise UserError(
            f"--support = {folder} shows {len(numbers)} classes: annotate 1..{CLASSES}, each in at "
            "least one image."
        )
    classes = tuple(source.class_names[number] for number in numbers.tolist())
    if absent := [name for name in source.classes if name not in classes]:
        logger.info("%s: no image shows %s", folder, ", ".join(absent))
    own = np.zeros(max(IGNORE, numbers[-1]) + 1, np.uint8)
    own[numbers], own[IGNORE] = np.arange(1, len(numbers) + 1), IGNORE
    rows = np.unique(source.table.image).tolist()
    read = parallel_map(source.read, rows, "supports")
    images = [LabelledImage(image, own[label]) for image, label in read]
    for image, row in zip(images, rows, strict=True):
        if (unmarked := source.unmarked(row)) is not None:
            image.label[unmarked] = UNLABELLED
    for image, row in zip(images, rows, strict=True):  # by its file, before `fit` does
        warn_if_covering(image.label, str(source.annotations[row]))
    digest = hashlib.sha256()
    for image in images:
        for array in image:
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return Supports(images, classes, digest.hexdigest()[:16], frozenset(source.annotations))
