"""One's own images are read truthfully, however they are annotated, and faults are named."""

import json
import logging
import math

import numpy as np
import pytest
from helpers import message_of
from PIL import Image

from fsseg_jax.data.formats.labelme import read_labelme
from fsseg_jax.data.images import read_mask
from fsseg_jax.data.sources import folder as module
from fsseg_jax.data.sources.folder import Folder

SIZE = (20, 30)  # height and width of most images
SQUARE = [[2, 3], [11, 3], [11, 9], [2, 9]]


@pytest.fixture
def log(caplog, monkeypatch):
    module._log_once.cache_clear()
    monkeypatch.setattr(logging.getLogger("fsseg_jax"), "propagate", True)
    with caplog.at_level(logging.INFO, "fsseg_jax"):
        yield caplog


def write_image(path, size=SIZE, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def write_mask(path, box=(3, 4, 10, 12), size=SIZE, value=255):
    """A mask of the rows and columns `box`; returns it."""
    mask = np.zeros(size, bool)
    mask[box[0] : box[2], box[1] : box[3]] = True
    Image.fromarray((mask * value).astype(np.uint8)).save(path)
    return mask


def write_labelme(path, *shapes, size=SIZE, **fields):
    """Shapes are (label, kind, points)."""
    shapes = [
        {"label": label, "shape_type": kind, "points": points, "group_id": None, "flags": {}}
        for label, kind, points in shapes
    ]
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": "x.jpg"}
    content |= {"imageData": None, "imageHeight": size[0], "imageWidth": size[1]} | fields
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")


def write_coco(path, file_names, annotations, categories, size=SIZE):
    """Annotations are (number of the image, category, polygon)."""
    content = {
        "images": [
            {"id": 10 + n, "file_name": name, "height": size[0], "width": size[1]}
            for n, name in enumerate(file_names)
        ],
        "annotations": [
            {"id": n, "image_id": 10 + image, "category_id": category, "iscrowd": 0}
            | {"segmentation": [polygon], "area": 1, "bbox": [0, 0, 1, 1]}
            for n, (image, category, polygon) in enumerate(annotations)
        ],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def rows_of(table):
    rows = zip(table.image, table.class_id, table.pixels, strict=True)
    return {tuple(map(int, row)) for row in rows}


@pytest.fixture
def root(tmp_path):
    """Class folders with masks of both names, and a LabelMe file."""
    for name in ("dog/b.jpg", "dog/a.JPEG", "cat/1.png", "cat/2.webp", "cat/3.bmp"):
        write_image(tmp_path / name)
    write_mask(tmp_path / "dog" / "b.PNG")
    write_mask(tmp_path / "dog" / "a_mask.png", (0, 0, 5, 5))
    write_mask(tmp_path / "cat" / "1_mask.png", (0, 1, 7, 9), value=1)
    write_mask(tmp_path / "cat" / "2.png", (19, 0, 20, 30))
    write_labelme(
        tmp_path / "cat" / "3.json",
        ("cow", "rectangle", [[5, 4], [2, 2]]),
        ("cat", "rectangle", [[10, 10], [12, 13]]),
    )
    return tmp_path


# ----------------------------------------------------------------------------- class folders


def test_class_folders(root):
    source = Folder(root, "train", 2)
    assert source.name == "folder"
    assert source.classes == ("cat", "cow", "dog")
    assert source.ids == ("cat/1", "cat/2", "cat/3", "dog/a", "dog/b")
    assert source.folds == ((1, 2), (3,))
    assert source.validation == ()
    assert source.files is None
    expected = {
        ("cat/1", 1, 7 * 8),
        ("cat/2", 1, 30),
        ("cat/3", 1, 3 * 4),
        ("cat/3", 2, 4 * 3),
        ("dog/a", 3, 25),
        ("dog/b", 3, 7 * 8),
    }
    assert {(source.ids[row], c, n) for row, c, n in rows_of(source.table)} == expected
    for row, name in enumerate(source.ids):
        image, label = source.read(row)
        assert image.dtype == label.dtype == np.uint8
        assert image.shape == (*label.shape, 3) == (*SIZE, 3)
        assert {(name, c, int((label == c).sum())) for c in np.unique(label)[1:]} == {
            item for item in expected if item[0] == name
        }
        assert (source.instances(row) is None) == (name != "cat/3")
    np.testing.assert_array_equal(source.read(0).image, write_image(root / "new.png"))
    assert source.read(2).label[13, 12] == 1
    assert source.read(2).label[2, 5] == 2


@pytest.mark.parametrize(
    "kind", ["1", "L", "LA", "P", "P transparent", "RGB", "RGBA", "I;16", "other orientation"]
)
def test_masks_of_any_kind_show_what_is_not_black(tmp_path, kind):
    write_image(tmp_path / "cat" / "1.jpg")
    path = tmp_path / "cat" / "1.png"
    mask = write_mask(path, value=255)
    options = {}
    if kind == "I;16":
        picture = Image.fromarray(mask.astype(np.uint16))  # 1 of 65,535
    elif kind.startswith("P"):
        # Colour counts, not the number of it: 7 is black, and 0 is not.
        picture = Image.fromarray(np.where(mask, 0, 7).astype(np.uint8))
        picture.putpalette([0, 0, 9] + [0] * 765)
        options = {"transparency": 0} if kind == "P transparent" else {}
    elif kind == "other orientation":
        picture = Image.fromarray(np.rot90(mask.astype(np.uint8)))  # shown upright by EXIF's 6
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {"exif": exif}
    elif kind == "RGB":
        picture = Image.fromarray(mask[..., None] * np.array([0, 1, 0], np.uint8))
    elif kind in ("LA", "RGBA"):
        values = [mask] * (len(kind) - 1) + [~mask]  # transparent where the class is
        picture = Image.fromarray(np.stack(values, axis=-1).astype(np.uint8))
    else:
        picture = Image.fromarray(mask if kind == "1" else mask.astype(np.uint8))
    picture.save(path, **options)
    with Image.open(path) as saved:
        assert saved.mode == (kind if len(kind) < 5 else kind[0] if kind[0] == "P" else "L")
    found = read_mask(path)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, mask)
    np.testing.assert_array_equal(Folder(tmp_path, "", 1).read(0).label, mask)


def test_above_says_what_still_is_black(tmp_path):
    values = np.array([[0, 1, 127], [128, 200, 255]], np.uint8)
    Image.fromarray(values).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", above=127), values > 127)
    Image.fromarray(values > 127).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", above=127), values > 127)


# ----------------------------------------------------------------------------- images


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA", "I;16", "RGB keyed"])
def test_images_of_any_kind_become_rgb(tmp_path, mode):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (*SIZE, 4), dtype=np.uint8)
    path = tmp_path / "cat" / ("1.jpg" if mode == "CMYK" else "1.png")
    path.parent.mkdir()
    options = {}
    if mode == "L":
        picture = Image.fromarray(values[..., 0])
        expected = values[..., [0, 0, 0]]
    elif mode == "1":
        picture = Image.fromarray(values[..., 0] > 99)
        expected = np.where(values[..., [0, 0, 0]] > 99, 255, 0)
    elif mode == "P":
        picture = Image.fromarray(values[..., 0])
        palette = rng.integers(0, 256, (256, 3), dtype=np.uint8)
        picture.putpalette(palette.ravel().tolist())
        expected = palette[values[..., 0]]
    elif mode == "CMYK":
        flat = np.broadcast_to(np.array([200, 100, 50, 40], np.uint8), values.shape)
        picture = Image.fromarray(flat, "CMYK")
        options = {"quality": 100}
        ink = (255 - flat.astype(int)) / 255
        expected = ink[..., :3] * ink[..., 3:] * 255
    elif mode == "I;16":
        picture = Image.fromarray(values[..., 0].astype(np.uint16) * 256 + values[..., 1])
        expected = values[..., [0, 0, 0]]
    elif mode == "RGB keyed":
        values[3:5, 6:8, :3] = (9, 8, 7)
        picture = Image.fromarray(values[..., :3])
        options = {"transparency": (9, 8, 7)}
        expected = values[..., :3].copy()
        expected[3:5, 6:8] = 255
    else:
        values[0, :2, 3] = (0, 255)
        picture = Image.fromarray(values if mode == "RGBA" else values[..., 2:])
        colour = values[..., :3] if mode == "RGBA" else values[..., [2, 2, 2]]
        alpha = values[..., 3:] / 255
        expected = alpha * colour + (1 - alpha) * 255
    picture.save(path, **options)
    write_mask(tmp_path / "cat" / "1_mask.png")
    with Image.open(path) as saved:
        assert saved.mode == mode.split()[0]
    image = Folder(tmp_path, "", 1).read(0).image
    assert (image.dtype, image.shape) == (np.uint8, (*SIZE, 3))
    np.testing.assert_allclose(image, expected, atol=3 if mode == "CMYK" else 1)
    if mode not in ("CMYK", "RGBA", "LA"):
        np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright_and_in_line_with_their_masks(tmp_path, orientation):
    """The mask and the LabelMe file are drawn on the image as it is shown."""
    upright = np.full((*SIZE, 3), 20, np.uint8)
    upright[3:10, 4:12] = 220
    turned = {  # how the camera stored it, by EXIF's definition of the first row and column
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, 1),
        7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
        8: lambda x: np.rot90(x, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("1", "2"):
        path = tmp_path / "cat" / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        stored = Image.fromarray(np.ascontiguousarray(turned(upright)))
        stored.save(path, exif=exif, quality=95)
    mask = write_mask(tmp_path / "cat" / "1.png")
    write_labelme(tmp_path / "cat" / "2.json", ("cat", "rectangle", [[4, 3], [11, 9]]))
    source = Folder(tmp_path, "", 1)
    for row in range(2):
        image, label = source.read(row)
        np.testing.assert_array_equal(label, mask)
        np.testing.assert_array_equal((image > 120).all(axis=-1), mask)


# ----------------------------------------------------------------------------- LabelMe


def inside(points, height, width):
    """Even-odd rule at the pixels' positions, and their distance to the outline."""
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


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (2, 1, 0)])
def test_smaller_shapes_are_on_top(tmp_path, order):
    shapes = [
        ("large", "polygon", [[0, 0], [29, 0], [29, 19], [0, 19]]),
        ("middle", "circle", [[14, 9], [14, 2]]),
        ("small", "rectangle", [[13, 8], [15, 10]]),
    ]
    write_image(tmp_path / "1.jpg")
    write_labelme(tmp_path / "1.json", *(shapes[i] for i in order))
    source = Folder(tmp_path, "", 1)
    assert source.classes == ("large", "middle", "small")
    label, instance = source.read(0).label, source.instances(0)
    assert [int(label[y, x]) for y, x in ((9, 14), (5, 14), (1, 1))] == [3, 2, 1]
    assert int((label == 3).sum()) == 9
    assert (label > 0).all()
    assert instance.dtype == np.uint8
    for number, shape in enumerate(order, start=1):
        np.testing.assert_array_equal(instance == number, label == shape + 1)


