"""Objects of masks, against flood fills by hand."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from fsseg_jax.prediction.instances import classes_of, cleaned, parts_of, placed

STEPS = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]


def flood(inside, steps):
    """The connected parts, each as a set of pixels."""
    left, parts = set(map(tuple, np.argwhere(inside).tolist())), []
    while left:
        part, todo = set(), [left.pop()]
        while todo:
            y, x = todo.pop()
            part.add((y, x))
            near = {(y + a, x + b) for a, b in steps} & left
            left -= near
            todo += near
        parts.append(part)
    return parts


def by_hand(mask, min_area, fill_holes):
    result = mask.copy()
    for number in (1, 2):
        for part in flood(mask == number, STEPS):
            if len(part) < min_area:
                result[tuple(zip(*part, strict=True))] = 0
    if fill_holes:
        sides = [step for step in STEPS if 0 in step]
        for part in flood(result == 0, sides):
            near = {(y + a, x + b) for y, x in part for a, b in sides} - part
            if all(0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] for y, x in near):
                classes = {int(result[pixel]) for pixel in near}
                if len(classes) == 1:
                    result[tuple(zip(*part, strict=True))] = classes.pop()
    return result


@pytest.fixture(params=range(4))
def mask(request):
    rng = np.random.default_rng(request.param)
    return rng.choice(np.array([0, 1, 2], np.uint8), (23, 31), p=(0.3, 0.5, 0.2))


@pytest.mark.parametrize(
    ("min_area", "fill_holes"), [(0, True), (4, False), (4, True), (1, False), (10**30, False)]
)
def test_masks_are_cleaned_as_by_hand(mask, min_area, fill_holes):
    before = mask.copy()
    result = cleaned(mask, min_area, fill_holes)
    np.testing.assert_array_equal(result, by_hand(mask, min_area, fill_holes))
    np.testing.assert_array_equal(mask, before)
    assert (result != mask).any() == (min_area > 1 or fill_holes)


def test_a_ring_within_a_ring_keeps_its_class():
    mask = np.zeros((11, 11), np.uint8)
    for number, low, high in ((2, 1, 10), (0, 2, 9), (1, 4, 7), (0, 5, 6)):
        mask[low:high, low:high] = number
    result = cleaned(mask, fill_holes=True)
    assert result[5, 5] == 1
    assert result[3, 3] == 0  # between the two
    assert result[0, 0] == 0


def test_parts_are_the_connected_ones_largest_first(mask):
    expected = {n: sorted(map(len, flood(mask == n, STEPS)), reverse=True) for n in (1, 2)}
    seen = np.zeros_like(mask)
    areas = {1: [], 2: []}
    for number, place, inside in parts_of(mask):
        assert inside.any(axis=0).all() or inside.any(axis=1).all() or inside.size > 3
        assert (mask[place][inside] == number).all()
        seen[place][inside] += 1
        areas[number].append(int(inside.sum()))
    assert areas == expected
    np.testing.assert_array_equal(seen, mask > 0)


def whole_and_parts(mask):
    whole = (slice(None), slice(None))
    return [(n, whole, mask == n) for n in classes_of(mask)] + [*parts_of(mask)]


def test_objects_are_encoded_as_in_the_whole_image_by_pycocotools(mask):
    tall = mask.copy()
    tall[:, 5:9] = tall[:-1, 9] = tall[1:, 11:13] = 1  # over ends of columns, and not
    for picture in (mask, tall, np.ones_like(mask), mask[:1], mask[:, :1]):
        for _, place, inside in whole_and_parts(picture):
            full = np.zeros(picture.shape, np.uint8, order="F")
            full[place] = inside
            runs = coco_mask.encode(full)
            found = placed(inside, place, picture.shape)
            assert found["segmentation"]["counts"] == runs["counts"].decode()
            assert found["segmentation"]["size"] == [*picture.shape]
            assert found["bbox"] == coco_mask.toBbox(runs).tolist()
            assert found["area"] == coco_mask.area(runs)


def test_empty_masks_have_no_objects():
    empty = np.zeros((3, 4), np.uint8)
    assert classes_of(empty) == []
    assert list(parts_of(empty)) == []
    assert not cleaned(empty, 5, True).any()
