"""Reads YOLO's labels: a text file for each image, and the names of the classes in a YAML file."""

import os
import pathlib
import reprlib
from collections.abc import Mapping

import numpy as np
import yaml

from fsseg_jax.data.formats.labelme import LabelMe, Shape, check_drawable, check_near
from fsseg_jax.data.listing import read_lines
from fsseg_jax.errors import UserError

LARGEST = 2**24, 2**20  # bytes of a file of labels, whose numbers take 50 times that, and of YAML


def read_yolo(path: str | os.PathLike, size: tuple[int, int], names: Mapping[int, str]) -> LabelMe:
    """Reads the objects of an image.

    A line is `class x1 y1 x2 y2 ...`, the corners of a polygon, or `class x y width height`, the
    middle and size of a box, all as shares of the image's size.

    Args:
        size: height and width of the image.
        names: names of the classes by number; others are named by their number.

    Raises:
        UserError: the file is missing or too large, or a line is neither.
    """
    path = pathlib.Path(path)
    _check_size(path, LARGEST[0])
    shapes = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            first, *rest = line.split()
            kind, values = int(first), [float(x) for x in rest]
        except (ValueError, OverflowError):
            kind, values = -1, []
        if kind < 0 or (len(values) != 4 and (len(values) < 6 or len(values) % 2)):
            raise UserError(
                f"{path}, line {number}, is {reprlib.repr(line)}: it must be the number of a "
                "class, and x and y of at least three corners, or x, y, width and height of a box."
            )
        if len(values) == 4:
            x, y, width, height = values
            corners = [[x - width / 2, y - height / 2], [x + width / 2, y + height / 2]]
        else:
            corners = [values[i : i + 2] for i in range(0, len(values), 2)]
        points = np.array(corners) * size[::-1]
        check_near(points, f"{path}, line {number}")
        name = names.get(kind, str(kind))
        shapes.append(Shape(name, "rectangle" if len(values) == 4 else "polygon", points))
    drawing = LabelMe(size, tuple(shapes))
    check_drawable(drawing, str(path))
    return drawing


def class_names(path: str | os.PathLike) -> dict[int, str]:
    """The names of the classes by number: `names` of a YAML file, a list or a dictionary.

    Raises:
        UserError: the file is missing, too large or broken, or has no names.
    """
    path = pathlib.Path(path)
    _check_size(path, LARGEST[1])
    try:
        content = yaml.load(path.read_text("utf-8-sig"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): replace the file.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is not valid YAML ({reason}): replace the file.") from None
    names = content.get("names") if isinstance(content, dict) else None
    pairs = names.items() if isinstance(names, dict) else enumerate(names or ())
    found = {}
    if isinstance(names, list | dict):
        for number, name in pairs:
            if isinstance(name, str) and name.strip() and str(number).isdecimal():
                found[int(str(number)[:9])] = name
    if not found or len(found) < len(names or ()):
        raise UserError(f"{path} has no names: list the names of the classes, each a text.")
    return found


def _check_size(path: pathlib.Path, most: int) -> None:
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): replace the file.") from None
    if size > most:
        raise UserError(f"{path} has {size} bytes, but at most {most} are read: replace the file.")
