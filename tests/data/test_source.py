"""The class table yields exactly the items that the filters allow."""

import numpy as np
import pytest
from helpers import message_of
from helpers_annotations import shrunk
from PIL import Image

from fsseg_jax.data.parallel import parallel_map
from fsseg_jax.data.source import ClassTable, existing_root
from fsseg_jax.data.squares import read_square

# Pixels of classes 1..4 in six images.
COUNTS = np.array(
    [
        [0, 500, 20, 0],
        [9, 0, 0, 0],
        [0, 100, 0, 99],
        [0, 99, 0, 100],
        [300, 101, 0, 0],
        [0, 0, 0, 0],
    ]
)


def rows_of(items):
    """The images of each class."""
    stops = items.start + items.count
    return {
        int(class_id): items.image[start:stop].tolist()
        for class_id, start, stop in zip(items.class_id, items.start, stops, strict=True)
    }


def expected_rows(class_ids, min_pixels, without=()):
    return {
        class_id: [
            image
            for image, pixels in enumerate(COUNTS)
            if pixels[class_id - 1] >= min_pixels and not any(pixels[c - 1] for c in without)
        ]
        for class_id in class_ids
    }


def test_table_holds_what_occurs():
    table = ClassTable.from_counts(COUNTS)
    rows = zip(table.image, table.class_id, table.pixels, strict=True)
    assert {tuple(map(int, row)) for row in rows} == {
        (image, class_id, int(COUNTS[image, class_id - 1]))
        for image in range(6)
        for class_id in range(1, 5)
        if COUNTS[image, class_id - 1]
    }


@pytest.mark.parametrize("min_pixels", [1, 9, 10, 100, 101, 1000])
def test_min_pixels_is_the_least_area(min_pixels):
    class_ids = (1, 2, 3, 4) if min_pixels == 1 else (1, 2, 4)
    items = ClassTable.from_counts(COUNTS).items(class_ids, min_pixels)
    assert rows_of(items) == expected_rows(class_ids, min_pixels)


@pytest.mark.parametrize(
    ("least", "without"), [(1, (3,)), (1, (1, 4)), (1, (1, 2, 3, 4)), (100, (3,))]
)
def test_any_pixel_of_another_class_leaves_an_image_out(least, without):
    items = ClassTable.from_counts(COUNTS).items((2,), least, without)
    assert rows_of(items) == expected_rows((2,), least, without)


def test_items_are_sorted_whatever_the_order_of_table_and_classes():
    table = ClassTable.from_counts(COUNTS)
    order = np.random.default_rng(0).permutation(len(table.image))
    shuffled = ClassTable(table.image[order], table.class_id[order], table.pixels[order])
    for class_ids in ((4, 1, 2), (2, 4, 1)):
        items = shuffled.items(class_ids)
        assert items.class_id.tolist() == [1, 2, 4]
        assert rows_of(items) == expected_rows((1, 2, 4), 1)


def test_read_square_resizes_as_pillow_does(make_source):
    source = make_source(images=2)
    image, label = source.read(1)
    square, square_label = read_square(source, 1, 24)
    expected = Image.fromarray(image).resize((24, 24), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(square, np.asarray(expected))
    np.testing.assert_array_equal(square_label, shrunk(label, 24))


def test_parallel_map_keeps_the_order():
    assert parallel_map(lambda number: number**2, range(50), "squares") == [
        number**2 for number in range(50)
    ]


def test_the_home_of_nobody_is_no_folder():
    assert "data.root = ~nobody-at-all/x: there is no" in message_of(
        existing_root, "~nobody-at-all/x", "folder"
    )
