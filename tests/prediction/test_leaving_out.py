"""Supports that are predicted from the others, against segmenters fitted without them."""

import numpy as np
import pytest
from helpers import message_of
from prediction.segmenters import draw_episode, make_segmenter
from scipy import stats

from fsseg_jax.episode import normalise
from fsseg_jax.prediction.calibration import LeftOut, background
from fsseg_jax.prediction.fitted import Shown, of_use
from fsseg_jax.prediction.leaving_out import (
    VIEWS,
    calibrate,
    leave_out,
    rows_without,
    validation,
    views_of,
)


def supports(count, seed=0):
    images, labels, _ = draw_episode(1, count, seed=seed)
    return images[0].astype(np.uint8), labels[0]


@pytest.mark.parametrize("method", ["panet", "canet"])
def test_a_support_is_predicted_as_if_the_others_had_been_shown(method):
    segmenter = make_segmenter(method)
    images, labels = supports(3)
    segmenter.fit([*images], [*labels])
    programs, shown = segmenter._programs, segmenter.fitted.shown
    encoded = [programs.encode(segmenter.variables, x[None, None]) for x in shown.images]
    found = leave_out(programs, segmenter.variables, shown, encoded, 3, False)
    assert [one.support for one in found] == [0, 1, 2]
    others = [0, 1, 0]  # as many as there are shots, by repeating
    segmenter.fit([images[i] for i in others], [labels[i] for i in others])
    expected = segmenter._segment(segmenter.fitted, shown.images[2:], 1).logits[0]
    np.testing.assert_allclose(found[2].logits, expected, atol=1e-4)
    np.testing.assert_array_equal(found[2].label, shown.labels[2])


def test_likenesses_are_those_of_the_whole_support_and_of_what_is_far_from_the_class():
    segmenter = make_segmenter(prototypes="positions")
    images, labels = supports(3)
    labels[:] = 0
    labels[:, 4:10, 6:12] = 1  # the rest of the image is far away
    segmenter.fit([*images], [*labels])
    programs, shown = segmenter._programs, segmenter.fitted.shown
    encoded = [programs.encode(segmenter.variables, x[None, None]) for x in shown.images]
    found = leave_out(programs, segmenter.variables, shown, encoded, 3, False)[2]
    others = [0, 1, 0]
    segmenter.fit([images[i] for i in others], [labels[i] for i in others])
    whole = segmenter._segment(segmenter.fitted, shown.images[2:], 1)
    assert found.likeness == pytest.approx(whole.likeness[0], abs=1e-5)
    far = np.ones((8, 8), bool)  # at stride 4, where the margin is no position wide
    far[1:3, 1:3] = False
    np.testing.assert_array_equal(background(found, 1), far)
    query = segmenter.model.apply(
        segmenter.variables, normalise(shown.images[2].astype(np.float32)), method="encode"
    )
    given = segmenter.fitted.summary, query, whole.logits[0], far
    alone = segmenter.model.apply(segmenter.variables, *given, method="likeness")
    assert found.backgrounds == pytest.approx(np.asarray(alone), abs=1e-5)
    assert abs(found.backgrounds - found.likeness) > 1e-4


