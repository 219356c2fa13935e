"""`score` and `overlay` of a segmenter, against NumPy on each pixel."""

import numpy as np
import pytest
from helpers import message_of
from PIL import Image
from segmenters import make_segmenter

from fsseg_jax import Segmenter
from fsseg_jax.evaluation.report import overlay
from fsseg_jax.prediction.scores import compare

MASK = np.array([[0, 1, 1, 2], [0, 1, 2, 2], [0, 0, 0, 0]], np.uint8)
TRUE = np.array([[0, 3, 3, 3], [0, 3, 9, 9], [9, 0, 255, 254]], np.uint8)  # of the classes 3 and 9


def test_pixels_of_all_images_are_summed_and_those_not_counted_left_out():
    blank = np.zeros_like(MASK)
    scores = compare([MASK, blank], [TRUE, blank], ["cup", "jug"], (3, 9))
    assert scores.per_class == {"cup": 75.0, "jug": 50.0}
    assert scores.mean_iou == 62.5
    assert scores.per_image == [62.5, 100.0]


def test_classes_that_nobody_shows_and_images_of_nothing_known():
    known = np.where(MASK == 2, 9, 0).astype(np.uint8)
    scores = compare([MASK, MASK], [known, known * 0 + 254], ["cup", "jug"], (3, 9))
    assert scores.per_class == {"cup": None, "jug": 100.0}
    assert scores.mean_iou == 100
    assert scores.per_image == [50.0, None]


def test_any_mask_of_one_class_is_that_class():
    found = (MASK > 0).astype(np.uint8)
    masks = [found > 0, found * 7, Image.fromarray(found * 255)]
    assert compare([found] * 3, masks, ["cup"], (1,)).per_image == [100.0] * 3


@pytest.mark.parametrize(
    ("masks", "told"),
    [
        ([TRUE], "masks has 1 entries, but there are more images"),
        ([TRUE] * 3, "masks has 3 entries, but there are 2 images"),
        ([TRUE, TRUE.T], r"masks[1] is 3 x 4 pixels, but images[1] is 4 x 3"),
        ([TRUE, TRUE // 3], "masks[1] has the number 1, but the supports show 3, 9"),
        ([TRUE * 0] * 2, "none of them shows a class"),
    ],
)
def test_masks_that_do_not_fit_are_told(masks, told):
    assert told in message_of(compare, [MASK] * 2, masks, ["cup", "jug"], (3, 9))


def test_a_segmenter_scores_what_it_predicts(shown, images):
    segmenter = make_segmenter().fit(*shown)
    predicted = segmenter.predict(images)
    truth = [np.roll(mask, 3, axis=0) for mask in predicted]
    inter = sum(np.sum((a > 0) & (b > 0)) for a, b in zip(predicted, truth, strict=True))
    union = sum(np.sum((a > 0) | (b > 0)) for a, b in zip(predicted, truth, strict=True))
    score = segmenter.score(images, truth)
    assert isinstance(score, float)
    assert score == pytest.approx(100 * inter / union)
    assert len(segmenter.compare(images, truth).per_image) == len(images)
    assert segmenter.score(images[0], predicted[0]) == 100
    assert "masks = 3: give a list" in message_of(segmenter.score, images, 3)
    new = Segmenter(segmenter.config, segmenter.model, segmenter.variables, segmenter.mesh)
    assert "call fit first" in message_of(new.score, images, truth)


def test_an_overlay_is_a_picture_of_the_mask_over_its_image():
    image = np.random.default_rng(0).integers(0, 256, (*MASK.shape, 3), np.uint8)
    segmenter = make_segmenter()
    picture = segmenter.overlay(image, MASK)
    np.testing.assert_array_equal(np.asarray(picture), overlay(image, MASK))
    assert "mask has the shape (4, 3)" in message_of(segmenter.overlay, image, MASK.T)
