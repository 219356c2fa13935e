"""Folders of one's own images are read correctly, and errors name their faults."""

import json
import os
import pathlib

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
from helpers_fuzz import damaged, many, mistaken, read_all, write
from hypothesis import given
from PIL import Image

from fsseg_jax.data.formats.labelme import LabelMe
from fsseg_jax.data.sources import exports
from fsseg_jax.data.sources.folder import Folder


@pytest.fixture(autouse=True)
def nothing_logged():
    exports.log_once.cache_clear()


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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright_and_in_line_with_their_masks(tmp_path, orientation):
    """Masks and LabelMe files are drawn on the upright image."""
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


# ----------------------------------------------------------------------------- LabelMe, masks


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
    told = [message for message in log.messages if "skipped" in message]
    assert len(told) == 1
    assert "skipped: 2," in told[0]


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
    assert any(
        "images without an annotation, which are skipped: 1," in message for message in log.messages
    )


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
    message = message_of(Folder, tmp_path, "validate", 1)
    assert "'validate'" in message
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


@pytest.mark.parametrize("folds", [-1, 4])
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


def test_hidden_files_are_ignored_and_home_is_expanded(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    (root / "cat" / "._1.jpg").write_bytes(b"what macOS leaves behind")
    (root / ".git").mkdir()
    (root / "__MACOSX").mkdir()
    (root / "cat" / "notes.txt").write_text("a note")
    assert len(Folder(f"~/{root.name}", "", 1)) == 5


def empty_mask(path):
    Image.new("RGBA", SIZE[::-1], (0, 0, 0, 255)).save(path)


def outline(path, size=SIZE):
    write_labelme(path, ("dog", "polygon", SQUARE), size=size)


@pytest.mark.parametrize(
    ("path", "write", "expected"),
    [
        ("cat/x.jpg", write_image, "{path} has no annotation: put a mask (x.png, x_mask.png) or"),
        ("cat/x.png", write_image, "{path} has no annotation: put a mask (x_mask.png) or"),
        ("dog/a.JPEG", pathlib.Path.unlink, "{root}/dog/a_mask.png has no annotation"),
        ("dog/b.json", outline, "{root}/dog/b.jpg has b.PNG and b.json beside it"),
        ("dog/b.webp", write_image, "{root}/dog/b.jpg and b.webp would have one name"),
        ("empty", pathlib.Path.mkdir, "{path} holds no images"),
        ("dog/b.PNG", empty_mask, "{path} is an empty mask"),
        ("dog/b.jpg", lambda path: path.write_text("no image"), "{path} cannot be read"),
        ("export.json", lambda path: path.write_text("{export"), "{path} is not valid JSON"),
        ("cat/3.json", lambda path: path.write_text("[]"), "{path} is not a LabelMe file"),
        (
            "dog/b.PNG",
            lambda path: write_mask(path, size=(20, 33)),
            "{path} is 33 x 20 pixels, but its image {root}/dog/b.jpg is 30 x 20",
        ),
        (
            "cat/3.json",
            lambda path: outline(path, (21, 30)),
            "{path} is 30 x 21 pixels, but its image {root}/cat/3.bmp is 30 x 20",
        ),
    ],
)
def test_unusable_folders_are_named(root, path, write, expected):
    write(root / path)
    message = message_of(Folder, root, "", 1)
    assert message.startswith(expected.format(path=root / path, root=root))


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


# ----------------------------------------------------------------------------- left out


def test_what_is_left_out_is_counted_and_named(root, log):
    (root / "cat" / "notes.txt").write_text("a note")
    (root / "dog" / "c.svg").write_bytes(b"<svg>")
    (root / "lonely.json").write_text("{}")
    (root / "dog" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    for _ in range(2):
        assert len(Folder(root, "", 1)) == 5
    (told,) = [message for message in log.messages if "left out" in message]
    assert told.startswith(f"{root}: 4 left out, beginning with {root}/")


def test_classes_may_have_folders_of_their_own(root):
    write_image(root / "cat" / "more" / "deep" / "1.gif")
    mask = write_mask(root / "cat" / "more" / "deep" / "1.png")
    (root / "cat" / "more" / "circle").symlink_to(root / "cat")
    source = Folder(root, "", 1)
    assert len(source) == 6
    row = source.ids.index("cat/more/deep/1")
    np.testing.assert_array_equal(source.read(row).label > 0, mask)
    assert source.classes == ("cat", "cow", "dog")


def test_nothing_is_told_where_everything_is_read(root, log):
    Folder(root, "", 1)
    assert not [message for message in log.messages if "left out" in message]


def test_links_to_folders_are_classes(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (root / "dog").rename(elsewhere / "dogs")
    (root / "dog").symlink_to(elsewhere / "dogs")
    source = Folder(root, "", 1)
    assert source.ids == ("cat/1", "cat/2", "cat/3", "dog/a", "dog/b")
    assert source.classes == ("cat", "cow", "dog")


def test_tiff_files_are_images(tmp_path):
    pixels = write_image(tmp_path / "cat" / "1.tif")
    write_image(tmp_path / "cat" / "2.TIFF")
    for name in "12":
        write_mask(tmp_path / "cat" / f"{name}.png")
    source = Folder(tmp_path, "", 1)
    assert source.ids == ("cat/1", "cat/2")
    np.testing.assert_array_equal(source.read(0).image, pixels)


def test_shapes_that_cover_no_pixel_are_counted_and_named(tmp_path, log):
    write_image(tmp_path / "1.jpg")
    shapes = [("cat", "polygon", SQUARE), ("dog", "rectangle", [[50, 50], [60, 60]])]
    write_labelme(tmp_path / "1.json", *shapes)
    source = Folder(tmp_path, "", 1)
    source.read(0)
    (told,) = [message for message in log.messages if "no pixel" in message]
    assert f"1 left out, beginning with shape 2 of {tmp_path / '1.json'}" in told


def test_names_that_are_not_utf8_are_those_of_images_but_of_no_classes(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_image(tmp_path / "cat" / f"{name}.jpg")
    write_mask(tmp_path / "cat" / f"{name}.png")
    source = Folder(tmp_path, "", 1)
    assert source.ids == (f"cat/{name}",)
    source.read(0)
    assert len(source.digest()) == 8
    (tmp_path / "cat").rename(tmp_path / name)
    assert "not UTF-8" in message_of(Folder, tmp_path, "", 1)


def test_a_labelme_file_is_of_the_image_of_its_name_whatever_path_it_gives(tmp_path):
    write_image(tmp_path / "1.jpg")
    write_labelme(tmp_path / "1.json", ("cat", "polygon", SQUARE), imagePath="/etc/../x.jpg")
    assert Folder(tmp_path, "", 1).ids == ("1",)


def test_sizes_are_compared_before_shapes_are_drawn(tmp_path, monkeypatch):
    write_image(tmp_path / "1.jpg")
    write_labelme(tmp_path / "1.json", ("cat", "polygon", SQUARE), size=(10_000, 10_000))
    monkeypatch.setattr(LabelMe, "draw", None)
    assert "10000 x 10000 pixels, but its image" in message_of(Folder, tmp_path, "", 1)


def test_classes_that_come_while_it_is_read_are_named(tmp_path):
    write_image(tmp_path / "1.jpg")
    write_labelme(tmp_path / "1.json", ("cat", "polygon", SQUARE))
    source = Folder(tmp_path, "", 1)
    write_labelme(tmp_path / "1.json", ("dog", "polygon", SQUARE))
    message = message_of(source.read, 0)
    assert f"{tmp_path / '1.json'} has got the class dog" in message


# ----------------------------------------------------------------------------- any content


@pytest.fixture
def small(tmp_path):
    """A tiny image with a mask, and one with a LabelMe file."""
    write_image(tmp_path / "cat" / "1.jpg", (4, 5))
    mask = Image.fromarray(
        write_mask(tmp_path / "cat" / "1.png", (1, 1, 3, 4), (4, 5)) * np.uint8(1)
    )
    mask.putpalette([0, 0, 0, 200, 0, 0])
    mask.save(tmp_path / "cat" / "1.png")
    write_image(tmp_path / "2.jpg", (4, 5))
    shapes = [("cat", "polygon", [[0, 0], [3, 0], [3, 2]]), ("dog", "circle", [[2, 2], [2, 3]])]
    write_labelme(tmp_path / "2.json", *shapes, ("cat", "rectangle", [[1, 1], [4, 3]]), size=(4, 5))
    return tmp_path


@pytest.mark.parametrize("name", ["cat/1.jpg", "cat/1.png", "2.json"])
def test_any_image_mask_and_labelme_file_are_read_or_refused(small, name):
    assert len(read_all(lambda: Folder(small, "", 1))) == 2
    valid = (small / name).read_bytes()
    contents = damaged(valid)
    if name == "2.json":
        contents |= mistaken(json.loads(valid))

    @many
    @given(content=contents)
    def check(content):
        write(small / name, content)
        read_all(lambda: Folder(small, "", 1))

    check()
