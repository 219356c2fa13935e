"""Boxes, scribbles and points: what is found in an image, what episodes make of it, and what
the methods make of pixels that nobody has marked."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image, ImageDraw

from fsseg_jax.config import default_config
from fsseg_jax.data import training_items, training_pipeline
from fsseg_jax.data.annotations import (
    FRAGMENT,
    OBJECTS,
    Annotation,
    annotated,
    annotation_of,
    choose,
    object_numbers,
    points,
    square_marks,
    strokes,
)
from fsseg_jax.data.pipelines.augment import episode_geometry
from fsseg_jax.data.pipelines.device import decode
from fsseg_jax.data.sampling import sample
from fsseg_jax.data.source import ClassTable, LabelledImage, Source, count_classes
from fsseg_jax.devices import make_mesh
from fsseg_jax.episode import BATCH_AXIS, Episode, EpisodeIds
from fsseg_jax.evaluation.evaluator import Evaluator
from fsseg_jax.models import METHODS
from fsseg_jax.models.method import support_labels
from fsseg_jax.models.panet import PANet
from fsseg_jax.models.resize import resize_masks


def parts_of(mask):
    """The connected parts of a mask, corners counting as contact: lists of pixels."""
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
    """Rectangles and ellipses at random places, whose borders are `border`."""
    rng = np.random.default_rng(seed)
    image = Image.new("L", shape[::-1])
    for number, value in enumerate(values):
        size = rng.integers(4, 20, 2)
        top, left = (int(rng.integers(0, side)) - 3 for side in shape)
        drawing = ImageDraw.Draw(image)
        figure = drawing.ellipse if number % 2 else drawing.rectangle
        figure([left, top, left + int(size[1]), top + int(size[0])], fill=value, outline=border)
    return np.array(image)


# ----------------------------------------------------------------------------- objects


@pytest.mark.parametrize("seed", range(8))
def test_connected_parts_are_numbered_class_by_class_the_largest_first(seed):
    label = draw_label(seed)
    numbers = object_numbers(label)
    assert numbers.dtype == np.uint8
    assert not numbers[(label == 0) | (label == 255)].any()
    for value in {3, 7, 200} & set(label.ravel().tolist()):
        parts = parts_of(label == value)
        largest = max(map(len, parts))
        parts = [part for part in parts if len(part) >= FRAGMENT * largest]
        found = []
        for part in parts:
            (number,) = {int(numbers[pixel]) for pixel in part}  # one number a part
            found.append((number, len(part)))
        found.sort()
        assert [number for number, _ in found] == list(range(1, len(parts) + 1))
        areas = [area for _, area in found]
        assert areas == sorted(areas, reverse=True)
        assert np.count_nonzero(numbers[label == value]) == sum(areas)  # fragments have none


def test_a_part_below_a_twentieth_of_the_largest_is_a_fragment():
    label = np.zeros((40, 40), np.uint8)
    label[:10, :20] = 4  # 200 pixels
    label[20, :10] = label[30, :9] = 4  # a twentieth of it, and less
    label[38, 38] = 9  # the largest of its own class
    numbers = object_numbers(label)
    assert set(numbers[20, :10]) == {2}
    assert not numbers[30].any()
    assert numbers[38, 38] == 1


def test_at_most_so_many_objects_of_a_class_are_numbered():
    label = np.zeros((90, 30), np.uint8)
    widths = np.random.default_rng(0).permutation(np.arange(5, 25))
    for row, width in enumerate(widths):
        label[4 * row, :width] = 1
    label[86, :5] = 2
    numbers = object_numbers(label)
    for row, width in enumerate(widths):
        rank = 25 - width  # 1 for the longest
        assert set(numbers[4 * row, :width]) == {rank if rank <= OBJECTS else 0}
    assert set(numbers[86, :5]) == {1}


def test_known_objects_override_connected_parts():
    """Two that touch are two, one in two parts is one, small ones are no fragments, and what is
    known of one class says nothing of another."""
    label, objects = np.zeros((2, 30, 40), np.uint8)
    label[:10, :30] = 5
    objects[:10, :10], objects[:10, 10:30] = 40, 7  # side by side
    label[20:22, :10] = 5
    objects[20:22, :10] = 40  # the other end of the first
    label[25, 0] = 5
    objects[25, 0] = 12  # one pixel
    label[10, :30], objects[10, :30] = 255, 255
    objects[:10, 9] = 255  # a border between them
    label[15:18, 35:39] = label[28, 30:34] = 6  # of which nothing is known
    numbers = object_numbers(label, objects)
    assert set(numbers[:10, 10:30].ravel()) == {1}  # 200 pixels
    assert set(numbers[:10, :9].ravel()) == set(numbers[20:22, :10].ravel()) == {2}  # 110
    assert numbers[25, 0] == 3
    assert not numbers[:, 9][:10].any()
    assert not numbers[label == 255].any()
    assert set(numbers[15:18, 35:39].ravel()) == {1}
    assert set(numbers[28, 30:34].ravel()) == {2}
    assert not numbers[label == 0].any()


def test_objects_where_a_class_is_not_say_nothing_of_it():
    label, objects = np.zeros((2, 20, 20), np.uint8)
    label[:5, :5], label[10:12, :5] = 1, 1
    objects[15:, 15:] = 3  # on background
    np.testing.assert_array_equal(object_numbers(label, objects), object_numbers(label))


# ----------------------------------------------------------------------------- scribbles


@pytest.mark.parametrize("seed", range(8))
def test_every_part_of_every_class_and_of_the_background_has_a_stroke(seed):
    label = draw_label(seed)
    drawn = strokes(label, 1)
    assert drawn.dtype == np.uint8
    assert set(drawn.ravel().tolist()) == {0, 1}
    assert not drawn[label == 255].any()
    assert drawn[label == 0].any()
    for value in np.setdiff1d(label, [255]):
        parts = parts_of(label == value)
        largest = max(map(len, parts))
        for part in parts:
            stroke = np.zeros(label.shape, bool)
            for pixel in part:
                stroke[pixel] = drawn[pixel]
            if len(part) < FRAGMENT * largest:
                assert not stroke.any()
            else:
                assert len(parts_of(stroke)) == 1  # connected
                if len(part) >= 100:
                    assert stroke.sum() < 0.4 * len(part)  # a line, no filling


@pytest.mark.parametrize("width", [1, 4, 7])
@pytest.mark.parametrize("draw", [strokes, points])
def test_each_class_is_drawn_inside_itself_and_on_its_own(draw, width):
    for seed in range(4):
        label = draw_label(seed)
        drawn = draw(label, width)
        for value in np.setdiff1d(label, [255]):
            alone = draw(np.where(label == value, label, 255).astype(np.uint8), width)
            assert not alone[label != value].any()
            np.testing.assert_array_equal(drawn[label == value], alone[label == value])


@pytest.mark.parametrize("width", range(1, 9))
def test_strokes_and_points_are_as_wide_as_asked_for(width):
    label = np.full((41, 121), 2, np.uint8)
    drawn = strokes(label, width)
    assert drawn[:, 60].sum() == width  # where the line is straight
    rows = np.flatnonzero(drawn[:, 60])
    assert np.ptp(rows) == width - 1
    assert abs(rows.mean() - 20) <= 0.5
    rows, columns = np.nonzero(points(label, width))
    assert np.ptp(rows) == np.ptp(columns) == width - 1
    # A disc: of all pixels within half a width of its middle, and of few others.
    distance = np.hypot(rows - rows.mean(), columns - columns.mean())
    assert distance.max() <= width / 2 + 0.5
    assert len(rows) >= np.pi / 4 * (width - 1) ** 2


@pytest.mark.parametrize("angle", [0, 30, 45, 90])
def test_along_a_bar_the_stroke_runs_most_of_its_length(angle):
    direction = np.array([np.sin(np.radians(angle)), np.cos(np.radians(angle))])
    row, column = np.mgrid[:101, :101] - 50
    along = row * direction[0] + column * direction[1]
    across = column * direction[0] - row * direction[1]
    bar = (abs(along) <= 40) & (abs(across) <= 2.5)
    drawn = strokes(np.where(bar, 9, 255).astype(np.uint8), 1).astype(bool)
    assert np.ptp(along[drawn]) > 0.9 * 80
    assert abs(across[drawn]).max() <= 1.5  # along the middle


def test_a_stroke_follows_the_longest_line_of_a_branched_part():
    label = np.full((60, 60), 255, np.uint8)
    label[29:32, 5:55] = 1  # a beam of 50 pixels
    label[10:30, 39:42] = 1  # and a branch of 20, 15 before its end
    drawn = strokes(label, 1).astype(bool)
    assert drawn[:, 8:38].any(axis=0).all()
    assert drawn[12:27].any(axis=1).all()  # up the branch, which is longer than the rest
    assert not drawn[:, 46:].any()
    assert drawn.sum() <= 75


def test_a_stroke_leaves_a_short_branch_out():
    label = np.full((60, 60), 255, np.uint8)
    label[29:32, 5:55] = 1
    label[19:30, 29:32] = 1
    drawn = strokes(label, 1).astype(bool)
    assert drawn[:, 8:52].any(axis=0).all()
    assert not drawn[:27].any()


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("draw", [strokes, points])
def test_one_pixel_is_drawn_on_and_so_is_a_class_that_fills_the_image(draw, width):
    label = np.zeros((30, 30), np.uint8)
    label[0, 29] = 5
    drawn = draw(label, width)
    assert drawn[0, 29] == 1
    assert drawn[1:].any()
    for shape in ((1, 1), (2, 2), (1, 9), (24, 24), (25, 30)):
        drawn = draw(np.full(shape, 5, np.uint8), width)
        assert drawn.any()
        assert len(parts_of(drawn)) == 1
    nothing = draw(np.full((6, 6), 255, np.uint8), width)
    assert nothing.shape == (6, 6)
    assert not nothing.any()


# ----------------------------------------------------------------------------- points


@pytest.mark.parametrize("seed", range(4))
def test_points_lie_deepest_inside(seed):
    label = draw_label(seed, shape=(24, 30))
    drawn = points(label, 1)
    assert not drawn[label == 255].any()
    framed = np.pad(label.astype(int), 1, constant_values=-1)  # beyond the image is outside
    for value in np.setdiff1d(label, [255]):
        (pixel,) = np.argwhere(drawn.astype(bool) & (label == value))
        inside, outside = np.argwhere(framed == value), np.argwhere(framed != value)
        squared = ((inside[:, None] - outside[None]) ** 2).sum(-1).min(1)
        depth = dict(zip(map(tuple, (inside - 1).tolist()), squared, strict=True))
        assert depth[tuple(pixel.tolist())] == max(depth.values())


# ----------------------------------------------------------------------------- images


class Objects(Source):
    """Images of two or three objects of each of two classes, by twos side by side, so that
    connected parts do not tell them apart."""

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


def shrunk(array, size):
    """To the pixels that lie under the middles of a square's pixels."""
    rows, columns = (
        np.floor((np.arange(size) + 0.5) * side / size).astype(int) for side in array.shape
    )
    return array[rows][:, columns]


