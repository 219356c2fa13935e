"""Layouts that annotation tools export: CVAT, YOLO, VOC, and folders of images and of masks."""

import collections
import contextlib
import functools
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence

from fsseg_jax.data.formats import yolo
from fsseg_jax.data.formats.coco_annotations import is_coco
from fsseg_jax.data.formats.cvat import is_cvat, read_cvat
from fsseg_jax.data.formats.labelme import LabelMe
from fsseg_jax.data.images import image_size
from fsseg_jax.data.listing import (
    check_name,
    is_part,
    left_out,
    list_below,
    list_folder,
    read_lines,
)
from fsseg_jax.data.sources.annotated import (
    INSTANCES,
    SUFFIXES,
    Annotation,
    Contents,
    Drawn,
    Mask,
    Naming,
    Numbered,
    check_ids,
    find_images,
    listed_in,
)
from fsseg_jax.errors import UserError

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {"valid": "val", "validation": "val"} | {name: name for name in SPLITS}
VOC_LABELS = ("SegmentationClassAug", "SegmentationClass")
VOC_LISTS = "ImageSets/Segmentation"
NAMES = ("class_names.txt", "labels.txt", "classes.txt", "obj.names")  # of classes, one a line

logger = logging.getLogger(__name__)


@functools.cache
def log_once(message: str) -> None:
    """Logs a message that several splits may have."""
    logger.info(message)


