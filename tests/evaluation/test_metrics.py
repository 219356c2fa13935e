"""Figures agree with those of NumPy over all pixels."""

import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import count

from fsseg_jax.evaluation.metrics import best_threshold, episode_iou, iou, pixel_counts, run_metrics

NAMES = {2: "cat", 5: "dog", 7: "cow", 9: "bus", 11: "rare"}


def make_run(ways, episodes=12, size=8, seed=0, density=0.6):
    """Predictions, labels and classes at random: some episodes lack classes, some pixels are
    ignored."""
    rng = np.random.default_rng(seed)
    classes = np.stack([rng.choice([2, 5, 7, 9], ways, replace=False) for _ in range(episodes)])
    prediction = rng.integers(0, ways + 1, (episodes, size, size))
    label = rng.integers(0, ways + 1, (episodes, size, size))
    for episode in range(episodes):
        for way in range(1, ways + 1):
            if rng.random() > density:
                label[episode][label[episode] == way] = 0
    label[rng.random(label.shape) < 0.2] = 255
    return prediction, label.astype(np.uint8), classes


def counts_of(prediction, label, ways, *counted):
    arrays = [jnp.asarray(x) for x in (prediction, label, *counted)]
    return np.stack([pixel_counts(p, y, ways, *c) for p, y, *c in zip(*arrays, strict=True)])


def counts_by_hand(prediction, label, ways):
    return np.stack([count(p, y, ways + 1) for p, y in zip(prediction, label, strict=True)])


def percent(counts):
    return 100 * counts[0] / sum(counts) if sum(counts) else None


@pytest.mark.parametrize("ways", [1, 3])
def test_pixel_counts_are_those_by_hand(ways):
    prediction, label, _ = make_run(ways)
    expected = counts_by_hand(prediction, label, ways)
    np.testing.assert_array_equal(counts_of(prediction, label, ways), expected)


def test_pixels_that_count_may_be_told():
    """255 is background among them; the others might have any label and any prediction."""
    prediction, label, _ = make_run(2)
    counted = np.random.default_rng(3).random(label.shape) < 0.7
    counts = counts_of(prediction, label, 2, counted)
    # By hand, for which only what does not count is 255.
    label = np.where(label == 255, 0, label)
    label[~counted] = 255
    np.testing.assert_array_equal(counts, counts_by_hand(prediction, label, 2))


def test_iou_of_nothing_is_unknown():
    values = iou(np.array([[3, 1, 2], [0, 0, 4], [0, 0, 0]]))
    np.testing.assert_array_equal(values, [50, 0, np.nan])


@pytest.mark.parametrize("ways", [1, 3])
def test_run_metrics_are_those_of_maps_of_class_ids(ways):
    prediction, label, classes = make_run(ways)
    result = run_metrics(counts_of(prediction, label, ways), classes, NAMES)

    ids = np.column_stack([np.zeros(12, int), classes])
    row, known = np.arange(12)[:, None, None], label != 255
    found, there = ids[row, prediction], np.where(known, ids[row, label * known], 255)
    per_class, per_class_star = {}, {}
    for class_id in (2, 5, 7, 9):
        shown = (there == class_id).any(axis=(1, 2))
        per_class[NAMES[class_id]] = percent(count(found[shown], there[shown], 10)[class_id])
        per_class_star[NAMES[class_id]] = percent(count(found, there, 10)[class_id])
    assert result["per_class"] == pytest.approx(per_class)
    assert result["mean_iou"] == pytest.approx(np.mean(list(per_class.values())))
    assert result["mean_iou_star"] == pytest.approx(np.mean(list(per_class_star.values())))
    assert result["mean_iou_star"] < result["mean_iou"]  # some queries lack a class


