"""Losses: cross-entropy is PyTorch's, MFNet's are their equations in NumPy."""

import functools

import jax
import numpy as np
import pytest
from helpers import random, up_sampled, value_and_gradients

from fsseg_jax.episode import IGNORE
from fsseg_jax.models.losses import cross_entropy, focal_loss, metric_loss

CORNERS = pytest.mark.parametrize("align_corners", [False, True])
MANY = 4000  # keys, for statistics

# ----------------------------------------------------------------------------- cross-entropy


def labels(shape, classes, seed=0):
    label = np.random.default_rng(seed).integers(0, classes, shape).astype(np.uint8)
    label[..., :3] = IGNORE
    return label


@CORNERS
def test_cross_entropy_matches_pytorch(torch, align_corners):
    logits, label = 5 * random(3, 5, 6, 4), labels((3, 21, 30), 4)
    label[1, :15] = IGNORE  # episodes count a different number of pixels

    leaf = torch.tensor(logits, requires_grad=True)
    large = up_sampled(torch, leaf, label.shape[1:], align_corners)
    target = torch.tensor(label).long()
    expected = torch.stack(
        [
            torch.nn.functional.cross_entropy(one[None], target[i : i + 1], ignore_index=255)
            for i, one in enumerate(large)
        ]
    )
    expected.sum().backward()

    result, [gradient] = value_and_gradients(
        lambda x: cross_entropy(x, label, align_corners), np.ones(3), logits
    )
    np.testing.assert_allclose(result, expected.detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, leaf.grad, atol=1e-5, rtol=0)


@CORNERS
def test_cross_entropy_of_nothing_is_zero(align_corners):
    label = np.full((2, 20, 24), IGNORE, np.uint8)
    label[1, 5:9, 5:9] = 1
    losses, [gradient] = value_and_gradients(
        lambda x: cross_entropy(x, label, align_corners), np.ones(2), random(2, 5, 6, 3)
    )
    assert losses[0] == 0
    assert losses[1] > 0
    assert not gradient[0].any()
    assert np.isfinite(gradient).all()
    assert gradient[1].any()


# ----------------------------------------------------------------------------- focal loss


def focal_by_hand(logits, label, gamma):
    """Eq. 1 pixel by pixel, the mean over pixels that are not ignored."""
    logits = np.asarray(logits, np.float64)
    pixels = [(i, j) for i, j in np.ndindex(label.shape) if label[i, j] != IGNORE]
    total = 0.0
    for i, j in pixels:
        truth = label[i, j]
        probability = np.exp(logits[i, j, truth]) / np.exp(logits[i, j]).sum()
        share = sum(label[pixel] == truth for pixel in pixels) / len(pixels)
        weight = 1 / np.log(1.1 + share)
        total -= weight * (1 - probability) ** gamma * np.log(probability)
    return total / len(pixels)


def draw_logits(*shape, seed=0):
    return 2 * random(*shape, seed=seed)


focal = jax.jit(jax.value_and_grad(focal_loss), static_argnames="gamma")


@pytest.mark.parametrize("gamma", [2.0, 0.0, 1.5])
def test_focal_loss_is_its_equation(gamma):
    rng = np.random.default_rng(1)
    # Class 1 covers most of it, class 3 nothing, and some pixels are ignored.
    choices = np.array([0, 1, 1, 1, 2, IGNORE], np.uint8)
    logits, label = draw_logits(7, 9, 4), rng.choice(choices, (7, 9))
    value, _ = focal(logits, label, gamma=gamma)
    assert float(value) == pytest.approx(focal_by_hand(logits, label, gamma), rel=1e-5)


def test_focal_loss_ignores_pixels_as_if_they_were_cut_away():
    logits, label = draw_logits(7, 9, 3), np.random.default_rng(2).integers(0, 3, (7, 9))
    label = label.astype(np.uint8)
    label[:, 6:] = IGNORE
    logits[:, 6:] = 50 * draw_logits(7, 3, 3, seed=3)
    value, gradient = focal(logits, label, gamma=2.0)
    alone, gradient_alone = focal(logits[:, :6], label[:, :6], gamma=2.0)
    assert float(value) == pytest.approx(float(alone), rel=1e-6)
    assert not gradient[:, 6:].any()
    np.testing.assert_allclose(gradient[:, :6], gradient_alone, atol=1e-7)


def test_focal_loss_of_nothing_is_zero():
    value, gradient = focal(draw_logits(7, 9, 3), np.full((7, 9), IGNORE, np.uint8), gamma=2.0)
    assert float(value) == 0
    np.testing.assert_array_equal(gradient, 0)