@pytest.mark.parametrize("side", [32, 96])
def test_known_objects_are_resized_with_their_image(side):
    source = Objects()
    label, objects = (shrunk(array, side) for array in source.draw(1))
    numbers = square_marks(source, 1, label, Annotation("box", 5, side))
    for class_id in (1, 2):
        pairs = set(zip(objects[label == class_id], numbers[label == class_id], strict=True))
        assert len(pairs) == 3  # one number an object
        assert {number for _, number in pairs} == {1, 2, 3}
    assert not numbers[label == 0].any()
    areas = [[((label == c) & (numbers == n)).sum() for n in (1, 2, 3)] for c in (1, 2)]
    assert areas == [sorted(row, reverse=True) for row in areas]


def test_dense_annotations_need_no_marks():
    label = draw_label()
    marks = square_marks(Objects(), 0, label, Annotation())
    assert marks.dtype == np.uint8
    assert marks.shape == label.shape
    assert not marks.any()


@pytest.mark.parametrize(("kind", "draw"), [("scribble", strokes), ("point", points)])
def test_marks_are_as_wide_on_the_networks_input_whatever_is_stored(kind, draw):
    label = np.zeros((96, 96), np.uint8)
    label[20:80, 10:90] = 1
    for size, width in ((96, 4), (48, 8), (32, 12), (200, 2), (1000, 1)):
        marks = square_marks(Objects(), 0, label, Annotation(kind, 4, size))
        np.testing.assert_array_equal(marks, draw(label, width))


