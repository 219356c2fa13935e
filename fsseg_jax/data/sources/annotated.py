"""Images with their annotations, whatever the format, as the layouts of folders give them."""

import abc
import collections
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer

from fsseg_jax.data.formats.coco_annotations import CocoAnnotations
from fsseg_jax.data.formats.labelme import BACKGROUND, LabelMe
from fsseg_jax.data.images import HEIC, check_shape, open_picture
from fsseg_jax.data.masks import numbers, read_mask, scribble
from fsseg_jax.episode import IGNORE, UNLABELLED
from fsseg_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", *HEIC)  # of images


class Annotation(abc.ABC):
    """What one file says of one image."""

    file: pathlib.Path

    @abc.abstractmethod
    def names(self) -> set[str]:
        """The classes that it may show."""

    @abc.abstractmethod
    def shown(
        self, image: pathlib.Path
    ) -> tuple[Integer[np.ndarray, "height width"], dict[int, str]]:
        """Numbers of the pixels, 0 where nothing is, and the class of each number.

        255 is ignored if it is no number of a class, and so is 254, which is not marked.
        """

    def unmarked(self, image: pathlib.Path) -> Bool[np.ndarray, "height width"] | None:
        """Where an annotation with scribbles marks nothing; None for others."""
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


class Numbered(Annotation):
    """A label image, whose numbers are classes with names."""

    def __init__(self, file: pathlib.Path, classes: Mapping[int, str]) -> None:
        self.file, self._classes = file, classes

    def names(self) -> set[str]:
        """The classes whose numbers it has."""
        return set(self._named(self._label()).values())

    def shown(
        self, image: pathlib.Path
    ) -> tuple[Integer[np.ndarray, "height width"], dict[int, str]]:
        """The numbers."""
        label = self._label()
        return label, self._named(label)

    def _label(self) -> Integer[np.ndarray, "height width"]:
        with open_picture(self.file) as file:
            return numbers(file, str(self.file))

    def _named(self, label: Integer[np.ndarray, "height width"]) -> dict[int, str]:
        found = np.setdiff1d(label, [0, UNLABELLED, IGNORE]).tolist()
        return {number: self._classes.get(number, str(number)) for number in found}


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
        if behind := [n for n, name in names.items() if name in _background(content)]:
            drawn = np.where(np.isin(drawn, behind), 0, drawn)
        return drawn, {n: name for n, name in names.items() if n not in behind}

    def unmarked(self, image: pathlib.Path) -> Bool[np.ndarray, "height width"] | None:
        """Where no shape is, if some are strokes or points."""
        content = self._checked(image)
        return content.draw() == 0 if content.is_weak else None

    def _checked(self, image: pathlib.Path) -> LabelMe:
        content = self._read()
        check_shape(content.size, str(self.file), image)  # before it is drawn
        return content


def _background(content: LabelMe) -> set[str]:
    return set(BACKGROUND) if content.is_weak else set()


class Contents(NamedTuple):
    """The annotated images of a split."""

    base: pathlib.Path  # the folder that names of images are relative to
    pairs: list[tuple[pathlib.Path, Annotation]]
    coco: CocoAnnotations | None = None  # of all images, in its order; then they have no others


class Listed(Annotation):
    """A place in a COCO file, which `CocoAnnotations` reads."""

    def __init__(self, file: pathlib.Path) -> None:
        self.file = file

    def names(self) -> set[str]:
        """None: the file has the categories of all images."""
        return set()

    def shown(
        self, image: pathlib.Path
    ) -> tuple[Integer[np.ndarray, "height width"], dict[int, str]]:
        """Not called."""
        raise NotImplementedError


def find_image(file: pathlib.Path, name: str) -> pathlib.Path:
    """The image that an annotation file lists, which is beside it, in `images`, or anywhere below
    its folder or the one above if no other there has the name.

    Raises:
        UserError: there is none, or there are several.
    """
    above = file.parent.parent if file.parent.name == "annotations" else file.parent
    for folder in (file.parent, file.parent / "images", above, above / "images"):
        if (folder / name).is_file():
            return folder / name
    wanted = pathlib.PurePosixPath(name).parts
    found = [path for path in _by_name(above)[wanted[-1]] if path.parts[-len(wanted) :] == wanted]
    if len(found) != 1:
        many = f", and {found[0]} and {found[1]} have the name: remove one" if found else ""
        raise UserError(
            f"{file} lists the image {name}{many or ': put it beside the file or into images'}."
        )
    return found[0]


@functools.lru_cache(maxsize=8)
def _by_name(folder: pathlib.Path) -> Mapping[str, list[pathlib.Path]]:
    found = collections.defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            found[path.name].append(path)
    return found
