"""Figures agree with plain loops over pixels."""

import jax.numpy as jnp
import numpy as np
import pytest

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


def count(prediction, label, chosen):
    """TP, FP and FN by a loop; `chosen` tells from (prediction or label, episode) what is meant."""
    true_positive = false_positive = false_negative = 0
    for place in np.ndindex(*label.shape):
        if label[place] == 255:
            continue
        found, there = chosen(prediction[place], place[0]), chosen(label[place], place[0])
        true_positive += found and there
        false_positive += found and not there
        false_negative += there and not found
    return true_positive, false_positive, false_negative


def percent(counts):
    return 100 * counts[0] / sum(counts) if sum(counts) else None


@pytest.mark.parametrize("ways", [1, 3])
def test_pixel_counts_match_a_loop(ways):
    prediction, label, _ = make_run(ways)
    counts = counts_of(prediction, label, ways)
    assert counts.shape == (12, ways + 1, 3)
    for episode in range(12):
        for value in range(ways + 1):
            expected = count(
                prediction[[episode]], label[[episode]], lambda x, _, value=value: x == value
            )
            assert tuple(counts[episode, value]) == expected


def test_pixels_that_count_may_be_told():
    """255 is background among them; the others might have any label and any prediction."""
    prediction, label, _ = make_run(2)
    counted = np.random.default_rng(3).random(label.shape) < 0.7
    counts = counts_of(prediction, label, 2, counted)
    # By a loop, for which only what does not count is 255.
    label = np.where(label == 255, 0, label)
    label[~counted] = 255
    for value in range(3):
        expected = count(prediction, label, lambda x, _, value=value: x == value)
        assert tuple(counts[:, value].sum(axis=0)) == expected


def test_iou_of_nothing_is_unknown():
    values = iou(np.array([[3, 1, 2], [0, 0, 4], [0, 0, 0]]))
    np.testing.assert_array_equal(values, [50, 0, np.nan])


@pytest.mark.parametrize("ways", [1, 3])
def test_run_metrics_match_a_loop(ways):
    prediction, label, classes = make_run(ways)
    result = run_metrics(counts_of(prediction, label, ways), classes, NAMES)

    per_class, per_class_star = {}, {}
    for class_id in (2, 5, 7, 9):

        def is_class(value, episode, class_id=class_id):
            return 0 < value <= ways and classes[episode][value - 1] == class_id

        with_class = [
            episode
            for episode in range(12)
            if any(is_class(value, episode) for value in label[episode].ravel() if value != 255)
        ]
        only = count(
            prediction[with_class],
            label[with_class],
            lambda x, row, e=with_class, f=is_class: f(x, e[row]),
        )
        per_class[NAMES[class_id]] = percent(only)
        per_class_star[NAMES[class_id]] = percent(count(prediction, label, is_class))
    assert result["per_class"] == pytest.approx(per_class)
    assert result["mean_iou"] == pytest.approx(np.mean(list(per_class.values())))
    assert result["mean_iou_star"] == pytest.approx(np.mean(list(per_class_star.values())))
    assert result["mean_iou_star"] < result["mean_iou"]  # some queries lack a class

    background = percent(count(prediction, label, lambda x, _: x == 0))
    # Each way on its own: a pixel of one class given to another is wrong twice.
    ways_counts = [
        count(prediction, label, lambda x, _, way=way: x == way) for way in range(1, ways + 1)
    ]
    foreground = percent(np.sum(ways_counts, axis=0))
    assert result["binary_iou"] == pytest.approx((background + foreground) / 2)


def two_class_iou(found, there, counted):
    """The mean IoU of a mask and of all else, in percent, over maps of many episodes."""
    pairs = ((found, there), (~found, ~there))
    return np.mean([100 * (f & t & counted).sum() / ((f | t) & counted).sum() for f, t in pairs])


def test_three_definitions_of_binary_iou():
    """Of two ways, whose queries show both, one or none of them."""
    prediction, label, classes = make_run(2, episodes=40, density=0.5)
    shown = np.stack([(label == way).any(axis=(1, 2)) for way in (1, 2)])
    assert {tuple(row) for row in shown.T.tolist()} == {(a, b) for a in (0, 1) for b in (0, 1)}
    label[0] = 1  # a query without background
    result = run_metrics(counts_of(prediction, label, 2), classes, NAMES)

    counted = label != 255
    merged = two_class_iou(prediction > 0, label > 0, counted)
    assert result["binary_iou_merged"] == pytest.approx(merged)

    # Each class on maps of its own, one above the other.
    found, there, counted_twice = (
        np.stack([part(way) for way in (1, 2)])
        for part in (lambda w: prediction == w, lambda w: label == w, lambda w: counted)
    )
    ground = [(prediction == 0), (label == 0)]

    def summed(kept, kept_ground):
        objects = (found & there & counted_twice)[kept].sum()
        objects /= ((found | there) & counted_twice)[kept].sum()
        free = (ground[0] & ground[1] & counted)[kept_ground].sum()
        free /= ((ground[0] | ground[1]) & counted)[kept_ground].sum()
        return 100 * (objects + free) / 2

    everything = np.ones((2, 40), bool), np.ones(40, bool)
    assert result["binary_iou"] == pytest.approx(summed(*everything))
    with_ground = (label == 0).any(axis=(1, 2))
    assert not with_ground.all()
    shown = np.stack([(label == way).any(axis=(1, 2)) for way in (1, 2)])
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
def test_episode_iou_matches_a_loop(ways):
    prediction, label, _ = make_run(ways)
    expected = []
    for episode in range(12):
        values = [
            percent(count(prediction[[episode]], label[[episode]], lambda x, _, way=way: x == way))
            for way in range(1, ways + 1)
            if (label[episode] == way).any()
        ]
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