def test_configuration_says_how_supports_are_outlined():
    config = default_config()
    assert annotation_of(config).kind == "dense"
    config.update(support_annotation="scribble", annotation_width=3, image_size=64)
    assert annotation_of(config) == ("scribble", 3, 64)


# ----------------------------------------------------------------------------- episodes


def draw_supports(seed, ways, shots, side=14):
    """Labels in episode numbering with rectangles of all ways and of 255, and object numbers.

    With odd seeds the way itself is missing in the first shot of the last way.
    """
    rng = np.random.default_rng(seed)
    label, marks = np.zeros((2, ways, shots, side, side), np.uint8)
    for way, shot in np.ndindex(ways, shots):
        for _ in range(rng.integers(2, 8)):
            top, left = rng.integers(0, side - 1, 2)
            bottom, right = np.add((top, left), rng.integers(1, 7, 2))
            value = rng.choice([*range(ways + 1), way + 1, 255])
            label[way, shot, top:bottom, left:right] = value
            # 0: one more than are numbered; another time the same number: in two parts.
            number = rng.integers(0, 5) if value not in (0, 255) else 0
            marks[way, shot, top:bottom, left:right] = number
    if seed % 2:
        label[-1, 0][label[-1, 0] == ways] = 0
    marks[(label == 0) | (label == 255)] = 0
    return label, marks


def box_of(mask):
    """The least rectangle around the true pixels, as a mask; None where there are none."""
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
    """What a support of `way` may look like: one possibility an object of it."""
    outside = np.ones(label.shape, bool)
    for other in range(1, ways + 1):
        outside[label == other] = False
        for box in boxes_of(label, marks, other):
            outside[box] = False
    unknown = np.where(outside, np.where(label == 255, 255, 0), 254)
    boxes = boxes_of(label, marks, way)
    return [np.where(box, way, unknown) for box in boxes] or [unknown]


SHAPES = pytest.mark.parametrize(("ways", "shots"), [(1, 1), (1, 3), (2, 2), (3, 1), (3, 3)])


