"""What left-out supports tell, against searches by hand."""

import numpy as np
import pytest
from scipy.special import expit, log_softmax, logit, softmax
from scipy.stats import norm

from fsseg_jax.config import default_config
from fsseg_jax.episode import UNLABELLED
from fsseg_jax.prediction import calibration
from fsseg_jax.prediction.calibration import (
    BORDER,
    LIKENESS,
    MARGIN,
    THRESHOLDS,
    Calibration,
    LeftOut,
    best_threshold,
    calibrated,
    iou_of,
    plain,
    presence,
    scores,
    threshold_counts,
)
from fsseg_jax.prediction.result import at_own_size

SIZE = 12


def drawn(seed, offset=0.0, sharpness=4.0):
    """A square class, and logits that know it but for noise and an offset."""
    rng = np.random.default_rng(seed)
    label = np.zeros((SIZE, SIZE), np.uint8)
    y, x = rng.integers(1, 5, 2)
    label[y : y + 6, x : x + 5] = 1
    odds = sharpness * (label - 0.5) + rng.normal(0, 1, label.shape) + offset
    logits = np.stack([np.zeros_like(odds), odds], axis=-1)
    label[0, 0] = 255
    unknown = np.zeros(logits.shape[-1] - 1)
    return LeftOut(logits.astype(np.float32), label, 0, False, SIZE, unknown, unknown)


def enlarged(one):
    return one._replace(
        square=np.kron(one.logits, np.ones((4, 4, 1))),
        label=np.kron(one.label, np.ones((4, 4), int)),
        size=4 * SIZE,
    )


def test_pixels_at_each_threshold_are_those_of_a_search():
    one = drawn(0)
    known, inside = one.label != 255, one.label == 1
    probability = softmax(one.logits, axis=-1)[..., 1]
    for threshold, counts in zip(THRESHOLDS, threshold_counts(one, 1), strict=True):
        found = probability >= threshold
        pairs = (found & inside, found & ~inside, ~found & inside)
        assert counts.tolist() == [(pair & known).sum() for pair in pairs]


@pytest.mark.parametrize("offset", [-4.0, 4.0])
def test_a_common_offset_is_found_and_few_supports_change_nothing(offset):
    several = [drawn(seed, offset) for seed in range(5)]
    threshold = best_threshold(several, 1)
    moved = logit(threshold)
    assert abs(moved - offset) < 1
    before, after = (
        np.mean([iou_of(one, plain(1, t)) for one in several]) for t in (0.5, threshold)
    )
    assert after > before
    assert best_threshold(several[:1], 1) == 0.5
    assert best_threshold([drawn(seed) for seed in range(5)], 1) == pytest.approx(0.5, abs=0.1)


def test_weights_make_a_class_win_from_its_threshold_on():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (50, 50, 2))
    probability = softmax(logits, axis=-1)
    for threshold in (0.2, 0.5, 0.9):
        winners = (probability * plain(1, threshold).weights(logits)).argmax(axis=-1)
        sure = np.abs(probability[..., 1] - threshold) > 1e-6
        np.testing.assert_array_equal(winners[sure], (probability[..., 1] >= threshold)[sure])


def test_the_border_of_absence_is_between_images_with_and_without_the_class():
    larger = [enlarged(drawn(seed)) for seed in range(4)]
    border, slope = presence(larger, 1)
    with_it = [scores(one.logits)[0] for one in larger]
    assert -np.inf < border < np.mean(with_it)
    assert slope > 0
    without = np.broadcast_to([0, border - 1], (SIZE, SIZE, 2))
    assert scores(without)[0] < border
    backgrounds = []
    for one in larger:
        near = np.argwhere(one.label > 0)
        far = [
            (y, x)
            for y, x in np.ndindex(one.label.shape)
            if abs(near - (y, x)).max(axis=1).min() > round(MARGIN * 4 * SIZE)
        ]
        backgrounds.append(scores(one.logits[*np.transpose(far)][:, None])[0])
    # Most of the way, as other images score higher than backgrounds.
    means = np.mean(backgrounds), np.mean(with_it)
    assert border == pytest.approx(np.average(means, weights=[1 - BORDER, BORDER]))


def test_likeness_moves_images_and_the_border_alike():
    several = [*map(enlarged, map(drawn, range(4)))]
    border, slope = presence(several, 1)
    by_likeness = [
        one._replace(likeness=np.array([0.8]), backgrounds=np.array([0.2])) for one in several
    ]
    moved, steeper = presence(by_likeness, 1)
    assert moved == pytest.approx(
        border + LIKENESS * np.average([0.2, 0.8], weights=[1 - BORDER, BORDER])
    )
    assert steeper != slope
    known = plain(1)._replace(absence=np.array([moved]), slopes=np.array([1.0]))
    logits = several[0].logits
    assert known.weights(logits, np.array([0.8]))[1] > 0
    assert known.weights(logits, np.array([0.2]))[1] == 0
    assert known.confidence(logits, np.array([0.8])) > 1 - known.confidence(logits, np.array([0.2]))


