"""A folder of one's own images: class folders with masks, LabelMe files, or a COCO file."""

import functools
import logging
import os
import pathlib
import zlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Integer, UInt8

from fsseg_jax.data.cache import kept_table, stamp
from fsseg_jax.data.formats.coco_annotations import CocoAnnotations, is_coco
from fsseg_jax.data.formats.labelme import read_labelme
from fsseg_jax.data.images import check_shape, check_size, read_image
from fsseg_jax.data.listing import Listing, check_utf8, left_out, list_folder
from fsseg_jax.data.masks import read_mask, warn_if_covering
from fsseg_jax.data.parallel import parallel_map
from fsseg_jax.data.source import (
    LabelledImage,
    Source,
    class_numbers,
    count_classes,
    deal_folds,
    existing_root,
)
from fsseg_jax.episode import IGNORE
from fsseg_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # of images
SPLITS = ("train", "val", "test")
RULE = 2  # version of how annotations are read, for the caches

logger = logging.getLogger(__name__)


class Folder(Source):
    """A folder of images that are annotated in one of these ways:

    - Class folders: `cat/1.jpg` with a mask of the folder's class beside it (`cat/1.png` or
      `cat/1_mask.png`, see `read_mask`), or with a LabelMe file (`cat/1.json`), which may outline
      objects of other classes too.
    - Masks beside images that are in no class folder: they show one class, named after `root`,
      which must have no splits. Or LabelMe files beside them, which name their own classes. Images
      without an annotation are skipped.
    - One COCO file, of any name, with its images beside it or in `images`.

    Classes are those of the masks and LabelMe files, or the COCO file's categories, sorted by name;
    they are the same for all splits. If `root` has a folder `train`, `val` or `test`, all its
    folders are splits, each annotated as above; otherwise every split has all images.

    Links are followed. Names that begin with a dot are ignored. Everything else that is left out is
    logged: other files, images that a COCO file does not list, folders in class folders, links that
    lead nowhere, and outlines that cover no pixel.

    Args:
        split: a folder of `root`, if that has splits; empty for `train`. None if `root` has no
            splits, whatever the names of its folders.
        folds: number of folds; each holds out one of as many groups of consecutive classes, as
            equal as possible. 1 holds out all classes, for tests only. 0 holds out none; then,
            without splits, "val" and "test" have `ClassTable.held_back` of the images, and "train"
            the others.

    Raises:
        UserError: the folder, the split or an annotation is missing, an annotation is broken,
            empty, ambiguous or of another size than its image, or there are more folds than
            classes.
    """

    name = "folder"

    def __init__(self, root: str | os.PathLike, split: str | None, folds: int) -> None:
        self._root = root = existing_root(root, "folder of your images")
        folders = _splits(root, split, folds)
        contents = {name: _contents(folder, root) for name, folder in folders.items()}
        folder = folders[split or "train"]
        self._annotated, self._coco = contents[split or "train"]
        names = [_class_names(annotated, coco, root) for annotated, coco in contents.values()]
        self.classes = tuple(sorted(set().union(*names)))
        if not self.classes:
            raise UserError(f"{root} has images, but their annotations outline no objects.")
        check_utf8(self.classes, root)
        self.folds = deal_folds(class_numbers(len(self.classes)), folds, root)
        self.nothing_held_out = folds == 0
        self._number_of = {name: number for number, name in self.class_names.items()}

        ids = [path.relative_to(folder).with_suffix("").as_posix() for path, _ in self._annotated]
        self.ids = tuple(ids)
        files = dict.fromkeys(path for pair in self._annotated for path in pair)
        # Classes of other splits may renumber these.
        key, self.sizes = stamp(files)
        facts = repr((self.classes, RULE)).encode()
        self.fingerprint = f"{key}-{zlib.crc32(facts):08x}"
        self._hidden: list[str] = []
        self.table = kept_table(self.name, self.fingerprint, self._count, range(len(ids)))
        if self._hidden:  # while counting, not if the table was kept
            logger.warning(
                "%s: %s: they cover no pixel, or smaller ones cover them.",
                *(root, left_out(sorted(self._hidden))),
            )
        self._rows = np.arange(len(ids))
        if self.nothing_held_out and split is not None and folder == root:
            self._hold_back(test=split in ("val", "test"))

    def _hold_back(self, test: bool) -> None:
        """Keeps the images that are held back for tests, or the others."""
        back = self.table.held_back(self.ids)
        self._rows = back if test else np.setdiff1d(self._rows, back)
        self.table = self.table.take(self._rows)
        self.ids = tuple(self.ids[row] for row in self._rows.tolist())
        self.fingerprint = f"{self.fingerprint}-{'test' if test else 'train'}"

    @property
    def annotations(self) -> tuple[pathlib.Path, ...]:
        """The mask, LabelMe file or COCO file of each image."""
        return tuple(self._annotated[row][1] for row in self._rows)

    def read(self, index: int) -> LabelledImage:
        """Reads the image number `index`; raises UserError, naming the file, if it is broken."""
        row = self._rows[index]
        return LabelledImage(read_image(self._annotated[row][0]), self._label(row))

    def instances(self, index: int) -> UInt8[np.ndarray, "height width"] | None:
        """The instances of the image number `index`: the first 254 shapes of LabelMe, or COCO's
        annotations; None if it has a mask."""
        row = self._rows[index]
        if self._coco:
            return self._coco.instances(row)
        if _is_mask(self._annotated[row][1]):
            return None
        numbers, _ = self._drawn(row)
        return np.where(numbers < IGNORE, numbers, 0).astype(np.uint8)

    def _label(self, row: int) -> Integer[np.ndarray, "height width"]:
        image, annotation = self._annotated[row]
        if self._coco:
            number_of = {key: self._number_of[name] for key, name in self._coco.categories.items()}
            return self._coco.label(row, number_of, self.label_type)
        if _is_mask(annotation):
            number = self._number_of[_class_of(image, self._root)]
            mask = read_mask(annotation)
            return np.where(mask == 1, number, np.where(mask, IGNORE, 0)).astype(self.label_type)
        numbers, classes = self._drawn(row)
        return classes[numbers]

    def _drawn(
        self, row: int
    ) -> tuple[Integer[np.ndarray, "height width"], Integer[np.ndarray, " number"]]:
        """The numbers of an image's shapes in LabelMe, and the class of each number."""
        image, annotation = self._annotated[row]
        content = read_labelme(annotation)
        check_shape(content.size, str(annotation), image)  # before it is drawn
        if new := [shape.label for shape in content.shapes if shape.label not in self._number_of]:
            raise UserError(
                f"{annotation} has got the class {new[0]} since the data set was opened: start "
                "again, or restore the file."
            )
        classes = [0, *(self._number_of[shape.label] for shape in content.shapes)]
        return content.draw(), np.array(classes, self.label_type)

    def _count(self, row: int) -> np.ndarray:
        """Counts the pixels of each class in a label, and checks its size."""
        image, annotation = self._annotated[row]
        name = f"{annotation} (for {image.name})" if self._coco else str(annotation)
        if self._coco or _is_mask(annotation):
            label = self._label(row)
        else:
            numbers, classes = self._drawn(row)
            label = classes[numbers]
            hidden = np.setdiff1d(np.arange(1, len(classes)), numbers).tolist()
            self._hidden += [f"shape {number} of {annotation}" for number in hidden]
        check_size(label, name, image)
        pixels = count_classes(label, name, self)
        if _is_mask(annotation):
            if not pixels.any():
                raise UserError(
                    f"{annotation} is an empty mask: paint the class, in any colour but black."
                )
            warn_if_covering(label, name)
        return pixels