@SHAPES
def test_boxes_are_those_of_one_object_a_support(ways, shots):
    seen = set()
    for seed in range(30):
        label, marks = draw_supports(seed, ways, shots)
        bits = np.random.default_rng(seed).integers(0, 2**32, (ways, shots), np.uint32)
        result = annotated(label, marks, bits, "box")
        assert result.dtype == np.uint8
        for way, shot in np.ndindex(ways, shots):
            expected = possible_boxes(label[way, shot], marks[way, shot], ways, way + 1)
            matches = [bool((result[way, shot] == one).all()) for one in expected]
            assert any(matches)
            seen |= set(np.unique(result[way, shot]).tolist())
        if seed % 2:  # nothing to have a box
            assert not (result[-1, 0] == ways).any()
    assert seen == {*range(ways + 1), 254, 255}


@SHAPES
@pytest.mark.parametrize("kind", ["scribble", "point"])
def test_only_what_is_marked_keeps_its_label(ways, shots, kind):
    label, _ = draw_supports(0, ways, shots)
    marks = np.random.default_rng(1).integers(0, 2, label.shape, np.uint8)
    result = annotated(label, marks, np.zeros((ways, shots), np.uint32), kind)
    assert result.dtype == np.uint8
    for position in np.ndindex(label.shape):
        assert result[position] == (label[position] if marks[position] else 254)


def test_dense_labels_are_left_alone():
    label, marks = draw_supports(0, 2, 2)
    np.testing.assert_array_equal(annotated(label, marks, np.zeros((2, 2), int), "dense"), label)


@SHAPES
@pytest.mark.parametrize("kind", ["box", "scribble", "one_scribble"])
def test_compiled_annotations_are_those_of_numpy(ways, shots, kind):
    """As the device pipeline has it: a batch of episodes inside a compiled function."""
    labels, marks = map(
        np.stack, zip(*(draw_supports(s, ways, shots) for s in range(12)), strict=True)
    )
    bits = choose(5, np.arange(12), ways, shots)
    compiled = jax.jit(jax.vmap(functools.partial(annotated, kind=kind, xp=jnp)))
    result = compiled(labels, marks, bits)
    assert result.dtype == np.uint8
    expected = [annotated(*one, kind) for one in zip(labels, marks, bits, strict=True)]
    np.testing.assert_array_equal(result, expected)


def test_all_objects_of_a_way_get_the_box_equally_often():
    """Whatever their sizes, and none of another way."""
    shots = 3000
    label, marks = np.zeros((2, 2, shots, 10, 10), np.uint8)
    areas = [(slice(0, 7), slice(0, 6)), (slice(8, 10), slice(0, 3)), (slice(9, 10), slice(9, 10))]
    for number, area in enumerate(areas, start=1):
        label[0, :, *area], marks[0, :, *area] = 1, number
    label[0, :, 0:3, 8:10], marks[0, :, 0:3, 8:10] = 2, 1
    bits = choose(0, np.arange(1), 2, shots)[0]
    chosen = annotated(label, marks, bits, "box")[0] == 1
    counts = [
        np.sum((chosen == box_of(marks[0, 0] * (label[0, 0] == 1) == n)).all((1, 2)))
        for n in (1, 2, 3)
    ]
    assert sum(counts) == shots
    deviation = np.sqrt(shots * 2 / 9)
    assert np.abs(np.array(counts) - shots / 3).max() < 4.5 * deviation


def test_choices_are_of_the_episode_alone_and_the_same_when_compiled():
    numbers = np.array([0, 1, 7, 2**29, 2**31 - 1])
    bits = choose(3, numbers, 2, 3)
    assert bits.shape == (5, 2, 3)
    assert bits.dtype == np.uint32
    compiled = jax.jit(functools.partial(choose, 3, ways=2, shots=3, xp=jnp))
    np.testing.assert_array_equal(compiled(numbers.astype(np.int32)), bits)
    np.testing.assert_array_equal(choose(3, numbers[2:3], 2, 3), bits[2:3])
    assert len(np.unique(bits)) == bits.size  # each support has its own
    assert (choose(4, numbers, 2, 3) != bits).all()


# ----------------------------------------------------------------------------- pipelines

PIPELINES = pytest.mark.parametrize("pipeline", ["device", "tfdata"])


@functools.cache
def first_batches(pipeline, kind, augmented=False):
    """Two batches of 2-way 2-shot episodes at 32 pixels, one after the other."""
    config = default_config()
    config.update(ways=2, shots=2, image_size=32, seed=7, support_annotation=kind)
    config.annotation_width = 2
    config.data.update(pipeline=pipeline, fold=1, train_min_pixels=1)
    config.data.augment.update(AUGMENT if augmented else {"flip": False})
    config.train.batch_size = 4
    source = Objects()
    items = training_items(config.data, source)
    made = training_pipeline(config, source, items, make_mesh(1))
    draw = jax.jit(made.draw)
    batches = [draw(made.feed(1), 0, step) for step in range(2)]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