@pytest.mark.parametrize("others", [1, 3])
def test_images_without_the_class_say_where_it_is_absent(others):
    several = [*map(drawn, range(4))]
    several = [  # without backgrounds
        one._replace(label=np.where(one.label == 0, UNLABELLED, one.label)) for one in several
    ]
    nothing = np.zeros((SIZE, SIZE), np.uint8)
    without = [drawn(9 + i, offset=-2.0)._replace(label=nothing) for i in range(others)]
    border, slope = presence(several + without, 1)
    with_it, without = (np.array([scores(x.logits)[0] for x in y]) for y in (several, without))
    squares = sum(((x - x.mean()) ** 2).sum() for x in (with_it, without))
    deviation = max(np.sqrt(squares / (2 + others)), (with_it.mean() - without.mean()) / 8)

    def odds(score):
        shown, absent = (norm(x.mean(), deviation).logpdf(score) for x in (with_it, without))
        return shown - absent

    middle = (with_it.mean() + without.mean()) / 2
    assert odds(middle) == pytest.approx(0, abs=1e-5)
    assert border == pytest.approx(min(middle, with_it.mean() - with_it.std(ddof=1)))
    assert slope == pytest.approx(odds(middle + 1))


@pytest.mark.parametrize(("offset", "higher"), [(-9.0, False), (1.0, True), (4.0, True)])
def test_an_image_without_the_class_never_lowers_the_border(offset, higher):
    several = [enlarged(drawn(seed)) for seed in range(4)]
    other = enlarged(drawn(9, offset=offset))
    other = other._replace(label=np.zeros_like(other.label))
    before, _ = presence(several, 1)
    border, slope = presence([*several, other], 1)
    assert border > before if higher else border == before
    assert slope >= 0
    with_it = [scores(one.logits)[0] for one in several]
    assert border < np.mean(with_it)
    # Confidences stay estimates of the IoU, where scores say nothing of what is shown, too.
    found = calibrated([*several, other])
    sure = np.array([found.confidence(one.logits) for one in several])
    true = np.array([iou_of(one, found) for one in several])
    empty = np.array(with_it) < border
    assert sure[~empty].mean() == pytest.approx(true[~empty].mean(), abs=0.1)
    assert (sure[empty] <= 0.5).all()


def test_an_image_without_the_class_is_empty_and_its_confidence_falls_towards_the_border():
    config = default_config()
    config.image_size = 32
    one = drawn(0).logits
    given = dict(thresholds=np.array([0.5]), slopes=np.array([1.0]))
    score = scores(one)[0]
    masks, confidences = [], []
    for distance in (8, 2, 0.1, -1):
        known = Calibration(absence=np.array([score - distance]), **given)
        result = at_own_size([one], (20, 30), config, False, calibration=known)
        masks.append(result.mask)
        confidences.append(result.confidence)
    assert all(mask.any() for mask in masks[:3])
    assert not masks[3].any()
    assert confidences[0] > confidences[1] > confidences[2]
    assert all(0 <= confidence <= 1 for confidence in confidences)
    assert confidences[3] == pytest.approx(1 - expit(-1))


def test_the_confidence_in_left_out_supports_is_their_iou_on_average():
    several = [drawn(seed, sharpness=2.0) for seed in range(6)]
    found = calibrated(several)
    only = found._replace(absence=np.array([-np.inf]))
    confidences = [only.confidence(one.logits) for one in several]
    assert np.mean(confidences) == pytest.approx(
        np.mean([iou_of(one, only) for one in several]), abs=0.03
    )


def test_a_border_of_the_square_changes_nothing():
    one = drawn(0)
    whole = np.full((SIZE + 4, SIZE + 4, 2), 50, np.float32)
    whole[:SIZE, :SIZE] = one.square
    bordered = one._replace(square=whole, size=SIZE + 4)
    np.testing.assert_array_equal(bordered.logits, one.logits)
    np.testing.assert_allclose(calibration.resized(bordered), one.logits, atol=1e-6)
    assert presence([bordered], 1) == presence([one], 1)


def test_expected_ious_are_those_of_drawn_labels():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (40, 40, 2))
    probability = np.exp(log_softmax(logits, axis=-1))[..., 1]
    mask = probability > 0.5
    both, either = 0, 0
    for _ in range(200):
        label = rng.random(probability.shape) < probability
        both, either = both + (mask & label).sum(), either + (mask | label).sum()
    found = calibration.expected_ious(logits)[1]
    assert found == pytest.approx(both / either, abs=0.01)