def test_three_definitions_of_binary_iou():
    """Of two ways, whose queries show both, one or none of them."""
    prediction, label, classes = make_run(2, episodes=40, density=0.5)
    shown = np.stack([(label == way).any(axis=(1, 2)) for way in (1, 2)], axis=1)
    assert {tuple(row) for row in shown.tolist()} == {(a, b) for a in (0, 1) for b in (0, 1)}
    label[0] = 1  # a query without background
    shown[0] = True, False
    with_ground = (label == 0).any(axis=(1, 2))
    assert not with_ground.all()
    result = run_metrics(counts_of(prediction, label, 2), classes, NAMES)

    merged = count(prediction > 0, np.where(label == 255, 255, label > 0), 2)
    assert result["binary_iou_merged"] == pytest.approx(np.mean([*map(percent, merged)]))

    counts = counts_by_hand(prediction, label, 2)

    def summed(objects, ground):
        """A pixel of one class given to another is wrong twice."""
        parts = counts[:, 1:][objects].sum(axis=0), counts[ground, 0].sum(axis=0)
        return np.mean([percent(part) for part in parts])

    everything = np.ones_like(shown), np.ones_like(with_ground)
    assert result["binary_iou"] == pytest.approx(summed(*everything))
    assert result["binary_iou_shown"] == pytest.approx(summed(shown, with_ground))
    values = [result[f"binary_iou{name}"] for name in ("", "_shown", "_merged")]
    assert values == sorted(set(values))  # each forgives more than the one before


@pytest.mark.parametrize("ways", [1, 2])
def test_the_best_threshold_is_that_of_the_best_mean_iou(ways):
    """Against all of them tried out, on made probabilities."""
    _, label, classes = make_run(ways, episodes=30)
    rng = np.random.default_rng(ways)
    noise = rng.uniform(0, 1, label.shape)
    sure = np.where((label > 0) & (label != 255), noise**0.4, noise)
    way = np.where((label > 0) & (label != 255), label, rng.integers(1, ways + 1, label.shape))
    thresholds = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    predictions = [np.where(sure > threshold, way, 0) for threshold in thresholds]
    counts = np.stack([counts_of(p, label, ways) for p in predictions], axis=1)
    figures = []
    for prediction in predictions:
        values = []
        for class_id in np.unique(classes):
            hit = union = 0
            for row, number in zip(*np.nonzero(classes == class_id), strict=True):
                there = label[row] == number + 1
                found = (prediction[row] == number + 1) & (label[row] != 255)
                if there.any():
                    hit, union = hit + (found & there).sum(), union + (found | there).sum()
            values.append(hit / union)
        figures.append(np.mean(values))
    best = thresholds[int(np.argmax(figures))]
    assert best not in (thresholds[0], 0.5, thresholds[-1])
    assert best_threshold(counts, classes, thresholds) == best


@pytest.mark.parametrize("ways", [1, 3])
def test_episode_iou_is_the_mean_of_the_ways_that_are_shown(ways):
    prediction, label, _ = make_run(ways)
    counts = counts_by_hand(prediction, label, ways)
    expected = []
    for episode in range(12):
        shown = [way for way in range(1, ways + 1) if (label[episode] == way).any()]
        values = [percent(counts[episode, way]) for way in shown]
        expected.append(np.mean(values) if values else 0)
    np.testing.assert_allclose(episode_iou(counts_of(prediction, label, ways)), expected)


@pytest.mark.parametrize(("wrong", "star"), [(0, 100), (4, 50)])
def test_a_class_that_no_query_shows_is_none_and_left_out_of_the_mean(wrong, star):
    """Its star is 0 if it is found where it is not, else none too."""
    label = np.zeros((3, 4, 4), np.uint8)
    label[:2, :2] = 1
    prediction = label.astype(int)
    prediction[2, 3, :wrong] = 1
    result = run_metrics(counts_of(prediction, label, 1), np.array([[2], [2], [11]]), NAMES)
    assert result["per_class"] == {"cat": 100, "rare": None}
    assert (result["mean_iou"], result["mean_iou_star"]) == (100, star)
