"""Images with their annotations, whatever the format, as the layouts of folders give them."""

import abc
import collections
import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer, UInt8

from fsseg_jax.data.formats.coco_annotations import CocoAnnotations
from fsseg_jax.data.formats.labelme import BACKGROUND, LabelMe
from fsseg_jax.data.images import HEIC, check_shape, open_picture
from fsseg_jax.data.listing import list_below
from fsseg_jax.data.masks import label_image, read_mask, scribble
from fsseg_jax.data.source import class_numbers
from fsseg_jax.episode import IGNORE, UNLABELLED
from fsseg_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", *HEIC)  # of images
INSTANCES = "instances_"  # what the names of COCO's own files begin with, and of CVAT's


class Annotation(abc.ABC):
    """What one file says of one image."""

    file: pathlib.Path

    def __str__(self) -> str:
        """What to call it in errors."""
        return str(self.file)

    @abc.abstractmethod
    def names(self) -> set[str]:
        """The classes that it may show."""

    @abc.abstractmethod
    def shown(
        self, image: pathlib.Path
    ) -> tuple[Integer[np.ndarray, "height width"], dict[int, str]]:
        """Numbers of the pixels, 0 where nothing is, and the class of each number.

        255 is ignored if it is not the number of a class, and so is 254, which is not marked.
        """

    def unmarked(self, image: pathlib.Path) -> Bool[np.ndarray, "height width"] | None:
        """Where an annotation with scribbles marks nothing; None for others."""
        return None

    def instances(self, image: pathlib.Path) -> UInt8[np.ndarray, "height width"] | None:
        """Up to 254 objects by numbers; None if the annotation does not tell them apart."""
        return None


class Mask(Annotation):
    """A mask of one class."""

    def __init__(self, file: pathlib.Path, name: str) -> None:
        self.file, self.name = file, name

    def names(self) -> set[str]:
        """The class."""
        return {self.name}

    def shown(
        self, image: pathlib.Path
    ) -> tuple[Integer[np.ndarray, "height width"], dict[int, str]]:
        """1 for the class."""
        return read_mask(self.file), {1: self.name}


class Scribble(Mask):
    """A picture of scribbles; see `data.masks.scribble`."""

    def shown(
        self, image: pathlib.Path
    ) -> tuple[Integer[np.ndarray, "height width"], dict[int, str]]:
        """1 for the class, 254 where nothing is marked."""
        with open_picture(self.file) as file:
            label = scribble(file, str(self.file))
        return np.where((label > 0) & (label < UNLABELLED), 1, label), {1: self.name}

    def unmarked(self, image: pathlib.Path) -> Bool[np.ndarray, "height width"]:
        """Where nothing is marked."""
        return self.shown(image)[0] == UNLABELLED


class Naming(NamedTuple):
    """What the label images of a data set call their classes."""

    numbers: Mapping[int, str]  # others are their own names
    colours: Mapping[tuple[int, ...], str]  # of red, green and blue


class Numbered(Annotation):
    """A label image, whose numbers or colours are classes with names."""

    def __init__(self, file: pathlib.Path, naming: Naming) -> None:
        self.file, self._naming = file, naming

    def names(self) -> set[str]:
        """The classes whose numbers or colours it has."""
        return set(self._read()[1].values())

    def shown(
        self, image: pathlib.Path
    ) -> tuple[Integer[np.ndarray, "height width"], dict[int, str]]:
        """Its numbers, or those of its colours, from 1."""
        return self._read()

    def _read(self) -> tuple[Integer[np.ndarray, "height width"], dict[int, str]]:
        with open_picture(self.file) as file:
            label = label_image(file, str(self.file))
        if label.ndim == 3:
            return self._of_colours(label)
        found = np.setdiff1d(label, [0, UNLABELLED, IGNORE]).tolist()
        names = {number: self._naming.numbers.get(number, str(number)) for number in found}
        return _without_background(label, names)

    def _of_colours(
        self, label: UInt8[np.ndarray, "height width 3"]
    ) -> tuple[Integer[np.ndarray, "height width"], dict[int, str]]:
        known = self._naming.colours
        if not known:
            raise UserError(
                f"{self.file} is in colour, but no labelmap.txt says which class a colour is: "
                "export it with one, or as numbers of classes."
            )
        packed, number = np.unique(label @ np.array([2**16, 2**8, 1]), return_inverse=True)
        names = {}
        for n, value in enumerate(packed.tolist(), start=1):
            colour = value >> 16, value >> 8 & 255, value & 255
            if any(colour) and colour not in known:
                raise UserError(
                    f"{self.file} has the colour {colour}, which labelmap.txt gives to no class, "
                    "or to several: correct one of the two."
                )
            names[n] = known.get(colour, BACKGROUND[0])
        return _without_background(number.reshape(label.shape[:2]) + 1, names)


