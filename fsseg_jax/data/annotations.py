"""Weak annotations of supports: boxes, scribbles and points, derived from dense labels.

An image's marks are computed once, when it is read (`square_marks`): object numbers for boxes,
drawn pixels for scribbles and points, numbered strokes if a single scribble is to be chosen.
Episodes then choose among them inside the compiled function (`annotated`). Unmarked pixels are 254
(`UNLABELLED`): neither the class nor the background.
"""

from types import ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Integer, UInt8
from ml_collections import ConfigDict
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order
from skimage.morphology import skeletonize

from fsseg_jax.data.sampling import random_bits
from fsseg_jax.data.source import LabelledImage, Source
from fsseg_jax.data.squares import square
from fsseg_jax.episode import IGNORE, UNLABELLED, AnyArray

KINDS = ("dense", "box", "largest_box", "scribble", "one_scribble", "point")
BOXES = ("box", "largest_box")
RANDOM = ("box", "one_scribble")  # kinds that choose an object at random per episode
# Objects of a class in an image that may be chosen for the box or the one scribble: the largest.
OBJECTS = 16
BACKGROUND = 255  # mark of the background's scribbles for "one_scribble"
# A connected part smaller than this share of the class's largest one is not an object but a
# fragment of one that is partly hidden, which gets neither a box nor a stroke.
FRAGMENT = 0.05
DRAW = 2000  # draw number that chooses objects; episodes and augmentation use lower ones

_NEIGHBOURS = np.ones((3, 3), bool)


class Annotation(NamedTuple):
    """How supports are annotated."""

    kind: str = "dense"  # one of `KINDS`
    width: int = 5  # of scribbles and points, in pixels of the network's input
    size: int = 417  # side of the network's input


DENSE = Annotation()


def annotation_of(config: ConfigDict) -> Annotation:
    """The annotation that a configuration specifies."""
    return Annotation(config.support_annotation, config.annotation_width, config.image_size)


def square_marks(
    source: Source,
    index: int,
    label: Integer[np.ndarray, "height width"],
    annotation: Annotation,
    fit: str = "stretch",
) -> UInt8[np.ndarray, "height width"]:
    """Computes the marks of the image number `index`, whose square `label` was made with `fit`.

    Returns:
        for boxes, the objects of each class numbered from 1, the largest first; for scribbles and
        points, 1 where something is drawn; for "one_scribble", the number of the part that a
        stroke is drawn in, or `BACKGROUND`; and 0 elsewhere, and for dense annotations.
    """
    kind, width, size = annotation
    if kind == "dense":
        return np.zeros(label.shape, np.uint8)
    if kind in BOXES:
        objects = source.instances(index)
        if objects is not None:
            blank = np.zeros((*objects.shape, 3), np.uint8)
            objects = square(LabelledImage(blank, objects), label.shape[0], fit).label
        return object_numbers(label, objects)
    width = max(1, round(width * label.shape[0] / size))
    if kind == "point":
        return points(label, width)
    drawn = strokes(label, width)
    if kind == "one_scribble":
        drawn *= np.where(label == 0, np.uint8(BACKGROUND), object_numbers(label))
    return drawn


def object_numbers(
    label: Integer[np.ndarray, "height width"],
    objects: UInt8[np.ndarray, "height width"] | None = None,
) -> UInt8[np.ndarray, "height width"]:
    """Numbers the `OBJECTS` largest objects of each class from 1, the largest first.

    A class without any known `objects` is divided into its connected parts instead.
    """
    numbers = np.zeros(label.shape, np.uint8)
    for class_id in np.setdiff1d(label, [0, IGNORE]):
        mask = label == class_id
        known = None if objects is None else np.where(mask & (objects != IGNORE), objects, 0)
        if known is None or not known.any():
            known = _parts(mask)
        area = np.bincount(known.ravel())
        area[0] = 0
        order = np.argsort(-area, kind="stable")[: min(OBJECTS, np.count_nonzero(area))]
        new = np.zeros(len(area), np.uint8)
        new[order] = np.arange(1, len(order) + 1)
        numbers += new[known]
    return numbers


