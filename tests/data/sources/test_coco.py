"""COCO's annotations are painted truthfully, read once, and their faults are named."""

import json
import os
import pathlib

import jax
import numpy as np
import pycocotools.coco
import pycocotools.mask
import pytest
from helpers import message_of
from PIL import Image

from fsseg_jax.config import default_config
from fsseg_jax.data import open_source, training_pipeline
from fsseg_jax.data.cache import fingerprint
from fsseg_jax.data.formats import coco_annotations
from fsseg_jax.data.formats.coco_annotations import CocoAnnotations
from fsseg_jax.data.sampling import sample
from fsseg_jax.data.sources.coco import COCO
from fsseg_jax.devices import make_mesh
from fsseg_jax.errors import UserError

GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # of COCO's category ids
CATEGORIES = [number for number in range(1, 91) if number not in GAPS]
TINY = pathlib.Path(__file__).parents[4] / "shared/data/tiny_coco"

# pycocotools's own, of NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def runs_of(mask):
    """Lengths of the runs of equal pixels, down the columns, of which the first is outside."""
    flat = np.concatenate([[0], mask.ravel(order="F"), [2]])
    edges = np.flatnonzero(np.diff(flat.astype(int)))
    return np.diff(np.concatenate([[0], edges])).tolist()


def segmentation_of(kind, mask):
    """A mask in one of COCO's three ways; as polygons it must be a rectangle."""
    if kind == "polygon":
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        left, right, top, bottom = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
        middle = (left + right) // 2
        halves = [(left, middle), (middle, right)] if middle > left else [(left, right)]
        return [
            [float(value) for value in (a, top, b, top, b, bottom, a, bottom)] for a, b in halves
        ]
    if kind == "runs":
        return {"size": list(mask.shape), "counts": runs_of(mask)}
    text = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": text["counts"].decode()}


def rectangle(size, top, bottom, left, right):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def random_object(rng, size, kind):
    (top, bottom), (left, right) = (
        np.sort(rng.choice(side + 1, 2, replace=False)) for side in size
    )
    mask = rectangle(size, top, bottom, left, right)
    if kind != "polygon":
        mask &= rng.random(size) < 0.8
        mask[top, left] = True
    return mask


class Drawn:
    """A COCO folder, and what it shows: (category, crowd, mask) of each object of an image."""

    def __init__(self, root, split, rng):
        self.root, self.split, self.objects = root, split, {}
        self.file = root / "annotations" / f"instances_{split}.json"
        categories = [{"id": number, "name": f"thing {number}"} for number in CATEGORIES]
        rng.shuffle(categories)
        self.json = {"info": {"year": 2017}, "images": [], "annotations": []}
        self.json["categories"] = categories
        self.file.parent.mkdir(parents=True, exist_ok=True)
        (root / split).mkdir()

    def add_image(self, image_id, size):
        pixels = np.random.default_rng(image_id).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(self.image(image_id))
        self.json["images"].append(
            {
                "id": image_id,
                "file_name": f"{image_id:012d}.jpg",
                "height": size[0],
                "width": size[1],
            }
        )
        self.objects[image_id] = []

    def add_object(self, image_id, category, mask, kind="runs", crowd=False):
        self.objects[image_id].append((category, crowd, mask))
        self.json["annotations"].append(
            {
                "id": 1000 - len(self.json["annotations"]),
                "image_id": image_id,
                "category_id": category,
                "segmentation": segmentation_of(kind, mask),
                "area": float(mask.sum()),
                "iscrowd": int(crowd),
            }
        )

    def write(self):
        self.file.write_text(json.dumps(self.json))
        return self

    def image(self, image_id):
        return self.root / self.split / f"{image_id:012d}.jpg"

    def label(self, image_id, categories=CATEGORIES):
        """Of the objects on a pixel the smallest shows, of equal ones the last."""
        objects = [part for part in self.objects[image_id] if part[0] in categories]
        size = next((i["height"], i["width"]) for i in self.json["images"] if i["id"] == image_id)
        label = np.zeros(size, np.uint8)
        for y, x in np.ndindex(size):
            here = [
                (mask.sum(), -order, CATEGORIES.index(category) + 1)
                for order, (category, crowd, mask) in enumerate(objects)
                if mask[y, x] and not crowd
            ]
            crowded = any(mask[y, x] for _, crowd, mask in objects if crowd)
            label[y, x] = min(here)[-1] if here else 255 * crowded
        return label