# ----------------------------------------------------------------------------- folders

# Images with their annotations, sorted by image.
Pairs = list[tuple[pathlib.Path, pathlib.Path]]


@functools.cache
def _log_once(message: str) -> None:
    logger.info(message)


def _splits(root: pathlib.Path, split: str | None, folds: int) -> dict[str, pathlib.Path]:
    """The folders of the splits by name; see `Folder`."""
    folders = {folder.name: folder for folder in list_folder(root).folders}
    if split is None:
        return {"train": root}
    split = split or "train"
    if not folders.keys() & set(SPLITS):
        if split not in SPLITS:
            raise UserError(
                f"split = {split!r}: {root} has no folder of this name, and no splits: leave "
                "data.split and data.train_split empty."
            )
        if folds:
            _log_once(
                f"{root} has no folders train, val and test: every split has all its images, "
                "and training, selection and test differ by their classes alone."
            )
        return {split: root}
    if split not in folders:
        raise UserError(
            f"split = {split!r}: {root} has the splits {', '.join(folders)}; data.train_split "
            "and data.split choose among them."
        )
    return folders


def _contents(folder: pathlib.Path, root: pathlib.Path) -> tuple[Pairs, CocoAnnotations | None]:
    """The annotated images of a split and its COCO file, if any, whose order they then follow.

    What is left out is logged.
    """
    listing = list_folder(folder)
    beside, others = _beside(listing)
    class_folders = {}
    for below in listing.folders:
        inside = list_folder(below)
        class_folders[below], unknown = _beside(inside)
        others += unknown + inside.folders
    stems = {image.stem for image in beside}
    coco_files = [
        file
        for file in listing.files
        if file.suffix.lower() == ".json" and file.stem not in stems and is_coco(file)
    ]
    if len(coco_files) > 1:
        found = " and ".join(file.name for file in coco_files)
        raise UserError(f"{folder} has the COCO files {found}: keep one of them.")
    if coco_files:
        annotated = [
            image
            for below, images in ({folder: beside} | class_folders).items()
            for image, annotations in images.items()
            if annotations and below.name != "images"
        ]
        if annotated:
            raise UserError(
                f"{folder} has the COCO file {coco_files[0].name}, but {annotated[0]} has an "
                "annotation of its own beside it: keep one of the two."
            )
        pairs, coco = _coco_contents(coco_files[0])
        listed = {image for image, _ in pairs}
        found = [image for images in (beside, *class_folders.values()) for image in images]
        if others := [image for image in found if image not in listed]:
            _log_once(f"{folder}: {left_out(others)}: {coco_files[0].name} does not list them.")
        return pairs, coco

    pairs = []
    for image, annotations in beside.items():
        # In a split, masks without a class folder would name their class after the split.
        found = [path for path in annotations if folder == root or not _is_mask(path)]
        if found:
            pairs.append((image, _only(image, found)))
    if pairs and len(pairs) < len(beside):
        skipped = sorted(beside.keys() - {image for image, _ in pairs})
        _log_once(
            f"{folder}: {len(skipped)} images without an annotation are skipped, beginning with "
            f"{skipped[0]}."
        )
    for below, images in class_folders.items():
        if not images:
            raise UserError(
                f"{below} holds no images ({', '.join(SUFFIXES)}): add some, or remove it."
            )
        for image, annotations in images.items():
            pairs.append((image, _only(image, annotations)))
    if not pairs:
        raise UserError(
            f"{folder} holds no annotated images: it needs folders named after classes, with a "
            "mask beside each image, or such masks of one class without a class folder, or LabelMe "
            "files, or a COCO file."
        )
    if others:
        _log_once(
            f"{folder}: {left_out(others)}: only images ({', '.join(SUFFIXES)}) and their "
            "annotations are read, there and in class folders."
        )
    return pairs, None


