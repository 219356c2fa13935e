"""The made photographs: repeatable, varied, and with nothing but shape and texture to go by."""

import numpy as np
import pytest

from fsseg_jax.data.shapes import KINDS, REACH, Shapes, render
from fsseg_jax.errors import UserError

SIZE, PIXELS = 960, 48  # forty turns of every class as the main one


@pytest.fixture(scope="module")
def train():
    return Shapes("train", SIZE, PIXELS)


@pytest.fixture(scope="module")
def labels(train):
    return np.stack([train.read(index).label for index in range(SIZE)])


@pytest.fixture(scope="module")
def colours(train, labels):
    """Mean colour of each item, a (class, photograph) pair, with the class in front."""
    table, images = train.table, np.stack([train.read(index).image for index in range(SIZE)])
    pairs = zip(table.photograph, table.class_id, strict=True)
    return np.array([[c, *images[p][labels[p] == c].mean(axis=0)] for p, c in pairs])


def test_a_photograph_depends_on_split_number_and_size_alone(train):
    for index in (30, 3, 17):  # neither in order, nor from the first on, nor in one split's size
        for made, kept in zip(render("train", index, PIXELS), train.read(index), strict=True):
            np.testing.assert_array_equal(made, kept)
    assert (
        Shapes("train", 4, PIXELS).ids == train.ids[:4] == tuple(f"train_00000{i}" for i in "0123")
    )


def test_photographs_and_splits_differ(train):
    val = Shapes("val", 24, PIXELS)
    images = [source.read(index).image for source in (train, val) for index in range(24)]
    assert len({image.tobytes() for image in images}) == len(images)
    assert not set(val.ids) & set(train.ids)


def test_read_gives_bytes_that_a_caller_cannot_spoil(train):
    photograph = train.read(0)
    assert photograph.image.shape == (PIXELS, PIXELS, 3)
    assert photograph.label.shape == photograph.instance.shape == (PIXELS, PIXELS)
    for array in photograph:
        assert array.dtype == np.uint8
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_photographs_of_different_sides_show_the_same_scene():
    for index in range(6):
        small, large = (render("val", index, pixels).label for pixels in (48, 96))
        assert (small == large[::2, ::2]).mean() > 0.9


def test_folds_are_disjoint_and_cover_all_classes():
    held_out = [class_id for fold in Shapes.folds for class_id in fold]
    assert len(Shapes.folds) == 4
    assert sorted(held_out) == list(range(1, len(Shapes.classes) + 1))
    assert len(set(Shapes.classes)) == len(Shapes.classes) == 24


def test_no_two_classes_share_a_shape_or_a_texture():
    """By what they draw: each pair of classes differs in both, from the same random numbers."""
    axis = np.linspace(-1, 1, 40, dtype=np.float32)
    x, y = axis[None], axis[:, None]
    for draw in (
        lambda kind: kind.shape(x, y, np.random.default_rng(0)) < 0,
        lambda kind: kind.texture(4 * x, 4 * y, np.random.default_rng(0)) > 0.5,
    ):
        drawn = [np.broadcast_to(draw(kind), (40, 40)) for kind in KINDS]
        for i, first in enumerate(drawn):
            for second in drawn[:i]:
                assert 0.02 < (first != second).mean() < 0.98


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_shapes_end_within_reach_and_textures_mix_two_colours(kind):
    axis = np.linspace(-2, 2, 80, dtype=np.float32)
    x, y = axis[None], axis[:, None]
    for seed in range(5):
        inside = kind.shape(x, y, np.random.default_rng(seed)) < 0
        assert np.hypot(x, y)[inside].max() < REACH
        mix = kind.texture(4 * x, 4 * y, np.random.default_rng(seed))
        assert mix.dtype == np.float32  # float64 would double the time
        assert -1e-6 <= mix.min() < 0.25
        assert 0.75 < mix.max() <= 1 + 1e-6


def test_table_agrees_with_the_labels(train, labels):
    counted = np.zeros((SIZE, 25), int)
    counted[train.table.photograph, train.table.class_id] = train.table.pixels
    expected = [[(label == class_id).sum() for class_id in range(25)] for label in labels]
    np.testing.assert_array_equal(counted[:, 1:], np.array(expected)[:, 1:])


def test_every_class_has_photographs_enough_and_of_similar_area(train):
    table = train.table
    photographs = [(table.class_id == class_id).sum() for class_id in train.class_names]
    assert min(photographs) >= SIZE // 24
    areas = [np.median(table.pixels[table.class_id == c]) for c in train.class_names]
    assert max(areas) < 2 * min(areas)
    assert (table.pixels > 0.03 * PIXELS**2).mean() > 0.95


def test_every_photograph_holds_its_main_class_and_others(train, labels):
    shown = [set(np.unique(label)) - {0} for label in labels]
    main = [index % 24 + 1 in classes for index, classes in enumerate(shown)]
    assert np.mean(main) > 0.97  # the rest are hidden behind others
    assert np.mean([len(classes) > 1 for classes in shown]) > 0.95
    others = {c for index, classes in enumerate(shown) for c in classes - {index % 24 + 1}}
    assert others == set(train.class_names)
    assert all((label == 0).any() for label in labels)


def test_an_instance_is_of_one_class_and_background_of_none(train):
    repeated = 0
    for index in range(48):
        _, label, instance = train.read(index)
        np.testing.assert_array_equal(label == 0, instance == 0)
        classes = [np.unique(label[instance == n]) for n in np.unique(instance[instance > 0])]
        assert all(len(found) == 1 for found in classes)
        repeated += len(classes) > len(np.unique(label)) - 1
    assert repeated > 8  # photographs that show one class twice


def test_colour_does_not_tell_the_class(colours):
    """One-way analysis of variance of each channel: without an effect F is about 1."""
    classes, values = colours[:, 0], colours[:, 1:]
    groups = [values[classes == class_id] for class_id in np.unique(classes)]
    means = np.array([group.mean(axis=0) for group in groups])
    sizes = np.array([len(group) for group in groups])
    between = (sizes[:, None] * (means - values.mean(axis=0)) ** 2).sum(axis=0)
    within = sum(((group - group.mean(axis=0)) ** 2).sum(axis=0) for group in groups)
    f = between / (len(groups) - 1) / (within / (len(values) - len(groups)))
    assert f.max() < 1.9  # the 99.5 % point of F(23, 2000) is 1.92


def test_colours_vary_within_a_class(colours):
    for class_id in np.unique(colours[:, 0]):
        assert colours[colours[:, 0] == class_id, 1:].std(axis=0).mean() > 12


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("test", 5), "'test'"), (("train", 0), "0 photographs"), (("val", 5, 8), "pixels = 8")],
)
def test_wrong_arguments_are_named(arguments, named):
    with pytest.raises(UserError, match=named):
        Shapes(*arguments)