def splits(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The splits of a layout that has them elsewhere than in folders of `root`: YOLO's
    `images/train`, VOC's lists, or COCO's files. They are called as in `SPLITS`, or as they are
    if that says nothing of them; if it says nothing of any, there are no splits.

    Raises:
        UserError: two are one split by different names.
    """
    named: list[tuple[str, pathlib.Path]] = []
    if (root / "labels").is_dir() and (root / "images").is_dir():
        inside = list_folder(root / "images").folders
        named = [(x.name, x) for x in inside if (root / "labels" / x.name).is_dir()]
    elif _is_voc(root) and (root / VOC_LISTS).is_dir():
        named = [(x.stem, x) for x in list_folder(root / VOC_LISTS).files if x.suffix == ".txt"]
    elif (root / "annotations").is_dir():
        named = _coco_splits(root)
    found: dict[str, pathlib.Path] = {}
    for old, place in named:
        name = SPLIT_NAMES.get(old.lower(), old)
        if name in found:
            raise UserError(f"{found[name]} and {place.name} are of one split: keep one of them.")
        found[name] = place
    return found if found.keys() & {*SPLITS} else {}


def _coco_splits(root: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """COCO files of splits: `annotations/instances_train2017.json`, or without year or beginning.
    A single one without a folder of the split's name, as of COCO's `val2017` alone, is for all
    images."""
    files = coco_files(list_folder(root / "annotations").files, lambda x: _split(x) in SPLIT_NAMES)
    named = [(_split(file), file) for file in files]
    folders = {folder.name.lower() for folder in list_folder(root).folders}
    return [] if len(named) == 1 and named[0][0] not in folders else named


def _split(file: pathlib.Path) -> str:
    return re.sub(r"\d{4}$", "", file.stem.removeprefix(INSTANCES)).lower()


def coco_files(
    files: Iterable[pathlib.Path], wanted: Callable[[pathlib.Path], bool]
) -> list[pathlib.Path]:
    """Those that are COCO files: only those of instances if there are any, as COCO's own are beside
    others of keypoints and of captions. `wanted`: whether to look into a file."""
    found = [file for file in files if file.suffix.lower() == ".json" and wanted(file)]
    official = [file for file in found if file.stem.startswith(INSTANCES)]
    return [file for file in official or found if is_coco(file)]


def find(place: pathlib.Path, root: pathlib.Path) -> Contents | None:
    """What a split holds if it is laid out in one of these ways, or None."""
    if place.is_file() and place.suffix.lower() == ".json":
        return Contents(root, listed_in(place))
    if place.is_file():
        return _voc(place.parents[2], place)
    files, folders, _ = list_folder(place)
    named = {folder.name: folder for folder in folders}
    cvat = [file for file in files if file.suffix.lower() == ".xml" and is_cvat(file)]
    if len(cvat) > 1:
        raise UserError(f"{place} has the CVAT files {cvat[0].name} and {cvat[1].name}: keep one.")
    if cvat:
        return _cvat(cvat[0])
    if _is_voc(place):
        return _voc(place)
    if "images" in named and "labels" in named:
        return _yolo(place, named["images"], root)
    if place.parent.name == "images" and (place.parents[1] / "labels" / place.name).is_dir():
        return _yolo(place, place, root)
    if "images" in named and "masks" in named:
        return _masks(place, named["images"], named["masks"], root)
    return None


def is_laid_out(folder: pathlib.Path) -> bool:
    """Whether a folder is laid out in one of these ways, and not as class folders."""
    files, folders, _ = list_folder(folder)
    names = {x.name for x in folders}
    cvat = any(file.suffix.lower() == ".xml" and is_cvat(file) for file in files)
    pairs = ("images" in names and names & {"labels", "masks"}) and not splits(folder)
    return bool(cvat or _is_voc(folder) or pairs)


def _cvat(file: pathlib.Path) -> Contents:
    listed = read_cvat(file)
    skipped = [(kind, image.name) for image in listed for kind in image.skipped]
    if skipped:
        count = sum(image.skipped.total() for image in listed)
        log_once(
            f"{file}: {count} left out, beginning with {' in '.join(skipped[0])}: only polygons, "
            "boxes, ellipses and masks are read."
        )
    shown = [image for image in listed if image.drawing.shapes]
    pairs: list[tuple[pathlib.Path, Annotation]] = [
        (path, Drawn(file, lambda drawing: drawing, image.drawing))
        for path, image in zip(find_images(file, [x.name for x in shown]), shown, strict=True)
    ]
    without = [image.name for image in listed if not image.drawing.shapes]
    return Contents(file.parent, _annotated(file.parent, pairs, without))


def _yolo(place: pathlib.Path, images: pathlib.Path, root: pathlib.Path) -> Contents:
    labels = place / "labels" if images != place else place.parents[1] / "labels" / place.name
    names = _yolo_names([place, place.parent, root])

    def read(text: pathlib.Path, image: pathlib.Path) -> LabelMe:
        return yolo.read_yolo(text, image_size(image), names)

    def annotation(image: pathlib.Path) -> Annotation | None:
        text = labels / image.relative_to(images).with_suffix(".txt")
        return Drawn(text, read, text, image) if text.is_file() else None

    return _from_folder(place, images, labels, annotation, naming=names)


def _yolo_names(places: Iterable[pathlib.Path]) -> dict[int, str]:
    for place in places:
        for file in list_folder(place).files:
            if file.name in ("data.yaml", "data.yml", "dataset.yaml"):
                return yolo.class_names(file)
            if file.name in NAMES:
                return dict(enumerate(read_lines(file)))
    return {}


def _masks(
    place: pathlib.Path, images: pathlib.Path, masks: pathlib.Path, root: pathlib.Path
) -> Contents:
    name = os.path.basename(os.path.abspath(root))
    by_stem: dict[pathlib.Path, pathlib.Path] = {}
    for file in sorted(list_below(masks).files):
        if file.suffix.lower() in SUFFIXES:
            own = file.relative_to(masks).with_suffix("")
            other = by_stem.setdefault(own.with_name(own.name.removesuffix("_mask")), file)
            if other is not file:
                raise UserError(f"{other} and {file.name} are of one image: keep one of them.")

    def annotation(image: pathlib.Path) -> Annotation | None:
        file = by_stem.get(image.relative_to(images).with_suffix(""))
        return file and Mask(file, name)

    return _from_folder(place, images, masks, annotation)


def _is_voc(root: pathlib.Path) -> bool:
    return (root / "JPEGImages").is_dir() and any((root / x).is_dir() for x in VOC_LABELS)


def _voc(root: pathlib.Path, listed: pathlib.Path | None = None) -> Contents:
    """The images of a list, or all that have a label."""
    labels = next(root / x for x in VOC_LABELS if (root / x).is_dir())
    naming = _voc_naming(root)
    wanted = _names_in(listed) if listed else None

    def annotation(image: pathlib.Path) -> Annotation | None:
        own = image.relative_to(root / "JPEGImages").with_suffix("")
        file = labels / own.with_suffix(".png")
        return Numbered(file, naming) if file.is_file() else None

    place = listed or root
    return _from_folder(place, root / "JPEGImages", labels, annotation, naming, wanted)


def _names_in(listed: pathlib.Path) -> set[str]:
    """Those of the images in a list of VOC's; CVAT puts names with spaces into quotes."""
    names = set()
    for line in read_lines(listed):
        quoted = len(line) > 1 and line[0] == line[-1] == '"'
        name = line[1:-1].replace('\\"', '"') if quoted else line
        check_name(name, f"{listed}: the name of an image")
        names.add(name)
    return names


def _voc_naming(root: pathlib.Path) -> Naming:
    """That of CVAT's `labelmap.txt` (`name:red,green,blue:parts:actions`), or of a list."""
    if (root / "labelmap.txt").is_file():
        lines = [x for x in read_lines(root / "labelmap.txt") if not x.startswith("#")]
        fields = [[*line.split(":"), ""] for line in lines]
        named = collections.defaultdict(set)
        for name, colour, *_ in fields:
            with contextlib.suppress(ValueError):
                named[tuple(map(int, colour.split(",")))].add(name)
        colours = {colour: min(names) for colour, names in named.items() if len(names) == 1}
        return Naming({number: name for number, (name, *_) in enumerate(fields)}, colours)
    found = next((root / name for name in NAMES if (root / name).is_file()), None)
    names = read_lines(found) if found else []
    names = [name for name in names if name != "__ignore__"]  # LabelMe's -1
    return Naming(dict(enumerate(names)), {})


def _from_folder(
    place: pathlib.Path,
    images: pathlib.Path,
    labels: pathlib.Path,
    annotation: Callable[[pathlib.Path], Annotation | None],
    naming: object = None,
    wanted: set[str] | None = None,
) -> Contents:
    """The annotated images in a folder and below, and of these only the `wanted` ones; `labels` is
    the folder of the annotations."""
    pairs, without, others = [], [], []
    listing = list_below(images)
    for file in sorted(listing.files):
        own = file.relative_to(images)
        if file.suffix.lower() not in SUFFIXES or not all(map(is_part, own.parts)):
            others.append(file)
        elif wanted is None or own.with_suffix("").as_posix() in wanted:
            found = annotation(file)
            pairs += [(file, found)] if found else []
            without += [] if found else [file]
    if wanted is None:
        used = {found.file for _, found in pairs}
        inside = list_below(labels)
        others += [x for x in sorted(inside.files) if x not in used and x.name not in NAMES]
        others += [*listing.broken, *inside.broken]
        if others:
            log_once(f"{place}: {left_out(others)}: only images and their annotations are read.")
    else:
        there = (*(image for image, _ in pairs), *without)
        absent = wanted - {x.relative_to(images).with_suffix("").as_posix() for x in there}
        if absent:
            log_once(f"{place}: {left_out(sorted(absent))}: {images} has no such images.")
    return Contents(images, _annotated(place, pairs, without), naming=naming)


def _annotated(
    place: pathlib.Path, pairs: list[tuple[pathlib.Path, Annotation]], without: Sequence[object]
) -> list[tuple[pathlib.Path, Annotation]]:
    if not pairs:
        raise UserError(f"{place} holds no annotated images: export it with its annotations.")
    check_ids(image for image, _ in pairs)
    if without:
        log_once(
            f"{place}: images without an annotation, which are skipped: {len(without)}, beginning "
            f"with {without[0]}."
        )
    return pairs
