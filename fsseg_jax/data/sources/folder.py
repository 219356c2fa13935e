"""A folder of one's own images: class folders with masks, LabelMe files, or a COCO file."""

import collections
import itertools
import logging
import os
import pathlib
import zlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Integer, UInt8

from fsseg_jax.data.cache import kept_table, stamp
from fsseg_jax.data.images import check_size, read_image
from fsseg_jax.data.listing import check_utf8, left_out
from fsseg_jax.data.masks import warn_if_covering
from fsseg_jax.data.parallel import parallel_map
from fsseg_jax.data.source import (
    LabelledImage,
    Source,
    class_numbers,
    count_classes,
    deal_folds,
    existing_root,
)
from fsseg_jax.data.sources.annotated import (
    SUFFIXES,
    Contents,
    Drawn,
    Listed,
    Mask,
    Numbered,
    Scribble,
)
from fsseg_jax.data.sources.layouts import SPLIT_NAMES, contents_of, splits_of
from fsseg_jax.episode import IGNORE
from fsseg_jax.errors import UserError

__all__ = ["SUFFIXES", "Folder"]

RULE = 3  # version of how annotations are read, for the caches

logger = logging.getLogger(__name__)


class Folder(Source):
    """A folder of images that are annotated in one of these ways:

    - Class folders: `cat/1.jpg` with a mask of the folder's class beside it (`cat/1.png` or
      `cat/1_mask.png`, see `read_mask`), or with a LabelMe file (`cat/1.json`), which may outline
      objects of other classes too.
    - Masks beside images that are in no class folder: they show one class, named after `root`,
      which must have no splits. Or LabelMe files beside them, which name their own classes. Images
      without an annotation are skipped.
    - One COCO file, of any name, with its images beside it or in `images`, or with it in
      `annotations`, as Roboflow and CVAT write it. Several files in `annotations` that are named
      after splits, as COCO's own `instances_train2017.json`, are those splits.
    - CVAT's XML; YOLO's `images` and `labels`; VOC's `JPEGImages` and `SegmentationClass`; or
      `images` and `masks`, of one class that is named after `root`. See `exports`.

    Instead of a mask there may be a picture of scribbles (`1_scribble.png`, see `masks.scribble`),
    or a LabelMe file with lines and points, for supports only (`marks`): what is not marked is
    ignored, and `unmarked` says where it is.

    Classes are those of the masks and LabelMe files, or the COCO file's categories, sorted by name;
    they are the same for all splits. If `root` has a folder `train`, `val` or `test`, all its
    folders are splits, each annotated as above; otherwise every split has all images.

    Links are followed. Names that begin with a dot are ignored. Everything else that is left out is
    logged: other files, images that a COCO file does not list, links that lead nowhere, and
    outlines that cover no pixel. A category of number 0 without annotations, which Roboflow adds,
    is not a class.

    Args:
        split: a folder of `root`, if that has splits; empty for `train`. None for supports: the
            training split of an export that has splits, otherwise all, whatever folders are called.
        folds: number of folds; each holds out one of as many groups of consecutive classes, as
            equal as possible. 1 holds out all classes, for tests only. 0 holds out none; then,
            without splits, "val" and "test" have `ClassTable.held_back` of the images, and "train"
            the others.

    Raises:
        UserError: the folder, the split or an annotation is missing, an annotation is broken,
            empty, ambiguous or of another size than its image, or there are more folds than
            classes.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name in ("mug", "plate"):
        ...         pathlib.Path(root, name).mkdir()
        ...         Image.new("RGB", (60, 40)).save(f"{root}/{name}/1.jpg")
        ...         Image.new("L", (60, 40), 255).save(f"{root}/{name}/1.png")  # all of it
        ...     source = Folder(root, split="", folds=1)
        ...     image, label = source.read(1)
        >>> source.classes, label.shape, np.unique(label).tolist()
        (('mug', 'plate'), (40, 60), [2])
    """

    name = "folder"

    def __init__(
        self, root: str | os.PathLike, split: str | None, folds: int, marks: bool = False
    ) -> None:
        self._marks = marks
        root = existing_root(root, "folder of your images")
        folders = splits_of(root, split, folds)
        contents = {name: contents_of(folder, root, marks) for name, folder in folders.items()}
        chosen = SPLIT_NAMES.get(split or "train", split or "train")
        folder = folders[chosen]
        base, self._annotated, naming = contents[chosen]
        names = [_class_names(content) for content in contents.values()]
        self.classes = tuple(sorted(set().union(*names)))
        if not self.classes:
            raise UserError(f"{root} has images, but their annotations outline no objects.")
        check_utf8(self.classes, root)
        self.folds = deal_folds(class_numbers(len(self.classes)), folds, root)
        self.nothing_held_out = folds == 0
        self._number_of = {name: number for number, name in self.class_names.items()}

        self.ids = tuple(
            image.relative_to(base if image.is_relative_to(base) else root)
            .with_suffix("")
            .as_posix()
            for image, _ in self._annotated
        )
        scribbled = [x.file for _, x in self._annotated if isinstance(x, Scribble)]
        if scribbled and not marks:
            raise UserError(
                f"{scribbled[0]} has scribbles, which only supports may have: give a mask."
            )
        files = dict.fromkeys(
            path for image, annotation in self._annotated for path in (image, annotation.file)
        )
        key, self.sizes = stamp(files)
        # Classes of other splits may renumber these.
        facts = repr((self.classes, RULE, naming, *["marks"] * marks)).encode()
        self.fingerprint = f"{key}-{zlib.crc32(facts):08x}"
        self._hidden: list[str] = []
        self.table = kept_table(self.name, self.fingerprint, self._count, range(len(self.ids)))
        if self._hidden:  # while counting, not if the table was kept
            logger.warning(
                "%s: %s: they cover no pixel, or smaller ones cover them.",
                *(root, left_out(sorted(self._hidden))),
            )
        self._rows = np.arange(len(self.ids))
        if self.nothing_held_out and split is not None and folder == root:
            self._hold_back(test=chosen in ("val", "test"))

    def _hold_back(self, test: bool) -> None:
        """Keeps the images that are held back for tests, or the others."""
        back = self.table.held_back(self.ids)
        self.held_back = collections.Counter(self.table.take(back).class_id.tolist())
        self._rows = back if test else np.setdiff1d(self._rows, back)
        self.table = self.table.take(self._rows)
        self.ids = tuple(self.ids[row] for row in self._rows.tolist())
        self.fingerprint = f"{self.fingerprint}-{'test' if test else 'train'}"

    @property
    def annotations(self) -> tuple[pathlib.Path, ...]:
        """The file with the annotation of each image."""
        return tuple(self._annotated[row][1].file for row in self._rows)

    def photographs(self) -> tuple[str, ...]:
        """The files of the images."""
        return tuple(str(self._annotated[row][0]) for row in self._rows)

    def read(self, index: int) -> LabelledImage:
        """Reads the image number `index`; raises UserError, naming the file, if it is broken."""
        row = self._rows[index]
        return LabelledImage(read_image(self._annotated[row][0]), self._label(row))

    def instances(self, index: int) -> UInt8[np.ndarray, "height width"] | None:
        """The instances of the image number `index`: the first 254 shapes that are drawn, or COCO's
        annotations; None if it has a mask."""
        image, annotation = self._annotated[self._rows[index]]
        return annotation.instances(image)

    def empty_masks(self) -> dict[int, set[str]]:
        """The images whose mask or label image shows background only, and the classes of these."""
        others = np.setdiff1d(np.arange(len(self.ids)), self.table.image).tolist()
        annotated = {row: self._annotated[self._rows[row]][1] for row in others}
        masks = [row for row, x in annotated.items() if type(x) is Mask or isinstance(x, Numbered)]

        def known(row: int) -> bool:
            return bool((self._label(self._rows[row]) == 0).any())

        empty = [*itertools.compress(masks, parallel_map(known, masks, "masks"))]
        if ignored := [str(annotated[row]) for row in masks if row not in empty]:
            logger.warning("%s: they are 255 throughout, which is ignored.", left_out(ignored))
        return {row: annotated[row].names() for row in empty}

    def unmarked(self, index: int) -> Bool[np.ndarray, "height width"] | None:
        """Where an image with scribbles is not marked; None for others."""
        image, annotation = self._annotated[self._rows[index]]
        return annotation.unmarked(image)

    def _label(self, row: int) -> Integer[np.ndarray, "height width"]:
        image, annotation = self._annotated[row]
        numbers, names = annotation.shown(image)
        label = self._in_classes(numbers, names, annotation.file)
        # Not for training, which would read the file twice.
        if self._marks and (unmarked := annotation.unmarked(image)) is not None:
            label[unmarked] = IGNORE
        return label

    def _in_classes(
        self,
        numbers: Integer[np.ndarray, "height width"],
        names: Mapping[int, str],
        file: pathlib.Path,
    ) -> Integer[np.ndarray, "height width"]:
        """A label of class ids from an annotation's numbers and their classes."""
        if new := [name for name in names.values() if name not in self._number_of]:
            raise UserError(
                f"{file} has got the class {new[0]} since the data set was opened: start again, or "
                "restore the file."
            )
        most = int(numbers.max(initial=IGNORE))
        own = np.full(most + 1, IGNORE, self.label_type)
        own[0] = 0
        for number, name in names.items():
            if number <= most:
                own[number] = self._number_of[name]
        return own[numbers]

    def _count(self, row: int) -> np.ndarray:
        """Counts the pixels of each class in a label, and checks its size."""
        image, annotation = self._annotated[row]
        name = str(annotation)
        numbers, names = annotation.shown(image)
        label = self._in_classes(numbers, names, annotation.file)
        if isinstance(annotation, Drawn):
            hidden = np.setdiff1d(np.array([*names], int), numbers).tolist()
            self._hidden += [f"shape {number} of {name}" for number in hidden]
        check_size(label, name, image)
        pixels = count_classes(label, name, self)
        if isinstance(annotation, Mask):
            if not pixels.any() and not (self._marks and type(annotation) is Mask):
                raise UserError(
                    f"{name} is an empty mask: paint the class, in any colour but black."
                )
            warn_if_covering(label, name)
        return pixels


def _class_names(contents: Contents) -> set[str]:
    """The names of the annotated classes."""
    known = [x for _, x in contents.pairs if isinstance(x, Mask | Listed)]  # without reading files
    drawn = [x for _, x in contents.pairs if not isinstance(x, Mask | Listed)]
    names: set[str] = set()
    for annotation in known:  # one after the other: each image in a COCO file has all its names
        names |= annotation.names()
    return names.union(*parallel_map(lambda x: x.names(), drawn, "annotations", unit="file"))
