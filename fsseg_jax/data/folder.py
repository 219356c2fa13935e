"""One's own photographs: class folders with masks, LabelMe files, or a COCO file."""

import functools
import json
import logging
import math
import os
import pathlib
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, UInt8
from PIL import Image, ImageDraw, ImageOps

from fsseg_jax.data.coco import CocoAnnotations
from fsseg_jax.data.source import (
    Photograph,
    Source,
    check_size,
    class_numbers,
    count_classes,
    fingerprint,
    kept_table,
    parallel_map,
    read_image,
)
from fsseg_jax.episode import IGNORE
from fsseg_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")  # of photographs
SPLITS = ("train", "val", "test")
POINTS = {"polygon": 3, "rectangle": 2, "circle": 2}  # how many a LabelMe shape needs
FARTHEST = 1e5  # from the corner of the photograph, in pixels, that any of them can be

logger = logging.getLogger(__name__)


class Folder(Source):
    """One's own photographs, annotated in one of these ways:

    - Class folders: `cat/1.jpg` with a mask beside it, which shows where the folder's class is
      (`cat/1.png` or `cat/1_mask.png`, see `read_mask`), or with a LabelMe file (`cat/1.json`),
      which may outline objects of other classes too.
    - LabelMe files beside photographs that are in no class folder; photographs without one are
      left out.
    - One COCO file, with any name, whose photographs lie beside it or in `images`.

    Classes are what masks and LabelMe files show, or the COCO file's categories, sorted by name;
    they are the same for all splits. If `root` has a folder `train`, `val` or `test`, then all its
    folders are splits, each annotated as above; otherwise every split is all photographs. Names
    that begin with a dot are ignored.

    Args:
        root: the folder.
        split: a folder of `root`, if that has splits; empty for `train`.
        folds: how many: the classes, in their order, are dealt into so many groups as equal as
            possible, and each fold holds out one of them. 1 holds out all, for tests alone.

    Raises:
        UserError: the folder, the split or an annotation is missing, an annotation is broken,
            empty, ambiguous or not of its photograph's size, or there are more folds than classes.
    """

    name = "folder"

    def __init__(self, root: str | os.PathLike, split: str, folds: int) -> None:
        root = existing_root(root, "folder of your photographs")
        split = split or "train"
        folders = {folder.name: folder for folder in _folders(root)}
        if not folders.keys() & set(SPLITS):
            _log_once(
                f"{root} has no folders train, val and test: every split is all its photographs, "
                "and training differs from selection and test by the classes alone."
            )
            folders = {split: root}
        elif split not in folders:
            raise UserError(
                f"split = {split!r}: {root} has the splits {', '.join(folders)}; data.train_split "
                "and data.split choose among them."
            )
        contents = {name: _contents(folder) for name, folder in folders.items()}
        self._annotated, self._coco = contents[split]
        names = [_class_names(annotated, coco) for annotated, coco in contents.values()]
        self.classes = tuple(sorted(set().union(*names)))
        if not self.classes:
            raise UserError(f"{root} has photographs, but their annotations outline no objects.")
        if not 1 <= folds <= len(self.classes):
            raise UserError(
                f"data.folds = {folds}: {root} has {len(self.classes)} classes, of which each fold "
                f"holds out at least one: choose 1..{len(self.classes)}."
            )
        numbers = class_numbers(len(self.classes))
        self.folds = tuple(tuple(fold.tolist()) for fold in np.array_split(numbers, folds))
        self._number_of = {name: number for number, name in self.class_names.items()}
        self._dtype = np.min_scalar_type(numbers[-1])

        folder = folders[split]
        ids = [path.relative_to(folder).with_suffix("").as_posix() for path, _ in self._annotated]
        self.ids = tuple(ids)
        files = dict.fromkeys(path for pair in self._annotated for path in pair)
        # Other splits may bring other classes, which renumber these.
        self.fingerprint = f"{fingerprint(files)}-{zlib.crc32(repr(self.classes).encode()):08x}"
        self.table = kept_table(self.name, self.fingerprint, self._count, range(len(ids)))

    def read(self, index: int) -> Photograph:
        """The photograph number `index`; raises UserError, naming the file, if it is broken."""
        return Photograph(read_image(self._annotated[index][0]), self._label(index))

    def instances(self, index: int) -> UInt8[np.ndarray, "height width"] | None:
        """The objects of the photograph number `index`, unless it has a mask: LabelMe's shapes
        (those after the 254th are none) or COCO's annotations."""
        _, annotation = self._annotated[index]
        if self._coco:
            return self._coco.instances(index)
        if _is_mask(annotation):
            return None
        numbers = read_labelme(annotation).draw()
        return np.where(numbers < IGNORE, numbers, 0).astype(np.uint8)

    def _label(self, index: int) -> Integer[np.ndarray, "height width"]:
        photograph, annotation = self._annotated[index]
        if self._coco:
            number_of = {key: self._number_of[name] for key, name in self._coco.categories.items()}
            return self._coco.label(index, number_of, self._dtype)
        if _is_mask(annotation):
            return read_mask(annotation) * self._dtype.type(self._number_of[photograph.parent.name])
        labelme = read_labelme(annotation)
        numbers = [0, *(self._number_of[shape.label] for shape in labelme.shapes)]
        return np.array(numbers, self._dtype)[labelme.draw()]

    def _count(self, index: int) -> np.ndarray:
        """Pixels of each class in one label, checked against its photograph."""
        photograph, annotation = self._annotated[index]
        name = f"{annotation} (for {photograph.name})" if self._coco else str(annotation)
        label = self._label(index)
        check_size(label, name, photograph)
        if _is_mask(annotation) and not label.any():
            raise UserError(f"{annotation} is an empty mask: paint the class, in any colour but 0.")
        return count_classes(label, name, self)