def test_objects_of_one_class_are_told_apart(tmp_path):
    write_image(tmp_path / "1.jpg", (40, 600))
    shapes = [("pea", "rectangle", [[2 * i, 5], [2 * i, 8]]) for i in range(258)]
    write_labelme(tmp_path / "1.json", *shapes, size=(40, 600))
    source = Folder(tmp_path, "", 1)
    instance = source.instances(0)
    np.testing.assert_array_equal(instance[5, :508:2], range(1, 255))
    assert (instance[:, 508:] == 0).all()  # no numbers are left
    np.testing.assert_array_equal(source.read(0).label[5, :520:2], [1] * 258 + [0] * 2)


def test_flat_folders_leave_out_what_has_no_labelme_file(tmp_path, log):
    for name in ("1", "2", "3", "4"):
        write_image(tmp_path / f"{name}.jpg")
    write_labelme(tmp_path / "1.json", ("cat", "polygon", SQUARE), imageData="not decoded")
    write_labelme(tmp_path / "3.json")  # shows nothing
    (tmp_path / "settings.json").write_text("{}")
    for _ in range(2):
        source = Folder(tmp_path, "", 1)
    assert source.ids == ("1", "3")
    assert rows_of(source.table) == {(0, 1, 70)}
    told = [message for message in log.messages if "left out" in message]
    assert len(told) == 1
    assert "2 images" in told[0]


