"""Reads LabelMe's files: hand-drawn outlines of the objects in an image."""

import collections
import json
import math
import os
import pathlib
import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from PIL import Image, ImageDraw

from fsseg_jax.data.images import MOST_PIXELS
from fsseg_jax.errors import UserError

LARGEST = 2**29  # bytes of a file, which may contain its image
MOST_VALUES = 2**24  # of a file, each of which takes a hundred bytes when it is parsed
POINTS = {"polygon": 3, "rectangle": 2, "circle": 2}  # fewest points of each kind of shape
STROKES = {"linestrip": 2, "line": 2, "point": 1, "points": 1}  # kinds that mark a part
WIDTH = 5 / 417  # of strokes and points, as a share of the longer side of the image
BACKGROUND = ("background", "_background_")  # labels of strokes on no object
FARTHEST = 1e5  # largest coordinate of a point, in pixels
# Length of all outlines of a file, and area of all shapes, in pixels: Pillow draws a minute.
LONGEST_OUTLINES, MOST_DRAWN = 1e8, 1e11


class Shape(NamedTuple):
    """The outline of one object in a LabelMe file."""

    label: str
    kind: str  # one of POINTS, or of STROKES
    # x and y in pixels: a polygon's corners, two or more corners of a rectangle, or a circle's
    # centre and any point on it, or the outer pixels of a mask's box.
    points: Float[np.ndarray, "points 2"]
    # Of kind "mask": lengths of what is not and what is the object in turn, row by row in the box.
    runs: Int[np.ndarray, " runs"] | None = None


class LabelMe(NamedTuple):
    """The contents of a LabelMe file."""

    size: tuple[int, int]  # height and width of the image, of at most MOST_PIXELS
    shapes: tuple[Shape, ...]

    @property
    def is_weak(self) -> bool:
        """Whether strokes or points mark some pixels, and the others are not known."""
        return any(shape.kind in STROKES for shape in self.shapes)

    def draw(self) -> Int[np.ndarray, "height width"]:
        """Draws the number of each pixel's shape, from 1 in the file's order; 0 is none.

        Pixels are those of LabelMe's own converters. Smaller shapes are drawn over larger ones.
        """
        height, width = self.size
        thick = max(1, round(WIDTH * max(self.size)))
        canvas = Image.new("I", (width, height))
        drawing = ImageDraw.Draw(canvas)
        shapes = enumerate(self.shapes, start=1)
        for number, shape in sorted(shapes, key=lambda item: -_area(item[1])):
            colours = {"fill": number, "outline": number}
            x, y = shape.points.T.tolist()
            if shape.kind == "polygon":
                drawing.polygon(list(zip(x, y, strict=True)), **colours)
            elif shape.kind in STROKES:
                if shape.kind.startswith("line"):
                    drawing.line(list(zip(x, y, strict=True)), number, thick, joint="curve")
                for a, b in zip(x, y, strict=True):
                    r = thick / 2
                    drawing.ellipse((a - r, b - r, a + r, b + r), **colours)
            elif shape.runs is not None:
                inside = np.zeros(np.ptp(shape.points, axis=0).astype(int)[::-1] + 1, bool)
                decoded = np.repeat(np.arange(len(shape.runs)) % 2 == 1, shape.runs)
                inside.flat[: len(decoded)] = decoded
                canvas.paste(number, (int(x[0]), int(y[0])), Image.fromarray(inside))
            elif shape.kind == "rectangle":
                drawing.rectangle((min(x), min(y), max(x), max(y)), **colours)
            else:
                radius = math.dist(*shape.points)
                box = (x[0] - radius, y[0] - radius, x[0] + radius, y[0] + radius)
                drawing.ellipse(box, **colours)
        return np.asarray(canvas)


def read_labelme(path: str | os.PathLike, strokes: bool = False) -> LabelMe:
    """Reads a LabelMe file, ignoring the image that it may contain and the path of its image.

    Args:
        path: the file.
        strokes: whether it may have shapes of the kinds in `STROKES`.

    Raises:
        UserError: the file is missing, too large or no LabelMe file, or has a shape of an unknown
            kind or with too few points.
    """
    content = _read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise UserError(f"{path} is not a LabelMe file: it has no list of shapes.")
    size: Any = tuple(content.get(name) for name in ("imageHeight", "imageWidth"))
    fits = all(type(side) is int and side > 0 for side in size)
    if not fits or math.prod(size) > MOST_PIXELS:
        height, width = (reprlib.repr(side).strip("'") for side in size)
        raise UserError(
            f"{path} has imageHeight {height} and imageWidth {width}: they must be the size of "
            f"its image, of at most {MOST_PIXELS} pixels."
        )
    kinds = POINTS | (STROKES if strokes else {})
    shapes = [
        _shape(fields, f"{path}, shape {i}", kinds) for i, fields in enumerate(content["shapes"], 1)
    ]
    drawing = LabelMe(size, tuple(shapes))
    check_drawable(drawing, str(path))
    return drawing


