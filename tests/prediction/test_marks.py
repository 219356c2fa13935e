"""Scribbles and clicks mark what they are drawn on, and nothing else."""

import numpy as np
import pytest
from helpers import message_of
from PIL import Image

from fsseg_jax.data.source import LabelledImage
from fsseg_jax.prediction.marks import draw_points, with_background
from fsseg_jax.prediction.supports import read_supports

SHAPE = 30, 40
IMAGE = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), np.uint8)


def drawn():
    """Strokes as a painting program saves them, and the label that they mean."""
    picture, label = np.zeros((*SHAPE, 4), np.uint8), np.full(SHAPE, 254, np.uint8)
    picture[5:8, 3:20] = 255, 0, 90, 255
    picture[20:22, 2:30] = 0, 0, 0, 255
    picture[10, 10:12] = 255, 0, 90, 40  # the soft edge of a brush
    label[5:8, 3:20], label[20:22, 2:30] = 1, 0
    return picture, label


def test_scribbles_mark_class_and_background_and_leave_the_rest(tmp_path):
    picture, label = drawn()
    path = tmp_path / "1_scribble.png"
    Image.fromarray(picture).save(path)
    for scribbles in (path, Image.open(path), picture, label, Image.fromarray(label)):
        (support,), numbers = read_supports(IMAGE, scribbles=scribbles)
        np.testing.assert_array_equal(support.label, label)
        assert numbers == (1,)
    np.testing.assert_array_equal(read_supports(IMAGE, masks=label)[0][0].label, label)


def test_points_are_discs_of_the_nearest_point():
    points = [(5, 6), (9.7, 6.2), (30, 20, 0)]
    for given in (points[:2], [(*p, 1) for p in points[:2]] + [points[2]]):
        label = draw_points(given, SHAPE, 6, "points[0]")
        row, column = np.mgrid[: SHAPE[0], : SHAPE[1]]
        away = [np.hypot(column - int(x), row - int(y)) for x, y, *_ in given]
        expected = np.where(np.min(away, axis=0) <= 3, 1, 254)
        if len(given) == 3:
            expected[away[2] <= 3] = 0
        np.testing.assert_array_equal(label, expected)
    np.testing.assert_array_equal(
        draw_points((5, 6), SHAPE, 6, ""), draw_points([(5, 6)], SHAPE, 6, "")
    )


def test_points_of_several_classes_are_numbered():
    supports, numbers = read_supports([IMAGE] * 2, points=[[(5, 6, 3)], [(9, 9, 7), (30, 20, 0)]])
    assert numbers == (3, 7)
    assert [sorted(np.unique(x.label).tolist()) for x in supports] == [[1, 254], [0, 2, 254]]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"points": [(41, 3)]}, "points[0] has the point (41, 3), which is outside"),
        ({"points": [(3, -1)]}, "points[0] has the point (3, -1)"),
        ({"points": [(3, float("nan"))]}, "points[0] has the point (3, nan)"),
        ({"points": ["here"]}, "points[0] = 'here': points are (x, y)"),
        ({"points": [[]]}, "points[0] = []: points are"),
        ({"points": [(3, 4, 254)]}, "points[0] has a point of class 254"),
        ({"points": [(3, 4, 0)]}, "points[0] is empty"),
        ({"scribbles": [np.zeros(SHAPE, np.uint8)]}, "scribbles[0] marks all of its image"),
        ({"scribbles": [np.full((9, 9), 254)]}, "scribbles[0] is 9 x 9 pixels, but images[0]"),
        ({"scribbles": ["none.png"]}, "none.png cannot be read"),
        ({}, "masks, boxes, scribbles and points: none was given"),
    ],
)
def test_what_is_no_mark_is_told(given, sentence):
    assert message_of(read_supports, [IMAGE], **given).startswith(sentence)


def test_background_is_the_border_where_none_is_marked():
    label = draw_points((8, 1), SHAPE, 4, "")  # which reaches into the border
    image = LabelledImage(IMAGE, label)
    (result,) = with_background([image])
    row, column = np.mgrid[: SHAPE[0], : SHAPE[1]]
    inner = (row >= 2) & (row < 28) & (column >= 2) & (column < 38)
    np.testing.assert_array_equal(result.label[inner], label[inner])
    np.testing.assert_array_equal(result.label[~inner], (label[~inner] == 1))
    marked = LabelledImage(IMAGE, draw_points([(8, 8, 1), (30, 20, 0)], SHAPE, 4, ""))
    assert with_background([image, marked])[0] is image  # another support shows it
    whole = LabelledImage(IMAGE, np.ones(SHAPE, np.uint8))
    assert with_background([whole])[0] is whole