def test_first_labelme_files_have_polygons_alone(tmp_path):
    write_image(tmp_path / "1.jpg")
    write_labelme(tmp_path / "1.json", ("Кот", None, SQUARE))
    source = Folder(tmp_path, "", 1)
    assert source.classes == ("Кот",)
    assert rows_of(source.table) == {(0, 1, 70)}


@pytest.mark.parametrize("place", ["given", "as dot"])
def test_flat_folders_of_masks_show_one_class_named_after_them(tmp_path, monkeypatch, log, place):
    root = tmp_path / "mug"
    for name in ("1.jpg", "2.png", "3.webp", "4.jpg"):
        write_image(root / name)
    masks = [
        write_mask(root / "1.png"),
        write_mask(root / "2_mask.png", (0, 0, 5, 5)),
        write_mask(root / "3_mask.PNG", (1, 1, 2, 9), value=1),
    ]
    monkeypatch.chdir(root)
    source = Folder("." if place == "as dot" else root, "", 1)
    assert source.classes == ("mug",)
    assert source.ids == ("1", "2", "3")
    assert [path.name for path in source.annotations] == ["1.png", "2_mask.png", "3_mask.PNG"]
    for row, mask in enumerate(masks):
        np.testing.assert_array_equal(source.read(row).label, mask)
        assert source.instances(row) is None
    assert any("1 images without an annotation" in message for message in log.messages)


