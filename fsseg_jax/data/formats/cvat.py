"""Reads the XML of CVAT ("CVAT for images 1.1"): polygons, boxes, ellipses and masks by image."""

import collections
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from fsseg_jax.data.formats.labelme import LabelMe, Shape, check_drawable, check_near
from fsseg_jax.data.images import MOST_PIXELS
from fsseg_jax.data.listing import check_name
from fsseg_jax.errors import UserError, brief

LARGEST = 2**28  # bytes of a file
LONGEST = 2**24  # characters of an attribute, which is held fifty times while it is read
DEEPEST = 100  # nesting of elements
STEP = 2**16  # characters that are parsed at once
CORNERS = 64  # of the polygon that an ellipse becomes

Fields = Mapping[str, str]  # the attributes of an element


class Annotated(NamedTuple):
    """An image of a CVAT file."""

    name: str  # its file, relative to the images
    drawing: LabelMe
    skipped: collections.Counter[str]  # of the kinds of shapes that cover nothing, such as points


def is_cvat(path: pathlib.Path) -> bool:
    """Whether an XML file is CVAT's, by its beginning."""
    try:
        with path.open("rb") as file:
            return b"<annotations" in file.read(4096)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): replace the file.") from None


def read_cvat(path: str | os.PathLike) -> list[Annotated]:
    """Reads the images of a CVAT file.

    Raises:
        UserError: the file is missing, too large, too deep or broken, declares entities, names a
            file outside of its folder or twice, or has a shape that is none.
    """
    images = _Images(path)
    parser = ElementTree.XMLParser(target=images)
    try:
        if (size := os.stat(path).st_size) > LARGEST:
            raise UserError(f"{path} has {size} bytes, but at most {LARGEST} are read: split it.")
        with open(path, encoding="utf-8-sig") as file:
            while part := file.read(STEP):
                parser.feed(part)
        parser.close()
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): replace the file.") from None
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path} is not valid XML ({error}): replace the file.") from None
    if not images.found:
        raise UserError(f"{path} lists no images: export the task as CVAT for images 1.1.")
    return [*images.found.values()]