def test_focal_loss_has_finite_gradients_where_the_network_is_sure():
    label = np.random.default_rng(2).integers(0, 3, (7, 9)).astype(np.uint8)
    logits = 200 * draw_logits(7, 9, 3)
    value, gradient = focal(logits, label, gamma=2.0)
    assert np.isfinite(float(value))
    assert np.isfinite(gradient).all()


# ----------------------------------------------------------------------------- metric loss

ROWS, COLUMNS = 5, 7


def pixels(*classified):
    """Labels and predictions of (ROWS, COLUMNS): background, but for (row, column, label,
    prediction) as given."""
    label, predicted = np.zeros((2, ROWS, COLUMNS), np.uint8)
    for row, column, truth, prediction in classified:
        label[row, column], predicted[row, column] = truth, prediction
    return label, predicted


@functools.partial(jax.jit, static_argnames=("positives", "anchors", "keys"))
def metric(label, predicted, embedding, margin=1.0, positives="spatial", anchors=20, keys=50):
    """The losses for so many keys, and the gradient of the mean."""
    logits = 3 * jax.nn.one_hot(predicted, 3)

    def losses(embedding):
        def one(key):
            return metric_loss(
                logits,
                embedding,
                label,
                key,
                positives=positives,
                anchors=anchors,
                margin=margin,
            )

        values = jax.vmap(one)(jax.random.split(jax.random.key(7), keys))
        return values.mean(), values

    gradient, values = jax.grad(losses, has_aux=True)(embedding)
    return values, gradient


def squared(embedding, one, other):
    return np.sum((embedding[one].astype(float) - embedding[other]) ** 2)


POSITIVES = pytest.mark.parametrize("positives", ["spatial", "random", "feature"])
ONE_OF_EACH = ((1, 1, 1, 1), (3, 4, 1, 0), (0, 6, 0, 1))  # anchor, positive, negative


@POSITIVES
@pytest.mark.parametrize("margin", [0.0, 1.0, 5.0])
def test_triplet_is_equation_6_where_there_is_nothing_to_draw(positives, margin):
    active = []
    for seed in range(6):
        embedding = random(ROWS, COLUMNS, 2, seed=seed)
        positive = squared(embedding, (1, 1), (3, 4))
        negative = squared(embedding, (1, 1), (0, 6))
        expected = max(positive - negative + margin, 0)
        active.append(expected > 0)
        values, _ = metric(*pixels(*ONE_OF_EACH), embedding, margin, positives=positives)
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
    assert any(active)
    assert margin > 0 or not all(active)


def test_gradient_is_of_the_three_pixels_of_the_triplet():
    """a pulls p and pushes n: with d = |a - p|^2 - |a - n|^2 + margin."""
    embedding = random(ROWS, COLUMNS, 2)
    a, p, n = embedding[1, 1], embedding[3, 4], embedding[0, 6]
    _, gradient = metric(*pixels(*ONE_OF_EACH), embedding, 50.0)
    expected = np.zeros_like(embedding)
    expected[1, 1], expected[3, 4], expected[0, 6] = 2 * (n - p), 2 * (p - a), 2 * (a - n)
    np.testing.assert_allclose(gradient, expected, atol=1e-4)


@POSITIVES
def test_mean_is_over_valid_triplets_only(positives):
    """Class 2 has twelve anchors but nothing was wrongly given to it: it does not count."""
    others = [(4, column, 2, 2) for column in range(7)] + [(2, c, 2, 2) for c in range(2, 7)]
    label, predicted = pixels(*ONE_OF_EACH, *others, (0, 0, 2, 0))
    embedding = random(ROWS, COLUMNS, 2)
    expected = squared(embedding, (1, 1), (3, 4)) - squared(embedding, (1, 1), (0, 6)) + 9
    values, _ = metric(label, predicted, embedding, 9.0, positives=positives)
    values = np.asarray(values)
    # Class 1's anchor is drawn with probability 1 - (12 / 13)^20 = 0.8.
    assert 0.5 < (values > 0).mean() < 1
    np.testing.assert_allclose(values[values > 0], expected, rtol=1e-4)