def test_flat_masks_and_class_folders_and_labelme_files_may_be_mixed(root):
    write_image(root / "x.jpg")
    write_mask(root / "x.png")
    write_image(root / "y.jpg")
    write_labelme(root / "y.json", ("cow", "polygon", SQUARE))
    source = Folder(root, "", 1)
    assert source.classes == tuple(sorted(["cat", "cow", "dog", root.name]))
    assert int((source.read(0).label == source.classes.index(root.name) + 1).sum()) == 7 * 8
    write_labelme(root / "x.json", ("cow", "polygon", SQUARE))
    message = message_of(Folder, root, "", 1)
    assert f"{root / 'x.jpg'} has x.png and x.json beside it" in message


def test_flat_masks_of_splits_are_none(tmp_path):
    write_image(tmp_path / "train" / "1.jpg")
    write_mask(tmp_path / "train" / "1.png")
    assert f"{tmp_path / 'train'} holds no annotated" in message_of(Folder, tmp_path, "", 1)


def test_without_splits_folders_of_any_name_are_classes(tmp_path):
    for name in ("train", "bus"):
        write_image(tmp_path / name / "1.jpg")
        write_mask(tmp_path / name / "1.png")
    source = Folder(tmp_path, None, 1)
    assert source.classes == ("bus", "train")
    assert source.ids == ("bus/1", "train/1")


# ----------------------------------------------------------------------------- COCO


@pytest.fixture
def coco(tmp_path):
    write_image(tmp_path / "1.jpg")
    write_image(tmp_path / "images" / "day" / "2.jpg")
    polygon = [2, 3, 12, 3, 12, 10, 2, 10]
    write_coco(
        tmp_path / "export.json",
        ["day/2.jpg", "1.jpg"],
        [(1, 40, polygon), (0, 7, polygon), (0, 40, [20, 5, 29, 5, 29, 9, 20, 9])],
        {7: "zebra", 40: "ant"},
    )
    return tmp_path


def test_coco_files(coco):
    source = Folder(coco, "train", 2)
    assert source.classes == ("ant", "zebra")
    assert source.folds == ((1,), (2,))
    assert source.ids == ("images/day/2", "1")
    expected = np.zeros(SIZE, int)
    expected[3:10, 2:12] = 1
    np.testing.assert_array_equal(source.read(1).label, expected)
    expected[3:10, 2:12] = 2
    expected[5:9, 20:29] = 1
    image, label = source.read(0)
    np.testing.assert_array_equal(label, expected)
    with Image.open(coco / "images" / "day" / "2.jpg") as picture:
        np.testing.assert_array_equal(image, np.asarray(picture))
    instance = source.instances(0)
    assert {(int(i), int(c)) for i, c in zip(instance.flat, label.flat, strict=True)} == {
        (0, 0),
        (1, 2),
        (2, 1),
    }
    assert rows_of(source.table) == {(0, 1, 36), (0, 2, 70), (1, 1, 70)}


