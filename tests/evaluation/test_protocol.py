"""The protocol: its hash changes with what makes figures incomparable, and with nothing else; its
episodes are drawn as it says."""

import json
import os

import jax
import numpy as np
import pytest
from helpers import message_of

from fsseg_jax.config import default_config, override
from fsseg_jax.data.sources.voc import CLASSES
from fsseg_jax.evaluation.protocol import (
    draw_episodes,
    earlier_protocol,
    protocol,
    protocol_episodes,
    tell_difference,
)
from fsseg_jax.models import create_model

PERSON = CLASSES.index("person") + 1


def settings(source, trained=None, **changes):
    config = training(backbone="small", **changes)
    return protocol(config, source, create_model(config), trained)


def training(**changes):
    config = default_config("panet")
    config.update_from_flattened_dict(changes)
    return config


def test_every_way_to_score_has_its_own_hash(make_source):
    outlines = [{"support_annotation": kind} for kind in ("box", "scribble", "point")]
    changes = [
        {},
        {"image_size": 321},
        {"data.min_pixels": 1},
        {"eval.runs": 1},
        {"eval.episodes": 10},
        {"eval.seed": 1},
        {"eval.episodes_file": "list.csv"},
        {"model.align_corners": True},
        {"model.ignored_is_background": False},
        {"dtype": "bfloat16"},
        *outlines,
        *({**outline, "annotation_width": 9} for outline in outlines[1:]),
        {"eval.scored_at": "photograph"},
        *({"eval.scales": x} for x in ((0.7, 1.0, 1.3), (0.7,), (0.7, 1.0), (1.0, 1.3))),
        {"eval.fit": "letterbox"},
        {"eval.fit": "own"},
        {"eval.border": "background"},
        {"eval.checkpoint": "last"},
        {"eval.checkpoint": "best_novel"},
        {"eval.sampling": "items"},
        {"eval.sampling": "photographs"},
        {"eval.setup": "metaseg"},
        {"eval.crf.iterations": 5},
        {"eval.crf.iterations": 1},
        {"eval.crf.iterations": 1, "eval.crf.smooth": (1.0, 3.0)},
        {"eval.crf.iterations": 1, "eval.crf.colour": (80.0, 13.0, 11.0)},
        {"data.split": "trainaug"},
        {"eval.feature_dtype": "float32"},
    ]
    source = make_source()
    hashes = [settings(source, **change)["hash"] for change in changes]
    assert len(set(hashes)) == len(changes)
    box = {"support_annotation": "box"}
    assert settings(source, **box, annotation_width=9) == settings(source, **box)


@pytest.mark.parametrize(
    "change",
    [
        {"eval.scales": (1,)},  # a number, however it is written
        {"train.steps": 7},
        {"train.select_on": "novel"},
        {"data.root": "/elsewhere"},
        {"data.fold": 1, "ways": 2, "shots": 5, "eval.gallery": 9, "eval.batch_size": 64},
        {"annotation_width": 9},  # of supports that have masks
        {"eval.crf.smooth": (1.0, 1.0)},  # of a field that is not used
        {"eval.protocol": "hsnet"},  # a name for what the other fields say
        {"data.split": "val"},  # the default by its name
        {"devices": 2},
        {"eval.buckets": 9},  # how queries of their own size are grouped
        {"eval.threshold": "base"},  # figures beside the main ones
    ],
    ids=str,
)
def test_folds_shots_and_speed_share_a_protocol_where_nothing_was_trained(make_source, change):
    source = make_source()
    assert settings(source, **change)["hash"] == settings(source)["hash"]


@pytest.mark.parametrize(
    "change",
    [
        {"shots": 5},
        {"train.select_on": "novel"},
        {"data.held_out_photographs": "drop"},
        {"data.train_min_pixels": 1},
        {"data.sampling": "items"},
        {"data.border": "background"},
    ],
    ids=str,
)
def test_how_the_model_was_trained_belongs_to_the_protocol(make_source, change):
    source = make_source()
    plain, changed = (settings(source, training(**c)) for c in ({}, change))
    assert changed["hash"] != plain["hash"]
    assert plain["hash"] != settings(source)["hash"]