@pytest.fixture
def drawn(tmp_path):
    """A split of five images with objects of all kinds, one with crowds alone, one empty."""
    rng = np.random.default_rng(0)
    folder = Drawn(tmp_path / "coco", "train2017", rng)
    ids = [900, 37, 512, 8, 4, 77, 21]
    for image_id in ids:
        folder.add_image(image_id, tuple(rng.integers(12, 24, 2).tolist()))
    for number in range(30):  # the images of the annotations are in no order
        image_id = ids[number % 5]
        size = folder.label(image_id, ()).shape
        kind = ("polygon", "runs", "text")[number % 3]
        mask = random_object(rng, size, kind)
        crowd = kind != "polygon" and rng.random() < 0.3
        folder.add_object(image_id, int(rng.choice(CATEGORIES)), mask, kind, crowd)
    size = folder.label(77, ()).shape
    folder.add_object(77, 1, random_object(rng, size, "runs"), "runs", True)
    return folder.write()


@pytest.fixture
def overlapping(tmp_path):
    """Two images, on which nothing is left to chance."""
    folder = Drawn(tmp_path / "coco", "val2014", np.random.default_rng(1))
    size = (10, 20)
    folder.add_image(3, size)
    folder.add_object(3, 90, rectangle(size, 4, 6, 4, 6))  # 4 pixels, on the next
    folder.add_object(3, 13, rectangle(size, 2, 8, 2, 8), "polygon")  # 36, on the crowd
    folder.add_object(3, 1, rectangle(size, 0, 9, 0, 10), "text", crowd=True)
    folder.add_object(3, 25, rectangle(size, 0, 2, 12, 16))  # 8, below the next, which is as large
    folder.add_object(3, 27, rectangle(size, 1, 3, 12, 16))
    return folder.write()


@pytest.fixture
def reads(monkeypatch):
    """The sections of annotation files that are read from now on."""
    sections = []
    read = coco_annotations._section

    def spy(path, section):
        sections.append(section)
        return read(path, section)

    monkeypatch.setattr(coco_annotations, "_section", spy)
    return sections


def rows_of(table):
    rows = zip(table.image, table.class_id, table.pixels, strict=True)
    return {tuple(map(int, row)) for row in rows}


# ----------------------------------------------------------------------------- labels


def test_labels_show_the_smallest_object_of_each_pixel(drawn):
    source = COCO(drawn.root, "train2017", "a")
    assert source.ids == tuple(f"{number:012d}" for number in (900, 37, 512, 8, 4))
    expected = set()
    for row, name in enumerate(source.ids):
        image, label = source.read(row)
        with Image.open(drawn.image(int(name))) as picture:
            np.testing.assert_array_equal(image, np.asarray(picture))
        np.testing.assert_array_equal(label, drawn.label(int(name)))
        assert label.dtype == np.uint8
        pixels = np.bincount(label.ravel(), minlength=256)[:81]
        expected |= {(row, c, int(pixels[c])) for c in range(1, 81) if pixels[c]}
    assert rows_of(source.table) == expected
    assert any(255 in source.read(row).label for row in range(5))


def test_overlaps_ties_and_crowds(overlapping):
    expected = np.zeros((10, 20), np.uint8)
    expected[0:9, 0:10] = 255
    expected[2:8, 2:8] = CATEGORIES.index(13) + 1
    expected[4:6, 4:6] = 80
    expected[0:2, 12:16] = CATEGORIES.index(25) + 1
    expected[1:3, 12:16] = CATEGORIES.index(27) + 1
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
    """As PANet's code reads COCO: nothing hides anything, and crowds belong to their category."""
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
        class_id = CATEGORIES.index(int(name.rpartition(" ")[2])) + 1
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
    """No other class of the image, and nothing ignored, though all overlap."""
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


def test_categories_without_a_number_are_background(drawn):
    annotations = CocoAnnotations(drawn.file)
    some = CATEGORIES[::2]
    for row, image_id in enumerate(annotations.image_ids):
        number_of = {category: 300 + CATEGORIES.index(category) for category in some}
        label = annotations.label(row, number_of, np.uint16)
        expected = drawn.label(int(image_id), some).astype(np.uint16)
        expected[(expected > 0) & (expected < 255)] += 299
        np.testing.assert_array_equal(label, expected)
        assert label.dtype == np.uint16