def test_coco_boxes_outline_where_there_is_nothing_else(coco):
    content = json.loads((coco / "export.json").read_text())
    del content["annotations"][0]["segmentation"]
    content["annotations"][0]["bbox"] = [2, 3, 10, 7]
    content["annotations"][1] |= {"segmentation": [], "bbox": [19.6, -3, 40, 9.4]}
    (coco / "export.json").write_text(json.dumps(content))
    source = Folder(coco, "", 1)
    expected = np.zeros(SIZE, int)
    expected[3:10, 2:12] = 1
    np.testing.assert_array_equal(source.read(1).label, expected)
    expected = np.zeros(SIZE, int)
    expected[0:6, 20:30] = 2
    expected[5:9, 20:29] = 1  # its polygon, not its box
    np.testing.assert_array_equal(source.read(0).label, expected)


def test_coco_files_and_other_annotations_do_not_mix(coco):
    write_image(coco / "cat" / "1.jpg")
    Folder(coco, "", 1)  # which the file does not name
    write_mask(coco / "cat" / "1.png")
    message = message_of(Folder, coco, "", 1)
    assert "export.json" in message
    assert str(coco / "cat" / "1.jpg") in message


def test_two_coco_files_are_named(coco):
    (coco / "more.json").write_bytes((coco / "export.json").read_bytes())
    assert "export.json and more.json" in message_of(Folder, coco, "", 1)


def test_coco_images_that_are_missing_or_of_another_size_are_named(coco):
    write_image(coco / "1.jpg", (20, 31))
    message = message_of(Folder, coco, "", 1)
    assert "export.json (for 1.jpg) is 30 x 20" in message
    assert "31 x 20" in message
    (coco / "1.jpg").unlink()
    message = message_of(Folder, coco, "", 1)
    assert "export.json" in message
    assert "1.jpg" in message


def test_coco_images_of_one_name_are_named(coco):
    write_image(coco / "images" / "day" / "2.png")
    names = ["day/2.jpg", "day/2.png"]
    write_coco(coco / "export.json", names, [(0, 1, [1, 1, 5, 1, 5, 5])], {1: "x"})
    assert "2.jpg and 2.png" in message_of(Folder, coco, "", 1)


# ----------------------------------------------------------------------------- splits, folds


def test_splits_are_folders_and_share_their_classes(tmp_path):
    for name in ("train/dog/1", "train/cat/1", "val/dog/7"):
        write_image(tmp_path / f"{name}.jpg")
        write_mask(tmp_path / f"{name}.png")
    write_image(tmp_path / "extra" / "1.jpg")
    write_labelme(tmp_path / "extra" / "1.json", ("bee", "polygon", SQUARE))
    write_image(tmp_path / "test" / "x.jpg")
    write_coco(
        tmp_path / "test" / "coco.json",
        ["x.jpg"],
        [(0, 3, [1, 1, 9, 1, 9, 9])],
        {3: "dog", 4: "eel"},
    )
    ids = {"train": ("cat/1", "dog/1"), "": ("cat/1", "dog/1"), "val": ("dog/7",)}
    ids |= {"extra": ("1",), "test": ("x",)}
    shown = {"train": {2, 3}, "": {2, 3}, "val": {3}, "extra": {1}, "test": {3}}
    for split, names in ids.items():
        source = Folder(tmp_path, split, 1)
        assert source.classes == ("bee", "cat", "dog", "eel")
        assert source.ids == names
        assert {class_id for _, class_id, _ in rows_of(source.table)} == shown[split]
        for row in range(len(source)):
            assert set(np.unique(source.read(row).label)) <= {0, *shown[split]}
    message = message_of(Folder, tmp_path, "validation", 1)
    assert "'validation'" in message
    assert "extra, test, train, val" in message


def test_one_folder_serves_all_splits_and_says_so_once(root, log):
    sources = [Folder(root, split, 1) for split in ("train", "val", "")]
    assert sources[0].ids == sources[1].ids == sources[2].ids
    assert sources[0].fingerprint == sources[1].fingerprint
    assert len([message for message in log.messages if "every split" in message]) == 1


@pytest.mark.parametrize("folds", [1, 2, 3, 4, 5, 7])
def test_folds_are_groups_as_equal_as_possible(tmp_path, folds):
    for name in "abcdefg":
        write_image(tmp_path / name / "1.jpg")
        write_mask(tmp_path / name / "1.png")
    source = Folder(tmp_path, "", folds)
    assert len(source.folds) == folds
    assert sum(source.folds, ()) == tuple(range(1, 8))
    sizes = [len(fold) for fold in source.folds]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("folds", [0, -1, 4])
