"""Exports of annotation tools are read for supports and training alike."""

import tracemalloc

import numpy as np
import pytest
from helpers import message_of
from helpers_data import (
    SIZE,
    SQUARE,
    rows_of,
    write_coco,
    write_image,
    write_labelme,
    write_mask,
)
from helpers_fuzz import damaged, many, read_all, write
from hypothesis import given
from PIL import Image

from fsseg_jax.data.formats import cvat as cvat_files
from fsseg_jax.data.formats.cvat import read_cvat
from fsseg_jax.data.sources import exports
from fsseg_jax.data.sources.folder import Folder
from fsseg_jax.prediction.support_folder import read_supports

HEIGHT, WIDTH = SIZE
INSIDE = np.zeros(SIZE, bool)
INSIDE[3:10, 2:12] = True  # what SQUARE covers


@pytest.fixture(autouse=True)
def nothing_logged():
    exports.log_once.cache_clear()


def cvat(*shapes, name="1.jpg", size=SIZE):
    return (
        '<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>'
        "<meta><task><name>mugs</name></task></meta>"
        f'<image id="0" name="{name}" width="{size[1]}" height="{size[0]}">{"".join(shapes)}'
        "</image></annotations>"
    )


POINTS = ";".join(f"{x}.0,{y}.0" for x, y in SQUARE)
RUNS = "0,10," + ",".join(["0"] * 2) + ",60"
SHAPES = {
    "polygon": f'<polygon label="mug" occluded="0" points="{POINTS}" z_order="0"></polygon>',
    "box": '<box label="mug" xtl="2" ytl="3" xbr="11" ybr="9"></box>',
    "mask": f'<mask label="mug" rle="{RUNS}" left="2" top="3" width="10" height="7"></mask>',
    "ellipse": '<ellipse label="mug" cx="6.5" cy="6.0" rx="5" ry="4"></ellipse>',
}


def write_cvat(root, shapes):
    write_image(root / "images" / "default" / "1.jpg")
    (root / "annotations.xml").write_text(cvat(*shapes))


def write_yolo(root, line, place="images", labels="labels"):
    write_image(root / place / "1.jpg")
    (root / labels).mkdir(parents=True, exist_ok=True)
    (root / labels / "1.txt").write_text(line + "\n")
    (root / "data.yaml").write_text("train: ../train/images\nnc: 2\nnames: ['cup', 'mug']\n")


def polygon_line(number):
    return f"{number} " + " ".join(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in SQUARE)


def write_voc(root, splits=False):
    for name in ("1", "2"):
        write_image(root / "JPEGImages" / f"{name}.jpg")
        label = Image.fromarray((INSIDE * 2).astype(np.uint8))
        label.putpalette([0, 0, 0, 9, 9, 9, 200, 0, 0])
        (root / "SegmentationClass").mkdir(exist_ok=True)
        label.save(root / "SegmentationClass" / f"{name}.png")
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\n")
    with (root / "labelmap.txt").open("a") as file:
        file.write("cup:128,0,0::\nmug:0,128,0::\n")
    if splits:
        (root / "ImageSets" / "Segmentation").mkdir(parents=True)
        (root / "ImageSets" / "Segmentation" / "train.txt").write_text("1\n")
        (root / "ImageSets" / "Segmentation" / "val.txt").write_text("2\n")


def write_pairs(root):
    write_image(root / "images" / "deep" / "1.tif")
    (root / "masks" / "deep").mkdir(parents=True)
    write_mask(root / "masks" / "deep" / "1_mask.png", (3, 2, 10, 12))


LAYOUTS = {
    "CVAT polygon": lambda root: write_cvat(root, [SHAPES["polygon"]]),
    "CVAT box": lambda root: write_cvat(root, [SHAPES["box"]]),
    "CVAT mask": lambda root: write_cvat(root, [SHAPES["mask"].replace(RUNS, "0,70")]),
    "YOLO": lambda root: write_yolo(root, polygon_line(1)),
    "YOLO box": lambda root: write_yolo(
        root, f"1 {6.5 / WIDTH} {6 / HEIGHT} {9 / WIDTH} {6 / HEIGHT}"
    ),
    "VOC": write_voc,
    "images and masks": write_pairs,
    "COCO of CVAT": lambda root: (
        write_image(root / "images" / "default" / "1.jpg"),
        write_annotations(root / "annotations" / "instances_default.json"),
    ),
    "COCO of Roboflow": lambda root: (
        write_image(root / "1.jpg"),
        write_annotations(root / "_annotations.coco.json", {0: "things", 1: "mug"}),
    ),
}


