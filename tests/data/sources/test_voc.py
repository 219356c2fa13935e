"""A VOCdevkit folder is read correctly and counted once, and errors name its faults."""

import os

import numpy as np
import pytest
from helpers import calls_of, message_of, pixels_of
from helpers_data import rows_of
from helpers_fuzz import damaged, many, read_all, write
from hypothesis import given
from PIL import Image

from fsseg_jax.data.sources import voc
from fsseg_jax.data.sources.voc import VOC
from fsseg_jax.errors import UserError


@pytest.fixture
def root(make_voc):
    return make_voc(train=4, val=3)


def label_file(root, number=0):
    return root / "SegmentationClassAug" / f"2007_{number:06d}.png"


def image_file(root, number=0):
    return root / "JPEGImages" / f"2007_{number:06d}.jpg"


@pytest.fixture
def reads(monkeypatch):
    """The label files read since."""
    return calls_of(monkeypatch, voc, "read_label")


@pytest.mark.parametrize(("split", "size"), [("train", 4), ("val", 3)])
def test_table_counts_the_pixels_of_the_labels(root, split, size):
    source = VOC(root, split)
    names = (root / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()
    assert source.ids == tuple(names)
    assert len(source) == size
    expected, modes = set(), set()
    for row, name in enumerate(names):
        with Image.open(root / "SegmentationClassAug" / f"{name}.png") as picture:
            label = np.asarray(picture)
            modes.add(picture.mode)
        for class_id in range(1, 21):
            if pixels := int((label == class_id).sum()):
                expected.add((row, class_id, pixels))
    assert rows_of(source.table) == expected
    assert modes == {"P", "L"}  # the labels come in both kinds


def test_read_gives_image_and_class_ids(root):
    source = VOC(root, "train")
    for number in range(len(source)):
        image, label = source.read(number)
        np.testing.assert_array_equal(image, pixels_of(image_file(root, number)))
        np.testing.assert_array_equal(label, pixels_of(label_file(root, number)))
        assert image.dtype == label.dtype == np.uint8
        assert image.shape == (*label.shape, 3)
        assert 255 in label
        assert source.instances(number) is None


def test_instances_are_read_where_they_exist(make_voc):
    root = make_voc(train=2, val=1, objects=True)
    (root / "SegmentationObject" / "2007_000001.png").unlink()
    source = VOC(root, "train")
    label, instance = source.read(0).label, source.instances(0)
    assert set(np.unique(instance)) == {0, 1, 2, 3, 4, 5, 255}
    for number in range(1, 6):
        assert len(np.unique(label[instance == number])) == 1  # an object has one class
    assert source.instances(1) is None


def test_folds_hold_out_five_classes_each():
    assert [len(fold) for fold in VOC.folds] == [5, 5, 5, 5]
    assert sorted(sum(VOC.folds, ())) == list(range(1, 21))
    assert VOC.folds[3] == (16, 17, 18, 19, 20)  # PASCAL-5i: fold i tests 5i+1..5i+5
    assert (VOC.classes[0], VOC.classes[14], VOC.classes[19]) == (
        "aeroplane",
        "person",
        "tvmonitor",
    )


# ----------------------------------------------------------------------------- the cache


def test_labels_are_counted_once(root, reads):
    first = VOC(root, "train").table
    assert sorted(reads) == [(str(label_file(root, number)),) for number in range(4)]
    reads.clear()
    assert rows_of(VOC(root, "train").table) == rows_of(first)
    assert not reads


def test_table_is_counted_anew_when_a_label_changes(root, reads):
    before = VOC(root, "train").table
    label = pixels_of(label_file(root))
    label[:3, :3] = 9
    Image.fromarray(label).save(label_file(root))
    reads.clear()
    after = VOC(root, "train").table
    assert reads
    assert rows_of(before) != rows_of(after)
    assert int(after.pixels[(after.image == 0) & (after.class_id == 9)][0]) == (label == 9).sum()


def test_a_change_of_equal_size_is_noticed_by_its_time(root, reads):
    VOC(root, "train")
    reads.clear()
    status = label_file(root).stat()
    os.utime(label_file(root), ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    VOC(root, "train")
    assert reads


def test_changed_images_are_checked_anew(root):
    VOC(root, "train")
    Image.new("RGB", (10, 10)).save(image_file(root))
    with pytest.raises(UserError, match=r"10 x 10"):
        VOC(root, "train")


def test_a_changed_list_has_its_own_table(root):
    before = VOC(root, "train").table
    list_file = root / "ImageSets" / "Segmentation" / "train.txt"
    names = list_file.read_text().split()
    list_file.write_text("\n".join(reversed(names)))
    after = VOC(root, "train").table
    assert rows_of(after) == {(3 - row, c, pixels) for row, c, pixels in rows_of(before)}


def test_other_files_do_not_matter(root, reads):
    VOC(root, "train")
    reads.clear()
    (root / "JPEGImages" / "holiday.jpg").write_bytes(b"not one of the split")
    VOC(root, "train")
    assert not reads


# ----------------------------------------------------------------------------- folders


def test_all_annotations_are_preferred(root, log):
    own = root / "SegmentationClass"
    own.mkdir()
    for name in VOC(root, "train").ids:
        Image.new("L", (5, 5)).save(own / f"{name}.png")
    source = VOC(root, "train")
    assert all("SegmentationClassAug" in label for _, label in source.files)
    assert len(source.table.pixels)
    assert not any("SegmentationClassAug" in message for message in log.messages)


def test_falling_back_to_voc_alone_is_told(make_voc, log):
    root = make_voc(train=2, val=1, aug=False)
    source = VOC(root, "train")
    assert [label for _, label in source.files] == [
        str(root / "SegmentationClass" / f"2007_00000{number}.png") for number in range(2)
    ]
    assert any("no SegmentationClassAug" in message for message in log.messages)
    assert rows_of(source.table)


def test_root_may_be_any_folder_of_the_archive(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    table = rows_of(VOC(root, "train").table)
    for folder in (root.parent, root.parent.parent, str(root), f"{root}/", "~/VOC2012"):
        source = VOC(folder, "train")
        assert rows_of(source.table) == table
        source.read(0)


# ----------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    "parts",
    [
        ("JPEGImages",),
        ("ImageSets/Segmentation",),
        ("SegmentationClassAug",),
        ("ImageSets/Segmentation", "SegmentationClassAug"),
    ],
)
def test_missing_parts_are_named(root, parts):
    for part in parts:
        (root / part).rename(root / part.replace("Seg", "Lost").replace("JPEG", "Lost"))
    message = message_of(VOC, root, "train")
    assert str(root) in message
    for name in ("JPEGImages", "ImageSets/Segmentation", "SegmentationClassAug"):
        assert (name in message) == (name in parts)


@pytest.mark.parametrize(
    ("folder", "split", "expected"),
    [
        ("", "train", "data.root is empty"),
        ("{root}/nowhere", "train", "data.root = {root}/nowhere"),
        ("{root}", "test", "test.txt is missing: the splits there are empty, train, val"),
        ("{root}", "empty", "empty.txt lists no images"),
    ],
)
def test_wrong_arguments_are_named(root, folder, split, expected):
    (root / "ImageSets" / "Segmentation" / "empty.txt").write_text("\n")
    assert expected.format(root=root) in message_of(VOC, folder.format(root=root), split)


@pytest.mark.parametrize("value", [21, 254])
def test_label_above_the_classes_is_named(root, value):
    label = pixels_of(label_file(root, 1))
    label[0, 0] = value
    Image.fromarray(label).save(label_file(root, 1))
    message = message_of(VOC, root, "train")
    assert str(label_file(root, 1)) in message
    assert f"label {value}" in message


def test_sizes_that_differ_are_named(root):
    with Image.open(label_file(root, 2)) as picture:
        width, height = picture.size
        picture.resize((width + 3, height)).save(label_file(root, 2))
    message = message_of(VOC, root, "train")
    assert str(label_file(root, 2)) in message
    assert f"{width + 3} x {height}" in message
    assert str(image_file(root, 2)) in message
    assert f"{width} x {height}" in message


@pytest.mark.parametrize("file", [label_file, image_file])
def test_missing_files_are_named(root, file):
    file(root, 3).unlink()
    assert str(file(root, 3)) in message_of(VOC, root, "train")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
def test_labels_that_are_no_class_ids_are_named(root, mode):
    with Image.open(image_file(root)) as picture:
        Image.new(mode, picture.size).save(label_file(root))
    message = message_of(VOC, root, "train")
    assert str(label_file(root)) in message
    assert mode in message


@pytest.mark.parametrize("part", [0.0, 0.02, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("file", [label_file, image_file])
def test_truncated_files_are_named(root, file, part):
    source = VOC(root, "train")
    content = file(root).read_bytes()
    file(root).write_bytes(content[: int(part * len(content))])
    assert str(file(root)) in message_of(source.read, 0)
    source.read(1)
    if file is label_file:
        assert str(file(root)) in message_of(VOC, root, "train")


@pytest.mark.parametrize("name", ["../2007_000000", "/2007_000000", "2007_000000"])
def test_names_outside_of_the_folder_or_listed_twice_are_refused(root, name):
    list_file = root / "ImageSets" / "Segmentation" / "train.txt"
    list_file.write_text(list_file.read_text() + name)
    message = message_of(VOC, root, "train")
    assert message.startswith(str(list_file))
    assert name in message


def test_lists_may_be_of_windows_or_in_latin1(root):
    name = os.fsdecode(b"caf\xe9")
    for file in (label_file(root), image_file(root)):
        file.rename(file.with_stem(name))
    list_file = root / "ImageSets" / "Segmentation" / "train.txt"
    list_file.write_bytes(b"caf\xe9\r\n2007_000001\r\n")
    source = VOC(root, "train")
    assert source.ids == (name, "2007_000001")
    source.read(0)
    list_file.write_bytes(b"\xef\xbb\xbf2007_000001\r\n")
    assert VOC(root, "train").ids == ("2007_000001",)


# ----------------------------------------------------------------------------- any content


@pytest.mark.parametrize("kind", ["image", "label", "objects", "list"])
def test_any_image_label_and_list_are_read_or_refused(make_voc, kind):
    root = make_voc(train=1, val=1, shown=1, objects=True)
    name = VOC(root, "train").ids[0]
    path = {
        "image": root / "JPEGImages" / f"{name}.jpg",
        "label": root / "SegmentationClassAug" / f"{name}.png",
        "objects": root / "SegmentationObject" / f"{name}.png",
        "list": root / "ImageSets" / "Segmentation" / "train.txt",
    }[kind]

    @many
    @given(content=damaged(path.read_bytes()))
    def check(content):
        write(path, content)
        read_all(lambda: VOC(root, "train"))

    check()