class Drawn(Annotation):
    """Shapes that a function reads, given the arguments."""

    def __init__(
        self, file: pathlib.Path, read: Callable[..., LabelMe], *arguments: object
    ) -> None:
        self.file, self._read = file, functools.partial(read, *arguments)

    def names(self) -> set[str]:
        """The labels of the shapes."""
        content = self._read()
        return {shape.label for shape in content.shapes} - _background(content)

    def shown(
        self, image: pathlib.Path
    ) -> tuple[Integer[np.ndarray, "height width"], dict[int, str]]:
        """The numbers of the shapes, from 1; 0 for strokes on the background."""
        content = self._checked(image)
        drawn, names = content.draw(), {n: x.label for n, x in enumerate(content.shapes, start=1)}
        return _without_background(drawn, names) if content.is_weak else (drawn, names)

    def unmarked(self, image: pathlib.Path) -> Bool[np.ndarray, "height width"] | None:
        """Where no shape is, if some are strokes or points."""
        content = self._checked(image)
        return content.draw() == 0 if content.is_weak else None

    def instances(self, image: pathlib.Path) -> UInt8[np.ndarray, "height width"]:
        """The first 254 shapes that are drawn."""
        numbers, _ = self.shown(image)
        return np.where(numbers < IGNORE, numbers, 0).astype(np.uint8)

    def _checked(self, image: pathlib.Path) -> LabelMe:
        content = self._read()
        check_shape(content.size, str(self.file), image)  # before it is drawn
        return content


def _background(content: LabelMe) -> set[str]:
    return set(BACKGROUND) if content.is_weak else set()


def _without_background(
    label: Integer[np.ndarray, "height width"], names: dict[int, str]
) -> tuple[Integer[np.ndarray, "height width"], dict[int, str]]:
    """Numbers and their classes, in which a class of the name background is 0."""
    behind = [number for number, name in names.items() if name in BACKGROUND]
    label = np.where(np.isin(label, behind), 0, label) if behind else label
    return label, {number: name for number, name in names.items() if number not in behind}


class Contents(NamedTuple):
    """The annotated images of a split."""

    base: pathlib.Path  # the folder that names of images are relative to
    pairs: list[tuple[pathlib.Path, Annotation]]
    naming: object = None  # what files besides those of the pairs call the numbers of classes


class Listed(Annotation):
    """An image in a COCO file.

    Args:
        coco: what is in the file.
        row: which of its images.
        categories: those that are classes, by their ids.
    """

    def __init__(
        self, file: pathlib.Path, coco: CocoAnnotations, row: int, categories: Mapping[int, str]
    ) -> None:
        self.file, self._coco, self._row, self._categories = file, coco, row, categories

    def __str__(self) -> str:
        """What to call it in errors."""
        return f"{self.file} (for {pathlib.PurePosixPath(self._coco.file_names[self._row]).name})"

    def names(self) -> set[str]:
        """The categories of the file."""
        return {*self._categories.values()}

    def shown(
        self, image: pathlib.Path
    ) -> tuple[Integer[np.ndarray, "height width"], dict[int, str]]:
        """Numbers of categories, in the order of their ids."""
        numbers = class_numbers(len(self._categories))
        number_of = dict(zip(self._categories, numbers.tolist(), strict=True))
        label = self._coco.label(self._row, number_of, np.min_scalar_type(numbers.max(initial=0)))
        return label, dict(zip(numbers.tolist(), self._categories.values(), strict=True))

    def instances(self, image: pathlib.Path) -> UInt8[np.ndarray, "height width"]:
        """The 254 largest objects."""
        return self._coco.instances(self._row)


def listed_in(file: pathlib.Path) -> list[tuple[pathlib.Path, Annotation]]:
    """The images of a COCO file, in its order; see `find_images`."""
    coco = CocoAnnotations(file)
    images = find_images(file, coco.file_names)
    check_ids(images)
    shown = {*coco.pairs()[:, 1].tolist()}
    categories = {key: name for key, name in coco.categories.items() if key or key in shown}
    return [(image, Listed(file, coco, row, categories)) for row, image in enumerate(images)]


def check_ids(images: Iterable[pathlib.Path]) -> None:
    """Raises UserError if two images differ only by their suffixes."""
    seen: dict[pathlib.Path, pathlib.Path] = {}
    for image in images:
        other = seen.setdefault(image.with_suffix(""), image)
        if other is not image:
            raise UserError(f"{other} and {image.name} would have one name: rename one.")


def find_images(file: pathlib.Path, names: Iterable[str]) -> list[pathlib.Path]:
    """The images that an annotation file lists, which are beside it, in `images`, or anywhere below
    its folder or the one above if no other there has the name. Those of a file for a split in
    `annotations` may be in the folder of the split.

    Raises:
        UserError: of one there is none, or there are several.
    """
    above = file.parent.parent if file.parent.name == "annotations" else file.parent
    near = [file.parent, file.parent / "images", above, above / "images"]
    if above != file.parent:
        split = file.stem.removeprefix(INSTANCES)
        near = [above / split, above / split / "images", above / "images" / split, *near]
    by_name: dict[str, list[pathlib.Path]] = {}  # which takes long, and is not often needed
    images = []
    for name in names:
        found = [folder / name for folder in near if (folder / name).is_file()][:1]
        if not found:
            by_name = by_name or _by_name(above)
            wanted = pathlib.PurePosixPath(name).parts
            same = by_name.get(wanted[-1], [])
            found = [path for path in same if path.parts[-len(wanted) :] == wanted]
        if len(found) != 1:
            many = f", and {found[0]} and {found[1]} have the name: remove one" if found else ""
            raise UserError(
                f"{file} lists the image {name}{many or ': put it beside the file or into images'}."
            )
        images += found
    return images


def _by_name(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    found = collections.defaultdict(list)
    for path in sorted(list_below(folder).files):
        if path.suffix.lower() in SUFFIXES:
            found[path.name].append(path)
    return dict(found)