@pytest.mark.parametrize(
    ("select_on", "checkpoint", "rule"),
    [
        ("base", "best", "the best on validation photographs of base classes"),
        ("base", "best_base", "the best on validation photographs of base classes"),
        ("novel", "best", "the best on the held-out classes"),
        ("base+novel", "best", "the best on validation photographs of base classes"),
        ("base+novel", "best_novel", "the best on the held-out classes"),
        ("validation+novel", "best", "the best on classes kept for validation"),
        ("base", "last", "the last"),
        ("base+novel", "last", "the last"),
    ],
)
@pytest.mark.parametrize("asked", ["last", "best", "best_novel"])
def test_the_rule_that_chose_the_checkpoint_is_told(
    make_source, select_on, checkpoint, rule, asked
):
    """By what there was, and by one name however it was asked for."""
    config = default_config()
    config.backbone, config.eval.checkpoint = "small", asked
    trained = training(**{"train.select_on": select_on})
    told = protocol(config, make_source(), create_model(config), trained, checkpoint)
    assert told["checkpoint rule"] == rule
    by_its_name = settings(make_source(), trained, **{"eval.checkpoint": checkpoint})
    assert told["hash"] == by_its_name["hash"]


def test_what_boxes_are_drawn_around_belongs_to_the_protocol(make_source):
    """The data set's own objects, or connected parts in their place."""
    source, without = make_source(), make_source()
    without.images = [(*pair[:2], None) for pair in without.images]
    assert settings(source) == settings(without)
    box = {"support_annotation": "box"}
    assert settings(source, **box)["hash"] != settings(without, **box)["hash"]


def test_a_list_has_the_protocol_of_its_scoring_alone(make_source):
    source, listed = make_source(), {"eval.episodes_file": "list.csv"}
    plain = settings(source, **listed)["hash"]
    for name, value in {"eval.runs": 1, "eval.seed": 3, "eval.episodes": 5}.items():
        assert settings(source, **listed, **{name: value})["hash"] == plain
    assert settings(source, **listed, **{"eval.fit": "letterbox"})["hash"] != plain


# ----------------------------------------------------------------------------- earlier ones


def protocol_of_version_0_1(told, **changes):
    """What version 0.1 wrote of the settings that it knew, from a protocol of now."""
    unknown = ("version", "masks", "border of queries", "checkpoint rule", "hash")
    unknown += ("training sampling", "training border", "training masks")
    old = {name: value for name, value in told.items() if name not in unknown}
    old |= {
        "photographs resized": "stretched to a square, bilinear with antialiasing; labels nearest",
        "ignored pixels of queries": "count for nothing",
        "episodes": "class uniform, then photographs uniform",
        "query": "from one of the ways",
    }
    return {**old, **changes, "hash": "0d1d0d1d"}


def told_of(path, described, log):
    log.clear()
    tell_difference(path, described)
    assert len(log.messages) <= 1
    return log.text


def test_results_of_version_0_1_are_told_to_be_of_another_protocol(make_source, tmp_path, log):
    now, path = settings(make_source()), tmp_path / "results.json"
    path.write_text(json.dumps({"mean_iou": 50.0, "protocol": protocol_of_version_0_1(now)}))
    assert earlier_protocol(path)["hash"] == "0d1d0d1d"
    text = told_of(path, now, log)
    assert f"has another protocol (0d1d0d1d, now {now['hash']})" in text
    assert "(written by a version with fewer settings)" in text  # and nothing else differs
    # What differs is named, in what both knew.
    other = settings(
        make_source(), **{"image_size": 321, "eval.border": "background", "eval.sampling": "items"}
    )
    text = told_of(path, other, log)
    assert "written by a version with fewer settings; " in text
    assert "image size: 417 before, 321 now" in text
    assert "border of queries: label 255 counts for nothing before, label 255 is" in text
    assert "episodes: class uniform, then photograph uniform before, each (class, photo" in text
    assert "checkpoint rule" not in text
    # Its queries in turn came in another order than those of now.
    each = "each photograph of a class in turn, from one of the ways"
    old = {"protocol": protocol_of_version_0_1(now, query=each)}
    path.write_text(json.dumps(old))
    assert f"query: {each} before, shows one of the ways now" in told_of(path, now, log)


def test_results_of_the_same_version_differ_in_what_was_changed(make_source, tmp_path, log):
    source, path = make_source(), tmp_path / "results.json"
    now = settings(source)
    path.write_text(json.dumps({"protocol": now}))
    assert not told_of(path, now, log)
    text = told_of(path, settings(source, **{"eval.checkpoint": "last", "eval.runs": 1}), log)
    assert "fewer settings" not in text
    assert "runs: 5 before, 1 now" in text
    rule = "checkpoint rule: the best by the run's own selection before, the last now"
    assert rule in text
    assert "version" not in text.split("protocol (")[1]


def test_results_of_an_untrained_model_differ_in_the_training(make_source, tmp_path, log):
    source, path = make_source(), tmp_path / "results.json"
    path.write_text(json.dumps({"protocol": settings(source)}))
    text = told_of(path, settings(source, training()), log)
    assert "training data: nothing before, voc now" in text
    assert "image size" not in text


