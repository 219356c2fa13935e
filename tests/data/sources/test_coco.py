"""COCO's folder has the documented classes, folds and labels, and errors name its faults."""

import os
import pathlib

import jax
import numpy as np
import pycocotools.coco
import pytest
from helpers import message_of, pixels_of
from helpers_coco import CATEGORIES, NUMBERS, Drawn, rectangle
from helpers_data import rows_of
from PIL import Image

from fsseg_jax.config import default_config
from fsseg_jax.data import open_source, training_pipeline
from fsseg_jax.data.formats.coco_annotations import CocoAnnotations
from fsseg_jax.data.sampling import sample
from fsseg_jax.data.sources.coco import COCO
from fsseg_jax.devices import make_mesh
from fsseg_jax.errors import UserError

TINY = pathlib.Path(__file__).parents[4] / "shared/data/tiny_coco"

# pycocotools's own, of NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# ----------------------------------------------------------------------------- labels


def test_labels_show_the_smallest_object_of_each_pixel(drawn):
    source = COCO(drawn.root, "train2017", "a")
    assert source.ids == tuple(f"{number:012d}" for number in (900, 37, 512, 8, 4))
    expected = set()
    for row, name in enumerate(source.ids):
        image, label = source.read(row)
        np.testing.assert_array_equal(image, pixels_of(drawn.image(int(name))))
        np.testing.assert_array_equal(label, drawn.label(int(name)))
        assert label.dtype == np.uint8
        pixels = np.bincount(label.ravel(), minlength=256)[:81]
        expected |= {(row, c, int(pixels[c])) for c in range(1, 81) if pixels[c]}
    assert rows_of(source.table) == expected
    assert any(255 in source.read(row).label for row in range(5))


def test_overlaps_ties_and_crowds(overlapping):
    expected = np.zeros((10, 20), np.uint8)
    expected[0:9, 0:10] = 255
    expected[2:8, 2:8] = NUMBERS[13]
    expected[4:6, 4:6] = 80
    expected[0:2, 12:16] = NUMBERS[25]
    expected[1:3, 12:16] = NUMBERS[27]
    np.testing.assert_array_equal(COCO(overlapping.root, "val", "a").read(0).label, expected)


def test_instances_are_numbered_from_the_largest(overlapping):
    expected = np.zeros((10, 20), np.uint8)
    expected[2:8, 2:8] = 1
    expected[0:2, 12:16] = 2
    expected[1:3, 12:16] = 3
    expected[4:6, 4:6] = 4
    instances = COCO(overlapping.root, "val", "a").instances(0)
    np.testing.assert_array_equal(instances, expected)
    assert instances.dtype == np.uint8


def test_objects_beyond_the_254th_are_none(tmp_path):
    folder = Drawn(tmp_path / "coco", "train2017", np.random.default_rng(0))
    size = (20, 20)
    folder.add_image(1, size)
    folder.add_object(1, 1, np.ones(size, bool), crowd=True)
    for number in range(299):
        y, x = divmod(number, 20)
        folder.add_object(1, 2, rectangle(size, y, y + 1, x, x + 1))
    folder.add_object(1, 3, np.ones(size, bool))
    source = COCO(folder.write().root, "train", "a")
    expected = np.ones(400, np.uint8)  # the largest is below all, the crowd too
    expected[:253] = np.arange(2, 255)
    expected[253:299] = 0
    np.testing.assert_array_equal(source.instances(0).ravel(), expected)
    assert (source.read(0).label.ravel()[:299] == 2).all()


def test_every_category_may_have_a_mask_of_its_own(drawn):
    """As in PANet's code: objects hide no others, and crowds belong to their category."""
    source = COCO(drawn.root, "train", "a", "category")
    assert source.name == "coco-20i-category-a"
    expected, table = {}, set()
    for image_id, objects in drawn.objects.items():
        for category, _, mask in objects:
            name = f"{image_id:012d}:thing {category}"
            expected[name] = mask | expected.get(name, np.zeros_like(mask))
    assert set(source.ids) == set(expected)
    assert len(source) == len(expected)
    assert "000000000077:thing 1" in source.ids  # which shows a crowd alone
    of_objects = COCO(drawn.root, "train", "a")
    for row, name in enumerate(source.ids):
        image, label = source.read(row)
        class_id = NUMBERS[int(name.rpartition(" ")[2])]
        np.testing.assert_array_equal(label, class_id * expected[name].astype(np.uint8))
        assert label.dtype == np.uint8
        table.add((row, class_id, int(expected[name].sum())))
        file_name, _, _ = name.partition(":")
        if file_name in of_objects.ids:
            other = of_objects.read(of_objects.ids.index(file_name))
            np.testing.assert_array_equal(image, other.image)
    assert rows_of(source.table) == table
    assert rows_of(of_objects.table) != table


def test_objects_of_a_category_alone_are_hidden_by_no_others(overlapping):
    source = COCO(overlapping.root, "val", "a", "category")
    row = source.ids.index("000000000003:thing 13")
    expected = np.zeros((10, 20), np.uint8)
    expected[2:8, 2:8] = 1
    np.testing.assert_array_equal(source.instances(row), expected)
    crowd = source.ids.index("000000000003:thing 1")
    assert not source.instances(crowd).any()
    assert (source.read(crowd).label[0:9, 0:10] == 1).all()


