"""Figures agree with plain loops over pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsseg_jax.evaluation.metrics import episode_iou, iou, pixel_counts, run_metrics

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
