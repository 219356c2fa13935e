"""The marks of boxes, scribbles and points that are computed for an image."""

import numpy as np
import pytest
from helpers_annotations import Objects, draw_label, parts_of, shrunk

from fsseg_jax.config import default_config
from fsseg_jax.data.annotations import (
    FRAGMENT,
    OBJECTS,
    Annotation,
    annotation_of,
    object_numbers,
    points,
    square_marks,
    strokes,
)

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
    """Touching objects stay apart, an object in two parts is one, small objects are no fragments,
    and classes are independent."""
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