def test_the_checkpoint_of_version_0_1_is_told_by_its_rule(make_source, tmp_path, log):
    source, path = make_source(), tmp_path / "results.json"
    now = settings(source, training())
    for selected_on, differs in (("base", False), ("novel", True)):
        old = protocol_of_version_0_1(now, checkpoint="best", **{"selected on": selected_on})
        path.write_text(json.dumps({"protocol": old}))
        text = told_of(path, now, log)
        assert ("checkpoint rule: the best on the held-out classes before" in text) == differs
        assert "selected on" not in text


DAMAGED = ("", "[1]", "{", '{"protocol": 5}', "[" * 100_000)


@pytest.mark.parametrize("content", [None, *DAMAGED, '{"mean_iou": 5.0}'])
def test_broken_or_older_results_are_no_trouble(make_source, tmp_path, log, content):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    text = told_of(path, settings(make_source()), log)
    assert ("has another protocol (none, now" in text) == (content == '{"mean_iou": 5.0}')


def test_a_protocol_of_anything_is_no_trouble(make_source, tmp_path, log):
    path, now = tmp_path / "results.json", settings(make_source())
    for old in ({"selected on": "x"}, {"selected on": 5, "checkpoint": []}, {"episodes": [5]}):
        path.write_text(json.dumps({"protocol": old}))
        assert "has another protocol" in told_of(path, now, log)
    path.unlink()
    os.mkfifo(path)
    assert not told_of(path, now, log)


# ----------------------------------------------------------------------------- episodes


def draw(source, which="novel", seed=0, count=None, **changes):
    config = training(**{"data.min_pixels": 1, **changes})
    return draw_episodes(config, source, which, seed, count)


def shows(source, class_id):
    """The images that show a class, from their labels."""
    return {i for i in range(len(source)) if (source.read(i).label == class_id).any()}


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def differ(one, other):
    return (one.query != other.query).mean() > 0.2


def test_each_item_is_the_query_once_before_any_comes_twice(make_source):
    source, ways, shots = make_source(), 2, 2
    options = {"eval.sampling": "items", "ways": ways, "shots": shots}
    novel = source.folds[0]
    items = {(i, c) for c in novel for i in shows(source, c)}
    count = 3 * len(items)
    episodes = draw(source, count=count, **options)
    table = [(image, c) for c in novel for image in sorted(shows(source, c))]  # rows of items
    asked = [table[row] for row in episodes.query_index]
    assert [image for image, _ in asked] == episodes.query.tolist()
    for start in range(0, count, len(items)):
        turn = asked[start : start + len(items)]
        assert set(turn) == items
        assert turn != sorted(turn)
        assert start == 0 or turn != asked[: len(items)]  # in an order of its own
    for row in range(count):
        classes, supports = episodes.classes[row].tolist(), episodes.supports[row]
        assert asked[row][1] in classes
        assert len(set(classes)) == ways
        assert set(classes) <= set(novel)
        assert episodes.query[row] not in supports
        for class_id, chosen in zip(classes, supports.tolist(), strict=True):
            assert len(set(chosen)) == shots
            assert set(chosen) <= shows(source, class_id)
    rows = zip(episodes.classes.tolist(), asked, strict=True)
    others = {c for classes, (_, class_id) in rows for c in classes if c != class_id}
    assert others == set(novel)  # the other class is drawn


def test_the_order_of_queries_depends_on_the_seed_alone(make_source):
    source = make_source()
    options = {"eval.sampling": "items"}
    items = sum(len(shows(source, c)) for c in source.folds[0])
    episodes = draw(source, count=items, **options)
    assert_same(draw(source, count=items, **options), episodes)
    assert_same(draw(source, count=7, **options), episodes.take(slice(7)))
    assert_same(draw(source, **{**options, "eval.episodes": 7}), episodes.take(slice(7)))
    others = draw(source, seed=1, count=items, **options)
    assert differ(others, episodes)
    assert set(others.query_index.tolist()) == set(episodes.query_index.tolist())


def test_runs_have_seeds_of_their_own(make_source):
    source = make_source()
    changes = {"data.min_pixels": 1, "eval.seed": 4, "eval.runs": 3, "eval.episodes": 20}
    config = training(**changes, **{"eval.sampling": "items"})
    runs = protocol_episodes(config, source)
    assert list(runs) == [4, 5, 6]
    for seed, episodes in runs.items():
        assert_same(episodes, draw(source, seed=seed, count=20, **{"eval.sampling": "items"}))


# ----------------------------------------------------------------------------- person and another