AUGMENT = {"flip": True, "scale": (0.7, 1.5), "rotation": 25.0, "query": True, "crop_query": True}


def drawn_supports():
    """Of the batches: the classes and images of each episode's supports."""
    ids = sample(Objects().table.items((1, 2)), 7, np.arange(8), 2, 2)
    return ids.classes, ids.supports


def in_episode_numbering(label, classes):
    result = np.where(label == 255, 255, 0).astype(np.uint8)
    for way, class_id in enumerate(classes, start=1):
        result[label == class_id] = way
    return result


def marks_of(index, kind):
    label = shrunk(Objects().read(index).label, 32)
    return square_marks(Objects(), index, label, Annotation(kind, 2, 32))


@PIPELINES
@pytest.mark.parametrize("kind", ["box", "scribble"])
def test_supports_are_outlined_and_queries_stay_dense(pipeline, kind):
    """Without augmentation: each support by hand from its image."""
    batch, dense = first_batches(pipeline, kind), first_batches(pipeline, "dense")
    classes, supports = drawn_supports()
    for name in ("support_image", "query_image", "query_label", "class_id", "query_index"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(dense, name))
    assert batch.support_label.dtype == np.uint8
    assert 254 not in dense.support_label
    assert {0, 1, 2} <= set(dense.query_label.ravel().tolist())
    for row, way, shot in np.ndindex(8, 2, 2):
        result, index = batch.support_label[row, way, shot], supports[row, way, shot]
        label = shrunk(Objects().read(index).label, 32)
        numbered = in_episode_numbering(label, classes[row])
        np.testing.assert_array_equal(dense.support_label[row, way, shot], numbered)
        marks = marks_of(index, kind)
        expected = [np.where(marks > 0, numbered, 254)]
        if kind == "box":
            expected = possible_boxes(numbered, marks, 2, way + 1)
            assert len(expected) > 1
        assert any((result == one).all() for one in expected)
        assert way + 1 in result


@pytest.mark.parametrize("kind", ["box", "scribble", "one_scribble"])
def test_both_pipelines_outline_the_same(kind):
    """The same object has the box, too, and the same part the scribble."""
    ours, theirs = (first_batches(pipeline, kind) for pipeline in ("device", "tfdata"))
    np.testing.assert_array_equal(ours.support_label, theirs.support_label)


def moved(codes, geometry):
    """Marks where an augmented image shows them; nothing outside of it."""
    side, matrix, shift = geometry
    result = np.zeros((32, 32), codes.dtype)
    for row, column in np.ndindex(32, 32):
        point = matrix @ (column + 0.5, row + 0.5) + shift
        x, y = np.floor(point * len(codes) / side).astype(int)
        if 0 <= x < len(codes) and 0 <= y < len(codes):
            result[row, column] = codes[y, x]
    return result


@PIPELINES
@pytest.mark.parametrize("kind", ["box", "scribble"])
def test_outlines_move_with_their_augmented_image(pipeline, kind):
    batch, dense = (first_batches(pipeline, k, augmented=True) for k in (kind, "dense"))
    np.testing.assert_array_equal(batch.support_image, dense.support_image)
    np.testing.assert_array_equal(batch.query_label, dense.query_label)
    labels = batch.support_label
    if kind == "scribble":  # marks say what lies under them
        kept = labels != 254
        np.testing.assert_array_equal(labels[kept], dense.support_label[kept])
        assert 0.05 < kept.mean() < 0.5
        assert {0, 1, 2} <= set(labels[kept].tolist())
    _, supports = drawn_supports()
    geometry = episode_geometry(7, np.arange(8), 5, 32, ConfigDict(AUGMENT))
    for row, way, shot in np.ndindex(8, 2, 2):
        slot = [field[row, 2 * way + shot] for field in geometry]
        marks = moved(marks_of(supports[row, way, shot], kind), slot)
        label = dense.support_label[row, way, shot]
        expected = [np.where(marks > 0, label, 254)]
        if kind == "box":
            expected = possible_boxes(label, marks, 2, way + 1)
        # Between two pixels, either may be the nearest.
        wrong = min((labels[row, way, shot] != one).mean() for one in expected)
        assert wrong < (0.06 if kind == "box" else 0.01)


def test_strokes_are_as_wide_on_the_networks_input_where_more_detail_is_held():
    pixels = decode(Objects(), 96, False, Annotation("scribble", 2, 32))
    for index in range(12):
        label = shrunk(Objects().read(index).label, 96)
        np.testing.assert_array_equal(pixels[index, ..., 3], label)
        np.testing.assert_array_equal(pixels[index, ..., 4], strokes(label, 6))