def check_drawable(drawing: LabelMe, name: str) -> None:
    """Raises UserError if drawing would take minutes."""
    area = sum(_area_inside(shape, *drawing.size) for shape in drawing.shapes)
    if sum(map(_length, drawing.shapes)) > LONGEST_OUTLINES or area > MOST_DRAWN:
        raise UserError(
            f"{name} has shapes whose outlines or areas are too long or too large to draw: remove "
            "those that are not of its image."
        )


def check_near(points: Float[np.ndarray, "..."], name: str) -> None:
    """Raises UserError unless points are coordinates in an image or near it.

    The bound exists because Pillow draws a circle of a million pixels for a minute.
    """
    # False for NaN too.
    if not (points.ndim == 2 and points.shape[1] == 2 and (np.abs(points) < FARTHEST).all()):
        raise UserError(
            f"{name}, has points that are not coordinates in or near the image: draw it again, or "
            "remove it."
        )


def _shape(fields: Any, name: str, kinds: Mapping[str, int]) -> Shape:
    """Parses a shape of a LabelMe file; raises UserError if it is invalid."""
    fields = fields if isinstance(fields, dict) else {}
    label, points = fields.get("label"), fields.get("points")
    kind = fields.get("shape_type") or "polygon"  # the first versions knew no other type
    if not (isinstance(label, str) and label.strip()):
        raise UserError(
            f"{name}, has the label {reprlib.repr(label)}: it must be the name of a class."
        )
    if kind not in tuple(kinds):  # may be an unhashable list
        raise UserError(
            f"{name}, is of type {reprlib.repr(kind)}: draw a {', a '.join(POINTS)} instead, or "
            "remove it."
        )
    try:
        points = np.array(points, np.float64)
    except (OverflowError, TypeError, ValueError):
        points = np.array([])
    check_near(points, name)
    if len(points) < kinds[kind] or (kind == "circle" and len(points) > 2):
        raise UserError(
            f"{name}, is a {kind} with {len(points)} points, but it needs {kinds[kind]}: draw it "
            "again, or remove it."
        )
    return Shape(label, kind, points)


def _area(shape: Shape) -> float:
    if shape.kind in STROKES:  # on top of all others
        return 0
    if shape.kind == "circle":
        return math.pi * math.dist(*shape.points) ** 2
    if shape.runs is not None:
        return float(shape.runs[1::2].sum())
    if shape.kind == "rectangle":
        return float(np.prod(np.ptp(shape.points, axis=0)))
    x, y = (shape.points - shape.points[0]).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _length(shape: Shape) -> float:
    """The length of an outline, horizontally and vertically, in pixels."""
    return float(np.abs(shape.points - np.roll(shape.points, 1, axis=0)).sum())


def _area_inside(shape: Shape, height: int, width: int) -> float:
    """The area of the box around a shape within its image, in pixels."""
    low, high = shape.points.min(axis=0), shape.points.max(axis=0)
    if shape.kind == "circle":
        radius = math.dist(*shape.points)
        low, high = shape.points[0] - radius, shape.points[0] + radius
    return float(np.prod((np.minimum(high, (width, height)) - np.maximum(low, 0)).clip(0)))


def _read_json(path: str | os.PathLike) -> Any:
    try:
        if (size := os.stat(path).st_size) > LARGEST:
            raise UserError(
                f"{path} has {size} bytes, but a LabelMe file at most {LARGEST}: save it without "
                "its image."
            )
        text = pathlib.Path(path).read_text("utf-8-sig")
        if text.count(",") + text.count("[") > MOST_VALUES:  # an image has neither
            raise UserError(
                f"{path} has more than {MOST_VALUES} values: remove shapes that are not of its "
                "image."
            )
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): replace the file.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): replace the file.") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice, _ = collections.Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{reprlib.repr(twice)} occurs twice in an object")
    return fields