# ----------------------------------------------------------------------------- annotations


def read_mask(path: str | os.PathLike, above: int = 0) -> Bool[np.ndarray, "height width"]:
    """Reads where a mask, a PNG of any kind, is not black; transparency does not matter.

    Args:
        path: of the mask.
        above: what grey value, or what value of red, green or blue, still is none of the class.

    Raises:
        UserError: the file is absent or broken.
    """
    try:
        with Image.open(path) as file:
            mask = ImageOps.exif_transpose(file)
            if mask.mode == "1":
                mask = mask.convert("L")
            elif mask.mode != "L" and not mask.mode.startswith("I"):
                mask = mask.convert("RGB")
            values = np.asarray(mask)
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises about broken files
        raise UserError(f"{path} cannot be read ({error}): replace the file.") from None
    return values > above if values.ndim == 2 else (values > above).any(axis=-1)


class Shape(NamedTuple):
    """The outline of one object in a LabelMe file."""

    label: str
    kind: str  # one of POINTS
    # x and y in pixels: of the polygon's corners, of two or more corners of the rectangle, or of
    # the circle's centre and of any point on it.
    points: Float[np.ndarray, "points 2"]


class LabelMe(NamedTuple):
    """What a LabelMe file says about its photograph."""

    size: tuple[int, int]  # height and width of the photograph
    shapes: tuple[Shape, ...]

    def draw(self) -> Int[np.ndarray, "height width"]:
        """The number of the shape that each pixel shows, from 1 in the file's order; 0 for none.

        Pixels are those that LabelMe's own converters give. Where shapes overlap, the smaller one
        is on top.
        """
        canvas = Image.new("I", self.size[::-1])
        drawing = ImageDraw.Draw(canvas)
        shapes = enumerate(self.shapes, start=1)
        for number, shape in sorted(shapes, key=lambda item: -_area(item[1])):
            colours = {"fill": number, "outline": number}
            x, y = shape.points.T.tolist()
            if shape.kind == "polygon":
                drawing.polygon(list(zip(x, y, strict=True)), **colours)
            elif shape.kind == "rectangle":
                drawing.rectangle((min(x), min(y), max(x), max(y)), **colours)
            else:
                radius = math.dist(*shape.points)
                box = (x[0] - radius, y[0] - radius, x[0] + radius, y[0] + radius)
                drawing.ellipse(box, **colours)
        return np.asarray(canvas)