def write_annotations(path, categories=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    polygon = [2, 3, 12, 3, 12, 10, 2, 10]
    write_coco(path, ["1.jpg"], [(0, 1, polygon)], categories or {1: "mug"})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exports_show_what_was_drawn_in_supports_and_in_training(tmp_path, layout):
    root = tmp_path / "mug"
    root.mkdir()
    LAYOUTS[layout](root)
    source = Folder(root, "", 1)
    assert source.classes == ("mug",)
    np.testing.assert_array_equal(source.read(0).label, INSIDE)
    supports = read_supports(root)
    assert supports.classes == ("mug",)
    np.testing.assert_array_equal(supports.images[0].label, INSIDE)


def test_splits_of_exports_are_splits(tmp_path):
    for name, old in (("train", "train"), ("valid", "val")):
        write_yolo(tmp_path / "a" / name, polygon_line(1))
        (tmp_path / "a" / name / "data.yaml").rename(tmp_path / "a" / "data.yaml")
        write_yolo(tmp_path / "b", polygon_line(0), f"images/{old}", f"labels/{old}")
        write_image(tmp_path / "c" / name / "1.jpg")
        write_annotations(tmp_path / "c" / name / "_annotations.coco.json")
    (tmp_path / "d").mkdir()
    write_voc(tmp_path / "d", splits=True)
    for root in "abcd":
        for split in ("", "val"):
            source = Folder(tmp_path / root, split, 1)
            assert len(source) == 1
            assert source.classes == ("cup" if root == "b" else "mug",)
            np.testing.assert_array_equal(source.read(0).label, INSIDE)
        assert len(read_supports(tmp_path / root).images) == 1


@pytest.mark.parametrize("layout", ["{}/1.jpg", "{}/images/1.jpg", "images/{}/1.jpg"])
@pytest.mark.parametrize("file", ["instances_{}2017.json", "instances_{}.json", "{}.json"])
def test_coco_files_in_one_folder_are_those_of_the_splits(tmp_path, layout, file):
    for number, name in enumerate(("train", "val")):
        folder = file.removeprefix("instances_").removesuffix(".json").format(name)
        write_image(tmp_path / layout.format(folder), (20, 30))
        path = tmp_path / "annotations" / file.format(name)
        polygon = [2 + number, 3, 12, 3, 12, 10, 2 + number, 10]
        write_coco(path, ["1.jpg"], [(0, 1, polygon)], {1: "mug", 2: ("cup", "jug")[number]})
        if file.startswith("instances"):
            (path.parent / f"captions_{folder}.json").write_text(
                '{"images": [], "annotations": []}'
            )
    train, val = Folder(tmp_path, "", 1), Folder(tmp_path, "val", 1)
    assert train.classes == val.classes == ("cup", "jug", "mug")
    for source, left in ((train, 2), (val, 3)):
        (name,) = source.photographs()
        assert ("train" in name) == (source is train)
        expected = np.zeros(SIZE, int)
        expected[3:10, left:12] = 3
        np.testing.assert_array_equal(source.read(0).label, expected)
        np.testing.assert_array_equal(source.instances(0), expected > 0)
    supports = read_supports(tmp_path)
    assert supports.classes == ("mug",)
    np.testing.assert_array_equal(supports.images[0].label, train.read(0).label == 3)
    more = tmp_path / "annotations" / file.format("train").replace("train", "train2014")
    if file.endswith("{}.json"):
        more.write_bytes((tmp_path / "annotations" / file.format("train")).read_bytes())
        assert "are of one split: keep one" in message_of(Folder, tmp_path, "", 1)


@pytest.mark.parametrize("splits", [("train2017",), ("Train", "Validation")])
def test_keypoints_beside_instances_are_left_out_and_cases_do_not_matter(tmp_path, splits):
    for split in splits:
        write_image(tmp_path / "images" / split / "1.jpg")
        for kind, name in (("instances", "mug"), ("person_keypoints", "person")):
            write_annotations(tmp_path / "annotations" / f"{kind}_{split}.json", {1: name})
    for split in ("", "val"):
        source = Folder(tmp_path, split, 1)
        assert source.classes == ("mug",)
        (photograph,) = source.photographs()
        assert splits[-1 if split else 0] in photograph
    assert len(read_supports(tmp_path).images) == 1


@pytest.mark.parametrize("layout", ["COCO", "YOLO"])
def test_two_names_of_one_split_are_told(tmp_path, layout):
    for split in ("train", "val", "valid"):
        if layout == "COCO":
            write_image(tmp_path / split / "1.jpg")
            write_annotations(tmp_path / "annotations" / f"{split}.json")
        else:
            write_yolo(tmp_path, polygon_line(1), f"images/{split}", f"labels/{split}")
    assert "are of one split: keep one of them" in message_of(Folder, tmp_path, "val", 1)


@pytest.mark.parametrize("folder", ["val2017", "images/val2017"])
def test_a_coco_file_of_one_split_alone_is_for_all_images(tmp_path, folder):
    names = [f"{n}.jpg" for n in range(10)]
    for name in names:
        write_image(tmp_path / folder / name)
    (tmp_path / "annotations").mkdir()
    polygons = [(n, 1 + n % 2, [2, 3, 12, 3, 12, 10, 2, 10]) for n in range(10)]
    file = tmp_path / "annotations" / "instances_val2017.json"
    write_coco(file, names, polygons, {1: "cup", 2: "mug"})
    for split in ("", "val", "test"):
        assert len(Folder(tmp_path, split, 2)) == 10
    train, val = Folder(tmp_path, "", 0), Folder(tmp_path, "val", 0)
    assert val.ids
    assert sorted(train.ids + val.ids) == sorted(Folder(tmp_path, "", 2).ids)
    assert len(read_supports(tmp_path).images) == 10


def write_in_colour(root, *colours):
    write_voc(root)
    label = np.zeros((*SIZE, 3), np.uint8)
    for number, colour in enumerate(colours):
        label[2:8, 3 + 5 * number : 6 + 6 * number] = colour
    for name in ("1", "2"):
        Image.fromarray(label).save(root / "SegmentationClass" / f"{name}.png")


def test_colours_of_cvat_are_their_classes(tmp_path):
    write_in_colour(tmp_path, (0, 128, 0), (128, 0, 0), (0, 0, 0))
    source = Folder(tmp_path, "", 1)
    assert source.classes == ("cup", "mug")
    expected = np.zeros(SIZE)
    expected[2:8, 3:6], expected[2:8, 8:12] = 2, 1
    np.testing.assert_array_equal(source.read(0).label, expected)
    write_in_colour(tmp_path, (0, 127, 0))
    assert "has the colour (0, 127, 0)" in message_of(Folder, tmp_path, "", 1)
    (tmp_path / "labelmap.txt").unlink()
    assert "no labelmap.txt says" in message_of(Folder, tmp_path, "", 1)


def test_background_is_no_class_in_any_colour_or_number(tmp_path):
    write_in_colour(tmp_path, (0, 128, 0), (7, 7, 7))
    map_file = tmp_path / "labelmap.txt"
    map_file.write_text("mug:0,128,0::\nbackground:7,7,7::\n")
    assert Folder(tmp_path, "", 1).classes == ("mug",)
    write_voc(tmp_path)
    map_file.write_text("void:1,1,1::\nbackground:7,7,7::\ncat:9,9,9::\n")
    assert Folder(tmp_path, "", 1).classes == ("cat",)


@pytest.mark.parametrize("mode", ["P", "L"])
def test_255_of_label_images_is_ignored_whatever_else_they_show(tmp_path, mode):
    write_voc(tmp_path)
    for name, number in (("1", 0), ("2", 2)):
        label = np.zeros(SIZE, np.uint8)
        label[:15, 10:], label[16:, :5] = 255, number
        picture = Image.fromarray(label)
        if mode == "P":
            picture.putpalette([0, 0, 0, 9, 9, 9, 200, 0, 0, *[99] * 759])
        picture.save(tmp_path / "SegmentationClass" / f"{name}.png")
    source = Folder(tmp_path, "", 1)
    assert source.classes == ("mug",)
    for row, numbers in enumerate(([0, 255], [0, 1, 255])):
        label = source.read(row).label
        assert np.unique(label).tolist() == numbers
        assert (label[:15, 10:] == 255).all()


def test_of_supports_those_of_background_are_used_and_those_of_255_left_out(tmp_path, log):
    write_voc(tmp_path)
    for number in range(2, 16):
        write_image(tmp_path / "JPEGImages" / f"{number}.jpg")
        label = np.full(SIZE, 255 if number == 5 else 0, np.uint8)
        Image.fromarray(label).save(tmp_path / "SegmentationClass" / f"{number}.png")
    supports = read_supports(tmp_path)
    assert len(supports.images) == 1 + 10
    assert all((image.label == 0).any() for image in supports.images)
    assert "5.png: they are 255 throughout" in log.text
    assert "images without the class: 13, of which 10 are used, such as" in log.text


@pytest.mark.parametrize("layout", ["VOC", "YOLO"])
def test_other_names_of_classes_change_the_fingerprint(tmp_path, layout):
    if layout == "VOC":
        write_in_colour(tmp_path, (0, 128, 0), (128, 0, 0))
        file, old = tmp_path / "labelmap.txt", ("cup", "mug")
    else:
        write_yolo(tmp_path, polygon_line(1) + "\n0 0.1 0.1 0.2 0.2")
        file, old = tmp_path / "data.yaml", ("cup", "mug")
    before = Folder(tmp_path, "", 1)
    text = file.read_text()
    file.write_text(text.replace(old[0], "x").replace(old[1], old[0]).replace("x", old[1]))
    after = Folder(tmp_path, "", 1)
    assert (before.read(0).label != after.read(0).label).any()
    assert before.fingerprint != after.fingerprint
    assert rows_of(before.table) != rows_of(after.table)


def test_ellipses_are_round_and_what_covers_nothing_is_told(tmp_path, log):
    point = '<points label="mug" points="3,4"></points>'
    write_cvat(tmp_path, [SHAPES["ellipse"], point])
    label = Folder(tmp_path, "", 1).read(0).label
    row, column = np.mgrid[:HEIGHT, :WIDTH]
    away = np.hypot((column - 6.5) / 5, (row - 6) / 4)
    assert label[away < 0.9].all()
    assert not label[away > 1.4].any()
    assert any("points in 1.jpg" in message for message in log.messages)


def test_images_without_labels_are_skipped_and_told(tmp_path, log):
    write_yolo(tmp_path, polygon_line(1))
    write_image(tmp_path / "images" / "2.jpg")
    assert Folder(tmp_path, "", 1).ids == ("1",)
    assert any("images without an annotation, which are skipped: 1," in x for x in log.messages)


def test_lists_name_images_by_whole_lines_and_those_absent_are_told(tmp_path, log):
    write_voc(tmp_path, splits=True)
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (tmp_path / folder / f"1.{suffix}").rename(tmp_path / folder / f"my mug.{suffix}")
    list_file = tmp_path / "ImageSets" / "Segmentation" / "train.txt"
    for text in ("my mug\n", '"my mug"\nabsent one\n'):
        list_file.write_text(text)
        assert Folder(tmp_path, "train", 1).ids == ("my mug",)
        assert read_supports(tmp_path).files == {tmp_path / "SegmentationClass" / "my mug.png"}
    assert any("1 left out, beginning with absent one" in message for message in log.messages)


def test_what_is_of_one_name_is_refused(tmp_path):
    write_yolo(tmp_path / "a", polygon_line(1))
    write_image(tmp_path / "a" / "images" / "1.png")
    assert "1.png would have one name" in message_of(Folder, tmp_path / "a", "", 1)
    write_pairs(tmp_path / "b")
    write_mask(tmp_path / "b" / "masks" / "deep" / "1.png")
    assert "1_mask.png are of one image" in message_of(Folder, tmp_path / "b", "", 1)


def test_links_are_followed_and_what_is_left_out_is_told(tmp_path, log):
    root = tmp_path / "mug"
    write_pairs(root)
    for folder in ("images", "masks"):
        (root / folder / "deep").rename(tmp_path / folder)
        (root / folder / "deep").symlink_to(tmp_path / folder)
    (root / "images" / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    write_mask(root / "masks" / "broken.png")
    (root / "images" / "notes.txt").write_text("a note")
    assert Folder(root, "", 1).ids == ("deep/1",)
    left_out = {root / "images" / "notes.txt", root / "masks" / "broken.png"}
    assert any(
        "3 left out, beginning with" in message and any(str(x) in message for x in left_out)
        for message in log.messages
    )


def test_folders_below_images_are_no_splits_unless_one_is_for_training_or_tests(tmp_path):
    write_yolo(tmp_path, polygon_line(1), "train/images/x", "train/labels/x")
    assert Folder(tmp_path, "train", 1).ids == ("x/1",)
    assert len(read_supports(tmp_path).images) == 1


def test_the_annotations_of_coco_are_no_split(tmp_path):
    for split in ("train", "val"):
        write_image(tmp_path / split / "1.jpg")
        write_annotations(tmp_path / "annotations" / f"instances_{split}.json")
    assert len(Folder(tmp_path, "val", 1)) == 1
    for split in ("train", "val"):
        file = tmp_path / "annotations" / f"instances_{split}.json"
        file.rename(tmp_path / split / file.name)
    assert len(Folder(tmp_path, "val", 1)) == 1


def test_images_that_come_later_are_found(tmp_path):
    (tmp_path / "annotations.xml").write_text(cvat(SHAPES["box"]))
    write_image(tmp_path / "photographs" / "2.jpg")
    assert "lists the image 1.jpg: put it" in message_of(Folder, tmp_path, "", 1)
    write_image(tmp_path / "photographs" / "1.jpg")
    assert Folder(tmp_path, "", 1).ids == ("photographs/1",)


def test_scribbles_are_supports_and_no_training_images(tmp_path):
    write_image(tmp_path / "mug" / "1.jpg")
    strokes = np.zeros((*SIZE, 4), np.uint8)
    strokes[3:5, 2:9], strokes[12:14, 2:9] = (255, 0, 0, 255), (0, 0, 0, 255)
    Image.fromarray(strokes).save(tmp_path / "mug" / "1_scribble.png")
    (support,) = read_supports(tmp_path).images
    expected = np.full(SIZE, 254)
    expected[3:5, 2:9], expected[12:14, 2:9] = 1, 0
    np.testing.assert_array_equal(support.label, expected)
    assert "1_scribble.png has scribbles" in message_of(Folder, tmp_path, "", 1)


def test_lines_and_points_of_labelme_are_scribbles(tmp_path):
    write_image(tmp_path / "1.jpg")
    shapes = [
        ("mug", "linestrip", [[3, 4], [12, 4], [12, 9]]),
        ("_background_", "line", [[2, 16], [25, 16]]),
        ("mug", "point", [[20, 6]]),
    ]
    write_labelme(tmp_path / "1.json", *shapes)
    supports = read_supports(tmp_path)
    assert supports.classes == ("mug",)
    label = supports.images[0].label
    assert sorted(np.unique(label).tolist()) == [0, 1, 254]
    marked = {(4, 3), (4, 8), (4, 12), (9, 12), (6, 20)}
    assert all(label[pixel] == 1 for pixel in marked)
    assert (label[16, 3:25] == 0).all()
    row = np.nonzero(label < 254)[0]
    assert (row < 11).sum() == (label == 1).sum()
    assert len(row) < 100
    assert "of type 'linestrip'" in message_of(Folder, tmp_path, "", 1)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("<annotations><image", "not valid XML"),
        ("<annotations></annotations>", "lists no images"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotations/>', "declares a document type or entities: "),
        (cvat(name="../1.jpg"), "without '..'"),
        (cvat(size=(0, 5)), "height"),
        (cvat(size=(10**6, 10**6)), "height"),
        (cvat(SHAPES["polygon"].replace("2.0,3.0", "2.0")), "shape 0, is not a valid polygon"),
        (cvat(SHAPES["polygon"].replace("2.0,3.0", "nan,3.0")), "not coordinates"),
        (cvat(SHAPES["box"].replace('xtl="2"', "")), "shape 0, is not a valid box"),
        (cvat(SHAPES["mask"].replace("60", "-60")), "is not a valid mask"),
        (cvat(SHAPES["mask"].replace('width="10"', 'width="100000000"')), "is not a valid mask"),
        (cvat(SHAPES["mask"].replace("60", "6")), "do not fill its box"),  # digits are missing
        (cvat("<group>" * 200 + "</group>" * 200), "nests more than"),
        (cvat(SHAPES["mask"].replace("60", "60" + ",0" * 2**23)), "characters: draw it again"),
        (cvat(SHAPES["mask"].replace('top="3"', 'top="14"')), "a mask outside of its image"),
        (cvat(SHAPES["mask"].replace('left="2"', 'left="-1"')), "a mask outside of its image"),
        (cvat(SHAPES["box"].replace("mug", " ")), "has no label"),
        (cvat(SHAPES["box"], name="2.jpg"), "lists the image 2.jpg"),
        (cvat(SHAPES["box"], size=(21, 30)), "30 x 21 pixels, but its image"),
    ],
)
def test_broken_cvat_files_are_told(tmp_path, content, sentence):
    write_image(tmp_path / "1.jpg")
    (tmp_path / "annotations.xml").write_text(content)
    message = message_of(Folder, tmp_path, "", 1)
    assert message.startswith(str(tmp_path))
    assert sentence in message
    assert message.count(str(tmp_path / "annotations.xml")) <= 1


def test_what_cvat_lists_besides_shapes_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(cvat_files, "STEP", 2**12)
    content = cvat("<points/>" * 10_000, SHAPES["box"])
    (tmp_path / "annotations.xml").write_text(content.replace("<meta>", "<meta>" + "<a/>" * 10**4))
    tracemalloc.start()
    (image,) = read_cvat(tmp_path / "annotations.xml")
    assert tracemalloc.get_traced_memory()[1] < 2**17  # ElementTree takes 20 times that
    tracemalloc.stop()
    assert image.skipped.total() == 10_000
    assert len(image.drawing.shapes) == 1


@pytest.mark.parametrize("layout", ["numbers", "labelmap"])
def test_labels_of_one_bit_have_the_numbers_0_and_1(tmp_path, layout):
    write_voc(tmp_path)
    if layout == "numbers":
        (tmp_path / "labelmap.txt").unlink()
    for name in ("1", "2"):
        Image.fromarray(INSIDE).save(tmp_path / "SegmentationClass" / f"{name}.png")
    source = Folder(tmp_path, "", 1)
    assert source.classes == (("1",) if layout == "numbers" else ("cup",))
    np.testing.assert_array_equal(source.read(0).label, INSIDE)


def test_masks_of_cvat_are_held_as_they_are_written(tmp_path):
    write_image(tmp_path / "1.jpg", (1, 1))
    masks = [
        f'<mask label="mug" rle="{x},70,{4000**2 - x - 70}" left="0" top="0" width="4000" '
        'height="4000"/>'
        for x in (0, 9, 5_000_000)
    ]
    (tmp_path / "annotations.xml").write_text(cvat(*masks, size=(4000, 4000)))
    tracemalloc.start()
    (image,) = read_cvat(tmp_path / "annotations.xml")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    drawn = image.drawing.draw().ravel()
    assert drawn[5_000_000:5_000_070].tolist() == [3] * 70
    assert set(drawn[:79]) == {1, 2}
    assert not drawn[79:5_000_000].any()


@pytest.mark.parametrize(
    ("line", "names", "sentence"),
    [
        ("mug 1 2 3 4", "names: [mug]", "line 1, is 'mug 1 2 3 4'"),
        ("0 1 2 3", "names: [mug]", "line 1"),
        ("0 0.1 0.1 nan 0.1 0.3 0.3", "names: [mug]", "not coordinates"),
        ("0 1e9 0.1 0.2 0.1 0.3 0.3", "names: [mug]", "not coordinates"),
        (polygon_line(0), "names: 5", "has no names"),
        (polygon_line(0), "nc: 5", "has no names"),
        (polygon_line(0), "names: [[1]]", "has no names"),
        (polygon_line(0), "names: [", "not valid YAML"),
    ],
)
def test_broken_yolo_files_are_told(tmp_path, line, names, sentence):
    write_yolo(tmp_path, line)
    (tmp_path / "data.yaml").write_text(names)
    assert sentence in message_of(Folder, tmp_path, "", 1)


@pytest.mark.parametrize("name", ["annotations.xml", "labels/1.txt", "data.yaml", "labelmap.txt"])
def test_any_export_is_read_or_refused(tmp_path, name):
    if name == "annotations.xml":
        write_cvat(tmp_path, [SHAPES["polygon"], SHAPES["box"], SHAPES["ellipse"]])
        valid = (tmp_path / name).read_bytes(), cvat(SHAPES["mask"]).encode()
    elif name == "labelmap.txt":
        write_voc(tmp_path)
        valid = ((tmp_path / name).read_bytes(),)
    else:
        write_yolo(tmp_path, polygon_line(1))
        valid = ((tmp_path / name).read_bytes(), b"names:\n  0: cup\n  1: mug\n")
    assert read_all(lambda: Folder(tmp_path, "", 1)) is not None

    @many
    @given(content=damaged(*valid))
    def check(content):
        write(tmp_path / name, content)
        read_all(lambda: Folder(tmp_path, "", 1))

    check()


def test_of_gif_files_the_first_picture_counts(tmp_path):
    frames = [Image.new("L", SIZE[::-1], value) for value in (40, 200)]
    (tmp_path / "mug").mkdir()
    frames[0].save(tmp_path / "mug" / "1.gif", save_all=True, append_images=frames[1:])
    write_mask(tmp_path / "mug" / "1.png")
    assert np.unique(Folder(tmp_path, "", 1).read(0).image).tolist() == [40]
