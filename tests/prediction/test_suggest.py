"""Images to label next are unlike each other, and unlike what is labelled."""

import numpy as np
import pytest

from fsseg_jax.prediction.suggest import choose, embedding, least_confident


def unit(*rows):
    rows = np.array(rows, float)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_an_embedding_is_the_mean_of_each_map_over_the_classes_and_has_length_1():
    rng = np.random.default_rng(0)
    maps = {"a": rng.normal(size=(4, 6, 7)), "b": rng.normal(size=(2, 3, 4)), "scalar": 3.0}
    label = np.kron(np.array([[0, 1, 2], [0, 255, 0]]), np.ones((2, 2))).astype(np.uint8)
    for shown in ((label == 1) | (label == 2), np.ones_like(label, bool)):
        means = [maps["a"][shown].mean(axis=0), maps["b"][shown[::2, ::2]].mean(axis=0)]
        expected = np.concatenate([mean / np.linalg.norm(mean) for mean in means]) / np.sqrt(2)
        np.testing.assert_allclose(embedding(maps, label), expected, rtol=1e-4)
        label = np.zeros_like(label)  # and where nothing is found, all of it


def test_the_first_choice_is_what_lowers_the_doubtful_distances_most():
    rng = np.random.default_rng(3)
    candidates, labelled = unit(*rng.normal(size=(9, 4))), unit(*rng.normal(size=(2, 4)))
    doubts = rng.random(9)

    def left(chosen):
        known = np.concatenate([labelled, candidates[list(chosen)]])
        return sum(
            d * min(1 - x @ y for y in known) for d, x in zip(doubts, candidates, strict=True)
        )

    first, second, _ = choose(candidates, doubts, labelled, 3)
    assert first == min(range(9), key=lambda i: left([i]))
    assert second == min(set(range(9)) - {first}, key=lambda i: left([first, i]))


def test_the_least_confident_come_first():
    assert least_confident([0.3, 0.1, 0.2, 0.1], 3) == [1, 3, 2]


@pytest.mark.parametrize("count", [0, 2, 9])
def test_as_many_as_asked_for_or_all_are_chosen_once(count):
    candidates = unit(*np.random.default_rng(1).normal(size=(5, 3)))
    chosen = choose(candidates, np.full(5, 0.5), candidates[:1], count)
    assert len(chosen) == len({*chosen}) == min(count, 5)