def read_labelme(path: str | os.PathLike) -> LabelMe:
    """Reads a LabelMe file; the photograph that it may contain is ignored.

    Raises:
        UserError: the file is absent, is no LabelMe file, or has a shape that is none of POINTS or
            has too few points.
    """
    content = _read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise UserError(f"{path} is no LabelMe file: it has no list of shapes.")
    size = tuple(content.get(name) for name in ("imageHeight", "imageWidth"))
    if not all(type(side) is int and side > 0 for side in size):
        raise UserError(
            f"{path} has imageHeight {size[0]} and imageWidth {size[1]}: they must be the size of "
            "its photograph."
        )
    shapes = (_shape(fields, f"{path}, shape {i}") for i, fields in enumerate(content["shapes"], 1))
    return LabelMe(size, tuple(shapes))


def _shape(fields: Any, name: str) -> Shape:
    """One shape of a LabelMe file; raises UserError if it is not as it should be."""
    fields = fields if isinstance(fields, dict) else {}
    label, points = fields.get("label"), fields.get("points")
    kind = fields.get("shape_type") or "polygon"  # the first versions had nothing else
    if not (isinstance(label, str) and label.strip()):
        raise UserError(f"{name}, has the label {label!r}: it must be the name of a class.")
    if kind not in tuple(POINTS):  # which may be a list, that no dictionary can look up
        raise UserError(
            f"{name}, is of the type {kind!r}: draw a {', a '.join(POINTS)} instead, or remove it."
        )
    try:
        points = np.array(points, np.float64)
    except (OverflowError, TypeError, ValueError):
        points = np.empty(0)
    # False for NaN too; and a circle of a million pixels takes Pillow a minute.
    near = points.ndim == 2 and points.shape[1] == 2 and (np.abs(points) < FARTHEST).all()
    if not near:
        raise UserError(
            f"{name}, has points that are no pairs of pixels in or near the photograph: draw it "
            "again, or remove it."
        )
    if len(points) < POINTS[kind] or (kind == "circle" and len(points) > 2):
        raise UserError(
            f"{name}, is a {kind} with {len(points)} points, but it needs {POINTS[kind]}: draw it "
            "again, or remove it."
        )
    return Shape(label, kind, points)


def _area(shape: Shape) -> float:
    """In pixels."""
    if shape.kind == "circle":
        return math.pi * math.dist(*shape.points) ** 2
    if shape.kind == "rectangle":
        return float(np.prod(np.ptp(shape.points, axis=0)))
    x, y = (shape.points - shape.points[0]).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _read_json(path: str | os.PathLike) -> Any:
    try:
        return json.loads(pathlib.Path(path).read_text("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): replace the file.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no valid JSON ({error}): replace the file.") from None


# ----------------------------------------------------------------------------- folders

# Photographs and what annotates them, sorted by the former.
Pairs = list[tuple[pathlib.Path, pathlib.Path]]


def existing_root(root: str | os.PathLike, what: str) -> pathlib.Path:
    """`data.root`, with `~` expanded; raises UserError where there is no folder."""
    if not str(root):
        raise UserError(f"data.root is empty: set it to the {what}.")
    root = pathlib.Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"data.root = {root}: there is no such folder.")
    return root


@functools.cache
def _log_once(message: str) -> None:
    logger.info(message)


def _contents(folder: pathlib.Path) -> tuple[Pairs, CocoAnnotations | None]:
    """The annotated photographs of a split, and its COCO file, if that annotates them (then the
    photographs are in its order)."""
    beside = _beside(folder)
    class_folders = {below: _beside(below) for below in _folders(folder)}
    stems = {photograph.stem for photograph in beside}
    coco_files = [
        file
        for file in _files(folder)
        if file.suffix.lower() == ".json" and file.stem not in stems and _is_coco(file)
    ]
    if len(coco_files) > 1:
        found = " and ".join(file.name for file in coco_files)
        raise UserError(f"{folder} has the COCO files {found}: keep one of them.")
    if coco_files:
        annotated = [
            photograph
            for below, photographs in ({folder: beside} | class_folders).items()
            for photograph, annotations in photographs.items()
            if annotations and below.name != "images"
        ]
        if annotated:
            raise UserError(
                f"{folder} has the COCO file {coco_files[0].name}, but {annotated[0]} has an "
                "annotation of its own beside it: keep one of the two."
            )
        return _coco_contents(coco_files[0])

    pairs = []
    for photograph, annotations in beside.items():
        found = [path for path in annotations if not _is_mask(path)]
        pairs += [(photograph, path) for path in found[:1]]
    if pairs and len(pairs) < len(beside):
        left_out = len(beside) - len(pairs)
        _log_once(f"{folder}: {left_out} photographs without a LabelMe file are left out.")
    for below, photographs in class_folders.items():
        if not photographs:
            raise UserError(
                f"{below} holds no photographs ({', '.join(SUFFIXES)}): add some, or remove it."
            )
        for photograph, annotations in photographs.items():
            pairs.append((photograph, _only(photograph, annotations)))
    if not pairs:
        raise UserError(
            f"{folder} holds no annotated photographs: it needs folders named after classes, with "
            "a mask beside each photograph, or LabelMe files, or a COCO file."
        )
    return pairs, None


