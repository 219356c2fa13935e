"""Reads the XML of CVAT ("CVAT for images 1.1"): polygons, boxes, ellipses and masks by image."""

import math
import os
import pathlib
import reprlib
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from fsseg_jax.data.formats.labelme import LabelMe, Shape, check_drawable, check_near
from fsseg_jax.data.images import MOST_PIXELS
from fsseg_jax.data.listing import check_name
from fsseg_jax.errors import UserError

LARGEST = 2**28  # bytes of a file, which is held ten times as elements
CORNERS = 64  # of the polygon that an ellipse becomes


class Annotated(NamedTuple):
    """An image of a CVAT file."""

    name: str  # its file, relative to the images
    drawing: LabelMe
    skipped: tuple[str, ...]  # kinds of shapes that cover nothing, such as points


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
        UserError: the file is missing, too large or broken, declares entities, names a file outside
            of its folder or twice, or has a shape that is none.
    """
    root = _parse(path)
    if root.tag != "annotations":
        raise UserError(f"{path} is no file of CVAT for images: it has no annotations.")
    found: dict[str, Annotated] = {}
    for number, image in enumerate(root.iter("image")):
        where = f"{path}, image {number}"
        name = image.get("name", "")
        check_name(name, f"{where}: its name")
        if name in found:
            raise UserError(f"{where} has the name {name} of another one: keep one of them.")
        found[name] = _image(image, name, where)
    if not found:
        raise UserError(f"{path} lists no images: export the task as CVAT for images 1.1.")
    return [*found.values()]


def _parse(path: str | os.PathLike) -> ElementTree.Element:
    try:
        if (size := os.stat(path).st_size) > LARGEST:
            raise UserError(f"{path} has {size} bytes, but at most {LARGEST} are read: split it.")
        text = pathlib.Path(path).read_text("utf-8-sig")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:  # which may grow to any size
            raise UserError(f"{path} declares a document type or entities: export it again.")
        return ElementTree.fromstring(text)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): replace the file.") from None
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path} is no valid XML ({error}): replace the file.") from None


def _image(image: ElementTree.Element, name: str, where: str) -> Annotated:
    try:
        size = int(image.get("height", "")), int(image.get("width", ""))
    except ValueError:
        size = 0, 0
    if min(size) < 1 or math.prod(size) > MOST_PIXELS:
        raise UserError(
            f"{where} has the width {reprlib.repr(image.get('width'))} and the height "
            f"{reprlib.repr(image.get('height'))}: they must be those of the image, of at most "
            f"{MOST_PIXELS} pixels."
        )
    shapes, skipped = [], []
    for number, element in enumerate(image):
        reader = _READERS.get(element.tag)
        if reader is None:
            skipped.append(element.tag)
            continue
        label = element.get("label", "")
        if not label.strip():
            raise UserError(f"{where}, shape {number}, has no label: name its class.")
        try:
            shape = reader(element, label)
        except (ValueError, OverflowError) as error:
            raise UserError(
                f"{where}, shape {number}, is no {element.tag} ({error}): draw it again."
            ) from None
        check_near(shape.points, f"{where}, shape {number}")
        inside = (shape.points >= 0).all() and (shape.points < size[::-1]).all()
        if shape.kind == "mask" and not inside:
            raise UserError(
                f"{where}, shape {number}, is a mask outside of its image: draw it again."
            )
        shapes.append(shape)
    drawing = LabelMe(size, tuple(shapes))
    check_drawable(drawing, where)
    return Annotated(name, drawing, tuple(skipped))


def _numbers(element: ElementTree.Element, *names: str) -> list[float]:
    return [float(element.get(name, "")) for name in names]


def _polygon(element: ElementTree.Element, label: str) -> Shape:
    pairs = [pair.split(",") for pair in element.get("points", "").split(";")]
    points = np.array([[float(x), float(y)] for x, y in pairs])
    if len(points) < 3:
        raise ValueError("it has less than three points")
    return Shape(label, "polygon", points)


def _box(element: ElementTree.Element, label: str) -> Shape:
    left, top, right, bottom = _numbers(element, "xtl", "ytl", "xbr", "ybr")
    turn = math.radians(float(element.get("rotation", "0")))
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    if not turn:
        return Shape(label, "rectangle", corners[[0, 2]])
    return Shape(label, "polygon", _turned(corners, turn))


def _ellipse(element: ElementTree.Element, label: str) -> Shape:
    x, y, width, height = _numbers(element, "cx", "cy", "rx", "ry")
    angle = np.arange(CORNERS) * 2 * math.pi / CORNERS
    corners = np.stack([x + width * np.cos(angle), y + height * np.sin(angle)], axis=1)
    return Shape(
        label, "polygon", _turned(corners, math.radians(float(element.get("rotation", "0"))))
    )


def _turned(corners: np.ndarray, angle: float) -> np.ndarray:
    middle = corners.mean(axis=0)
    sine, cosine = math.sin(angle), math.cos(angle)
    return (corners - middle) @ np.array([[cosine, sine], [-sine, cosine]]) + middle


def _mask(element: ElementTree.Element, label: str) -> Shape:
    """Run lengths, row by row within a box, beginning with what is not the object."""
    left, top, width, height = (
        int(float(x)) for x in (element.get(n, "") for n in ("left", "top", "width", "height"))
    )
    runs = [int(run) for run in element.get("rle", "").split(",")]
    if not 0 < width * height <= MOST_PIXELS or min(width, height) < 1:
        raise ValueError(f"its box is {width} x {height} pixels")
    if min(runs) < 0 or sum(runs) > width * height:
        raise ValueError(f"its run lengths do not fill its box of {width} x {height} pixels")
    if not any(runs[1::2]):
        raise ValueError("it covers nothing")
    corners = np.array([[left, top], [left + width - 1, top + height - 1]], float)
    return Shape(label, "mask", corners, np.array(runs))


_READERS = {"polygon": _polygon, "box": _box, "ellipse": _ellipse, "mask": _mask}