# ----------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_evaluation_finds_the_objects_of_its_own_squares(fit):
    source = Objects()
    config = default_config()
    config.update(image_size=48, support_annotation="box")
    config.eval.fit = fit
    episodes = EpisodeIds(
        classes=np.array([[1]]),
        supports=np.array([[[1, 3]]]),
        query=np.array([0]),
        query_index=np.array([0]),
    )
    evaluator = Evaluator(None, source, episodes, make_mesh(1), config)
    for row, index in ((1, 1), (2, 3)):
        label, objects = source.draw(index)
        sides = [48, 48]
        if fit == "letterbox":
            assert max(label.shape) > 48
            sides = [int(48 * side / max(label.shape)) // 8 * 8 for side in label.shape]
        rows, columns = (
            np.floor((np.arange(side) + 0.5) * whole / side).astype(int)
            for side, whole in zip(sides, label.shape, strict=True)
        )
        objects = objects[rows][:, columns]
        numbers = evaluator.squares.marks[row][: sides[0], : sides[1]]
        pairs = set(zip(objects.ravel().tolist(), numbers.ravel().tolist(), strict=True))
        assert len(pairs) == 7  # three objects of two classes, and background


class Weighing(PANet):
    """Tells two numbers of the support labels that it is given."""

    def segment(self, *arguments, **options):
        label = arguments[1].astype(jnp.float32)
        weights = jnp.sin(jnp.arange(label.size)).reshape(label.shape)
        measured = {"weighed": jnp.sum(label * weights), "class": jnp.sum(label == 1)}
        return super().segment(*arguments, **options).replace(measured=measured)


class Pixels(nn.Module):
    """Images for features."""

    @nn.compact
    def __call__(self, image, stages=(), train=False):
        return (image,)


@pytest.mark.parametrize("kind", ["box", "scribble"])
def test_evaluation_outlines_supports_and_scores_by_dense_labels(kind):
    source = Objects()
    config = default_config()
    config.update(image_size=32, support_annotation=kind, annotation_width=2)
    config.eval.seed = 9
    episodes = sample(source.table.items((1, 2)), 0, np.arange(5), 2, 2)
    evaluator = Evaluator(Weighing(backbone=Pixels()), source, episodes, make_mesh(1), config)
    cache = evaluator.encode({})
    scored = evaluator.score({}, cache)
    counts, measured = scored.borders["ignored"], scored.measured
    bits = choose(9, np.arange(5), 2, 2)
    weights = np.sin(np.arange(4 * 32 * 32)).reshape(2, 2, 32, 32)
    weighed, pixels = [], []
    for row in range(5):
        numbered = np.stack(
            [shrunk(source.read(index).label, 32) for index in episodes.supports[row].ravel()]
        ).reshape(2, 2, 32, 32)
        numbered = in_episode_numbering(numbered, episodes.classes[row])
        marks = np.stack([marks_of(index, kind) for index in episodes.supports[row].ravel()])
        label = annotated(numbered, marks.reshape(2, 2, 32, 32), bits[row], kind)
        np.testing.assert_array_equal(
            evaluator.example({}, cache, row, "", 0.0).support_label, label
        )
        weighed.append(np.sum(label * weights))
        pixels.append(np.sum(label == 1))
        truth = shrunk(source.read(episodes.query[row]).label, 32)
        truth = in_episode_numbering(truth, episodes.classes[row])
        areas = [np.sum(truth == way) for way in range(3)]
        np.testing.assert_array_equal(counts[row][:, 0] + counts[row][:, 2], areas)
    np.testing.assert_array_equal(measured["class"], pixels)
    np.testing.assert_allclose(measured["weighed"], weighed, atol=1)


# ----------------------------------------------------------------------------- masks


def interpolated(masks, shape, align_corners):
    """Bilinear samples of masks at the positions of features, axis by axis."""
    for axis, n_out in ((-2, shape[0]), (-1, shape[1])):
        n_in = masks.shape[axis]
        if align_corners:
            position = np.linspace(0, n_in - 1, n_out)
        else:
            position = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
        weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(n_in)))
        masks = np.moveaxis(np.moveaxis(masks, axis, -1) @ weights.T, -1, axis)
    return masks


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size", "features"), [((17, 17), (5, 5)), ((32, 24), (8, 6))])
def test_no_pixel_vanishes_between_the_positions_of_features(size, features, align_corners):
    """One mask a pixel: it is left to interpolation where that sees it, and to the positions
    around the pixel where it does not."""
    masks = np.eye(np.prod(size), dtype=np.float32).reshape(-1, *size)
    result = np.asarray(resize_masks(masks, features, align_corners))
    expected = interpolated(masks, features, align_corners)
    expected[expected < 1e-6] = 0
    seen = expected.any((1, 2))
    assert 0 < seen.mean() < 0.9
    np.testing.assert_allclose(result[seen], expected[seen], atol=1e-5)
    lost = result[~seen]
    np.testing.assert_allclose(lost.max((1, 2)), 1, atol=1e-6)
    assert lost.min() >= 0
    for mask, pixel in zip(lost, np.argwhere(masks.any(0))[~seen], strict=True):
        if align_corners:
            position = pixel * (np.subtract(features, 1) / np.subtract(size, 1))
        else:
            position = (pixel + 0.5) * features / np.array(size) - 0.5
        distance = np.abs(np.argwhere(mask > 1e-6) - np.clip(position, 0, None))
        assert (distance < 1 + 1e-6).all()
        peak = np.unravel_index(mask.argmax(), mask.shape)
        assert (np.abs(peak - position) <= 0.5 + 1e-6).all()


