"""Corrected masks: what somebody has painted in `masks` becomes supports, and is kept.

A mask that `predict` wrote is sealed with a checksum of its pixels, so that a correction is told
from a prediction even if a run was killed between writing a mask and noting it. A correction is
copied to `accepted` once, before anything is predicted again, and no file there is ever changed: an
image that is corrected again has another one, and the last counts. Remove one to take it back.
"""

import itertools
import json
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from fsseg_jax.data.images import read_image
from fsseg_jax.data.masks import CLASSES
from fsseg_jax.data.parallel import parallel_map
from fsseg_jax.data.source import LabelledImage
from fsseg_jax.episode import IGNORE
from fsseg_jax.errors import UserError
from fsseg_jax.files import replacing
from fsseg_jax.prediction.drawing import load_mask, save_mask
from fsseg_jax.prediction.output import MADE_BY, SPREAD, Predictions, Query, read_made_by
from fsseg_jax.prediction.result import Result
from fsseg_jax.prediction.support_folder import Supports, digest_of

ACCEPTED = "accepted"
_IMAGE, _CLASSES, _NUMBER = "image", "classes", "number"  # texts in their files

logger = logging.getLogger(__name__)


class Correction(NamedTuple):
    """A mask that somebody has corrected."""

    label: UInt8[np.ndarray, "height width"]
    classes: tuple[str, ...]  # names of the numbers in it
    number: int  # counts the corrections of an image
    file: pathlib.Path


def accept(folder: pathlib.Path, queries: Sequence[Query]) -> int:
    """Copies masks that were changed since `predict` wrote them; returns their number.

    They are then sealed like predictions: only what is kept is ever written over.

    Raises:
        UserError: one cannot be read, has another size than its image or numbers of no class.
    """
    if not (folder / MADE_BY).is_file():
        return 0  # nothing was predicted yet
    facts = {k: v for k, v in read_made_by(folder).items() if k != SPREAD}
    classes = tuple(facts["classes"])
    earlier, taken = read(folder), 0
    with Predictions(folder, facts) as predictions:
        there = [query for query in queries if os.path.isfile(predictions.mask_file(query))]

        def changed(query: Query) -> bool:
            return not load_mask(predictions.mask_file(query), len(classes)).sealed

        found = parallel_map(changed, there, "masks")
        for query in itertools.compress(there, found):
            path = predictions.mask_file(query)
            label = load_mask(path, len(classes)).label
            written = predictions.recorded(query)
            # One that is equal was saved unchanged, or is of an earlier version.
            if written is None or not np.array_equal(written, label):
                _check(label, path, query, len(classes))
                taken += _keep(predictions, query, label, earlier.get(query.name))
            with replacing(path) as file:  # sealed: it may now be written again
                save_mask(label, file)
    return taken


def _keep(
    predictions: Predictions,
    query: Query,
    label: UInt8[np.ndarray, "height width"],
    last: Correction | None,
) -> bool:
    """Copies a correction to a new file, unless it is the last one of its image, too."""
    classes = (*predictions.made_by["classes"],)
    if last and last.classes == classes and np.array_equal(last.label, label):
        return False
    number = last.number + 1 if last else 1
    names = (f"{predictions.output(query)}{suffix}.png" for suffix in _suffixes(number))
    places = (predictions.folder / ACCEPTED / name for name in names)
    file = next(place for place in places if not place.exists())
    text = {_IMAGE: query.name, _CLASSES: list(classes), _NUMBER: number}
    with replacing(file) as kept:
        save_mask(label, kept, **{name: json.dumps(x) for name, x in text.items()})
    return True


def _suffixes(number: int) -> itertools.chain[str]:
    first = "" if number == 1 else f".{number}"
    return itertools.chain([first], (f".{n}" for n in itertools.count(number + 1)))