def _only(photograph: pathlib.Path, annotations: list[pathlib.Path]) -> pathlib.Path:
    """What annotates a photograph in a class folder."""
    if len(annotations) > 1:
        found = " and ".join(path.name for path in annotations)
        raise UserError(f"{photograph} has {found} beside it: keep one of them.")
    if not annotations:
        stem = photograph.stem
        masks = f"{stem}_mask.png"
        if photograph.suffix.lower() != ".png":
            masks = f"{stem}.png, {masks}"
        raise UserError(
            f"{photograph} has no annotation: put a mask ({masks}) or a LabelMe file ({stem}.json) "
            "beside it."
        )
    return annotations[0]


def _coco_contents(file: pathlib.Path) -> tuple[Pairs, CocoAnnotations]:
    """A COCO file and its photographs, in its order."""
    coco = CocoAnnotations(file)
    pairs = []
    for name in coco.file_names:
        places = (file.parent / name, file.parent / "images" / name)
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise UserError(
                f"{file} names the photograph {name}: put it beside the file or into images."
            )
        pairs.append((found, file))
    _check_ids(photograph for photograph, _ in pairs)
    return pairs, coco


def _class_names(pairs: Pairs, coco: CocoAnnotations | None) -> set[str]:
    """The classes that annotations show."""
    if coco:
        return set(coco.categories.values())
    names = {photograph.parent.name for photograph, path in pairs if _is_mask(path)}
    labelme = [path for _, path in pairs if not _is_mask(path)]
    for content in parallel_map(read_labelme, labelme, "LabelMe files", unit="file"):
        names.update(shape.label for shape in content.shapes)
    return names


def _beside(folder: pathlib.Path) -> dict[pathlib.Path, list[pathlib.Path]]:
    """The photographs in a folder, each with the masks and LabelMe files beside it.

    A PNG is a mask if it is named after another photograph, alone or with `_mask`.
    """
    files = _files(folder)
    pictures = [file for file in files if file.suffix.lower() in SUFFIXES]
    stems = {file.stem for file in pictures}
    other = {file.stem for file in pictures if file.suffix.lower() != ".png"}
    annotations: dict[str, list[pathlib.Path]] = {}
    photographs = []
    for file in pictures:
        without = file.stem.removesuffix("_mask")
        if _is_mask(file) and file.stem in other:
            annotations.setdefault(file.stem, []).append(file)
        elif _is_mask(file) and without != file.stem and without in stems:
            annotations.setdefault(without, []).append(file)
        else:
            photographs.append(file)
    for file in files:
        if file.suffix.lower() == ".json":
            annotations.setdefault(file.stem, []).append(file)
    _check_ids(photographs)
    return {photograph: annotations.get(photograph.stem, []) for photograph in photographs}


def _check_ids(photographs: Iterable[pathlib.Path]) -> None:
    """Raises UserError where two photographs differ by their suffixes alone."""
    seen: dict[pathlib.Path, pathlib.Path] = {}
    for photograph in photographs:
        other = seen.setdefault(photograph.with_suffix(""), photograph)
        if other is not photograph:
            raise UserError(f"{other} and {photograph.name} would have one name: rename one.")


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in _visible(folder) if path.is_file()]


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def _visible(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX")))


def _is_mask(path: pathlib.Path) -> bool:
    return path.suffix.lower() == ".png"


def _is_coco(path: pathlib.Path) -> bool:
    content = _read_json(path)
    return isinstance(content, dict) and content.keys() >= {"images", "annotations", "categories"}