@pytest.mark.parametrize("align_corners", [False, True])
def test_masks_that_survive_and_empty_ones_are_as_interpolated(align_corners):
    masks = np.stack([draw_label(seed, (33, 41)) == 3 for seed in range(5)] + [np.zeros((33, 41))])
    lost = np.zeros((1, 33, 41))
    lost[0, 2, 2] = 1  # does not change what becomes of the others
    result = np.asarray(resize_masks(np.concatenate([masks, lost]), (9, 11), align_corners))
    expected = interpolated(masks.astype(float), (9, 11), align_corners)
    survives = expected.any((1, 2))
    assert survives.sum() >= 4
    np.testing.assert_allclose(result[:-1][survives], expected[survives], atol=1e-5)
    assert not result[-2].any()
    assert result[-1].any()


# ----------------------------------------------------------------------------- methods


def test_unmarked_pixels_are_ignored_by_what_learns_from_a_support():
    label = np.array([[[[0, 1, 2, 254, 255]]], [[[0, 1, 2, 254, 255]]]], np.uint8)
    expected = [[[[0, 1, 0, 255, 255]]], [[[0, 0, 1, 255, 255]]]]
    np.testing.assert_array_equal(support_labels(label), expected)


def features_of(method, x):
    return {"support": x, "query": x} if method == "mfnet" else x


def compiled(method, **options):
    """A function of a support label: logits and loss in training, without what supports do not
    touch."""
    small = {"width": 8, "heads": 2, "dropout": 0.0, "refinement": False, "scales": 2}
    small["metric_positives"] = "none"
    fields = METHODS[method].__dataclass_fields__
    options |= {name: value for name, value in small.items() if name in fields}
    model = METHODS[method](backbone=None, **options)
    rng = np.random.default_rng(0)
    support = rng.standard_normal((2, 2, 6, 7, 8), np.float32)
    query = rng.standard_normal((6, 7, 8), np.float32)
    image = rng.standard_normal((36, 42, 3), np.float32)
    truth = jnp.asarray(rng.integers(0, 3, (36, 42), np.uint8))

    def segment(function, label, **arguments):
        pair = features_of(method, support), label, features_of(method, query), image
        return function(*pair, train=True, method="segment", **arguments)

    # Drawn, because compiling the initialisation takes long.
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    shapes = jax.eval_shape(
        functools.partial(segment, functools.partial(model.init, keys)), partly_marked()
    )
    variables = jax.tree.map(lambda x: rng.normal(0.1, 0.2, x.shape).astype(x.dtype), shapes)

    def run(label):
        apply = functools.partial(model.apply, variables)
        output, _ = segment(
            apply, label, rngs={"dropout": keys["dropout"]}, mutable=["batch_stats"]
        )
        episode = Episode(None, label, image, truth, jnp.arange(2), None)
        loss, _ = model.loss(output, episode, jax.random.key(2), jnp.float32(10))
        return output.logits, loss

    batched = jax.jit(jax.vmap(run, axis_name=BATCH_AXIS))
    return lambda label: [np.asarray(x)[0] for x in batched(label[None])]


def partly_marked():
    return np.random.default_rng(0).choice(
        np.array([0, 1, 2, 254, 255], np.uint8), (2, 2, 36, 42), p=[0.2, 0.15, 0.15, 0.4, 0.1]
    )


# Whether the logits depend on what is background in a support, and whether the loss does.
BACKGROUND_COUNTS = {
    "panet": (True, True),
    "canet": (False, False),
    "sst": (True, True),
    "ltafnet": (False, True),
    "mfnet": (False, False),
}


@pytest.mark.parametrize("method", METHODS)
def test_unmarked_pixels_are_neither_the_class_nor_background(method):
    """They are what ignored ones are, where these are not background."""
    options = {"ignored_is_background": False} if method == "panet" else {}
    run = compiled(method, **options)
    label = partly_marked()
    assert all(np.isfinite(x).all() for x in run(label))
    expected = run(label)
    for result, value in zip(run(np.where(label == 254, 255, label)), expected, strict=True):
        np.testing.assert_array_equal(result, value)
    as_background = run(np.where(label == 254, 0, label))
    changed = [(x != y).any() for x, y in zip(as_background, expected, strict=True)]
    assert tuple(changed) == BACKGROUND_COUNTS[method]
    own = np.arange(1, 3, dtype=np.uint8)[:, None, None, None]
    as_class = run(np.where(label == 254, own, label))
    assert all((x != y).any() for x, y in zip(as_class, expected, strict=True))


