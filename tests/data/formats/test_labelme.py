"""LabelMe's shapes cover what they enclose, and their faults are named."""

import json
import math

import numpy as np
import pytest
from helpers import message_of
from helpers_data import SIZE, SQUARE, write_labelme

from fsseg_jax.data.formats import labelme
from fsseg_jax.data.formats.labelme import read_labelme


def inside(points, height, width):
    """Which pixels are inside by the even-odd rule, and their distance to the outline."""
    row, column = np.mgrid[:height, :width].astype(float)
    within = np.zeros((height, width), bool)
    distance = np.full((height, width), np.inf)
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        if y0 != y1:
            crossing = x0 + (row - y0) / (y1 - y0) * (x1 - x0)
            within ^= ((y0 > row) != (y1 > row)) & (column < crossing)
        length = (x1 - x0) ** 2 + (y1 - y0) ** 2
        part = np.clip(((column - x0) * (x1 - x0) + (row - y0) * (y1 - y0)) / length, 0, 1)
        away = np.hypot(column - x0 - part * (x1 - x0), row - y0 - part * (y1 - y0))
        distance = np.minimum(distance, away)
    return within, distance


@pytest.mark.parametrize(
    "points",
    [
        [[3.2, 2.6], [40.1, 8.9], [25.7, 33.3]],
        [[5, 5], [45, 5], [45, 35], [25, 12], [5, 35]],  # not convex
        [[-20.5, 10.0], [30.0, -15.0], [70.0, 20.0], [20.0, 60.0]],  # beyond the image
    ],
)
def test_polygons_cover_what_they_enclose(tmp_path, points):
    write_labelme(tmp_path / "1.json", ("cat", "polygon", points), size=(40, 50))
    drawn = read_labelme(tmp_path / "1.json").draw() == 1
    within, distance = inside(points, 40, 50)
    clear = distance > 1  # nearer, it is a matter of taste
    assert clear.sum() > 1000
    np.testing.assert_array_equal(drawn[clear], within[clear])


def test_rectangles_cover_their_corners_whatever_their_order(tmp_path):
    expected = np.zeros(SIZE, int)
    expected[3:10, 2:12] = 1
    corners = [[2, 3], [11, 9]], [[11, 9], [2, 3]], [[2, 9], [11, 3]], SQUARE
    for points in corners:
        write_labelme(tmp_path / "1.json", ("cat", "rectangle", points))
        np.testing.assert_array_equal(read_labelme(tmp_path / "1.json").draw(), expected)


def test_circles_are_a_centre_and_a_point_on_them(tmp_path):
    points = [[20.0, 14.0], [26.0, 22.0]]
    write_labelme(tmp_path / "1.json", ("cat", "circle", points), size=(40, 50))
    drawn = read_labelme(tmp_path / "1.json").draw() == 1
    row, column = np.mgrid[:40, :50]
    distance = np.hypot(column - 20, row - 14)
    assert drawn[distance < 9].all()
    assert not drawn[distance > 11].any()
    assert math.isclose(drawn.sum(), math.pi * 100, rel_tol=0.12)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (("cat", "linestrip", SQUARE), "'linestrip'"),
        (("cat", ["polygon"], SQUARE), "['polygon']"),
        (("cat", "polygon", SQUARE[:2]), "polygon with 2 points"),
        (("cat", "rectangle", SQUARE[:1]), "rectangle with 1 points"),
        (("cat", "circle", SQUARE[:3]), "circle with 3 points"),
        (("cat", "polygon", [[1, 2], [3, 4], [5]]), "not coordinates"),
        (("cat", "polygon", [1, 2, 3]), "not coordinates"),
        (("cat", "polygon", None), "not coordinates"),
        (("cat", "polygon", [["a", "b"]] * 3), "not coordinates"),
        (("cat", "polygon", [[math.nan, 1], [2, 3], [4, 5]]), "not coordinates"),
        (("cat", "circle", [[1, 1], [1e9, 1]]), "not coordinates"),
        (("cat", "circle", [[1, 1], [10**400, 1]]), "not coordinates"),
        (("", "polygon", SQUARE), "label ''"),
        ((None, "polygon", SQUARE), "label None"),
        ((5, "polygon", SQUARE), "label 5"),
    ],
)
def test_labelme_shapes_that_are_none_are_named(tmp_path, shape, expected):
    path = tmp_path / "1.json"
    write_labelme(path, ("cat", "polygon", SQUARE), shape)
    message = message_of(read_labelme, path)
    assert f"{path}, shape 2" in message
    assert expected in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "not valid JSON"),
        ('{"shapes": [', "not valid JSON"),
        ("\xff", "not valid JSON"),
        ("[]", "not a LabelMe file"),
        ('{"images": []}', "not a LabelMe file"),
        ('{"shapes": {}}', "not a LabelMe file"),
        ('{"shapes": []}', "imageHeight None"),
        ('{"shapes": [], "imageHeight": 20, "imageWidth": "30"}', "imageWidth 30"),
        ('{"shapes": [7], "imageHeight": 20, "imageWidth": 30}', "shape 1"),
    ],
)
def test_labelme_files_that_are_none_are_named(tmp_path, content, expected):
    path = tmp_path / "1.json"
    path.write_bytes(content.encode("latin-1"))
    message = message_of(read_labelme, path)
    assert str(path) in message
    assert expected in message


def test_missing_files_are_named(tmp_path):
    assert f"{tmp_path / '1.json'} cannot be read" in message_of(read_labelme, tmp_path / "1.json")


def huge_image(content):
    content |= {"imageHeight": 40_000, "imageWidth": 40_000}


def long_outline(content):
    content["shapes"][0]["points"] = [[0, -9e4], [20, 9e4]] * 999


def many_large(content):
    content |= {"imageHeight": 10_000, "imageWidth": 10_000}
    content["shapes"] *= 1001
    for shape in content["shapes"]:
        shape["points"] = [[0, 0], [9e4, 0], [9e4, 9e4], [0, 9e4]]


@pytest.mark.parametrize(
    ("change", "expected"),
    [(huge_image, "pixels"), (long_outline, "too long"), (many_large, "too large to draw")],
)
def test_what_cannot_be_drawn_is_named_before_it_is_tried(tmp_path, change, expected):
    path = tmp_path / "1.json"
    write_labelme(path, ("cat", "polygon", SQUARE))
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    message = message_of(read_labelme, path)
    assert str(path) in message
    assert expected in message


def test_files_that_are_too_large_are_named(tmp_path, monkeypatch):
    write_labelme(tmp_path / "1.json", imageData="x" * 999)
    read_labelme(tmp_path / "1.json")
    monkeypatch.setattr(labelme, "LARGEST", 999)
    assert "save it without its image" in message_of(read_labelme, tmp_path / "1.json")


def test_values_without_end_are_named(tmp_path, monkeypatch):
    write_labelme(tmp_path / "1.json", ("cat", "polygon", SQUARE), imageData="/9j/" * 999)
    monkeypatch.setattr(labelme, "MOST_VALUES", 99)
    read_labelme(tmp_path / "1.json")
    write_labelme(tmp_path / "1.json", flags=[[]] * 99)
    assert "has more than 99 values" in message_of(read_labelme, tmp_path / "1.json")


def test_fields_that_occur_twice_are_named(tmp_path):
    write_labelme(tmp_path / "1.json", ("cat", "polygon", SQUARE))
    content = (tmp_path / "1.json").read_text()
    (tmp_path / "1.json").write_text(content.rstrip("}") + ', "shapes": []}')
    message = message_of(read_labelme, tmp_path / "1.json")
    assert "'shapes' occurs twice" in message