def _only(image: pathlib.Path, annotations: list[pathlib.Path]) -> pathlib.Path:
    """The annotation of an image; raises UserError unless there is exactly one."""
    if len(annotations) > 1:
        found = " and ".join(path.name for path in annotations)
        raise UserError(f"{image} has {found} beside it: keep one of them.")
    if not annotations:
        stem = image.stem
        masks = f"{stem}_mask.png"
        if image.suffix.lower() != ".png":
            masks = f"{stem}.png, {masks}"
        raise UserError(
            f"{image} has no annotation: put a mask ({masks}) or a LabelMe file ({stem}.json) "
            "beside it."
        )
    return annotations[0]


def _coco_contents(file: pathlib.Path) -> tuple[Pairs, CocoAnnotations]:
    """The images of a COCO file, in its order, and the file."""
    coco = CocoAnnotations(file)
    pairs = []
    for name in coco.file_names:
        places = (file.parent / name, file.parent / "images" / name)
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise UserError(
                f"{file} lists the image {name}: put it beside the file or into images."
            )
        pairs.append((found, file))
    _check_ids(image for image, _ in pairs)
    return pairs, coco


def _class_names(pairs: Pairs, coco: CocoAnnotations | None, root: pathlib.Path) -> set[str]:
    """The names of the annotated classes."""
    if coco:
        return set(coco.categories.values())
    names = {_class_of(image, root) for image, path in pairs if _is_mask(path)}
    labelme = [path for _, path in pairs if not _is_mask(path)]
    for content in parallel_map(read_labelme, labelme, "LabelMe files", unit="file"):
        names.update(shape.label for shape in content.shapes)
    return names


def _class_of(image: pathlib.Path, root: pathlib.Path) -> str:
    """The class of a mask."""
    folder = image.parent
    return os.path.basename(os.path.abspath(root)) if folder == root else folder.name


def _beside(
    listing: Listing,
) -> tuple[dict[pathlib.Path, list[pathlib.Path]], list[pathlib.Path]]:
    """The images in a folder, each with the masks and LabelMe files beside it, and other files.

    A picture is a mask if it is named after another image and `_mask`, or is a PNG of its name.
    """
    pictures = [file for file in listing.files if file.suffix.lower() in SUFFIXES]
    stems = {file.stem for file in pictures}
    other = {file.stem for file in pictures if file.suffix.lower() != ".png"}
    annotations: dict[str, list[pathlib.Path]] = {}
    images = []
    for file in pictures:
        without = file.stem.removesuffix("_mask")
        if file.suffix.lower() == ".png" and file.stem in other:
            annotations.setdefault(file.stem, []).append(file)
        elif without != file.stem and without in stems:
            annotations.setdefault(without, []).append(file)
        else:
            images.append(file)
    for file in listing.files:
        if file.suffix.lower() == ".json":
            annotations.setdefault(file.stem, []).append(file)
    _check_ids(images)
    beside = {image: annotations.get(image.stem, []) for image in images}
    known = {*images, *(file for files in beside.values() for file in files)}
    return beside, [file for file in (*listing.files, *listing.broken) if file not in known]


def _check_ids(images: Iterable[pathlib.Path]) -> None:
    """Raises UserError if two images differ only by their suffixes."""
    seen: dict[pathlib.Path, pathlib.Path] = {}
    for image in images:
        other = seen.setdefault(image.with_suffix(""), image)
        if other is not image:
            raise UserError(f"{other} and {image.name} would have one name: rename one.")


def _is_mask(path: pathlib.Path) -> bool:
    return path.suffix.lower() != ".json"