@pytest.mark.parametrize("shape", [(20, 32), (32, 20)])
def test_a_border_of_a_letterboxed_support_is_no_part_of_it(shape):
    segmenter = make_segmenter(fit="letterbox")
    images, labels = supports(2)
    height, width = (n // 8 * 8 for n in shape)
    segmenter.fit(
        [x[: shape[0], : shape[1]] for x in images], [x[: shape[0], : shape[1]] for x in labels]
    )
    shown = segmenter.fitted.shown
    programs = segmenter._programs
    encoded = [programs.encode(segmenter.variables, x[None, None]) for x in shown.images]
    found = leave_out(programs, segmenter.variables, shown, encoded, 1, False)
    assert [one.label.shape for one in found] == [(height, width)] * 2
    assert found[0].square.shape[:2] == (8, 8)  # at stride 4
    assert found[0].logits.shape[:2] == (height // 4, width // 4)
    views = views_of(shown)
    np.testing.assert_array_equal(
        views.images[0][:height, :width], shown.images[0][:height, width - 1 :: -1]
    )
    assert (views.labels[0][height:] == 255).all()
    assert (views.labels[0][:, width:] == 255).all()


def test_of_supports_that_show_no_class_ten_are_encoded_and_kept(monkeypatch):
    segmenter = make_segmenter()
    images, labels = supports(2)
    black = np.repeat(labels[:1] * 0, 25, axis=0)
    numbered = np.concatenate([images[:1], np.zeros((25, *images[0].shape), np.uint8), images[1:]])
    numbered[1:-1, 0, 0, 0] = np.arange(25)
    encode, encoded = segmenter._programs.encode, []

    def noted(variables, image):
        encoded.append(int(image[0, 0, 0, 0, 0]))
        return encode(variables, image)

    monkeypatch.setattr(segmenter._programs, "encode", noted)
    segmenter.fit([*numbered], [labels[0], *black, labels[1]])
    shown = segmenter.fitted.shown
    assert len(encoded) == len(shown.images) == 12
    assert shown.labels.any(axis=(1, 2)).tolist() == [True, *[False] * 10, True]
    used = shown.images[1:-1, 0, 0, 0].tolist()
    assert (used[0], used[-1]) == (0, 24)
    assert {*np.diff(used).tolist()} <= {2, 3}
    assert of_use(shown) is shown


def test_a_support_that_alone_shows_a_class_stays():
    first, second, both = np.zeros((3, 8, 8), np.uint8)
    first[2:4], second[5:7], both[2:4], both[5:7] = 1, 2, 1, 2
    assert rows_without([first, second, both], 2, 2).tolist() == [[0, 0], [1, 1]]
    assert rows_without([first, second, both], 0, 2).tolist() == [[2, 2], [1, 2]]
    assert rows_without([first, second], 0, 1) is None


def test_an_image_that_shows_nothing_is_known_as_one_and_changes_nothing_else():
    segmenter = make_segmenter()
    images, labels = supports(3)
    masks = [*labels, np.zeros_like(labels[0])]
    other = images[0][::-1, ::-1].copy()
    segmenter.fit([*images, other], masks)
    programs, shown = segmenter._programs, segmenter.fitted.shown
    encoded = [programs.encode(segmenter.variables, x[None, None]) for x in shown.images]
    found = leave_out(programs, segmenter.variables, shown, encoded, 3, False)
    assert [one.support for one in found] == [0, 1, 2, 3]
    again, logits = segmenter.cross_validate(), segmenter.predict([other], True)[0][1]
    segmenter.fit([*images], [*labels])
    assert again == segmenter.cross_validate()
    np.testing.assert_allclose(segmenter.predict([other], True)[0][1], logits, atol=1e-6)
    expected = segmenter._segment(segmenter.fitted, other[None], 1).logits[0]
    np.testing.assert_allclose(found[3].logits, expected, atol=1e-4)


def test_one_support_and_an_image_that_shows_nothing():
    segmenter = make_segmenter()
    images, labels = supports(2)
    segmenter.fit([*images], [np.zeros_like(labels[0]), labels[1]])
    found = segmenter.cross_validate()
    assert found.supports == (1,) * VIEWS
    assert "No support shows a class" in message_of(segmenter.fit, images[0], labels[0] * 0)


def test_cross_validation_is_the_mean_of_the_ious_with_students_interval():
    segmenter = make_segmenter()
    images, labels = supports(4)
    segmenter.fit([*images], [*labels])
    found = segmenter.cross_validate()
    assert len(found.ious) == 4
    assert found.mean == pytest.approx(np.mean(found.ious))
    low, high = stats.t.interval(0.95, 3, found.mean, stats.sem(found.ious))
    assert (found.low, found.high) == pytest.approx((max(low, 0), min(high, 100)))
    assert f"{found.mean:.1f}" in str(found)


@pytest.mark.parametrize("method", ["panet", "canet"])  # which resize logits differently
def test_one_support_predicts_its_own_views(method):
    segmenter = make_segmenter(method)
    images, labels = supports(1)
    segmenter.fit([*images], [*labels])
    assert segmenter.fitted.validation is None
    found = segmenter.cross_validate()
    assert len(found.ious) == 3  # the mirror image and two crops
    mirrored = segmenter.predict(images[0][:, ::-1])
    inside = labels[0][:, ::-1] == 1
    known = labels[0][:, ::-1] != 255
    iou = (inside & (mirrored == 1)).sum() / ((inside | (mirrored == 1)) & known).sum()
    assert found.ious[0] == pytest.approx(100 * iou, abs=1e-3)
    assert (found.supports, found.low, found.high) == ((0, 0, 0), None, None)
    assert "other images will reach less" in str(found)


def test_every_view_shows_some_of_a_class_in_two_corners():
    label = np.zeros((20, 20), np.uint8)
    label[:3, :3] = label[-3:, -3:] = 1
    shown = Shown(np.zeros((1, 20, 20, 3), np.uint8), label[None], ("a",), (1,))
    views = views_of(shown)
    assert len(views.labels) == VIEWS
    assert all((view == 1).any() for view in views.labels)


def test_a_given_threshold_is_the_calibration():
    assert validation([], calibrate([], 2, 0.0)) is None
    np.testing.assert_array_equal(calibrate([], 2, 0.3).thresholds, [0.3, 0.3])
    assert not calibrate([], 2, 0.3).knows_absence
    assert calibrate([], 1, 0.0).thresholds.tolist() == [0.5]


@pytest.mark.parametrize(
    ("shown", "threshold", "why"),
    [
        (1, 0.0, "fewer than two others show it"),
        (2, 0.3, "predict.threshold is set"),
        (2, 0.0, ""),
    ],
)
def test_images_without_the_class_that_have_no_effect_are_reported(log, shown, threshold, why):
    rng = np.random.default_rng(0)
    labels = [np.eye(8, dtype=np.uint8)] * shown + [np.zeros((8, 8), np.uint8)]
    left_out = [
        LeftOut(rng.normal(size=(8, 8, 2)), x, i, False, 8, *np.zeros((2, 1)))
        for i, x in enumerate(labels)
    ]
    calibrate(left_out, 1, threshold)
    told = [record.getMessage() for record in log.records]
    assert told == ([f"images that do not show the class have no effect, as {why}"] if why else [])