def test_impossible_folds_are_named(root, folds):
    message = message_of(Folder, root, "", folds)
    assert f"data.folds = {folds}" in message
    assert "3 classes" in message


def test_labels_of_many_classes_skip_255(tmp_path):
    write_image(tmp_path / "1.jpg", (4, 600))
    for count, dtype in ((254, np.uint8), (255, np.uint16)):
        shapes = [(f"c{i:03d}", "rectangle", [[2 * i, 1], [2 * i, 1]]) for i in range(count)]
        write_labelme(tmp_path / "1.json", *shapes, size=(4, 600))
        source = Folder(tmp_path, "", 2)
        label = source.read(0).label
        assert label.dtype == dtype
        assert label.max() == (254 if count == 254 else 256)
        assert 255 not in label
        assert sum(source.folds, ()) == tuple(source.class_names)


# ----------------------------------------------------------------------------- the cache


def test_the_table_is_counted_anew_when_a_file_changes(root):
    before = Folder(root, "", 1)
    write_mask(root / "dog" / "b.PNG", (0, 0, 2, 2))
    after = Folder(root, "", 1)
    assert (4, 3, 4) in rows_of(after.table) - rows_of(before.table)
    assert after.fingerprint != before.fingerprint


def test_the_table_is_counted_anew_when_classes_of_other_splits_change(root, tmp_path_factory):
    outer = tmp_path_factory.mktemp("outer")
    root.rename(outer / "train")
    before = Folder(outer, "train", 1)
    write_image(outer / "val" / "ant" / "1.jpg")
    write_mask(outer / "val" / "ant" / "1.png")
    after = Folder(outer, "train", 1)
    assert rows_of(after.table) == {(r, c + 1, n) for r, c, n in rows_of(before.table)}
    assert after.fingerprint != before.fingerprint


# ----------------------------------------------------------------------------- faults


def test_roots_that_are_none_are_named(tmp_path):
    assert "data.root is empty" in message_of(Folder, "", "", 1)
    assert str(tmp_path / "no") in message_of(Folder, tmp_path / "no", "", 1)
    assert str(tmp_path) in message_of(Folder, tmp_path, "", 1)
    write_image(tmp_path / "1.jpg")
    assert "no annotated images" in message_of(Folder, tmp_path, "", 1)
    write_labelme(tmp_path / "1.json")
    assert "no objects" in message_of(Folder, tmp_path, "", 1)