def strokes(
    label: Integer[np.ndarray, "height width"], width: int
) -> UInt8[np.ndarray, "height width"]:
    """Draws a stroke `width` pixels wide in each part of each class and of the background.

    The stroke is the longest line along the part's skeleton; compact parts, whose skeleton is
    tiny, get a straight line through their middle.
    """
    drawn = np.zeros(label.shape, np.uint8)
    for value in np.setdiff1d(label, [IGNORE]):
        mask = label == value
        parts = _parts(mask)
        line = np.zeros(label.shape, bool)
        for number, window in enumerate(ndimage.find_objects(parts), start=1):
            if window is not None:
                part = parts[window] == number
                stroke = _longest_line(part)
                if 4 * stroke.sum() ** 2 < part.sum():  # shorter than half a square's side
                    stroke = _straight_line(part)
                line[window] |= stroke
        drawn[_thicken(line, width) & mask] = 1
    return drawn


def points(
    label: Integer[np.ndarray, "height width"], width: int
) -> UInt8[np.ndarray, "height width"]:
    """Draws a disc `width` pixels wide around the innermost pixel of each class and of the
    background."""
    drawn = np.zeros(label.shape, np.uint8)
    for value in np.setdiff1d(label, [IGNORE]):
        mask = label == value
        depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        point = np.zeros(label.shape, bool)
        point[np.unravel_index(depth.argmax(), depth.shape)] = True
        drawn[_thicken(point, width) & mask] = 1
    return drawn


def _parts(mask: Bool[np.ndarray, "height width"]) -> Int[np.ndarray, "height width"]:
    """Numbers the connected parts of a mask, except fragments."""
    parts, count = ndimage.label(mask, _NEIGHBOURS)
    area = np.bincount(parts.ravel(), minlength=count + 1)
    area[0] = 0
    return np.where((area >= FRAGMENT * area.max())[parts] & mask, parts, 0)


def _longest_line(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """The longest of all shortest paths along the skeleton of a connected mask."""
    rows, columns = np.nonzero(skeletonize(np.pad(mask, 1))[1:-1, 1:-1])
    count = len(rows)
    number = np.full(np.add(mask.shape, 2), -1)
    number[rows + 1, columns + 1] = np.arange(count)
    pairs = []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        neighbour = number[rows + 1 + down, columns + 1 + right]
        pairs.append(np.stack([np.flatnonzero(neighbour >= 0), neighbour[neighbour >= 0]]))
    one, other = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(len(one)), (one, other)), (count, count)).tocsr()
    # A breadth-first search ends at the farthest pixel: first one end of the line, then the other.
    end = breadth_first_order(graph, 0, directed=False)[0][-1]
    order, previous = breadth_first_order(graph, end, directed=False)
    line = np.zeros(mask.shape, bool)
    pixel = order[-1]
    while pixel >= 0:
        line[rows[pixel], columns[pixel]] = True
        pixel = previous[pixel]  # negative at the end of the line
    return line


