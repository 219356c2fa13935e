"""Episodes annotate their supports by the marks as documented."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_annotations import box_of, draw_label, parts_of, possible_boxes

from fsseg_jax.data.annotations import (
    Annotation,
    annotated,
    choose,
    object_numbers,
    square_marks,
    strokes,
)

SHAPES = pytest.mark.parametrize(("ways", "shots"), [(1, 1), (1, 3), (2, 2), (3, 1), (3, 3)])


def draw_supports(seed, ways, shots, side=14):
    """Labels in episode numbering with rectangles of all ways and of 255, and object numbers.

    With odd seeds the way itself is missing in the first shot of the last way.
    """
    rng = np.random.default_rng(seed)
    label, marks = np.zeros((2, ways, shots, side, side), np.uint8)
    for way, shot in np.ndindex(ways, shots):
        for _ in range(rng.integers(2, 8)):
            top, left = rng.integers(0, side - 1, 2)
            bottom, right = np.add((top, left), rng.integers(1, 7, 2))
            value = rng.choice([*range(ways + 1), way + 1, 255])
            label[way, shot, top:bottom, left:right] = value
            # 0: one more than are numbered; another time the same number: in two parts.
            number = rng.integers(0, 5) if value not in (0, 255) else 0
            marks[way, shot, top:bottom, left:right] = number
    if seed % 2:
        label[-1, 0][label[-1, 0] == ways] = 0
    marks[(label == 0) | (label == 255)] = 0
    return label, marks


@SHAPES
def test_boxes_are_those_of_one_object_a_support(ways, shots):
    seen = set()
    for seed in range(30):
        label, marks = draw_supports(seed, ways, shots)
        bits = np.random.default_rng(seed).integers(0, 2**32, (ways, shots), np.uint32)
        result = annotated(label, marks, bits, "box")
        assert result.dtype == np.uint8
        for way, shot in np.ndindex(ways, shots):
            expected = possible_boxes(label[way, shot], marks[way, shot], ways, way + 1)
            matches = [bool((result[way, shot] == one).all()) for one in expected]
            assert any(matches)
            seen |= set(np.unique(result[way, shot]).tolist())
        if seed % 2:  # nothing to have a box
            assert not (result[-1, 0] == ways).any()
    assert seen == {*range(ways + 1), 254, 255}


@SHAPES
@pytest.mark.parametrize("kind", ["scribble", "point"])
def test_only_what_is_marked_keeps_its_label(ways, shots, kind):
    label, _ = draw_supports(0, ways, shots)
    marks = np.random.default_rng(1).integers(0, 2, label.shape, np.uint8)
    result = annotated(label, marks, np.zeros((ways, shots), np.uint32), kind)
    assert result.dtype == np.uint8
    for position in np.ndindex(label.shape):
        assert result[position] == (label[position] if marks[position] else 254)


def test_dense_labels_are_left_alone():
    label, marks = draw_supports(0, 2, 2)
    np.testing.assert_array_equal(annotated(label, marks, np.zeros((2, 2), int), "dense"), label)


@SHAPES
@pytest.mark.parametrize("kind", ["box", "scribble", "one_scribble"])
def test_compiled_annotations_are_those_of_numpy(ways, shots, kind):
    """On a batch of episodes inside a compiled function, as in the device pipeline."""
    labels, marks = map(
        np.stack, zip(*(draw_supports(s, ways, shots) for s in range(12)), strict=True)
    )
    bits = choose(5, np.arange(12), ways, shots)
    compiled = jax.jit(jax.vmap(functools.partial(annotated, kind=kind, xp=jnp)))
    result = compiled(labels, marks, bits)
    assert result.dtype == np.uint8
    expected = [annotated(*one, kind) for one in zip(labels, marks, bits, strict=True)]
    np.testing.assert_array_equal(result, expected)


def test_all_objects_of_a_way_get_the_box_equally_often():
    """Regardless of their sizes, and never an object of another way."""
    shots = 3000
    label, marks = np.zeros((2, 2, shots, 10, 10), np.uint8)
    areas = [(slice(0, 7), slice(0, 6)), (slice(8, 10), slice(0, 3)), (slice(9, 10), slice(9, 10))]
    for number, area in enumerate(areas, start=1):
        label[0, :, *area], marks[0, :, *area] = 1, number
    label[0, :, 0:3, 8:10], marks[0, :, 0:3, 8:10] = 2, 1
    bits = choose(0, np.arange(1), 2, shots)[0]
    chosen = annotated(label, marks, bits, "box")[0] == 1
    counts = [
        np.sum((chosen == box_of(marks[0, 0] * (label[0, 0] == 1) == n)).all((1, 2)))
        for n in (1, 2, 3)
    ]
    assert sum(counts) == shots
    deviation = np.sqrt(shots * 2 / 9)
    assert np.abs(np.array(counts) - shots / 3).max() < 4.5 * deviation


def test_largest_box_is_that_of_the_largest_object_whatever_the_bits():
    label = np.zeros((1, 1, 20, 20), np.uint8)
    label[..., 2:5, 2:5] = label[..., 8:18, 9:19] = 1
    marks = object_numbers(label[0, 0])[None, None]
    for bits in range(4):
        result = annotated(label, marks, np.full((1, 1), bits, np.uint32), "largest_box")[0, 0]
        assert (result[8:18, 9:19] == 1).all()
        assert (result == 1).sum() == 100
        assert (result[2:5, 2:5] == 254).all()


@SHAPES
def test_one_scribble_is_one_of_the_parts_of_its_own_way(ways, shots):
    """The strokes are those of "scribble", of which one and the background's remain."""
    annotation, values = Annotation("one_scribble", 1, 40), (1, 2, 1, 3, 2, 200)
    several = 0
    for seed in range(6):
        dense = [draw_label(100 * seed + number, values=values) for number in range(ways * shots)]
        marks = [square_marks(None, 0, label, annotation) for label in dense]
        dense, marks = (np.reshape(x, (ways, shots, 40, 50)) for x in (dense, marks))
        label = np.where((dense <= ways) | (dense == 255), dense, 0).astype(np.uint8)
        result = annotated(label, marks, choose(seed, np.arange(1), ways, shots)[0], "one_scribble")
        assert result.dtype == np.uint8
        for way, shot in np.ndindex(ways, shots):
            one, drawn = dense[way, shot], strokes(dense[way, shot], 1) > 0
            kept = result[way, shot] == way + 1
            assert set(np.unique(result[way, shot])) <= {0, way + 1, 254}
            np.testing.assert_array_equal(result[way, shot] == 0, drawn & (one == 0))
            possible = [set(part) for part in parts_of(drawn & (one == way + 1))]
            assert set(zip(*np.nonzero(kept), strict=True)) in (possible or [set()])
            several += len(possible) > 1
    assert several


