"""COCO's annotations are painted correctly and read once, and errors name their faults."""

import json
import reprlib

import numpy as np
import pytest
from helpers import message_of
from helpers_coco import CATEGORIES, NUMBERS, rectangle

from fsseg_jax.data.cache import fingerprint
from fsseg_jax.data.formats import coco_annotations
from fsseg_jax.data.formats.coco_annotations import CocoAnnotations, is_coco

# pycocotools's own, of NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_categories_without_a_number_are_background(drawn):
    annotations = CocoAnnotations(drawn.file)
    some = CATEGORIES[::2]
    for row, image_id in enumerate(annotations.image_ids):
        number_of = {category: 299 + NUMBERS[category] for category in some}
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
    sections = list(drawn.json.items())
    drawn.json = dict(sections[number] for number in order)
    annotations = CocoAnnotations(drawn.write().file)
    for row, image_id in enumerate(annotations.image_ids.tolist()):
        np.testing.assert_array_equal(annotations.label(row, NUMBERS), drawn.label(image_id))


def test_absent_iscrowd_is_no_crowd(overlapping):
    for annotation in overlapping.json["annotations"]:
        del annotation["iscrowd"]
    assert CocoAnnotations(overlapping.write().file).instances(0).max() == 5


@pytest.mark.parametrize("segmentation", ["absent", None, [], [[]]])
def test_boxes_outline_what_has_no_segmentation(overlapping, segmentation):
    annotation = overlapping.json["annotations"][0]
    annotation |= {"segmentation": segmentation, "bbox": [12.4, 3.6, 5.2, 1.9]}
    if segmentation == "absent":
        del annotation["segmentation"]
    label = CocoAnnotations(overlapping.write().file).label(0, {90: 7})
    np.testing.assert_array_equal(label, 7 * rectangle((10, 20), 4, 6, 12, 18))


# ----------------------------------------------------------------------------- the cache


@pytest.fixture
def kept(cache_home, drawn):
    """The cache folder of the annotation file."""
    return lambda: cache_home / "fsseg_jax" / "coco" / fingerprint([drawn.file])


def test_annotations_are_read_once_and_mapped(drawn, reads, kept):
    first = CocoAnnotations(drawn.file)
    assert {section for _, section in reads} == {"annotations", "categories", "images"}
    assert len(reads) == 3
    assert kept().is_dir()
    reads.clear()
    again = CocoAnnotations(drawn.file)
    assert not reads
    assert isinstance(again.sizes, np.memmap)
    for row in range(7):
        np.testing.assert_array_equal(first.instances(row), again.instances(row))


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
        np.testing.assert_array_equal(annotations.label(0, NUMBERS), drawn.label(900))
        assert file.read_bytes() == content


@pytest.mark.parametrize("obstacle", ["no folder", "full disk"])
def test_without_a_cache_annotations_are_held_in_memory(drawn, kept, monkeypatch, log, obstacle):
    if obstacle == "no folder":
        monkeypatch.setenv("XDG_CACHE_HOME", str(drawn.file))
    else:

        def save(file, array):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(coco_annotations.np, "save", save)
    label = CocoAnnotations(drawn.file).label(2, NUMBERS)
    np.testing.assert_array_equal(label, drawn.label(512))
    told = [message for message in log.messages if "cannot be cached" in message]
    assert str(drawn.file) in told[0]
    assert "No space left" in told[0] or obstacle == "no folder"
    assert not list(kept().parent.glob(f"{kept().name}*"))


# ----------------------------------------------------------------------------- faults


def test_missing_file_is_named(tmp_path):
    assert str(tmp_path / "my.json") in message_of(CocoAnnotations, tmp_path / "my.json")


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_json_is_named(drawn, part):
    content = drawn.file.read_bytes()
    drawn.file.write_bytes(content[: int(part * len(content))])
    assert f"{drawn.file} is broken JSON" in message_of(CocoAnnotations, drawn.file)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xff\xd8\xff\xe0", " is broken JSON"),
        (b"images", " is broken JSON"),
        (b'{"images": [1,]}', ": images[0]"),
        (b"[1, 2]", " has no images"),
    ],
)
def test_other_content_is_named(drawn, content, expected):
    drawn.file.write_bytes(content)
    assert message_of(CocoAnnotations, drawn.file).startswith(f"{drawn.file}{expected}")


@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
@pytest.mark.parametrize("content", [None, [], {}, "text"])
def test_missing_sections_are_named(drawn, section, content):
    if content is None:
        del drawn.json[section]
    else:
        drawn.json[section] = content
    message = message_of(CocoAnnotations, drawn.write().file)
    assert str(drawn.file) in message
    assert f"has no {section}" in message


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
        ("images", "id", True),
        ("images", "height", True),
        ("annotations", "category_id", True),
        ("images", "file_name", "../000000000512.jpg"),
        ("images", "file_name", "/etc/passwd"),
        ("images", "file_name", "C:\\\\1.jpg"),
        ("images", "file_name", ""),
        ("images", "file_name", "x\0.jpg"),
        ("categories", "name", "x" * 9999),
        ("categories", "name", "x\0"),
        ("images", None, 7),
        ("annotations", None, 7),
        ("categories", None, 7),
    ],
)
def test_wrong_fields_are_named(drawn, section, field, value):
    if field is None:  # an entry that is no object
        drawn.json[section][2] = value
    else:
        drawn.json[section][2][field] = value
    message = message_of(CocoAnnotations, drawn.write().file)
    assert f"{drawn.file}: {section}[2]" in message
    if field is not None:
        assert field in message or "sides" in message
        assert value is None or str(value) in message or reprlib.repr(value) in message
        assert len(message) < 999