def _straight_line(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """A line through the innermost pixel of a mask, along the mask's principal axis, half as long
    as the side of a square of the mask's area."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    middle = np.unravel_index(depth.argmax(), depth.shape)
    _, directions = np.linalg.eigh(np.cov(np.nonzero(mask)))
    length = np.sqrt(mask.sum()) / 2
    steps = np.linspace(-length / 2, length / 2, 2 * int(length) + 1)
    points = np.rint(np.array(middle)[:, None] + directions[:, -1:] * steps).astype(int)
    inside = ((points >= 0) & (points < np.array(mask.shape)[:, None])).all(axis=0)
    line = np.zeros(mask.shape, bool)
    line[tuple(points[:, inside])] = True
    return line & mask


def _thicken(mask: Bool[np.ndarray, "height width"], width: int) -> Bool[np.ndarray, "..."]:
    """Dilates a mask by a disc `width` pixels wide."""
    if not mask.any():
        return mask
    # By distances, whose time does not grow with the width.
    near = ndimage.distance_transform_edt(~mask) <= (width - 1) // 2
    if width % 2 == 0:  # a disc around the corner between four pixels
        near = ndimage.binary_dilation(near, np.ones((2, 2)))
    return near


def annotated(
    label: UInt8[AnyArray, "way shot height width"],
    marks: UInt8[AnyArray, "way shot height width"],
    bits: Integer[AnyArray, "way shot"],
    kind: str,
    xp: ModuleType = np,
) -> UInt8[AnyArray, "way shot height width"]:
    """Reduces the labels of an episode's supports to an annotation of this kind.

    "box" fills the box of one random object of the support's own way, "largest_box" that of the
    largest; the background is everything outside the boxes of all the episode's classes (PANet
    sec. 4.4, for one way), where 255 stays ignored. A scribble or point of a class that is not in
    the episode marks background. "one_scribble" follows PANet's published code (`getMask` in
    dataloaders/customized.py, lines 50 to 60, whose scribbles are not widened): a random scribble
    of the support's own way, and the scribbles on pure background.

    Args:
        label: the supports' dense labels in episode numbering.
        marks: the supports' marks; see `square_marks`.
        bits: random bits, one per support, that choose the object.
        kind: one of `KINDS`.
        xp: `numpy`, or `jax.numpy` inside a compiled function; results are the same.
    """
    if kind == "dense":
        return label
    if kind in ("scribble", "point"):
        return xp.where(marks > 0, label, UNLABELLED).astype(np.uint8)
    if kind == "largest_box":
        bits = xp.zeros_like(bits)  # objects are sorted by size
    ways = label.shape[0]
    way = xp.arange(1, ways + 1)[:, None, None, None]
    numbers = xp.arange(1, OBJECTS + 1)[:, None, None]
    if kind == "one_scribble":
        inside = (label == way)[:, :, None] & (marks[:, :, None] == numbers)
        chosen = _choice(xp.any(inside, (-2, -1)), bits, xp)
        stroke = (inside & chosen[..., None, None]).any(2)
        rest = xp.where(marks == BACKGROUND, 0, UNLABELLED)
        return xp.where(stroke, way, rest).astype(np.uint8)
    # Objects of every way m in every support: (m, n, k, object, ...), where n is its own way.
    each_way = xp.arange(1, ways + 1)[:, None, None, None, None, None]
    inside = (label == each_way[:, 0])[:, :, :, None] & (marks[:, :, None] == numbers)
    rows, columns = (_between(inside.any(axis), xp) for axis in (-1, -2))
    boxes = xp.einsum("mnkoh,mnkow->nkhw", *(x.astype(np.float32) for x in (rows, columns))) > 0

    own = xp.arange(ways)
    rows, columns = rows[own, own], columns[own, own]  # (n, k, object, ...)
    chosen = _choice(xp.any(rows, -1), bits, xp)
    rows, columns = (xp.any(x & chosen[..., None], 2) for x in (rows, columns))
    box = rows[..., :, None] & columns[..., None, :]
    # Objects beyond the numbered ones have no box, but are not background either.
    shown = (label > 0) & (label <= ways)
    outside = xp.where(label == IGNORE, IGNORE, 0)
    result = xp.where(boxes | shown, UNLABELLED, outside)
    return xp.where(box, way, result).astype(np.uint8)


def _choice(
    present: Bool[AnyArray, "*batch n"], bits: Integer[AnyArray, "*batch"], xp: ModuleType
) -> Bool[AnyArray, "*batch n"]:
    """Chooses one of the true positions, if any, by random bits."""
    wanted = (bits % xp.maximum(present.sum(-1), 1).astype(np.uint32)).astype(np.int32) + 1
    return present & (xp.cumsum(present, axis=-1) == wanted[..., None])


def _between(line: Bool[AnyArray, "*batch n"], xp: ModuleType) -> Bool[AnyArray, "*batch n"]:
    """True from the first to the last true position."""
    behind = xp.cumsum(line, axis=-1)
    return (behind > 0) & (behind - line < behind[..., -1:])


def choose(
    seed: int, index: Integer[AnyArray, " batch"], ways: int, shots: int, xp: ModuleType = np
) -> Integer[AnyArray, "batch way shot"]:
    """Draws the random bits of `annotated` for the episodes number `index` of `seed`."""
    slots = ways * shots
    number = xp.asarray(index)[:, None] * slots + xp.arange(slots)
    return random_bits(seed, number, DRAW, xp).reshape(-1, ways, shots)
