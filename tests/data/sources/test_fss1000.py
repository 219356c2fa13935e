"""FSS-1000's folder and lists are read correctly, and errors name their faults."""

import numpy as np
import pytest
from helpers import message_of, pixels_of
from helpers_data import rows_of, write_class, write_lists
from helpers_fuzz import damaged, many, read_all, write
from hypothesis import given
from PIL import Image

from fsseg_jax.data.sources.fss1000 import FSS1000, read_white

NAMES = ("ant", "bee", "cat", "dog", "elk", "fox")
SPLITS = {"train": ("fox", "bee", "ant"), "val": ("dog",), "test": ("elk", "cat")}


@pytest.fixture
def masks(tmp_path):
    return {
        f"{name}/{number}": mask
        for seed, name in enumerate(NAMES)
        for number, mask in enumerate(write_class(tmp_path / name, seed=seed), start=1)
    }


@pytest.fixture
def root(tmp_path, masks):
    write_lists(tmp_path, SPLITS)
    return tmp_path


def names_of(source, class_ids):
    return [source.class_names[class_id] for class_id in class_ids]


@pytest.mark.parametrize(
    ("split", "classes"), [("train", "ant bee fox"), ("", "ant bee fox"), ("test", "cat dog elk")]
)
def test_splits_have_the_images_of_their_classes(root, masks, split, classes):
    source = FSS1000(root, split)
    assert source.ids == tuple(f"{name}/{n}" for name in classes.split() for n in (1, 2))
    assert source.classes == NAMES
    expected = set()
    for row, name in enumerate(source.ids):
        class_id = NAMES.index(name.split("/")[0]) + 1
        expected.add((row, class_id, int(masks[name].sum())))
        image, label = source.read(row)
        np.testing.assert_array_equal(label, np.where(masks[name], class_id, 0))
        np.testing.assert_array_equal(image, pixels_of(root / f"{name}.jpg"))
        assert image.dtype == label.dtype == np.uint8
        assert source.instances(row) is None
    assert rows_of(source.table) == expected


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_fold_holds_out_the_test_classes(root, split):
    source = FSS1000(root, split)
    assert [names_of(source, fold) for fold in source.folds] == [["cat", "elk"]]
    assert names_of(source, source.validation) == ["dog"]


def test_images_are_in_the_order_of_their_numbers(root):
    for number in range(3, 12):
        for suffix in ("jpg", "png"):
            (root / "ant" / f"{number}.{suffix}").write_bytes(
                (root / "ant" / f"1.{suffix}").read_bytes()
            )
    ids = FSS1000(root, "train").ids
    assert ids[:11] == tuple(f"ant/{number}" for number in range(1, 12))


def test_published_codes_names_of_lists_will_do(root):
    expected = FSS1000(root, "test")
    (root / "train.txt").rename(root / "trn.txt")
    (root / "test.txt").rename(root / "fss_test_set.txt")
    (root / "val.txt").write_text("\ufeffdog/1.jpg\r\ndog/2.jpg \r\n\r\n", "utf-8")
    source = FSS1000(root, "test")
    assert (source.ids, source.folds) == (expected.ids, expected.folds)
    assert source.validation == expected.validation


@pytest.mark.parametrize("lists", ["", "fewshot_data", "fewshot_data/fewshot_data"])
def test_classes_may_be_nested_below_home(root, tmp_path_factory, monkeypatch, lists):
    outer = tmp_path_factory.mktemp("outer")
    inner = outer / "fewshot_data" / "fewshot_data"
    inner.mkdir(parents=True)
    for path in list(root.iterdir()):
        path.rename((outer / lists if path.suffix == ".txt" else inner) / path.name)
    (inner / "__MACOSX").mkdir()
    (inner / ".cache").mkdir()
    monkeypatch.setenv("HOME", str(outer.parent))
    source = FSS1000(f"~/{outer.name}", "train")
    assert source.ids[0] == "ant/1"
    assert source.classes == NAMES
    source.read(0)


def test_test_classes_alone_leave_the_first_520_others_to_training(tmp_path, log):
    for number in range(525):
        write_class(tmp_path / f"{number:03d}", images=1, size=(2, 2))
    write_lists(tmp_path, {"fss_test_set": ("002", "000")})
    source = FSS1000(tmp_path, "train")
    assert [name.split("/")[0] for name in source.ids] == [
        "001",
        *(f"{number:03d}" for number in range(3, 522)),
    ]
    assert names_of(source, source.validation) == ["522", "523", "524"]
    assert names_of(source, source.folds[0]) == ["000", "002"]
    assert any("520 train and 3 select" in message for message in log.messages)
    # Ids skip 255, so that the label of ignored pixels is no class.
    assert list(source.class_names)[253:255] == [254, 256]
    assert 255 not in source.table.class_id
    row = source.ids.index("521/1")
    label = source.read(row).label
    assert label.dtype == np.uint16
    assert set(np.unique(label)) <= {0, 523}


