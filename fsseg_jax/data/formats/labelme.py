"""LabelMe's files: the outlines of objects that a person has drawn on a photograph."""

import json
import math
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from PIL import Image, ImageDraw

from fsseg_jax.errors import UserError

POINTS = {"polygon": 3, "rectangle": 2, "circle": 2}  # how many a shape needs
FARTHEST = 1e5  # from the corner of the photograph, in pixels, that any of them can be


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
        height, width = self.size
        canvas = Image.new("I", (width, height))
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
    size: Any = tuple(content.get(name) for name in ("imageHeight", "imageWidth"))
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
        points = np.array([])
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