def test_episodes_of_masks_of_their_own_hold_the_drawn_class_alone(tmp_path):
    """No other class, and no ignored pixels, although all objects overlap."""
    folder = Drawn(tmp_path / "coco", "train2014", np.random.default_rng(1))
    for image_id in range(1, 5):
        folder.add_image(image_id, (32, 32))
        folder.add_object(image_id, 1, rectangle((32, 32), 2, 20, 2, 20))
        folder.add_object(image_id, 2, rectangle((32, 32), 10, 30, 2 + image_id, 30))
        folder.add_object(image_id, 3, rectangle((32, 32), 0, 12, 0, 32), crowd=True)
    config = default_config("panet")
    config.image_size = 32
    config.data.update(name="coco", root=str(folder.write().root), pipeline="device")
    config.data.coco.masks = "category"
    config.data.augment.flip = False
    source = open_source(config.data, "train")
    items = source.table.items((1, 2, 3))
    assert items.count.tolist() == [4, 4, 4]
    made = training_pipeline(config, source, items, make_mesh(1))
    draw = jax.jit(made.draw)
    ids = sample(items, config.seed, np.arange(8), 1, 1)
    assert len(set(ids.classes.ravel().tolist())) == 3
    for step in range(8):
        batch = draw(made.feed(1), 0, step)
        for index, label in (
            (ids.query[step], batch.query_label[0]),
            (ids.supports[step, 0, 0], batch.support_label[0, 0, 0]),
        ):
            image_id, _, category = source.ids[index].partition(":")
            objects = {c: mask for c, _, mask in folder.objects[int(image_id)]}
            assert category == f"thing {ids.classes[step, 0]}"
            np.testing.assert_array_equal(label, objects[int(ids.classes[step, 0])])


def test_images_of_held_out_classes_cannot_be_dropped_by_masks_of_their_own():
    config = default_config("panet")
    config.data.update(name="coco", held_out_photographs="drop")
    config.data.coco.masks = "category"
    with pytest.raises(UserError, match=r"set data\.held_out_photographs = keep"):
        open_source(config.data, "train")


@pytest.mark.skipif(not TINY.is_dir(), reason="needs images of COCO")
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_annotations_are_painted_as_by_the_official_tools(split):
    file = TINY / "annotations" / f"instances_{split}.json"
    official = pycocotools.coco.COCO(str(file))
    source = COCO(TINY, split, "a")
    annotations = CocoAnnotations(file)
    number_of = {category: 1 + n for n, category in enumerate(sorted(official.cats))}
    for row, image_id in enumerate(annotations.image_ids.tolist()):
        entries = official.imgToAnns[image_id]
        masks = [official.annToMask(entry).astype(bool) for entry in entries]
        label = np.zeros(annotations.sizes[row], np.uint8)
        instance = np.zeros_like(label)
        for entry, mask in zip(entries, masks, strict=True):
            label[mask] = 255 * entry["iscrowd"]
        objects = [n for n, entry in enumerate(entries) if not entry["iscrowd"]]
        label[np.any([masks[n] for n in objects], 0) if objects else ()] = 0
        objects.sort(key=lambda n: -masks[n].sum())
        for number, n in enumerate(objects, start=1):
            label[masks[n]] = number_of[entries[n]["category_id"]]
            instance[masks[n]] = number
        np.testing.assert_array_equal(annotations.label(row, number_of), label)
        np.testing.assert_array_equal(annotations.instances(row), instance)
    shown = [i for i in annotations.image_ids.tolist() if i in official.imgToAnns]
    assert len(source) <= len(shown)
    image, label = source.read(0)
    assert image.shape == (*label.shape, 3)


# ----------------------------------------------------------------------------- classes and folds


def test_classes_are_in_the_order_of_their_ids(drawn):
    source = COCO(drawn.root, "train", "a")
    assert source.classes == tuple(f"thing {number}" for number in CATEGORIES)
    assert source.class_names[80] == "thing 90"


def test_folds(drawn):
    a, b, canet = (COCO(drawn.root, "train", folds) for folds in ("a", "b", "canet"))
    assert [source.name for source in (a, b, canet)] == [
        "coco-20i-a",
        "coco-20i-b",
        "coco-20i-canet",
    ]
    for source in (a, b):
        assert [len(fold) for fold in source.folds] == [20] * 4
        assert sorted(sum(source.folds, ())) == list(range(1, 81))
        assert source.validation == ()
    assert (a.folds[1][0], a.folds[1][-1]) == (21, 40)
    for fold in range(4):  # FWB and HSNet count classes from 0
        assert {c - 1 for c in b.folds[fold]} == {c for c in range(80) if c % 4 == fold}
    assert canet.folds == (tuple(range(61, 81)),)
    assert canet.validation == tuple(range(41, 61))