def test_panet_averages_marked_pixels_alone():
    """Its published treatment of 255 as background does not extend to what nobody has marked."""
    label = partly_marked()
    rng = np.random.default_rng(0)
    support = rng.standard_normal((2, 2, 6, 7, 8), np.float32)
    query = rng.standard_normal((6, 7, 8), np.float32)
    model = PANet(backbone=None)
    logits = model.apply({}, support, label, query, None, method="segment").logits
    large = np.asarray(jax.image.resize(support, (2, 2, 36, 42, 8), "bilinear"))
    background, foreground = [], [[], []]
    for way, shot in np.ndindex(2, 2):
        pixels, values = large[way, shot], label[way, shot]
        background.append(pixels[(values == 0) | (values == 255)].mean(axis=0))
        foreground[way].append(pixels[values == way + 1].mean(axis=0))
    prototypes = [np.mean(background, axis=0), *(np.mean(shots, axis=0) for shots in foreground)]
    for number, prototype in enumerate(prototypes):
        norms = np.linalg.norm(query, axis=-1) * np.linalg.norm(prototype)
        np.testing.assert_allclose(logits[..., number], 20 * (query @ prototype) / norms, atol=1e-3)


@pytest.mark.parametrize("shape", ["disc", "square"])
def test_compact_parts_have_a_stroke_and_no_dot(shape):
    y, x = np.indices((100, 100)) - 50
    inside = np.hypot(x, y) < 30 if shape == "disc" else np.maximum(abs(x), abs(y)) < 30
    drawn = strokes(np.where(inside, 1, 255), 1) > 0
    assert not (drawn & ~inside).any()
    rows, columns = np.nonzero(drawn)
    assert np.hypot(np.ptp(rows), np.ptp(columns)) > 20  # of a width of 60
    assert np.hypot(rows.mean() - 50, columns.mean() - 50) < 6


def test_stroke_of_a_compact_part_goes_the_way_in_which_the_part_extends():
    y, x = np.indices((100, 100)) - 50
    tilted = np.hypot((x + y) / 1.3, 1.3 * (x - y)) < 40
    rows, columns = np.nonzero(strokes(np.where(tilted, 1, 255), 1))
    assert np.corrcoef(rows, columns)[0, 1] > 0.9


@SHAPES
def test_one_scribble_is_one_of_the_parts_of_its_own_way(ways, shots):
    """Of every class the strokes are those of "scribble"; one of them is left, and the
    background's."""
    annotation, values = Annotation("one_scribble", 1, 40), (1, 2, 1, 3, 2, 200)
    several = 0
    for seed in range(6):
        dense = [draw_label(100 * seed + number, values=values) for number in range(ways * shots)]
        marks = [square_marks(None, 0, label, annotation) for label in dense]
        dense, marks = (np.reshape(x, (ways, shots, 40, 50)) for x in (dense, marks))
        label = np.where((dense <= ways) | (dense == 255), dense, 0).astype(np.uint8)
        result = annotated(label, marks, choose(seed, np.arange(1), ways, shots)[0], "one_scribble")
        assert result.dtype == np.uint8
        for way, shot in np.ndindex(ways, shots):
            one, drawn = dense[way, shot], strokes(dense[way, shot], 1) > 0
            kept = result[way, shot] == way + 1
            assert set(np.unique(result[way, shot])) <= {0, way + 1, 254}
            np.testing.assert_array_equal(result[way, shot] == 0, drawn & (one == 0))
            possible = [set(part) for part in parts_of(drawn & (one == way + 1))]
            assert set(zip(*np.nonzero(kept), strict=True)) in (possible or [set()])
            several += len(possible) > 1
    assert several


def test_all_scribbles_of_a_class_are_chosen_equally_often():
    shots, label = 3000, np.zeros((40, 40), np.uint8)
    label[2:8, 2:30] = label[20:23, 5:25] = label[30:36, 20:26] = 1
    marks = square_marks(None, 0, label, Annotation("one_scribble", 1, 40))
    assert set(marks[label == 1].tolist()) == {0, 1, 2, 3}
    labels, all_marks = (np.broadcast_to(x, (1, shots, 40, 40)) for x in (label, marks))
    chosen = annotated(labels, all_marks, choose(0, np.arange(1), 1, shots)[0], "one_scribble")[0]
    counts = [((chosen == 1) == (marks == number)).all((1, 2)).sum() for number in (1, 2, 3)]
    assert sum(counts) == shots
    assert np.abs(np.array(counts) - shots / 3).max() < 4.5 * np.sqrt(shots * 2 / 9)


def test_largest_box_is_that_of_the_largest_object_whatever_the_bits():
    label = np.zeros((1, 1, 20, 20), np.uint8)
    label[..., 2:5, 2:5] = label[..., 8:18, 9:19] = 1
    marks = object_numbers(label[0, 0])[None, None]
    for bits in range(4):
        result = annotated(label, marks, np.full((1, 1), bits, np.uint32), "largest_box")[0, 0]
        assert (result[8:18, 9:19] == 1).all()
        assert (result == 1).sum() == 100
        assert (result[2:5, 2:5] == 254).all()
