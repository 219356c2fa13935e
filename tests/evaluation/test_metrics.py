"""Figures agree with plain loops over pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsseg_jax.evaluation.metrics import (
    best_threshold,
    episode_iou,
    iou,
    pixel_counts,
    run_metrics,
)

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


def counts_of(prediction, label, ways):
    return np.stack(
        [
            pixel_counts(jnp.asarray(p), jnp.asarray(y), ways)
            for p, y in zip(prediction, label, strict=True)
        ]
    )


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


def test_ignored_pixels_count_for_nothing():
    prediction, label, _ = make_run(2)
    ignored = np.broadcast_to(label == 255, prediction.shape)
    others = np.where(ignored, (prediction + 1) % 3, prediction)
    np.testing.assert_array_equal(counts_of(prediction, label, 2), counts_of(others, label, 2))
    assert not counts_of(prediction, np.full_like(label, 255), 2).any()


def test_pixels_that_count_may_be_told():
    """255 is background among them; the others might have any label and any prediction."""
    prediction, label, _ = make_run(2)
    counted = np.random.default_rng(3).random(label.shape) < 0.7
    counts = np.stack(
        [
            pixel_counts(jnp.asarray(p), jnp.asarray(y), 2, jnp.asarray(c))
            for p, y, c in zip(prediction, label, counted, strict=True)
        ]
    )
    # By a loop, for which only what does not count is 255.
    label = np.where(label == 255, 0, label)
    label[~counted] = 255
    for value in range(3):
        expected = count(prediction, label, lambda x, _, value=value: x == value)
        assert tuple(counts[:, value].sum(axis=0)) == expected


def test_pixel_counts_compile_and_batch():
    prediction, label, _ = make_run(2)
    batched = jax.jit(jax.vmap(lambda p, y: pixel_counts(p, y, 2)))(prediction, label)
    np.testing.assert_array_equal(batched, counts_of(prediction, label, 2))


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
    values = []
    for f, t in ((found, there), (~found, ~there)):
        values.append(100 * (f & t & counted).sum() / ((f | t) & counted).sum())
    return np.mean(values)


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
    shown = np.stack([(label == way).any(axis=(1, 2)) for way in (1, 2)])
    with_ground = (label == 0).any(axis=(1, 2))
    assert not with_ground.all()
    assert result["binary_iou_shown"] == pytest.approx(summed(shown, with_ground))
    names = ("binary_iou", "binary_iou_shown", "binary_iou_merged")
    values = [result[name] for name in names]
    assert values == sorted(set(values))  # each forgives more than the one before


def test_definitions_of_binary_iou_agree_for_one_way_that_is_shown():
    prediction, label, classes = make_run(1, density=1)
    result = run_metrics(counts_of(prediction, label, 1), classes, NAMES)
    expected = two_class_iou(prediction > 0, label > 0, label != 255)
    for name in ("binary_iou", "binary_iou_shown", "binary_iou_merged"):
        assert result[name] == pytest.approx(expected)


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


def test_a_class_without_pixels_is_none_and_left_out_of_the_mean():
    label = np.zeros((3, 4, 4), np.uint8)
    label[:2, :2] = 1
    prediction = label.astype(int)
    prediction[0, 0, 0] = 0
    counts = counts_of(prediction, label, 1)
    result = run_metrics(counts, np.array([[2], [2], [11]]), NAMES)
    assert result["per_class"] == {"cat": pytest.approx(100 * 15 / 16), "rare": None}
    assert result["mean_iou"] == result["mean_iou_star"] == pytest.approx(100 * 15 / 16)


def test_an_absent_class_costs_mean_iou_nothing_and_mean_iou_star_something():
    label = np.zeros((2, 4, 4), np.uint8)
    label[0, :2] = 1
    prediction = label.astype(int)
    prediction[1, 0] = 1  # four pixels of a class that the second query lacks
    result = run_metrics(counts_of(prediction, label, 1), np.array([[2], [2]]), NAMES)
    assert result["mean_iou"] == 100
    assert result["mean_iou_star"] == pytest.approx(100 * 8 / 12)


def test_both_means_agree_where_every_query_shows_its_class():
    prediction, label, classes = make_run(1, density=1)
    assert (label == 1).any((1, 2)).all()
    result = run_metrics(counts_of(prediction, label, 1), classes, NAMES)
    assert result["mean_iou"] == result["mean_iou_star"]


def test_pixels_are_summed_before_dividing():
    label = np.zeros((2, 10, 10), np.uint8)
    label[0, 0, 0] = 1  # a small object, found
    label[1, :9] = 1  # a large one, missed
    prediction = np.zeros((2, 10, 10), int)
    prediction[0, 0, 0] = 1
    counts = counts_of(prediction, label, 1)
    result = run_metrics(counts, np.array([[2], [2]]), NAMES)
    assert result["mean_iou"] == pytest.approx(100 / 91)
    np.testing.assert_allclose(episode_iou(counts), [100, 0])


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


def test_a_query_without_its_classes_has_iou_0():
    counts = counts_of(np.ones((1, 4, 4), int), np.zeros((1, 4, 4), np.uint8), 1)
    assert episode_iou(counts).tolist() == [0]


def test_a_class_that_is_only_found_where_it_is_not_has_no_iou_but_a_star_of_0():
    """No query shows it: mean_iou leaves it out, mean_iou_star counts the wrong pixels."""
    label = np.zeros((3, 4, 4), np.uint8)
    label[:2, :2] = 1
    prediction = label.astype(int)
    prediction[2, 3] = 1
    result = run_metrics(counts_of(prediction, label, 1), np.array([[2], [2], [11]]), NAMES)
    assert result["per_class"] == {"cat": 100, "rare": None}
    assert (result["mean_iou"], result["mean_iou_star"]) == (100, 50)


def test_classes_weigh_the_same_however_often_they_are_drawn():
    """Repeating one class's episodes moves nothing but the binary figure."""
    prediction, label, classes = make_run(1, density=1)
    counts = counts_of(prediction, label, 1)
    rows = np.concatenate([np.arange(12), *[np.flatnonzero(classes[:, 0] == 2)] * 5])
    assert len(rows) > 12
    once, often = (run_metrics(counts[x], classes[x], NAMES) for x in (np.arange(12), rows))
    assert often["per_class"] == pytest.approx(once["per_class"])
    assert often["mean_iou"] == often["mean_iou_star"] == pytest.approx(once["mean_iou"])
    assert often["binary_iou"] != pytest.approx(once["binary_iou"])


def test_the_order_of_the_ways_is_no_matter():
    prediction, label, classes = make_run(3)
    turned = np.array([0, 2, 3, 1])  # what was way 1 is way 2 now
    other = np.where(label == 255, 255, turned[np.where(label == 255, 0, label)]).astype(np.uint8)
    one = run_metrics(counts_of(prediction, label, 3), classes, NAMES)
    two = run_metrics(counts_of(turned[prediction], other, 3), classes[:, [2, 0, 1]], NAMES)
    assert one["per_class"] == pytest.approx(two["per_class"])
    for name in ("mean_iou", "mean_iou_star", "binary_iou"):
        assert one[name] == pytest.approx(two[name])