@pytest.mark.parametrize(
    "classified",
    [
        [],  # all is background, and found to be
        [(3, 4, 1, 0), (0, 6, 0, 1)],  # no anchor
        [(1, 1, 1, 1), (0, 6, 0, 1)],  # nothing missed
        [(1, 1, 1, 1), (3, 4, 1, 0)],  # nothing wrong
        [(1, 1, 1, 1), (3, 4, 2, 0), (0, 6, 0, 2)],  # another class's
        [(row, column, IGNORE, 1) for row in range(ROWS) for column in range(COLUMNS)],
    ],
)
def test_empty_pool_gives_no_loss_and_a_zero_gradient(classified):
    embedding = random(ROWS, COLUMNS, 2)
    for positives in ("spatial", "random", "feature"):
        values, gradient = metric(*pixels(*classified), embedding, 9.0, positives=positives)
        np.testing.assert_array_equal(values, 0)
        np.testing.assert_array_equal(gradient, 0)


@POSITIVES
def test_ignored_positions_are_never_drawn(positives):
    """Whatever is predicted there, and however tempting the embedding is."""
    free = [(2, column) for column in range(COLUMNS)] + [(4, column) for column in range(COLUMNS)]
    ignored = [(*where, IGNORE, number % 3) for number, where in enumerate(free)]
    label, predicted = pixels(*ONE_OF_EACH, *ignored)
    embedding = random(ROWS, COLUMNS, 2)
    embedding[2], embedding[4] = 100, embedding[1, 1]  # the farthest, and the nearest
    expected = squared(embedding, (1, 1), (3, 4)) - squared(embedding, (1, 1), (0, 6)) + 9
    values, gradient = metric(label, predicted, embedding, 9.0, positives=positives)
    np.testing.assert_allclose(values, expected, rtol=1e-4)
    drawn = np.asarray(gradient).any(axis=-1)
    assert drawn.sum() == 3
    assert not drawn[label == IGNORE].any()


# Which one was drawn is written into the loss: the anchor's embedding is 0, and the squares of the
# candidates' are 1, 2, 3, ...
ANCHOR = (2, 3)
CANDIDATES = ((2, 4), (1, 4), (2, 1), (4, 3), (0, 0), (4, 6))
DISTANCES = np.sqrt([1, 2, 4, 4, 13, 13])


def count_drawn(values, candidates=6):
    numbers = np.rint(np.asarray(values)).astype(int)
    np.testing.assert_allclose(values, numbers, atol=1e-3)
    assert numbers.min() >= 1
    return np.bincount(numbers - 1, minlength=candidates)


def chi_square(counts, weights):
    """The statistic; where the weights are right it is about len(counts) - 1."""
    expected = counts.sum() * np.asarray(weights) / np.sum(weights)
    return np.sum((counts - expected) ** 2 / expected)


LIMIT = 25  # of 5 degrees of freedom: exceeded by 1 in 7,000


def draw_losses(label, predicted, margin, positives):
    embedding = np.zeros((ROWS, COLUMNS, 2), np.float32)
    for number, at in enumerate(CANDIDATES, start=1):
        embedding[at] = [0, np.sqrt(number)]
    options = {"positives": positives, "anchors": 1, "keys": MANY}
    return np.asarray(metric(label, predicted, embedding, margin, **options)[0])


def draws_of_positives(positives):
    classified = pixels((*ANCHOR, 1, 1), (0, 6, 0, 1), *((*at, 1, 0) for at in CANDIDATES))
    return count_drawn(draw_losses(*classified, 0.0, positives))


def test_positives_are_drawn_by_their_nearness():
    counts = draws_of_positives("spatial")
    assert chi_square(counts, 1 / (1 + DISTANCES)) < LIMIT
    for others in (np.ones(6), 1 / DISTANCES, 1 / (1 + DISTANCES**2), 1 / (1 + DISTANCES) ** 2):
        assert chi_square(counts, others) > LIMIT


def test_random_positives_are_drawn_evenly():
    counts = draws_of_positives("random")
    assert chi_square(counts, np.ones(6)) < LIMIT
    assert chi_square(counts, 1 / (1 + DISTANCES)) > LIMIT


@pytest.mark.parametrize("positives", ["spatial", "random"])
def test_negatives_are_drawn_evenly(positives):
    classified = pixels((*ANCHOR, 1, 1), (0, 6, 1, 0), *((*at, 0, 1) for at in CANDIDATES))
    counts = count_drawn(10 - draw_losses(*classified, 10.0, positives))
    assert chi_square(counts, np.ones(6)) < LIMIT
    assert chi_square(counts, 1 / (1 + DISTANCES)) > LIMIT


