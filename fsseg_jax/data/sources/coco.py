"""COCO's images and instance annotations, from the official folder: the basis of COCO-20i."""

import os
import pathlib
import re

import numpy as np
from jaxtyping import UInt8

from fsseg_jax.data.cache import kept_table, stamp
from fsseg_jax.data.formats.coco_annotations import CocoAnnotations
from fsseg_jax.data.images import check_size, read_image
from fsseg_jax.data.source import LabelledImage, Source, class_numbers, count_classes, existing_root
from fsseg_jax.errors import UserError

FOLDS = {
    "a": tuple(tuple(range(20 * fold + 1, 20 * fold + 21)) for fold in range(4)),
    "b": tuple(tuple(range(fold + 1, 81, 4)) for fold in range(4)),
    "canet": (tuple(range(61, 81)),),
}
VALIDATION = {"canet": tuple(range(41, 61))}


class COCO(Source):
    """One split of COCO's folder: the images with at least one object other than a crowd, as
    the others can never be drawn.

    The 80 categories, in ascending order of their ids, are the classes 1..80. COCO-20i has two
    variants: "a" (PANet, MFNet) holds out 20 consecutive classes in each fold, "b" (FWB, HSNet)
    every fourth class. "canet" is CANet's single fold: its lists of 40 training, 20 validation and
    20 test classes were never published, so the classes are taken in order.

    With `masks` = "category" an image occurs once per category that it shows, with that category's
    mask alone, which includes crowds and what other objects cover. This is how PANet's published
    code reads COCO (dataloaders/coco.py, lines 53 to 64).

    Args:
        root: folder with `annotations` and the image folders (`train2014`, ..., there or in
            `images`).
        split: "train2014", "val2017", ... as in `annotations/instances_*.json`; "train" or "val"
            if there is only one year; empty for "train".
        folds: "a", "b" or "canet".
        masks: "label" for one class per pixel and crowds ignored, or "category".

    Raises:
        UserError: parts are missing, the annotations are broken or have other categories, or an
            image does not have its annotated size.
    """

    def __init__(
        self, root: str | os.PathLike, split: str, folds: str, masks: str = "label"
    ) -> None:
        if folds not in FOLDS:
            raise UserError(f"folds = {folds!r} of coco: choose one of {', '.join(FOLDS)}.")
        kind = "coco-20i" if masks == "label" else f"coco-20i-{masks}"
        self.name = f"{kind}-{folds}"
        self.folds, self.validation = FOLDS[folds], VALIDATION.get(folds, ())
        self._json, folder = _find_split(root, split)
        self._annotations = CocoAnnotations(self._json)
        categories = self._annotations.categories
        if len(categories) != 80:
            raise UserError(
                f"{self._json} has {len(categories)} categories, but COCO has 80: use the "
                "official instances files, or data.name = folder for other data in this format."
            )
        self.classes = tuple(categories.values())
        self._number_of = dict(zip(categories, class_numbers(80).tolist(), strict=True))
        self._rows = self._annotations.rows_with_objects().tolist()
        if not self._rows:
            raise UserError(f"{self._json} has no image with an object other than crowds.")
        self._category: list[int | None] = [None] * len(self._rows)
        if masks == "category":
            self._rows, self._category = self._annotations.pairs().T.tolist()
        names = [self._annotations.file_names[row] for row in self._rows]
        shown = ["" if c is None else f":{categories[c]}" for c in self._category]
        self.ids = tuple(
            os.path.splitext(name)[0] + what for name, what in zip(names, shown, strict=True)
        )
        if len(set(self.ids)) < len(self.ids):
            raise UserError(f"{self._json} has two images of one name: names must be unique.")
        self.images = [str(folder / name) for name in names]
        self.fingerprint, self.sizes = stamp([self._json, *dict.fromkeys(self.images)])
        self.table = kept_table(kind, self.fingerprint, self._count, range(len(self.ids)))

    def read(self, index: int) -> LabelledImage:
        """Reads the image number `index`; raises UserError, naming the file, if it is broken."""
        return LabelledImage(read_image(self.images[index]), self._label(index))

    def instances(self, index: int) -> UInt8[np.ndarray, "height width"]:
        """The instances of the image number `index`."""
        return self._annotations.instances(self._rows[index], self._category[index])

    def _label(self, index: int) -> UInt8[np.ndarray, "height width"]:
        row, category = self._rows[index], self._category[index]
        if category is None:
            return self._annotations.label(row, self._number_of)
        alone = {category: self._number_of[category]}
        return self._annotations.label(row, alone, crowds_are_ignored=False)

    def _count(self, index: int) -> np.ndarray:
        """Counts the pixels of each class in a label, and checks its size."""
        label = self._label(index)
        label_name = f"image {self._annotations.image_ids[self._rows[index]]} of {self._json}"
        check_size(label, label_name, self.images[index])
        return count_classes(label, label_name, self)


def _find_split(root: str | os.PathLike, split: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Finds the annotation file of a split and the folder of its images."""
    root = existing_root(root, "folder of COCO")
    if not (root / "annotations").is_dir():
        raise UserError(f"data.root = {root} lacks annotations: it must be COCO's folder.")
    split = split or "train"
    annotations = sorted((root / "annotations").glob("instances_*.json"))
    found = [file.stem.removeprefix("instances_") for file in annotations]
    fitting = [split] * (split in found) or [
        name for name in found if re.fullmatch(re.escape(split) + r"\d{4}", name)
    ]
    if len(fitting) > 1:
        raise UserError(f"{root} has {' and '.join(fitting)}: name one of them, not {split!r}.")
    name = fitting[0] if fitting else split
    file = root / "annotations" / f"instances_{name}.json"
    if not fitting:
        raise UserError(f"{file} is missing: the splits there are {', '.join(found) or 'none'}.")
    folder = root / name if (root / name).is_dir() else root / "images" / name
    if not folder.is_dir():
        raise UserError(
            f"data.root = {root} lacks {name} (or images/{name}): it must hold the images of "
            f"{file.name}."
        )
    return file, folder