@pytest.fixture(scope="module")
def crowd(make_source):
    """A source whose second fold holds out person, with 9 other classes."""
    source = make_source(images=40, classes=20, shown=8)
    assert PERSON in source.folds[1]
    return source


METASEG = {"eval.setup": "metaseg", "ways": 2, "data.fold": 1}


@pytest.mark.parametrize("shots", [1, 3])
def test_person_and_another_class_are_in_all_images(crowd, shots):
    episodes = draw(crowd, count=200, shots=shots, **METASEG)
    assert episodes.classes.shape == (200, 2)
    assert episodes.supports.shape == (200, 2, shots)
    together = {c: shows(crowd, PERSON) & shows(crowd, c) for c in crowd.folds[1] if c != PERSON}
    possible = {c for c, images in together.items() if len(images) > shots}
    assert len(possible) > 2
    np.testing.assert_array_equal(episodes.classes[:, 0], PERSON)
    assert set(episodes.classes[:, 1].tolist()) == possible
    np.testing.assert_array_equal(episodes.supports[:, 0], episodes.supports[:, 1])
    for row in range(200):
        images = {*episodes.supports[row, 0].tolist(), int(episodes.query[row])}
        assert len(images) == shots + 1
        assert images <= together[int(episodes.classes[row, 1])]
    assert_same(draw(crowd, count=50, shots=shots, **METASEG), episodes.take(slice(50)))
    assert differ(draw(crowd, count=200, seed=1, shots=shots, **METASEG), episodes)


def test_pairs_are_chosen_by_the_area_of_both_classes(crowd):
    least = 150
    for ids in map(draw(crowd, count=50, **METASEG, **{"data.min_pixels": least}).take, range(50)):
        for image in (*ids.supports[0], ids.query):
            label = crowd.read(int(image)).label
            assert all((label == class_id).sum() >= least for class_id in ids.classes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": 1}, "ways = 1: eval.setup = metaseg needs 2 ways: set ways = 2."),
        ({"ways": 3}, "ways = 3: eval.setup = metaseg needs 2 ways: set ways = 2."),
        ({"data.fold": 0}, "eval.setup = metaseg needs a fold of memory that holds out person"),
        ({"shots": 30}, "no class has 31 images that show person too: lower shots or"),
        ({"data.min_pixels": 9000}, "no class has 2 images that show person too"),
    ],
    ids=str,
)
def test_what_metaseg_cannot_do_is_told_in_one_sentence(crowd, changes, message):
    assert message in message_of(draw, crowd, count=10, **{**METASEG, **changes})


# ----------------------------------------------------------------------------- other classes


def test_validation_classes_are_those_kept_from_training_and_test(make_source):
    source = make_source()
    source.folds, source.validation = ((1, 2),), (3, 4)
    found = {
        which: set(draw(source, which, count=80).classes.ravel().tolist())
        for which in ("novel", "validation", "base")
    }
    assert found == {"novel": {1, 2}, "validation": {3, 4}, "base": {5, 6}}
    config = override(default_config(), ["--config.train.select_on=validation"])
    config.data.min_pixels = 1
    episodes = draw_episodes(config, source, config.train.select_on, 0, 80)
    assert_same(episodes, draw(source, "validation", count=80))


def test_selection_by_metaseg_is_by_plain_episodes(crowd):
    """Base classes do not hold person out."""
    episodes = draw(crowd, "base", count=50, **METASEG)
    assert_same(episodes, draw(crowd, "base", count=50, **{**METASEG, "eval.setup": "one_of_ways"}))


def test_images_of_no_base_class_select_by_validation_classes(make_source):
    """As in FSS-1000, whose parts show different classes."""
    source = make_source()
    source.folds, source.validation = ((4, 5, 6),), (1, 2, 3)
    source.classes = (*source.classes, "aeroplane too", "bicycle too")
    message = message_of(draw, source, "base", count=10)
    assert "show no base classes: set train.select_on = validation" in message


@pytest.mark.parametrize(
    ("which", "changes", "message"),
    [
        ("validation", {}, "memory has no validation classes: choose another"),
        ("novel", {"ways": 4}, "ways = 4, but there are only 3 classes"),
        ("novel", {"shots": 30}, "lower shots or data.min_pixels"),
        ("base", {"data.min_pixels": 9000}, "has 0 images, but shots = 1 needs 2"),
        ("novel", {"shots": 30, "eval.sampling": "photographs"}, "lower shots or data.min_pixels"),
    ],
    ids=str,
)
def test_what_cannot_be_drawn_is_told_in_one_sentence(make_source, which, changes, message):
    assert message in message_of(draw, make_source(), which, count=10, **changes)