def test_feature_distance_takes_the_farthest_positive_and_the_nearest_negative():
    positives, negatives = CANDIDATES[:3], CANDIDATES[3:]
    label, predicted = pixels(
        (*ANCHOR, 1, 1), *((*at, 1, 2) for at in positives), *((*at, 0, 1) for at in negatives)
    )
    embedding = random(ROWS, COLUMNS, 2)
    farthest = max(squared(embedding, ANCHOR, at) for at in positives)
    nearest = min(squared(embedding, ANCHOR, at) for at in negatives)
    values, _ = metric(label, predicted, embedding, 20.0, positives="feature")
    np.testing.assert_allclose(values, farthest - nearest + 20, rtol=1e-4)


def test_anchors_are_drawn_from_all_classes_together_but_the_background():
    """Three anchors of class 1 and one of class 2 are equally likely; the background has anchors,
    missed and wrong positions as well, and none is drawn."""
    label, predicted = pixels(
        *[(1, column, 1, 1) for column in range(3)],
        (1, 4, 2, 2),
        *[(3, 0, 1, 0), (3, 1, 0, 1)],  # the background's wrong one, and its missed one
        *[(3, 3, 2, 0), (3, 4, 0, 2)],
    )
    embedding = np.zeros((ROWS, COLUMNS, 2), np.float32)
    embedding[3, 0] = [1, 0]  # class 1's loss is 1,
    embedding[3, 3] = [1, 1]  # and class 2's 2
    embedding[0] = 1000
    values, gradient = metric(label, predicted, embedding, 0.0, anchors=1, keys=MANY)
    counts = count_drawn(values, 2)
    assert chi_square(counts, [3, 1]) < 15  # of 1 degree: exceeded by 1 in 9,000
    assert chi_square(counts, [1, 1]) > 15
    background = (label == 0) & (predicted == 0)
    assert not np.asarray(gradient)[background].any()


def test_loss_is_the_mean_over_the_anchors():
    """Twenty anchors, half of them of each of two classes on average, drawn independently."""
    label, predicted = pixels(
        *[(1, 0, 1, 1), (3, 0, 1, 0), (3, 1, 0, 1)], *[(1, 4, 2, 2), (3, 3, 2, 0), (3, 4, 0, 2)]
    )
    embedding = np.zeros((ROWS, COLUMNS, 2), np.float32)
    embedding[3, 0] = [1, 0]
    values, _ = metric(label, predicted, embedding, 0.0)
    counts = 20 * np.asarray(values)
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-3)
    assert counts.mean() == pytest.approx(10, abs=4 * np.sqrt(5 / 50))
    assert 1.5 < counts.var() < 12  # about 5


@POSITIVES
def test_expected_loss_is_what_all_triplets_give(positives):
    """One anchor, and every triplet of it with its probability, written out."""
    rng = np.random.default_rng(3)
    label = rng.choice(np.array([0, 0, 1, 2, IGNORE], np.uint8), (ROWS, COLUMNS))
    predicted = rng.integers(0, 3, (ROWS, COLUMNS)).astype(np.uint8)
    embedding, margin = random(ROWS, COLUMNS, 2), 1.0
    places = list(np.ndindex(ROWS, COLUMNS))
    anchors = [at for at in places if label[at] in (1, 2) and label[at] == predicted[at]]
    first = second = 0.0
    for anchor in anchors:
        own = label[anchor]
        missed = [at for at in places if label[at] == own != predicted[at]]
        wrong = [at for at in places if predicted[at] == own != label[at] and label[at] != IGNORE]
        if positives == "spatial":
            weights = [1 / (1 + np.hypot(*np.subtract(at, anchor))) for at in missed]
        else:
            weights = [1.0] * len(missed)
        if positives == "feature":
            missed = [max(missed, key=lambda at: squared(embedding, anchor, at))]
            wrong = [min(wrong, key=lambda at: squared(embedding, anchor, at))]
            weights = [1.0]
        for positive, weight in zip(missed, weights, strict=True):
            for negative in wrong:
                distance = squared(embedding, anchor, positive)
                loss = max(distance - squared(embedding, anchor, negative) + margin, 0)
                probability = weight / sum(weights) / len(wrong) / len(anchors)
                first += probability * loss
                second += probability * loss**2
    assert len({label[anchor] for anchor in anchors}) == 2
    values, _ = metric(
        label, predicted, embedding, margin, positives=positives, anchors=1, keys=MANY
    )
    error = np.sqrt((second - first**2) / MANY)
    assert np.mean(values) == pytest.approx(first, abs=4 * error)
    assert np.mean(np.square(values)) == pytest.approx(second, rel=0.15)
