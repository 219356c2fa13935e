"""Rendered images are reproducible and suit few-shot segmentation."""

import numpy as np
import pytest
from helpers import message_of
from helpers_data import rows_of

from fsseg_jax.data.sources.shapes import Shapes


@pytest.fixture(scope="module")
def shapes():
    return Shapes("train", 480, 48)


def test_images_do_not_depend_on_how_many_are_made(shapes):
    fewer = Shapes("train", 5, 48)
    for index in (4, 0, 3):
        for one, other in zip(fewer.read(index), shapes.read(index), strict=True):
            np.testing.assert_array_equal(one, other)


def test_training_and_validation_images_differ(shapes):
    val = Shapes("val", 5, 48)
    differences = [np.abs(val.read(i).image - shapes.read(i).image.astype(int)) for i in range(5)]
    assert min(difference.mean() for difference in differences) > 10


def test_folds_share_out_all_classes():
    held_out = [c for fold in Shapes.folds for c in fold]
    assert len(Shapes.classes) >= 20
    assert len(set(Shapes.classes)) == len(Shapes.classes)
    assert len(Shapes.folds) == 4
    assert sorted(held_out) == list(range(1, len(Shapes.classes) + 1))


def test_table_counts_the_pixels_of_the_labels(shapes):
    table = {row for row in rows_of(shapes.table) if row[0] < 40}
    areas = [np.bincount(shapes.read(index).label.ravel()) for index in range(40)]
    assert table == {
        (i, c, n) for i, area in enumerate(areas) for c, n in enumerate(area) if c and n
    }


def test_every_class_is_the_large_one_of_enough_images(shapes):
    eighth = 48 * 48 // 8
    items = shapes.table.items(list(shapes.class_names), eighth)
    assert items.count.min() >= 6


def test_nearly_every_image_has_a_distractor_and_background(shapes):
    classes = [set(np.unique(shapes.read(i).label)) for i in range(100)]
    assert all(0 in found for found in classes)
    assert np.mean([len(found - {0}) >= 2 for found in classes]) > 0.9


def test_instances_divide_the_objects(shapes):
    label, instance = (
        np.stack([read(i) for i in range(50)])
        for read in (lambda i: shapes.read(i).label, shapes.instances)
    )
    np.testing.assert_array_equal(label > 0, instance > 0)
    for one_label, one_instance in zip(label, instance, strict=True):
        for number in np.unique(one_instance[one_instance > 0]):
            assert len(np.unique(one_label[one_instance == number])) == 1
    assert instance.max() >= 4  # several of the main class, and others


def test_colour_does_not_tell_the_class(shapes):
    """Colours vary far more within classes than between them."""
    colours = {c: [] for c in shapes.class_names}
    for index in range(len(shapes)):
        image, label = shapes.read(index)
        for class_id in np.unique(label[label > 0]):
            if (label == class_id).sum() > 30:
                colours[class_id].append(image[label == class_id].mean(axis=0))
    means = np.array([np.mean(colours[c], axis=0) for c in colours])
    within = np.mean([np.var(colours[c], axis=0).sum() for c in colours])
    per_class = np.mean([len(colours[c]) for c in colours])
    expected = within / per_class  # of the means, if all classes draw from one distribution
    assert means.var(axis=0).sum() < 2 * expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("test", 5, 48), "split = 'test'"),
        (("train", 0, 48), "at least one"),
        (("train", 5, 8), "at least 32 pixels"),
        (("train", 10**6, 8192), "312500 GiB of memory, but"),
    ],
)
def test_wrong_arguments_are_named(arguments, expected):
    assert expected in message_of(Shapes, *arguments)


def test_digest_tells_sizes_and_numbers_apart():
    digests = [Shapes("val", *size).digest() for size in ((4, 32), (5, 32), (4, 40))]
    assert len(set(digests)) == 3
    assert Shapes("val", 4, 32).digest() == digests[0]
