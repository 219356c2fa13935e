"""How folders of annotated images are laid out: class folders, masks beside images, COCO files."""

import contextlib
import itertools
import logging
import os
import pathlib
from collections.abc import Mapping

from fsseg_jax.data.formats.coco_annotations import is_coco
from fsseg_jax.data.formats.labelme import read_labelme
from fsseg_jax.data.listing import Listing, left_out, list_below, list_folder
from fsseg_jax.data.masks import is_cut_out
from fsseg_jax.data.sources import exports
from fsseg_jax.data.sources.annotated import (
    SUFFIXES,
    Annotation,
    Contents,
    Drawn,
    Mask,
    Scribble,
    check_ids,
    listed_in,
)
from fsseg_jax.data.sources.exports import SPLIT_NAMES, SPLITS
from fsseg_jax.errors import UserError

SCRIBBLE = "_scribble"  # what the name of a picture of scribbles ends with

Beside = dict[pathlib.Path, list[pathlib.Path]]  # images with the annotations beside them

logger = logging.getLogger(__name__)


def splits_of(root: pathlib.Path, split: str | None, folds: int) -> dict[str, pathlib.Path]:
    """Where each split is, by name: a folder, or a list of VOC's, or a COCO file. See `Folder`.

    For supports (`split` None) there is one, which is the training split of an export that has
    splits.

    Raises:
        UserError: there is no split of this name.
    """
    below = (x for x in list_folder(root).folders if x.name != "annotations")  # of COCO
    places = {folder.name: folder for folder in below} | exports.splits(root)
    renamed = {SPLIT_NAMES.get(name, name): name for name in places}
    folders = {name: places[name if name in places else old] for name, old in renamed.items()}
    if split is None:
        train = folders.get("train")
        exported = train and (train.parent != root or _is_export(train))
        whole = exports.is_laid_out(root) and not exports.splits(root)
        if train is None or not exported or whole:
            return {"train": root}
        exports.log_once(f"{root} has splits: the supports are those of {train}.")
        return {"train": train}
    split = SPLIT_NAMES.get(split or "train", split)
    if not folders.keys() & set(SPLITS):
        if split not in SPLITS:
            raise UserError(
                f"split = {split!r}: {root} has no folder of this name, and no splits: leave "
                "data.split and data.train_split empty."
            )
        if folds:
            exports.log_once(
                f"{root} has no folders train, val and test: every split has all its images, "
                "and training, selection and test differ by their classes alone."
            )
        return {split: root}
    if exported := exports.splits(root):  # beside them are images and labels
        folders = exported
    if split not in folders:
        raise UserError(
            f"split = {split!r}: {root} has the splits {', '.join(folders)}; data.train_split "
            "and data.split choose among them."
        )
    return folders


def _is_export(folder: pathlib.Path) -> bool:
    """Whether a folder is a split as tools export it, and no class."""
    coco = any(is_coco(x) for x in list_folder(folder).files if x.suffix.lower() == ".json")
    return coco or exports.is_laid_out(folder)


def contents_of(place: pathlib.Path, root: pathlib.Path, marks: bool = False) -> Contents:
    """What a split holds; what is left out is logged. `marks`: whether strokes are read."""
    if found := exports.find(place, root):
        return found
    return Contents(place, _by_folders(place, root, marks))


def _annotation(
    image: pathlib.Path, path: pathlib.Path, root: pathlib.Path, marks: bool
) -> Annotation:
    if path.stem.endswith(SCRIBBLE):
        return Scribble(path, _class_of(image, root))
    if _is_mask(path):
        return Mask(path, _class_of(image, root))
    return Drawn(path, read_labelme, path, marks)


def _by_folders(
    folder: pathlib.Path, root: pathlib.Path, marks: bool
) -> list[tuple[pathlib.Path, Annotation]]:
    """The annotated images of a split, in the order of its COCO file if it has one."""
    listing = list_folder(folder)
    beside, others = _beside(listing)
    class_folders = {}
    for below in listing.folders:
        class_folders[below], unknown = _beside(list_below(below))
        others += unknown
    stems = {image.stem for image in beside}
    below = (list_folder(x).files for x in listing.folders if x.name == "annotations")
    candidates = (*listing.files, *itertools.chain(*below))
    coco_files = exports.coco_files(candidates, lambda file: file.stem not in stems)
    if len(coco_files) > 1:
        found = " and ".join(file.name for file in coco_files)
        raise UserError(f"{folder} has the COCO files {found}: keep one of them.")
    if coco_files:
        return _by_coco(coco_files[0], {folder: beside} | class_folders)

    pairs = _annotated(folder, beside, folder == root)
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
        exports.log_once(
            f"{folder}: {left_out(others)}: only images ({', '.join(SUFFIXES)}) and their "
            "annotations are read, there and in class folders."
        )
    return [(image, _annotation(image, path, root, marks)) for image, path in pairs]