def test_home_is_expanded(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    assert len(Folder(f"~/{root.name}", "", 1)) == 5


def test_hidden_files_are_ignored(root):
    (root / "cat" / "._1.jpg").write_bytes(b"what macOS leaves behind")
    (root / ".git").mkdir()
    (root / "__MACOSX").mkdir()
    (root / "cat" / "notes.txt").write_text("a note")
    assert len(Folder(root, "", 1)) == 5


@pytest.mark.parametrize(
    ("image", "expected"),
    [("x.jpg", ("x.png", "x_mask.png", "x.json")), ("x.png", ("(x_mask.png)", "x.json"))],
)
def test_images_without_an_annotation_are_named(root, image, expected):
    write_image(root / "cat" / image)
    message = message_of(Folder, root, "", 1)
    assert str(root / "cat" / image) in message
    for name in expected:
        assert name in message


def test_masks_without_an_image_are_named(root):
    (root / "dog" / "a.JPEG").unlink()
    assert str(root / "dog" / "a_mask.png") in message_of(Folder, root, "", 1)


def test_two_annotations_of_one_image_are_named(root):
    write_labelme(root / "dog" / "b.json", ("dog", "polygon", SQUARE))
    message = message_of(Folder, root, "", 1)
    assert str(root / "dog" / "b.jpg") in message
    assert "b.PNG and b.json" in message


def test_two_images_of_one_name_are_named(root):
    write_image(root / "dog" / "b.webp")
    message = message_of(Folder, root, "", 1)
    assert "b.jpg" in message
    assert "b.webp" in message


def test_class_folders_without_images_are_named(root):
    (root / "empty").mkdir()
    assert str(root / "empty") in message_of(Folder, root, "", 1)


def test_empty_masks_are_named(root):
    Image.new("RGBA", SIZE[::-1], (0, 0, 0, 255)).save(root / "dog" / "b.PNG")
    message = message_of(Folder, root, "", 1)
    assert f"{root / 'dog' / 'b.PNG'} is an empty mask" in message


def test_sizes_that_differ_are_named(root):
    mask = root / "dog" / "b.PNG"
    write_mask(mask, size=(20, 33))
    message = message_of(Folder, root, "", 1)
    assert f"{mask} is 33 x 20" in message
    assert f"{root / 'dog' / 'b.jpg'} is 30 x 20" in message
    write_mask(mask)
    write_labelme(root / "cat" / "3.json", ("cat", "polygon", SQUARE), size=(21, 30))
    message = message_of(Folder, root, "", 1)
    assert f"{root / 'cat' / '3.json'} is 30 x 21" in message


def test_a_text_file_is_no_image(root):
    (root / "dog" / "b.jpg").write_text("there is no image in here")
    assert f"{root / 'dog' / 'b.jpg'} cannot be read" in message_of(Folder, root, "", 1)


@pytest.mark.parametrize("name", ["dog/b.jpg", "dog/b.PNG", "cat/3.json"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.3, 0.7])
def test_truncated_files_are_named(root, name, part):
    source = Folder(root, "", 1)
    content = (root / name).read_bytes()
    (root / name).write_bytes(content[: int(part * len(content))])
    row = source.ids.index(name.split(".")[0])
    assert str(root / name) in message_of(source.read, row)
    source.read(0)
    if not name.endswith(".jpg"):
        assert str(root / name) in message_of(Folder, root, "", 1)


@pytest.mark.parametrize("name", ["dog/b.jpg", "dog/b.PNG", "cat/3.json"])
def test_files_that_vanish_are_named(root, name):
    source = Folder(root, "", 1)
    (root / name).unlink()
    row = source.ids.index(name.split(".")[0])
    assert str(root / name) in message_of(source.read, row)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (("cat", "linestrip", SQUARE), "'linestrip'"),
        (("cat", ["polygon"], SQUARE), "['polygon']"),
        (("cat", "polygon", SQUARE[:2]), "polygon with 2 points"),
        (("cat", "rectangle", SQUARE[:1]), "rectangle with 1 points"),
        (("cat", "circle", SQUARE[:3]), "circle with 3 points"),
        (("cat", "polygon", [[1, 2], [3, 4], [5]]), "pairs"),
        (("cat", "polygon", [1, 2, 3]), "pairs"),
        (("cat", "polygon", None), "pairs"),
        (("cat", "polygon", [["a", "b"]] * 3), "pairs"),
        (("cat", "polygon", [[math.nan, 1], [2, 3], [4, 5]]), "pairs"),
        (("cat", "circle", [[1, 1], [1e9, 1]]), "pairs"),
        (("cat", "circle", [[1, 1], [10**400, 1]]), "pairs"),
        (("", "polygon", SQUARE), "label ''"),
        ((None, "polygon", SQUARE), "label None"),
        ((5, "polygon", SQUARE), "label 5"),
    ],
)
def test_labelme_shapes_that_are_none_are_named(root, shape, expected):
    path = root / "cat" / "3.json"
    write_labelme(path, ("cat", "polygon", SQUARE), shape)
    message = message_of(Folder, root, "", 1)
    assert f"{path}, shape 2" in message
    assert expected in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "no valid JSON"),
        ('{"shapes": [', "no valid JSON"),
        ("\xff", "no valid JSON"),
        ("[]", "no LabelMe file"),
        ('{"images": []}', "no LabelMe file"),
        ('{"shapes": {}}', "no LabelMe file"),
        ('{"shapes": []}', "imageHeight None"),
        ('{"shapes": [], "imageHeight": 20, "imageWidth": "30"}', "imageWidth 30"),
        ('{"shapes": [7], "imageHeight": 20, "imageWidth": 30}', "shape 1"),
    ],
)
def test_labelme_files_that_are_none_are_named(root, content, expected):
    path = root / "cat" / "3.json"
    path.write_bytes(content.encode("latin-1"))
    message = message_of(Folder, root, "", 1)
    assert str(path) in message
    assert expected in message


def test_broken_json_beside_no_image_is_named(root):
    (root / "export.json").write_text("{export")
    assert str(root / "export.json") in message_of(Folder, root, "", 1)
