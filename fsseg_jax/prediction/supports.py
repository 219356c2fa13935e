"""Supports in the forms that users have, prepared for a network."""

import itertools
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from fsseg_jax.data.masks import as_classes, warn_if_covering
from fsseg_jax.data.source import LabelledImage
from fsseg_jax.data.squares import fitted, square
from fsseg_jax.errors import UserError, brief
from fsseg_jax.prediction.marks import draw_points, read_scribbles, with_background
from fsseg_jax.prediction.pictures import (
    as_image,
    as_labels,
    boxes_label,
    classes_in,
    is_image,
    shows_none,
)

logger = logging.getLogger(__name__)

# Width of a point's disc as a share of the longer side, as weak annotations have it by default.
POINT = 5 / 417


def read_supports(
    images: Any, masks: Any = None, boxes: Any = None, scribbles: Any = None, points: Any = None
) -> tuple[list[LabelledImage], tuple[int, ...]]:
    """Images at their own size, with labels of the classes 1, 2 ..., and the classes' own numbers.

    Args:
        images, masks, boxes, scribbles, points: see `Segmenter.fit`.

    Raises:
        UserError: there are no images, or a mask is missing or of another size than its image.
    """
    name, outlines = _given(masks=masks, boxes=boxes, scribbles=scribbles, points=points)
    if is_image(images):
        images, outlines = [images], [outlines]
    images, outlines = as_list(images, "images"), as_list(outlines, name)
    if not images:
        raise UserError("images = []: give at least one image that shows the class.")
    if len(images) != len(outlines):
        raise UserError(
            f"{name} has {len(outlines)} entries, but images has {len(images)}: give one for each "
            "image."
        )
    images = [as_image(image, f"images[{i}]") for i, image in enumerate(images)]
    names = [f"{name}[{i}]" for i in range(len(images))]
    labels, numbers = _labels(name, outlines, names, [image.shape[:2] for image in images])
    supports = [LabelledImage(*pair) for pair in zip(images, labels, strict=True)]
    for i, support in enumerate(supports):
        _check(support, names[i], f"images[{i}]")
        warn_if_covering(support.label, names[i])
    return with_background(supports), numbers


def _given(**outlines: Any) -> tuple[str, Any]:
    """The one that is given; raises UserError if none is, or several are."""
    given = [name for name, value in outlines.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(given) if given else "none"
        *most, last = outlines
        raise UserError(
            f"{', '.join(most)} and {last}: {found} was given; give exactly one of them."
        )
    return given[0], outlines[given[0]]


def _labels(
    kind: str, outlines: list[Any], names: list[str], shapes: list[tuple[int, int]]
) -> tuple[list[UInt8[np.ndarray, "_ _"]], tuple[int, ...]]:
    """Labels of images of these shapes from what was given, and the classes' own numbers."""
    if kind == "masks":
        return as_labels(outlines, names)
    triples = [*zip(outlines, names, shapes, strict=True)]
    if kind == "boxes":
        return [boxes_label(boxes, shape, name) for boxes, name, shape in triples], (1,)
    if kind == "scribbles":
        return as_classes([read_scribbles(x, name) for x, name, _ in triples], names)
    drawn = [draw_points(x, shape, max(shape) * POINT, name) for x, name, shape in triples]
    return as_classes(drawn, names)


def as_list(values: Any, name: str) -> list[Any]:
    """A list of what users give for each image or class; raises UserError if it is none."""
    # Arrays of no axis are iterable by their type only.
    one = isinstance(values, str | bytes) or getattr(values, "ndim", None) == 0
    if one or not isinstance(values, Iterable) or isinstance(values, set | frozenset):
        what = "class" if name == "classes" else "image"
        raise UserError(f"{name} = {brief(values)}: give a list with one entry per {what}.")
    return list(values)


def class_names(classes: Any, numbers: Sequence[int], name: str) -> tuple[str, ...]:
    """The names of the classes that have these numbers: those given, or the numbers.

    Raises:
        UserError: they are not names, two are the same, or there are more or fewer of them.
    """
    names = () if classes is None else (*as_list(classes, "classes"),)
    ways = len(numbers)
    if not names:
        return (*map(str, [1] if ways == 1 else numbers),)
    if wrong := [x for x in names if not isinstance(x, str) or not x]:
        raise UserError(f"classes has the name {brief(wrong[0])}: give a text for each class.")
    if len({*names}) < len(names):
        raise UserError(f"classes = {brief(names)}: two have the same name; give different ones.")
    if len(names) != ways:
        raise UserError(
            f"classes = {brief(names)}: {len(names)} names, but {name} number {ways} "
            f"{'class' if ways == 1 else 'classes'}."
        )
    return names


def _check(support: LabelledImage, name: str, image: str) -> None:
    """Raises UserError unless a label is of its image's size, and tells what is there."""
    label, (height, width) = support.label, support.image.shape[:2]
    if label.shape != (height, width):
        raise UserError(
            f"{name} is {label.shape[1]} x {label.shape[0]} pixels, but {image} is "
            f"{width} x {height}: they must have the same size."
        )
    if shows_none(label):
        logger.warning("%s is empty: it is an example of images without the class", name)
    elif not classes_in(label):
        raise UserError(f"{name} is empty: mark the class in it, or leave the image out.")


def square_support(support: LabelledImage, name: str, size: int, fit: str) -> LabelledImage:
    """A support as the network's square, in which each of its classes keeps at least one pixel.

    Args:
        support: the support at its own size.
        name: what to call it in errors.
        size, fit: see `squares.square`.

    Raises:
        UserError: two classes have so few pixels that they coincide.
    """
    image, label = square(support, size, fit)
    own, label = support.label.shape, label.copy()
    scale = np.array(fitted(own, size, fit)) / own
    numbers = classes_in(support.label)
    for number in np.setdiff1d(numbers, label):
        where = (np.argwhere(support.label == number) + 0.5) * scale
        label[tuple(where.astype(int).T)] = number
    if hidden := np.setdiff1d(numbers, label).tolist():
        raise UserError(
            f"{name} shows class {hidden[0]} in so few pixels that it coincides with another "
            f"class at image_size = {size}: crop the image, or load the model with a "
            "larger image_size."
        )
    return LabelledImage(image, label)


def episode_rows(
    labels: Sequence[UInt8[np.ndarray, "_ _"]],
) -> Int[np.ndarray, "way shot"]:
    """The numbers of the supports that are the shots of each way: all that show its class.

    Classes with fewer supports than others repeat theirs. `labels` are those of all supports, and
    show each class from 1 to the largest number; those that show none are in no row.
    """
    shown = [classes_in(label) for label in labels]
    ways = [
        [i for i, classes in enumerate(shown) if n in classes]
        for n in range(1, max(itertools.chain(*shown)) + 1)
    ]
    shots = max(map(len, ways))
    return np.array([list(itertools.islice(itertools.cycle(way), shots)) for way in ways])