def _by_coco(
    file: pathlib.Path, folders: Mapping[pathlib.Path, Beside]
) -> list[tuple[pathlib.Path, Annotation]]:
    """The images that a COCO file lists. `folders`: what is in its folder, which is the first, and
    in those in this."""
    folder = next(iter(folders))
    annotated = [
        image
        for below, images in folders.items()
        for image, annotations in images.items()
        if annotations and below.name not in ("images", "annotations")
    ]
    if annotated:
        raise UserError(
            f"{folder} has the COCO file {file.name}, but {annotated[0]} has an annotation of its "
            "own beside it: keep one of the two."
        )
    of_file = listed_in(file)
    listed = {image for image, _ in of_file}
    found = [image for images in folders.values() for image in images]
    if others := [image for image in found if image not in listed]:
        exports.log_once(f"{folder}: {left_out(others)}: {file.name} does not list them.")
    return of_file


def _annotated(
    folder: pathlib.Path, beside: Beside, is_root: bool
) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """The images that are in no class folder, with their annotations; others are skipped."""
    pairs = []
    # Beside LabelMe files, an image without one shows nothing.
    cut_outs = all(map(_is_mask, itertools.chain(*beside.values())))
    for image, annotations in beside.items():
        # In a split, masks without a class folder would name their class after the split.
        found = [path for path in annotations if is_root or not _is_mask(path)]
        if not found and is_root and cut_outs and _is_its_own_mask(image):
            found = [image]
        if found:
            pairs.append((image, _only(image, found)))
    if pairs and len(pairs) < len(beside):
        skipped = sorted(beside.keys() - {image for image, _ in pairs})
        exports.log_once(
            f"{folder}: images without an annotation, which are skipped: {len(skipped)}, beginning "
            f"with {skipped[0]}."
        )
    return pairs


def _is_its_own_mask(image: pathlib.Path) -> bool:
    with contextlib.suppress(UserError):  # a broken one is skipped as others without a mask
        return is_cut_out(image)
    return False


def _only(image: pathlib.Path, annotations: list[pathlib.Path]) -> pathlib.Path:
    """The annotation of an image; raises UserError unless there is exactly one."""
    if len(annotations) > 1:
        found = " and ".join(path.name for path in annotations)
        raise UserError(f"{image} has {found} beside it: keep one of them.")
    if not annotations and is_cut_out(image):
        return image
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


def _class_of(image: pathlib.Path, root: pathlib.Path) -> str:
    """The class of a mask: the folder of its image, below the root or a split."""
    if image.parent == root:
        return os.path.basename(os.path.abspath(root))
    first, *rest = image.relative_to(root).parts
    return rest[0] if first in SPLIT_NAMES and len(rest) > 1 else first


def _beside(
    listing: Listing,
) -> tuple[Beside, list[pathlib.Path]]:
    """The images in a folder, each with the masks and LabelMe files beside it, and other files.

    A picture is a mask if it is named after another image and `_mask` or `_scribble`, or is a PNG
    of its name.
    """
    pictures = [file for file in listing.files if file.suffix.lower() in SUFFIXES]
    stems = {file.with_suffix("") for file in pictures}
    other = {file.with_suffix("") for file in pictures if file.suffix.lower() != ".png"}
    annotations: dict[pathlib.Path, list[pathlib.Path]] = {}
    images = []
    for file in pictures:
        without = file.stem.removesuffix("_mask").removesuffix(SCRIBBLE)
        own = file.with_suffix("")
        if file.suffix.lower() == ".png" and own in other:
            annotations.setdefault(own, []).append(file)
        elif without != file.stem and file.with_name(without) in stems:
            annotations.setdefault(file.with_name(without), []).append(file)
        else:
            images.append(file)
    for file in listing.files:
        if file.suffix.lower() == ".json":
            annotations.setdefault(file.with_suffix(""), []).append(file)
    check_ids(images)
    beside = {image: annotations.get(image.with_suffix(""), []) for image in images}
    known = {*images, *(file for files in beside.values() for file in files)}
    return beside, [file for file in (*listing.files, *listing.broken) if file not in known]


def _is_mask(path: pathlib.Path) -> bool:
    return path.suffix.lower() != ".json"