SIZE = [10, 20]


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        5,
        [],
        [[]],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5]],
        [[1, 2, 3, 4, 5, 6], [1, 2]],
        [1, 2, 3, 4, 5, 6],
        [[1, 2, 3, 4, 5, "6"]],
        [[1, 2, 3, 4, 5, 1e12]],
        [[1, 2, 3, 4, 5, True]],
        [[-9e4, -9e4, 9e4, 9e4] * 99],  # pycocotools would need 80 GB
        {},
        {"size": SIZE},
        {"size": SIZE, "counts": [199]},
        {"size": SIZE, "counts": [100, 101]},
        {"size": SIZE, "counts": [-1, 201]},
        {"size": SIZE, "counts": [100, "100"]},
        {"size": SIZE, "counts": [2**40]},
        {"size": SIZE, "counts": "abc"},
        {"size": SIZE, "counts": ""},
        {"size": SIZE, "counts": "ü"},
        {"size": SIZE, "counts": [True, 199]},
        {"size": SIZE, "counts": "o" * 9999},
        {"size": SIZE[::-1], "counts": [200]},
        {"size": SIZE, "counts": {}},
    ],
)
def test_unreadable_segmentations_are_named(overlapping, segmentation):
    overlapping.json["annotations"][3]["segmentation"] = segmentation
    message = message_of(CocoAnnotations, overlapping.write().file)
    assert f"{overlapping.file}: annotations[3].segmentation cannot be read" in message


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
    message = message_of(CocoAnnotations, overlapping.write().file)
    assert f"{overlapping.file}: annotations[3].bbox = " in message
    assert expected in message


def test_images_of_more_pixels_than_can_be_read_are_named(drawn):
    """For which pycocotools needs gigabytes, or whose areas overflow its numbers."""
    drawn.json["images"][2] |= {"height": 40_000, "width": 40_000}
    message = message_of(CocoAnnotations, drawn.write().file)
    assert message.startswith(f"{drawn.file}: images[2] is 40000 x 40000 pixels")


@pytest.mark.parametrize(
    "number", ["1" * 5000, "-" + "1" * 5000, "1" * 5000 + ".5", "1e" + "1" * 5000]
)
@pytest.mark.parametrize("place", ["version", "images"])
def test_numbers_of_thousands_of_digits_are_named(drawn, number, place):
    """On which ijson crashes the process, unless told to convert to floats."""
    content = json.dumps({place: ["NUMBER"]} | drawn.json).replace('"NUMBER"', number)
    drawn.file.write_text(content if place == "version" else f'{{"images": [{number}]}}')
    for read in (is_coco, CocoAnnotations):
        if read is CocoAnnotations or place == "version":
            assert str(drawn.file) in message_of(read, drawn.file)


@pytest.mark.parametrize("text", ["[", '{"a":'])
def test_json_of_any_depth_is_named_soon(drawn, text):
    drawn.file.write_text('{"info": ' + text * 500_000)
    for read in (is_coco, CocoAnnotations):
        assert f"{drawn.file} nests" in message_of(read, drawn.file)


def test_a_byte_order_mark_is_skipped(drawn):
    expected = CocoAnnotations(drawn.file).label(0, NUMBERS)
    drawn.file.write_bytes(b"\xef\xbb\xbf" + drawn.file.read_bytes())
    assert is_coco(drawn.file)
    np.testing.assert_array_equal(CocoAnnotations(drawn.file).label(0, NUMBERS), expected)


def test_annotations_that_cover_no_pixel_are_counted_and_named(overlapping, log):
    """As some of COCO's own."""
    for number in (3, 4):
        overlapping.json["annotations"][number]["segmentation"] = [[3, 3, 3, 3, 3, 3]]
    annotations = CocoAnnotations(overlapping.write().file)
    assert annotations.instances(0).max() == 2
    (told,) = [message for message in log.messages if "no pixel" in message]
    assert told.startswith("2 annotations")
    assert f"{overlapping.file}: annotations[3]" in told


def test_any_changed_bit_of_the_cache_changes_no_label(drawn, kept):
    expected = [CocoAnnotations(drawn.file).label(row, NUMBERS) for row in range(7)]
    rng = np.random.default_rng(0)
    files = sorted(kept().iterdir())
    for number in range(22):
        file = files[number % len(files)]
        content = bytearray(file.read_bytes())
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        file.write_bytes(content)
        annotations = CocoAnnotations(drawn.file)
        for row in range(7):
            np.testing.assert_array_equal(annotations.label(row, NUMBERS), expected[row])
