"""Supports of the command line: a folder of images of the classes, with annotations."""

import hashlib
import logging
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fsseg_jax.data.masks import CLASSES, warn_if_covering
from fsseg_jax.data.parallel import parallel_map
from fsseg_jax.data.source import LabelledImage
from fsseg_jax.data.sources.folder import Folder
from fsseg_jax.episode import IGNORE, UNLABELLED
from fsseg_jax.errors import UserError
from fsseg_jax.prediction.fitted import Shown, spread
from fsseg_jax.prediction.queries import check_folder

logger = logging.getLogger(__name__)


class Supports(NamedTuple):
    """The images that show the classes, and examples of images that show none."""

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
    absent = [name for name in source.classes if name not in classes]
    empty = _empty(folder, source, absent)
    own = np.zeros(max(IGNORE, numbers[-1]) + 1, np.uint8)
    own[numbers], own[IGNORE] = np.arange(1, len(numbers) + 1), IGNORE
    rows = sorted({*source.table.image.tolist(), *empty})
    read = parallel_map(source.read, rows, "supports")
    images = [LabelledImage(image, own[label]) for image, label in read]
    for image, row in zip(images, rows, strict=True):
        if (unmarked := source.unmarked(row)) is not None:
            image.label[unmarked] = UNLABELLED
    for image, row in zip(images, rows, strict=True):  # by its file, before `fit` does
        warn_if_covering(image.label, str(source.annotations[row]))
    return Supports(images, classes, digest_of(images), frozenset(source.annotations))


def _empty(folder: pathlib.Path, source: Folder, absent: Sequence[str]) -> list[int]:
    """The images with black masks that are used; `absent` are classes that no image shows.

    Raises:
        UserError: a class has black masks alone.
    """
    empty = source.empty_masks()
    for row, classes in empty.items():
        if missing := sorted(classes & {*absent}):
            raise UserError(
                f"--support = {folder}: no image shows {missing[0]}, but masks are black, such as "
                f"{source.annotations[row]}: paint the class, or remove them."
            )
    if absent:
        logger.info("%s: no image shows %s", folder, ", ".join(absent))
    used = spread([*empty])
    if empty:
        words = "%s: masks that are black, examples of images without the class: %d%s, such as %s"
        some = f", of which {len(used)} are used" if len(used) < len(empty) else ""
        logger.warning(words, folder, len(empty), some, source.annotations[used[0]])
    return used


def digest_of(images: Iterable[LabelledImage]) -> str:
    """A digest of all pixels and labels."""
    digest = hashlib.sha256()
    for image in images:
        for array in image:
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def read_all(folders: Sequence[pathlib.Path], names: Sequence[str] = ()) -> Supports:
    """Supports of several folders, whose classes of the same name are one.

    Args:
        folders: see `read_supports`.
        names: of the classes, in the order of their numbers, instead of those in the folders: of
            each folder, if each shows as many classes; or of all of them together.

    Raises:
        UserError: see `read_supports`; or there are more or fewer names than classes, or two are
            the same.
    """
    return named([read_supports(folder) for folder in folders], names)


def of_squares(shown: Shown) -> Supports:
    """Those that a model was saved with."""
    images = [LabelledImage(*pair) for pair in zip(shown.images, shown.labels, strict=True)]
    return Supports(images, shown.classes, digest_of(images), frozenset())


def named(parts: Sequence[Supports], names: Sequence[str]) -> Supports:
    """All supports, with names by the user if there are any; see `read_all`."""
    each = all(len(part.classes) == len(names) for part in parts)
    if names and each:
        parts = [part._replace(classes=(*names,)) for part in parts]
    whole = join(parts)
    if names and len({*names}) < len(names):
        raise UserError(f"--class_name = {','.join(names)}: two are the same; name them apart.")
    if names and len(names) != len(whole.classes):
        raise UserError(
            f"--class_name = {','.join(names)}: the supports show {', '.join(whole.classes)}; name "
            "each of them, in this order."
        )
    return whole._replace(classes=(*names,)) if names else whole


def join(parts: Sequence[Supports]) -> Supports:
    """All supports; classes are those of the first, and then what others add to them.

    Raises:
        UserError: there are too many classes.
    """
    if len(parts) == 1:
        return parts[0]
    classes = (*dict.fromkeys(name for part in parts for name in part.classes),)
    if len(classes) > CLASSES:
        raise UserError(f"--support: {len(classes)} classes in all; there are at most {CLASSES}.")
    images = []
    for part in parts:
        own = np.arange(256).astype(np.uint8)  # what is not a class stays
        for number, name in enumerate(part.classes, 1):
            own[number] = classes.index(name) + 1
        images += [LabelledImage(image, own[label]) for image, label in part.images]
    digest = hashlib.sha256(" ".join(part.digest for part in parts).encode()).hexdigest()[:16]
    files = frozenset(path for part in parts for path in part.files)
    return Supports(images, classes, digest, files)