def test_a_new_class_renumbers_the_table(root):
    before = FSS1000(root, "train")
    write_class(root / "aardvark")
    write_lists(root, {"test": (*SPLITS["test"], "aardvark")})
    after = FSS1000(root, "train")
    assert after.ids == before.ids
    assert rows_of(after.table) == {(r, c + 1, n) for r, c, n in rows_of(before.table)}
    assert after.fingerprint != before.fingerprint


def test_a_changed_mask_is_counted_anew(root):
    before = rows_of(FSS1000(root, "train").table)
    Image.new("L", (16, 16), 255).save(root / "ant" / "1.png")
    after = FSS1000(root, "train").table
    assert (0, 1, 256) in rows_of(after) - before


# ----------------------------------------------------------------------------- faults


def test_roots_that_are_none_are_named(tmp_path):
    assert "data.root is empty" in message_of(FSS1000, "", "train")
    assert str(tmp_path / "no") in message_of(FSS1000, tmp_path / "no", "train")
    assert "no class folders" in message_of(FSS1000, tmp_path, "train")


def fox_unlisted(root):
    write_lists(root, {"val": ("dog",), "train": ("ant", "bee")})


def no_bees(root):
    for path in (root / "bee").glob("*.jpg"):
        path.unlink()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda root: (root / "test.txt").unlink(), "put fss_test_set.txt or test.txt there"),
        (lambda root: (root / "val.txt").unlink(), "lacks val.txt"),
        (lambda root: (root / "train.txt").unlink(), "lacks train.txt"),
        (
            lambda root: write_lists(root, {"val": ("dog", "unicorn")}),
            "val.txt names the class uni",
        ),
        (lambda root: write_lists(root, {"val": ("dog", "cat")}), "cat is in the lists"),
        (fox_unlisted, "{root}/fox is in none"),
        (lambda root: (root / "test.txt").write_bytes(b""), "{root}/test.txt names no"),
        (lambda root: (root / "test.txt").write_bytes(b" \n\n"), "{root}/test.txt names no"),
        (lambda root: (root / "test.txt").write_bytes(b"\xff\xfe\0\xff"), "{root}/test.txt cannot"),
        (no_bees, "{root}/bee holds no images"),
        (lambda root: (root / "bee" / "2.png").unlink(), "{root}/bee/2.png"),
        (
            lambda root: Image.new("RGB", (19, 16), "white").save(root / "bee" / "2.png"),
            "{root}/bee/2.png is 19 x 16 pixels, but its image {root}/bee/2.jpg is 16 x 16",
        ),
    ],
)
def test_unusable_folders_are_named(root, change, expected):
    change(root)
    assert expected.format(root=root) in message_of(FSS1000, root, "train")


def test_unknown_split_names_those_there(root):
    message = message_of(FSS1000, root, "val")
    assert "'val'" in message
    assert "train and test" in message


def test_what_is_left_out_is_counted_and_named(root, log):
    for name in ("ant/1.JPG", "bee/Thumbs.db", "bee/3.png"):
        (root / name).write_bytes(b"")
    (root / "bee" / "more").mkdir()
    assert len(FSS1000(root, "train")) == 6
    (told,) = [message for message in log.messages if "left out" in message]
    assert told.startswith(f"{root}: 4 left out, beginning with {root / 'ant' / '1.JPG'}")


def test_masks_without_white_are_counted_and_named(root, log):
    Image.new("L", (16, 16), 90).save(root / "ant" / "1.png")
    Image.new("L", (16, 16)).save(root / "ant" / "2.png")
    source = FSS1000(root, "train")
    assert not source.read(0).label.any()
    (told,) = [message for message in log.messages if "above 127" in message]
    assert f"2 left out, beginning with {root / 'ant' / '1.png'}" in told


def test_what_is_above_127_is_white(tmp_path):
    values = np.array([[0, 1, 127], [128, 200, 255]], np.uint8)
    Image.fromarray(values).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_white(tmp_path / "mask.png"), values > 127)
    Image.fromarray(values > 127).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_white(tmp_path / "mask.png"), values > 127)


def test_masks_of_0_and_1_are_named(root):
    mask = np.eye(16, dtype=np.uint8)
    Image.fromarray(mask).save(root / "ant" / "1.png")
    assert f"{root / 'ant' / '1.png'} is a mask of" in message_of(FSS1000, root, "train")


# ----------------------------------------------------------------------------- any content


@pytest.fixture
def small(tmp_path):
    for seed, name in enumerate(("ant", "bee", "cat")):
        write_class(tmp_path / name, 1, (3, 4), seed)
    write_lists(tmp_path, {"train": ("ant",), "val": ("bee/1.jpg",), "test": ("cat",)})
    return tmp_path


@pytest.mark.parametrize("name", ["ant/1.jpg", "ant/1.png", "train.txt", "test.txt"])
def test_any_image_mask_and_list_are_read_or_refused(small, name):
    assert len(read_all(lambda: FSS1000(small, "train"))) == 1

    @many
    @given(content=damaged((small / name).read_bytes()))
    def check(content):
        write(small / name, content)
        read_all(lambda: FSS1000(small, "train"))

    check()
