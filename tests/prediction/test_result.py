"""What is told of an image follows from its probabilities."""

import numpy as np
import pytest

from fsseg_jax.prediction.result import expected_iou


def drawn(probabilities, draws=4000):
    """The mean IoU of the most probable classes, of labels that are drawn from probabilities."""
    mask = probabilities.argmax(axis=-1)
    uniform = np.random.default_rng(1).random((draws, *mask.shape, 1))
    labels = (uniform > probabilities.cumsum(axis=-1)).sum(axis=-1)
    shown = [n for n in np.unique(mask).tolist() if n] or [0]
    both = [((labels == n) & (mask == n)).sum(axis=(1, 2)) for n in shown]
    either = [((labels == n) | (mask == n)).sum(axis=(1, 2)) for n in shown]
    return np.mean(np.divide(both, either))


def confidence(probabilities):
    mask = probabilities.argmax(axis=-1)
    inside = mask[..., None] == np.arange(probabilities.shape[-1])
    sums = (probabilities * inside).sum(axis=(0, 1))
    return expected_iou(sums, probabilities.sum(axis=(0, 1)), inside.sum(axis=(0, 1)) + 0.0)


@pytest.mark.parametrize("shift", [-2.0, 0.0, 9.0])  # several classes, some, and the background
def test_confidence_is_the_iou_of_labels_drawn_from_the_probabilities(shift):
    logits = np.random.default_rng(0).normal(0, 2, (12, 15, 3))
    logits[..., 0] += shift
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(confidence(probabilities), drawn(probabilities), atol=5e-3)


def test_confidence_grows_as_probabilities_become_sure():
    logits = np.random.default_rng(0).normal(0, 1, (12, 15, 2))
    powers = [np.exp(sharpness * logits) for sharpness in (0.5, 1, 2, 4, 30)]
    found = [confidence(x / x.sum(axis=-1, keepdims=True)) for x in powers]
    assert found == sorted(found)
    assert found[-1] > 0.95


def test_results_hold_what_is_streamed(fitted, images):
    for result, image in zip(fitted.results(images, True), images, strict=True):
        mask, probabilities, scores = next(fitted.stream([image], True, return_scores=True))
        np.testing.assert_array_equal(result.mask, mask)
        np.testing.assert_allclose(result.probabilities, probabilities, atol=1e-5)
        np.testing.assert_allclose(result.scores, scores, atol=1e-5)
        np.testing.assert_allclose(result.confidence, confidence(probabilities), atol=1e-5)