def _check(label: np.ndarray, path: pathlib.Path, query: Query, classes: int) -> None:
    shape = read_image(query.path).shape[:2]
    if label.shape != shape:
        raise UserError(
            f"{path} is {label.shape[1]} x {label.shape[0]} pixels, but its image is {shape[1]} x "
            f"{shape[0]}: correct it at its own size, or remove it to predict it again."
        )
    # No pixel may be 255 (ignored): a correction is also a result.
    if other := np.setdiff1d(label, range(classes + 1)).tolist():
        there = "is 1 class" if classes == 1 else f"are {classes} classes"
        raise UserError(
            f"{path} has the number {other[0]}, but there {there}: use their numbers or their "
            "colours, or remove it to predict it again."
        )


def read(folder: pathlib.Path) -> dict[str, Correction]:
    """The last correction of each image, by its name.

    Raises:
        UserError: a file among them cannot be read, or is none of `accept`'s.
    """
    last: dict[str, Correction] = {}
    for file in sorted((folder / ACCEPTED).rglob("*.png")):
        if file.name.startswith("."):
            continue
        mask = load_mask(file, CLASSES)  # not one class: white is not taken for it
        try:
            name, classes, number = (json.loads(mask.text[x]) for x in (_IMAGE, _CLASSES, _NUMBER))
            named = isinstance(classes, list) and all(type(x) is str for x in (name, *classes))
            if not named:
                raise ValueError("it has no names")
            correction = Correction(mask.label, (*classes,), int(number), file)
            if np.setdiff1d(mask.label, [*range(len(classes) + 1), IGNORE]).size:
                raise ValueError("it has numbers of no class")
        except (KeyError, ValueError, TypeError, OverflowError, RecursionError):
            raise UserError(
                f"{file} is not a correction that --accept kept: remove it; masks are corrected in "
                "the folder masks."
            ) from None
        if name not in last or last[name].number < correction.number:
            last[name] = correction
    return last


def in_classes(
    corrections: Mapping[str, Correction], classes: tuple[str, ...], named: bool
) -> dict[str, Correction]:
    """Corrections in the numbers of the classes that there are now.

    Classes are found by their names. If the user has named them (`named`), there are as many as
    before, and some have names that are new altogether, they were renamed, and keep their numbers.

    Raises:
        UserError: one shows a class that there is no longer, or is of no class that there is.
    """
    return {name: _in_classes(x, classes, named) for name, x in corrections.items()}


def _in_classes(correction: Correction, classes: tuple[str, ...], named: bool) -> Correction:
    before = correction.classes
    pairs = [*zip(before, classes, strict=False)]
    new = all(a == b or (a not in classes and b not in before) for a, b in pairs)
    if named and new and len(before) == len(classes):
        return correction._replace(classes=classes)
    none_left = not {*before} & {*classes}  # black then says nothing of those that there are
    table = np.zeros(IGNORE + 1, np.uint8)
    table[IGNORE] = IGNORE  # of an earlier version
    for number, name in enumerate(before, 1):
        if name in classes:
            table[number] = classes.index(name) + 1
        elif none_left or (correction.label == number).any():
            raise UserError(
                f"{correction.file} was corrected for the class {name}, but the classes are now "
                f"{', '.join(classes)}: name them as before with --class_name, choose another "
                f"--out, or remove the folder {ACCEPTED}."
            )
    return correction._replace(label=table[correction.label], classes=classes)


def as_supports(corrections: Mapping[str, Correction], queries: Sequence[Query]) -> list[Supports]:
    """Corrections of images that are there, as supports; see `in_classes`."""
    paths = {query.name: query.path for query in queries if query.name in corrections}
    if gone := sorted(corrections.keys() - paths.keys()):
        logger.warning("corrected images that are gone: %d, such as %s", len(gone), gone[0])
    supports = []
    for name in sorted(paths):
        label, classes, _, file = corrections[name]
        image = read_image(paths[name])
        if image.shape[:2] != label.shape:
            raise UserError(f"{file}: its image has another size now; remove the one or the other.")
        shown = [LabelledImage(image, label)]
        supports.append(Supports(shown, classes, digest_of(shown), frozenset()))
    return supports


def as_result(correction: Correction) -> Result:
    """A correction in place of a prediction: certain. See `in_classes`."""
    label = np.where(correction.label == IGNORE, 0, correction.label)
    return Result(label, np.ones(len(correction.classes) + 1), 1.0, None)