def test_annotations_tell_the_images_and_categories(drawn):
    annotations = CocoAnnotations(drawn.file)
    images = drawn.json["images"]
    assert annotations.file_names == tuple(image["file_name"] for image in images)
    assert annotations.image_ids.tolist() == [image["id"] for image in images]
    assert annotations.sizes.tolist() == [[image["height"], image["width"]] for image in images]
    assert list(annotations.categories) == CATEGORIES
    assert annotations.categories[90] == "thing 90"
    assert annotations.rows_with_objects().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("order", [(2, 1, 0, 3), (3, 0, 2, 1), (1, 3, 2, 0)])
def test_sections_may_come_in_any_order(drawn, order):
    before = [COCO(drawn.root, "train", "a").read(row).label for row in range(5)]
    sections = list(drawn.json.items())
    drawn.json = dict(sections[number] for number in order)
    drawn.write()
    source = COCO(drawn.root, "train", "a")
    for row in range(5):
        np.testing.assert_array_equal(source.read(row).label, before[row])


def test_absent_iscrowd_is_no_crowd(overlapping):
    for annotation in overlapping.json["annotations"]:
        del annotation["iscrowd"]
    overlapping.write()
    assert CocoAnnotations(overlapping.file).instances(0).max() == 5


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


def test_images_may_lie_in_images(drawn):
    labels = [COCO(drawn.root, "train", "a").read(row).label for row in range(5)]
    (drawn.root / "images").mkdir()
    (drawn.root / "train2017").rename(drawn.root / "images" / "train2017")
    source = COCO(drawn.root, "train", "a")
    for row in range(5):
        np.testing.assert_array_equal(source.read(row).label, labels[row])


def test_home_is_expanded(drawn, monkeypatch):
    monkeypatch.setenv("HOME", str(drawn.root.parent))
    assert len(COCO("~/coco", "train", "a")) == 5


# ----------------------------------------------------------------------------- the cache


@pytest.fixture
def kept(cache_home, drawn):
    """Where what the annotation file says is kept."""
    return lambda: cache_home / "fsseg_jax" / "coco" / fingerprint([drawn.file])


def test_annotations_are_read_once_and_mapped(drawn, reads, kept):
    first = CocoAnnotations(drawn.file)
    assert sorted(reads) == ["annotations", "categories", "images"]
    assert kept().is_dir()
    reads.clear()
    again = CocoAnnotations(drawn.file)
    assert not reads
    assert isinstance(again.sizes, np.memmap)
    for row in range(7):
        np.testing.assert_array_equal(first.instances(row), again.instances(row))


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


@pytest.mark.parametrize("damage", ["remove", "empty", "cut", "garbage"])
def test_a_damaged_cache_is_made_again(drawn, reads, kept, damage):
    CocoAnnotations(drawn.file)
    for file in sorted(kept().iterdir()):
        content = file.read_bytes()
        if damage == "remove":
            file.unlink()
        else:
            parts = {"empty": b"", "cut": content[:-1], "garbage": b"x" * len(content)}
            file.write_bytes(parts[damage])
        reads.clear()
        annotations = CocoAnnotations(drawn.file)
        assert reads
        label = annotations.label(0, {category: n for n, category in enumerate(CATEGORIES, 1)})
        np.testing.assert_array_equal(label, drawn.label(900))
        assert file.read_bytes() == content


def test_without_a_cache_annotations_are_held_in_memory(drawn, monkeypatch, log):
    monkeypatch.setenv("XDG_CACHE_HOME", str(drawn.file))  # no folder: nothing can be put there
    np.testing.assert_array_equal(COCO(drawn.root, "train", "a").read(2).label, drawn.label(512))
    assert any("cannot be cached" in message for message in log.messages)


def test_a_full_disk_leaves_nothing_behind(drawn, kept, monkeypatch, log):
    def save(file, array):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(coco_annotations.np, "save", save)
    annotations = CocoAnnotations(drawn.file)
    assert len(annotations.file_names) == 7
    assert any("No space left" in message for message in log.messages)
    assert not list(kept().parent.glob(f"{kept().name}*"))


# ----------------------------------------------------------------------------- faults


def test_empty_root_names_the_key():
    assert "data.root is empty" in message_of(COCO, "", "train", "a")


