"""Labels, objects and reference annotations for the tests of weak annotations."""

import itertools

import flax.linen as nn
import numpy as np
from PIL import Image, ImageDraw

from fsseg_jax.data.annotations import OBJECTS
from fsseg_jax.data.source import ClassTable, LabelledImage, Source, count_classes


def parts_of(mask):
    """The 8-connected parts of a mask, as lists of pixels."""
    left = set(zip(*np.nonzero(mask), strict=True))
    parts = []
    while left:
        part, edge = [], [left.pop()]
        while edge:
            row, column = edge.pop()
            part.append((row, column))
            for down, right in itertools.product((-1, 0, 1), repeat=2):
                if (pixel := (row + down, column + right)) in left:
                    left.remove(pixel)
                    edge.append(pixel)
        parts.append(part)
    return parts


def draw_label(seed=0, shape=(40, 50), values=(3, 7, 3, 200, 7), border=255):
    """Random rectangles and ellipses with borders of value `border`."""
    rng = np.random.default_rng(seed)
    image = Image.new("L", shape[::-1])
    for number, value in enumerate(values):
        size = rng.integers(4, 20, 2)
        top, left = (int(rng.integers(0, side)) - 3 for side in shape)
        drawing = ImageDraw.Draw(image)
        figure = drawing.ellipse if number % 2 else drawing.rectangle
        figure([left, top, left + int(size[1]), top + int(size[0])], fill=value, outline=border)
    return np.array(image)


class Objects(Source):
    """Images with two or three objects of each of two classes, which touch, so that they differ
    from connected parts."""

    name = "objects"
    classes = ("cat", "dog")
    folds = ((1, 2), ())
    ids = tuple("abcdefghijkl")

    def __init__(self):
        counts = [count_classes(self.read(index).label, "", self) for index in range(len(self))]
        self.table = ClassTable.from_counts(counts)

    def draw(self, index):
        rng = np.random.default_rng(index)
        # Odd sides: no middle of a square's pixel lies between two pixels.
        height, width = 2 * rng.integers(20, 40, 2) + 1
        label, objects = np.zeros((2, height, width), np.uint8)
        for class_id, half in ((1, slice(0, height // 2)), (2, slice(height // 2, height))):
            edges = np.sort(rng.choice(np.arange(4, width - 4, 3), 4, replace=False))
            for number, (left, right) in enumerate(itertools.pairwise(edges)):
                if number < 2 or index % 2:
                    rows = slice(half.start + int(rng.integers(1, 6)), half.stop - 2)
                    label[rows, left:right] = class_id
                    objects[rows, left:right] = 10 * class_id + number
        return label, objects

    def read(self, index):
        label, _ = self.draw(index)
        image = np.random.default_rng(index).integers(0, 256, (*label.shape, 3), np.uint8)
        return LabelledImage(image, label)

    def instances(self, index):
        return self.draw(index)[1]


class Pixels(nn.Module):
    """Uses images as features."""

    @nn.compact
    def __call__(self, image, stages=(), train=False):
        return (image,)


def shrunk(array, size):
    """Samples the pixels under the centres of a square's pixels, or of a rectangle's."""
    rows, columns = (
        np.floor((np.arange(new) + 0.5) * side / new).astype(int)
        for new, side in zip(np.broadcast_to(size, 2), array.shape, strict=True)
    )
    return array[rows][:, columns]


def box_of(mask):
    """The bounding box of the true pixels, as a mask; None if there are none."""
    if not mask.any():
        return None
    box = np.zeros(mask.shape, bool)
    rows, columns = np.nonzero(mask)
    box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    return box


def boxes_of(label, marks, way):
    boxes = (box_of((label == way) & (marks == number)) for number in range(1, OBJECTS + 1))
    return [box for box in boxes if box is not None]


def possible_boxes(label, marks, ways, way):
    """All possible labels of a support of `way`, one per object."""
    outside = np.ones(label.shape, bool)
    for other in range(1, ways + 1):
        outside[label == other] = False
        for box in boxes_of(label, marks, other):
            outside[box] = False
    unknown = np.where(outside, np.where(label == 255, 255, 0), 254)
    boxes = boxes_of(label, marks, way)
    return [np.where(box, way, unknown) for box in boxes] or [unknown]