def test_folds_share_one_table(drawn, monkeypatch):
    table = COCO(drawn.root, "train", "a").table
    monkeypatch.setattr(COCO, "_count", None)
    assert rows_of(COCO(drawn.root, "train", "b").table) == rows_of(table)


# ----------------------------------------------------------------------------- folders


def second_year(drawn, year):
    folder = Drawn(drawn.root, f"train{year}", np.random.default_rng(2))
    folder.add_image(5, (9, 11))
    folder.add_object(5, 7, rectangle((9, 11), 1, 5, 2, 9))
    return folder.write()


def test_the_year_may_be_left_out_if_there_is_one(drawn):
    assert COCO(drawn.root, "", "a").ids == COCO(drawn.root, "train2017", "a").ids
    second_year(drawn, 2014)
    assert COCO(drawn.root, "train2014", "a").ids == ("000000000005",)
    for split in ("", "train"):
        message = message_of(COCO, drawn.root, split, "a")
        assert "train2014 and train2017" in message


def test_images_may_lie_in_images_and_the_root_below_home(drawn, monkeypatch):
    monkeypatch.setenv("HOME", str(drawn.root.parent))
    labels = [COCO(drawn.root, "train", "a").read(row).label for row in range(5)]
    (drawn.root / "images").mkdir()
    (drawn.root / "train2017").rename(drawn.root / "images" / "train2017")
    source = COCO("~/coco", "train", "a")
    for row in range(5):
        np.testing.assert_array_equal(source.read(row).label, labels[row])


def test_file_names_with_any_suffix_give_ids(drawn):
    name = drawn.json["images"][0]["file_name"]
    os.rename(drawn.root / "train2017" / name, drawn.root / "train2017" / "a.b.JPEG")
    drawn.json["images"][0]["file_name"] = "a.b.JPEG"
    drawn.write()
    assert COCO(drawn.root, "train", "a").ids[0] == "a.b"


def test_images_without_objects_may_be_missing(drawn):
    for image_id in (77, 21):
        drawn.image(image_id).unlink()
    assert len(COCO(drawn.root, "train", "a")) == 5


def test_changed_annotations_are_read_anew(drawn, reads):
    before = COCO(drawn.root, "train", "a").table
    size = drawn.label(4).shape
    drawn.add_object(4, 90, rectangle(size, 0, 1, 0, 2))
    drawn.write()
    reads.clear()
    source = COCO(drawn.root, "train", "a")
    assert reads
    assert rows_of(source.table) != rows_of(before)
    np.testing.assert_array_equal(source.read(4).label, drawn.label(4))


def test_changed_images_are_checked_anew(drawn):
    COCO(drawn.root, "train", "a")
    Image.new("RGB", (10, 10)).save(drawn.image(8))
    assert "10 x 10" in message_of(COCO, drawn.root, "train", "a")


# ----------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("root", "split", "folds", "expected"),
    [
        ("", "train", "a", ("data.root is empty",)),
        ("{root}/nowhere", "train", "a", ("data.root = {root}/nowhere",)),
        ("{root}", "val", "a", ("instances_val.json", "train2014, train2017")),
        ("{root}", "test2017", "a", ("instances_test2017.json", "train2014, train2017")),
        ("{root}", "2017", "a", ("instances_2017.json", "train2014, train2017")),
        ("{root}", "train2017", "c", ("'c'", "a, b, canet")),
    ],
)
def test_wrong_arguments_are_named(drawn, root, split, folds, expected):
    second_year(drawn, 2014)
    message = message_of(COCO, root.format(root=drawn.root), split, folds)
    for part in expected:
        assert part.format(root=drawn.root) in message


@pytest.mark.parametrize("part", ["annotations", "train2017"])
def test_missing_parts_are_named(drawn, part):
    (drawn.root / part).rename(drawn.root / "lost")
    assert f"data.root = {drawn.root} lacks {part}" in message_of(COCO, drawn.root, "train", "a")


def another_category(content):
    content["categories"].append({"id": 12, "name": "street sign"})


def crowds_alone(content):
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1


def one_name(content):
    content["images"][1]["file_name"] = content["images"][0]["file_name"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (another_category, "81 categories"),
        (crowds_alone, "no image with an object"),
        (one_name, "two images of one name"),
    ],
)
def test_unusable_annotations_are_named(drawn, change, expected):
    change(drawn.json)
    message = message_of(COCO, drawn.write().root, "train", "a")
    assert message.startswith(f"{drawn.file} has ")
    assert expected in message


def test_missing_images_are_named(drawn):
    drawn.image(512).unlink()
    assert str(drawn.image(512)) in message_of(COCO, drawn.root, "train", "a")
    drawn.json["images"][0]["file_name"] = "deeper/a.jpg"
    message = message_of(COCO, drawn.write().root, "train", "a")
    assert str(drawn.root / "train2017" / "deeper") in message


def test_sizes_that_differ_are_named(drawn):
    Image.new("RGB", (33, 44)).save(drawn.image(37))
    message = message_of(COCO, drawn.root, "train", "a")
    assert "image 37" in message
    assert str(drawn.image(37)) in message
    assert "33 x 44" in message