def test_all_scribbles_of_a_class_are_chosen_equally_often():
    shots, label = 3000, np.zeros((40, 40), np.uint8)
    label[2:8, 2:30] = label[20:23, 5:25] = label[30:36, 20:26] = 1
    marks = square_marks(None, 0, label, Annotation("one_scribble", 1, 40))
    assert set(marks[label == 1].tolist()) == {0, 1, 2, 3}
    labels, all_marks = (np.broadcast_to(x, (1, shots, 40, 40)) for x in (label, marks))
    chosen = annotated(labels, all_marks, choose(0, np.arange(1), 1, shots)[0], "one_scribble")[0]
    counts = [((chosen == 1) == (marks == number)).all((1, 2)).sum() for number in (1, 2, 3)]
    assert sum(counts) == shots
    assert np.abs(np.array(counts) - shots / 3).max() < 4.5 * np.sqrt(shots * 2 / 9)


def test_choices_are_of_the_episode_alone_and_the_same_when_compiled():
    numbers = np.array([0, 1, 7, 2**29, 2**31 - 1])
    bits = choose(3, numbers, 2, 3)
    assert bits.shape == (5, 2, 3)
    assert bits.dtype == np.uint32
    compiled = jax.jit(functools.partial(choose, 3, ways=2, shots=3, xp=jnp))
    np.testing.assert_array_equal(compiled(numbers.astype(np.int32)), bits)
    np.testing.assert_array_equal(choose(3, numbers[2:3], 2, 3), bits[2:3])
    assert len(np.unique(bits)) == bits.size  # each support has its own
    assert (choose(4, numbers, 2, 3) != bits).all()
