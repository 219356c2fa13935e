"""With data.folds = 0, training and test have the same classes and different images."""

import numpy as np
import pytest
from helpers import message_of
from helpers_data import rows_of, write_image, write_mask

from fsseg_jax.config import default_config
from fsseg_jax.data import class_ids, open_source, training_items
from fsseg_jax.data.sources.folder import Folder
from fsseg_jax.training.data import open_data

COUNTS = {"ant": 5, "bee": 12, "cat": 30}


@pytest.fixture
def root(tmp_path):
    for seed, (name, count) in enumerate(COUNTS.items()):
        for number in range(count):
            write_image(tmp_path / name / f"{number}.jpg", (6, 8), seed)
            write_mask(tmp_path / name / f"{number}.png", (1, 1, 3 + seed, 5), (6, 8))
    return tmp_path


@pytest.fixture
def config(root):
    config = default_config("panet")
    config.backbone, config.data.name, config.data.root = "small", "folder", str(root)
    config.data.folds, config.data.min_pixels, config.data.train_min_pixels = 0, 1, 1
    return config


def test_a_fifth_of_the_images_is_held_back_and_all_classes_are_trained(root, config):
    everything = Folder(root, "", 1)
    trained, test = (open_source(config.data, which) for which in ("train", "test"))
    assert {*trained.ids} | {*test.ids} == {*everything.ids}
    assert not {*trained.ids} & {*test.ids}
    held_back = {name: sum(i.startswith(name) for i in test.ids) for name in COUNTS}
    assert held_back == {"ant": 2, "bee": 2, "cat": 6}
    for source in (trained, test):
        assert class_ids(source, 0, "novel") == class_ids(source, 0, "base") == (1, 2, 3)
        expected = {
            (row, *(x[1:] for x in rows_of(everything.table) if everything.ids[x[0]] == name))
            for row, name in enumerate(source.ids)
        }
        assert {(row, (c, n)) for row, c, n in rows_of(source.table)} == expected
        for row, name in enumerate(source.ids):
            whole = everything.read(everything.ids.index(name))
            np.testing.assert_array_equal(source.read(row).label, whole.label)
            assert source.annotations[row] == root / f"{name}.png"
    assert trained.fingerprint != test.fingerprint
    assert len(training_items(config.data, trained).image) == sum(COUNTS.values()) - 10


def test_new_images_of_a_class_move_those_of_no_other(root):
    before = set(Folder(root, "val", 0).ids)
    write_image(root / "cat" / "new.jpg", (6, 8))
    write_mask(root / "cat" / "new.png", (1, 1, 3, 5), (6, 8))
    after = set(Folder(root, "val", 0).ids)
    assert {x for x in before ^ after if not x.startswith("cat")} == set()
    assert len(before & after) >= len(before) - 1


def test_splits_are_taken_as_they_are(root, config):
    for name in COUNTS:
        (root / "train").mkdir(exist_ok=True)
        (root / name).rename(root / "train" / name)
    write_image(root / "val" / "ant" / "1.jpg", (6, 8))
    write_mask(root / "val" / "ant" / "1.png", (1, 1, 3, 5), (6, 8))
    assert len(open_source(config.data, "train")) == sum(COUNTS.values())
    assert open_source(config.data, "test").ids == ("ant/1",)
    config.data.split = "train"
    assert "images that training sees" in message_of(open_data, config)
    config.train.select_on = "novel"
    assert "name the same images" in message_of(open_data, config)


def test_supports_are_never_held_back(root):
    assert len(Folder(root, None, 0)) == sum(COUNTS.values())


def test_what_leaves_nothing_to_train_on_is_told_before_training(config, log):
    config.data.folds = 1
    message = message_of(open_data, config)
    assert message.startswith("data.folds = 1 holds out all classes")
    assert "data.folds = 0" in message
    config.data.folds, config.ways = 3, 2
    open_data(config)
    assert any("holds out 1 classes, too few" in message for message in log.messages)
    config.ways = 3
    assert "ways = 3, but there are only 2 classes" in message_of(open_data, config)
    config.data.folds = 4
    assert "choose 1..3, or 0 to hold out none" in message_of(open_data, config)