def test_missing_root_is_named(tmp_path):
    message = message_of(COCO, tmp_path / "nowhere", "train", "a")
    assert "data.root" in message
    assert str(tmp_path / "nowhere") in message


@pytest.mark.parametrize("part", ["annotations", "train2017"])
def test_missing_parts_are_named(drawn, part):
    (drawn.root / part).rename(drawn.root / "lost")
    message = message_of(COCO, drawn.root, "train", "a")
    assert str(drawn.root) in message
    assert f"lacks {part}" in message


def test_unknown_split_names_those_there(drawn):
    second_year(drawn, 2014)
    for split in ("val", "test2017", "2017"):
        message = message_of(COCO, drawn.root, split, "a")
        assert f"instances_{split}.json" in message
        assert "train2014, train2017" in message


def test_unknown_folds_name_the_choices(drawn):
    message = message_of(COCO, drawn.root, "train", "c")
    assert "'c'" in message
    assert "a, b, canet" in message


def test_missing_annotation_file_is_named(tmp_path):
    assert str(tmp_path / "my.json") in message_of(CocoAnnotations, tmp_path / "my.json")


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_json_is_named(drawn, part):
    content = drawn.file.read_bytes()
    drawn.file.write_bytes(content[: int(part * len(content))])
    message = message_of(CocoAnnotations, drawn.file)
    assert str(drawn.file) in message
    assert "broken JSON" in message


@pytest.mark.parametrize("content", [b"\xff\xd8\xff\xe0", b"images", b'{"images": [1,]}'])
def test_what_is_no_json_is_named(drawn, content):
    drawn.file.write_bytes(content)
    assert str(drawn.file) in message_of(COCO, drawn.root, "train", "a")


@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
@pytest.mark.parametrize("content", [None, [], {}, "text"])
def test_missing_sections_are_named(drawn, section, content):
    if content is None:
        del drawn.json[section]
    else:
        drawn.json[section] = content
    drawn.write()
    message = message_of(CocoAnnotations, drawn.file)
    assert str(drawn.file) in message
    assert f"has no {section}" in message


def test_other_json_is_named(drawn):
    drawn.file.write_text("[1, 2]")
    assert "has no images" in message_of(CocoAnnotations, drawn.file)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("images", "id", "3"),
        ("images", "id", 900),
        ("images", "file_name", None),
        ("images", "height", None),
        ("images", "width", 12.5),
        ("images", "width", 0),
        ("images", "height", 70_000),
        ("categories", "id", None),
        ("categories", "name", 5),
        ("annotations", "image_id", None),
        ("annotations", "image_id", 4242),
        ("annotations", "category_id", 12),
        ("annotations", "category_id", [1]),
        ("annotations", "iscrowd", "0"),
    ],
)
def test_wrong_fields_are_named(drawn, section, field, value):
    drawn.json[section][2][field] = value
    drawn.write()
    message = message_of(CocoAnnotations, drawn.file)
    assert f"{drawn.file}: {section}[2]" in message
    assert field in message or "sides" in message
    if value is not None:
        assert str(value) in message


@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
def test_entries_that_are_no_objects_are_named(drawn, section):
    drawn.json[section][1] = 7
    drawn.write()
    assert f"{section}[1]" in message_of(CocoAnnotations, drawn.file)


SIZE = [10, 20]


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        5,
        "text",
        [],
        [[]],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5]],
        [[1, 2, 3, 4, 5, 6], [1, 2]],
        [1, 2, 3, 4, 5, 6],
        [[1, 2, 3, 4, 5, "6"]],
        [[1, 2, 3, 4, 5, None]],
        [[1, 2, 3, 4, 5, 1e12]],
        {},
        {"counts": [200]},
        {"size": SIZE},
        {"size": SIZE, "counts": [199]},
        {"size": SIZE, "counts": [100, 101]},
        {"size": SIZE, "counts": [-1, 201]},
        {"size": SIZE, "counts": [100, "100"]},
        {"size": SIZE, "counts": [2**40]},
        {"size": SIZE, "counts": "abc"},
        {"size": SIZE, "counts": ""},
        {"size": SIZE, "counts": "ü"},
        {"size": SIZE[::-1], "counts": [200]},
        {"size": SIZE, "counts": {}},
    ],
)
def test_unreadable_segmentations_are_named(overlapping, segmentation):
    overlapping.json["annotations"][3]["segmentation"] = segmentation
    overlapping.write()
    message = message_of(CocoAnnotations, overlapping.file)
    assert f"{overlapping.file}: annotations[3].segmentation cannot be read" in message