class _Images:
    """Takes the elements of a file as they are parsed, of which it keeps shapes alone.

    Everything of a shape is in its attributes.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self._path, self._depth, self._number = path, 0, -1
        self._image = 0  # depth of the image that is open; 0 without one
        self.found: dict[str, Annotated] = {}

    def doctype(self, *_: Any) -> None:
        """Refuses entities, which may grow to any size."""
        raise UserError(f"{self._path} declares a document type or entities: export it again.")

    def start(self, tag: str, fields: dict[str, str]) -> None:
        """Begins an element."""
        self._depth += 1
        if self._depth == 1 and tag != "annotations":
            raise UserError(
                f"{self._path} is not a file of CVAT for images: it has no annotations."
            )
        if self._depth > DEEPEST:
            raise UserError(f"{self._path} nests more than {DEEPEST} elements: replace the file.")
        if fields and max(map(len, fields.values())) > LONGEST:
            raise UserError(
                f"{self._path}, a {brief(tag)}, has an attribute of more than {LONGEST} "
                "characters: draw it again."
            )
        if self._image and self._depth == self._image + 1:
            self._shape(tag, fields)
        elif tag == "image" and not self._image:
            self._begin(fields)

    def end(self, tag: str) -> None:
        """Ends an element."""
        if self._image == self._depth:
            drawing = LabelMe(self._size, tuple(self._shapes))
            check_drawable(drawing, self._where)
            self.found[self._name] = Annotated(self._name, drawing, self._skipped)
            self._image = 0
        self._depth -= 1

    def _begin(self, fields: Mapping[str, str]) -> None:
        self._number += 1
        self._where = f"{self._path}, image {self._number}"
        self._name = fields.get("name", "")
        check_name(self._name, f"{self._where}: its name")
        if self._name in self.found:
            raise UserError(
                f"{self._where} has the name {self._name} of another one: keep one of them."
            )
        try:
            self._size = int(fields.get("height", "")), int(fields.get("width", ""))
        except ValueError:
            self._size = 0, 0
        if min(self._size) < 1 or math.prod(self._size) > MOST_PIXELS:
            width, height = (brief(fields.get(side)) for side in ("width", "height"))
            raise UserError(
                f"{self._where} has the width {width} and the height {height}: they must be those "
                f"of the image, of at most {MOST_PIXELS} pixels."
            )
        self._image, self._children = self._depth, 0
        self._shapes: list[Shape] = []
        self._skipped: collections.Counter[str] = collections.Counter()

    def _shape(self, tag: str, fields: Mapping[str, str]) -> None:
        where = f"{self._where}, shape {self._children}"
        self._children += 1
        reader = _READERS.get(tag)
        if reader is None:
            self._skipped[tag] += 1
            return
        label = fields.get("label", "")
        if not label.strip():
            raise UserError(f"{where}, has no label: name its class.")
        try:
            shape = reader(fields, label)
        except (ValueError, OverflowError) as error:
            raise UserError(f"{where}, is not a valid {tag} ({error}): draw it again.") from None
        check_near(shape.points, where)
        inside = (shape.points >= 0).all() and (shape.points < self._size[::-1]).all()
        if shape.kind == "mask" and not inside:
            raise UserError(f"{where}, is a mask outside of its image: draw it again.")
        self._shapes.append(shape)


def _numbers(fields: Fields, *names: str) -> list[float]:
    return [float(fields.get(name, "")) for name in names]


def _polygon(fields: Fields, label: str) -> Shape:
    pairs = (pair.split(",") for pair in fields.get("points", "").split(";"))
    points = np.array([(float(x), float(y)) for x, y in pairs])
    if len(points) < 3:
        raise ValueError("it has less than three points")
    return Shape(label, "polygon", points)


def _box(fields: Fields, label: str) -> Shape:
    left, top, right, bottom = _numbers(fields, "xtl", "ytl", "xbr", "ybr")
    turn = math.radians(float(fields.get("rotation", "0")))
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    if not turn:
        return Shape(label, "rectangle", corners[[0, 2]])
    return Shape(label, "polygon", _turned(corners, turn))


def _ellipse(fields: Fields, label: str) -> Shape:
    x, y, width, height = _numbers(fields, "cx", "cy", "rx", "ry")
    angle = np.arange(CORNERS) * 2 * math.pi / CORNERS
    corners = np.stack([x + width * np.cos(angle), y + height * np.sin(angle)], axis=1)
    return Shape(
        label, "polygon", _turned(corners, math.radians(float(fields.get("rotation", "0"))))
    )


def _turned(corners: np.ndarray, angle: float) -> np.ndarray:
    middle = corners.mean(axis=0)
    sine, cosine = math.sin(angle), math.cos(angle)
    return (corners - middle) @ np.array([[cosine, sine], [-sine, cosine]]) + middle


def _mask(fields: Fields, label: str) -> Shape:
    """Run lengths, row by row within a box, beginning with what is not the object."""
    left, top, width, height = (
        int(float(x)) for x in (fields.get(n, "") for n in ("left", "top", "width", "height"))
    )
    runs = [int(run) for run in fields.get("rle", "").split(",")]
    if not 0 < width * height <= MOST_PIXELS or min(width, height) < 1:
        raise ValueError(f"its box is {width} x {height} pixels")
    if min(runs) < 0 or sum(runs) != width * height:
        raise ValueError(f"its run lengths do not fill its box of {width} x {height} pixels")
    if not any(runs[1::2]):
        raise ValueError("it covers nothing")
    corners = np.array([[left, top], [left + width - 1, top + height - 1]], float)
    return Shape(label, "mask", corners, np.array(runs))


_READERS = {"polygon": _polygon, "box": _box, "ellipse": _ellipse, "mask": _mask}
