"""With data.folds = 0, training and test have the same classes and different images."""

import pathlib

import numpy as np
import pytest
from helpers import message_of
from helpers_data import rows_of, write_image, write_mask

from fsseg_jax.config import default_config
from fsseg_jax.data import class_ids, open_source, training_items
from fsseg_jax.data.source import ClassTable
from fsseg_jax.data.sources.folder import Folder
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.run import _choose_thresholds
from fsseg_jax.training.checkpoints import Checkpoints
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


def test_names_that_repeat_in_other_splits_are_other_images(root, config):
    for split in ("train", "val"):
        for name in COUNTS:
            for number in range(3):
                path = root / "splits" / split / name / f"{number}.jpg"
                write_image(path, (6, 8))
                write_mask(path.with_suffix(".png"), (1, 1, 3, 5), (6, 8))
    config.data.root = str(root / "splits")
    assert open_data(config).test.ids == open_data(config).source.ids
    config.data.folds, config.train.select_on = 3, "base"
    config.data.split, config.data.train_split = "val", "train"
    open_data(config)
    config.data.split = "train"
    assert "images that training sees" in message_of(open_data, config)


def refused(config, monkeypatch, **changes):
    """Why a run of `config` is not tested with some fields of `data` changed; None if it is."""
    run = Checkpoints(pathlib.Path("run"))
    trained = {"trained_on": [*COUNTS]}
    monkeypatch.setattr(run, "describe", lambda which: (config, trained))
    tested = config.copy_and_resolve_references()
    tested.data.update(changes)
    source = open_source(tested.data, "test")
    try:
        run.check_classes("best", tested, source)
    except UserError as error:
        return str(error)
    return None


def test_a_run_is_tested_on_what_was_held_back_from_it_alone(config, monkeypatch):
    assert refused(config, monkeypatch) is None
    message = refused(config, monkeypatch, split="train")
    assert (
        "run was trained on ant, bee, cat, which folder tests: choose another data.split" in message
    )
    assert "data.fold or" in refused(config, monkeypatch, folds=1)
    config.data.folds = 3
    assert "data.folds" in refused(config, monkeypatch, folds=0)


def test_no_threshold_is_chosen_on_the_tested_images(config):
    config.eval.threshold = "base"
    source = open_source(config.data, "test")
    message = message_of(_choose_thresholds, config, None, None, source, None)
    assert message.startswith("data.folds = 0 holds out no classes: eval.threshold = base would")


def test_what_is_held_back_is_told_where_too_few_are_left(root, config):
    for number in range(2, 5):
        (root / "ant" / f"{number}.jpg").unlink()
        (root / "ant" / f"{number}.png").unlink()
    message = message_of(open_data, config)
    assert message.startswith(
        "class 'ant' has 0 images besides 2 that are held back for tests, but"
    )
    assert "shots = 1 needs 2 (the shots and a query), so 4 in all" in message
    for shots in range(1, 30):  # with so many in all, enough are left, and with fewer they are not
        table = [
            ClassTable.from_counts(np.ones((n, 1))).held_back([str(x) for x in range(n)])
            for n in range(50)
        ]
        left = [n - len(back) for n, back in enumerate(table)]
        assert left.index(shots + 1) == shots + 1 + max(2, shots // 4)


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