@pytest.mark.parametrize("segmentation", ["absent", None, [], [[]]])
def test_boxes_outline_what_has_no_segmentation(overlapping, segmentation):
    annotation = overlapping.json["annotations"][0]
    annotation |= {"segmentation": segmentation, "bbox": [12.4, 3.6, 5.2, 1.9]}
    if segmentation == "absent":
        del annotation["segmentation"]
    overlapping.write()
    label = CocoAnnotations(overlapping.file).label(0, {90: 7})
    np.testing.assert_array_equal(label, 7 * rectangle((10, 20), 4, 6, 12, 18))


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([1, 2, 3], "not a list of four"),
        ("box", "not a list of four"),
        ([1, 2, 3, "4"], "not a list of four"),
        ([1, 2, 3, None], "not a list of four"),
        ([1e308, 2, 1e308, 4], "not finite"),
        ([20, 2, 3, 4], "shows nothing"),
        ([1, 2, 3, -4], "shows nothing"),
        ([-9, -9, 3, 4], "shows nothing"),
        ([1, 2, 0, 4], "shows nothing"),
    ],
)
def test_unreadable_boxes_are_named(overlapping, box, expected):
    overlapping.json["annotations"][3] |= {"segmentation": [], "bbox": box}
    overlapping.write()
    message = message_of(CocoAnnotations, overlapping.file)
    assert f"{overlapping.file}: annotations[3].bbox = " in message
    assert expected in message


def test_other_categories_than_cocos_are_named(drawn):
    drawn.json["categories"].append({"id": 12, "name": "street sign"})
    drawn.write()
    message = message_of(COCO, drawn.root, "train", "a")
    assert str(drawn.file) in message
    assert "81 categories" in message


def test_nothing_but_crowds_is_named(drawn):
    for annotation in drawn.json["annotations"]:
        annotation["iscrowd"] = 1
    drawn.write()
    assert str(drawn.file) in message_of(COCO, drawn.root, "train", "a")


def test_images_of_one_name_are_named(drawn):
    drawn.json["images"][1]["file_name"] = drawn.json["images"][0]["file_name"]
    drawn.write()
    assert str(drawn.file) in message_of(COCO, drawn.root, "train", "a")


def test_missing_images_are_named(drawn):
    drawn.image(512).unlink()
    assert str(drawn.image(512)) in message_of(COCO, drawn.root, "train", "a")


def test_images_in_a_missing_folder_are_named(drawn):
    drawn.json["images"][0]["file_name"] = "deeper/a.jpg"
    drawn.write()
    message = message_of(COCO, drawn.root, "train", "a")
    assert str(drawn.root / "train2017" / "deeper") in message


def test_images_without_objects_may_be_missing(drawn):
    for image_id in (77, 21):
        drawn.image(image_id).unlink()
    assert len(COCO(drawn.root, "train", "a")) == 5


def test_sizes_that_differ_are_named(drawn):
    Image.new("RGB", (33, 44)).save(drawn.image(37))
    message = message_of(COCO, drawn.root, "train", "a")
    assert "image 37" in message
    assert str(drawn.image(37)) in message
    assert "33 x 44" in message


@pytest.mark.parametrize("part", [0.0, 0.02, 0.3, 0.6, 0.9])
def test_truncated_images_are_named(drawn, part):
    source = COCO(drawn.root, "train", "a")
    file = drawn.image(900)
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    assert str(file) in message_of(source.read, 0)
    source.read(1)


def test_other_files_do_not_matter(drawn, reads, monkeypatch):
    COCO(drawn.root, "train", "a")
    reads.clear()
    (drawn.root / "train2017" / "holiday.jpg").write_bytes(b"not one of the split")
    monkeypatch.setattr(COCO, "_count", None)  # a changed table would need it
    COCO(drawn.root, "train", "a")
    assert not reads


def test_file_names_with_any_suffix_give_ids(drawn):
    name = drawn.json["images"][0]["file_name"]
    os.rename(drawn.root / "train2017" / name, drawn.root / "train2017" / "a.b.JPEG")
    drawn.json["images"][0]["file_name"] = "a.b.JPEG"
    drawn.write()
    assert COCO(drawn.root, "train", "a").ids[0] == "a.b"
