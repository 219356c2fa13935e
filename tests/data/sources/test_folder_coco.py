"""Folders of one's own images that a COCO file annotates."""

import json
import tracemalloc

import numpy as np
import pytest
from helpers import message_of, pixels_of
from helpers_data import SIZE, rows_of, write_coco, write_image, write_mask
from helpers_fuzz import damaged, many, mistaken, read_all, write
from hypothesis import given

from fsseg_jax.data.sources import folder
from fsseg_jax.data.sources.annotated import listed_in
from fsseg_jax.data.sources.folder import Folder


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
    np.testing.assert_array_equal(image, pixels_of(coco / "images" / "day" / "2.jpg"))
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


def test_names_of_classes_take_no_memory_by_image(coco):
    categories = {number: f"thing {number}" for number in range(1, 1001)}
    write_coco(coco / "export.json", ["1.jpg"], [(0, 1, [1, 1, 5, 1, 5, 5])], categories)
    contents = folder.Contents(coco, listed_in(coco / "export.json") * 200)
    tracemalloc.start()
    names = folder._class_names(contents)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert names == {*categories.values()}
    assert peak < 2**20  # a set of them takes about 2**15 bytes


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


@pytest.mark.parametrize("name", ["../1.jpg", "/etc/1.jpg", "day/../../1.jpg", "images\\..\\1.jpg"])
def test_images_outside_of_the_folder_are_refused(coco, name):
    write_image(coco.parent / "1.jpg")
    write_coco(coco / "export.json", [name], [(0, 1, [1, 1, 5, 1, 5, 5])], {1: "x"})
    message = message_of(Folder, coco, "", 1)
    assert f"{coco / 'export.json'}: images[0].file_name" in message


def test_links_inside_of_the_folder_lead_anywhere(coco, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "images"
    (coco / "images").rename(elsewhere)
    (coco / "images").symlink_to(elsewhere)
    assert Folder(coco, "", 1).ids == ("images/day/2", "1")


def test_images_that_the_file_does_not_list_are_counted_and_named(coco, log):
    write_image(coco / "3.jpg")
    write_image(coco / "images" / "4.jpg")
    assert len(Folder(coco, "", 1)) == 2
    (told,) = [message for message in log.messages if "left out" in message]
    assert f"2 left out, beginning with {coco / '3.jpg'}: export.json does not list" in told


VALID = {
    "images": [
        {"id": 4, "file_name": "1.jpg", "height": 4, "width": 5},
        {"id": 9, "file_name": "2.jpg", "height": 4, "width": 5},
    ],
    "annotations": [
        {"id": 1, "image_id": 4, "category_id": 7, "segmentation": [[0, 0, 4, 0, 4, 3]]},
        {
            "id": 2,
            "image_id": 9,
            "category_id": 8,
            "segmentation": {"size": [4, 5], "counts": [3, 5, 12]},
            "iscrowd": 1,
        },
        {
            "id": 3,
            "image_id": 9,
            "category_id": 7,
            "segmentation": {"size": [4, 5], "counts": "35<"},
        },
        {"id": 4, "image_id": 4, "category_id": 7, "bbox": [1, 1, 2, 2]},
    ],
    "categories": [{"id": 7, "name": "cat"}, {"id": 8, "name": "dog"}],
}


def test_any_coco_file_is_read_or_refused(tmp_path):
    for name in ("1.jpg", "2.jpg"):
        write_image(tmp_path / name, (4, 5))
    valid = json.dumps(VALID).encode()
    write(tmp_path / "coco.json", valid)
    assert len(read_all(lambda: Folder(tmp_path, "", 1))) == 2

    @many
    @given(content=damaged(valid) | mistaken(VALID))
    def check(content):
        write(tmp_path / "coco.json", content)
        read_all(lambda: Folder(tmp_path, "", 1))

    check()
