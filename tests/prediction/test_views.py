"""Several views of an image: scales, the mirror image, and DenseCRF after them."""

import numpy as np
import pytest
from helpers import message_of
from PIL import Image
from scipy.special import expit
from segmenters import SIZE, make_segmenter

import fsseg_jax
from fsseg_jax import Segmenter
from fsseg_jax.data.squares import fitted
from fsseg_jax.evaluation import crf
from fsseg_jax.models.method import Method
from fsseg_jax.prediction import result


def probabilities(segmenter, image):
    return segmenter.predict(image, return_probabilities=True)[1]


def with_settings(shown, fit="stretch", **settings):
    """A segmenter with supports and other settings; it shares its model with others."""
    segmenter = make_segmenter(fit=fit)
    config = segmenter.config.copy_and_resolve_references()
    for name, value in settings.items():
        part, _, last = name.rpartition("__")
        (config[part] if part else config)[last] = value
    return fsseg_jax.Segmenter(config, segmenter.model, segmenter.variables, segmenter.mesh).fit(
        *shown
    )


def at_scale(shown, image, side):
    """Probabilities of one scale, computed as if images of this size were all that is."""
    segmenter = make_segmenter().fit(*shown)
    pixels = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
    logits = segmenter._segment(segmenter.fitted, pixels[None], 1).logits[0]
    done = result.at_own_size(
        [logits], image.shape[:2], segmenter.config, segmenter.model.align_corners, True
    )
    return done.probabilities


def test_sides_at_scales_are_whole_patches(shown, images, monkeypatch):
    sides, segment = [], Segmenter._segment

    def noted(self, fitted, pixels, room):
        sides.append(pixels.shape[1])
        return segment(self, fitted, pixels, room)

    monkeypatch.setattr(Segmenter, "_segment", noted)
    monkeypatch.setattr(Method, "patch", 10)
    with_settings(shown, eval__scales=(1.5,)).predict(images[0])
    assert sides == [50]


def test_probabilities_of_scales_are_averaged(shown, images):
    segmenter = with_settings(shown, eval__scales=(1.5, 1.0))
    for image in images[2:4]:
        expected = (at_scale(shown, image, SIZE) + at_scale(shown, image, 49)) / 2
        result = segmenter.predict(image, return_probabilities=True)
        np.testing.assert_allclose(result[1], expected, atol=1e-5)
        np.testing.assert_array_equal(result[0], result[1].argmax(axis=-1))
    assert np.abs(expected - at_scale(shown, image, SIZE)).max() > 1e-3


def test_letterboxed_views_have_borders_of_their_own():
    """Logits that are the places in the image which they were computed for."""
    segmenter = make_segmenter(fit="letterbox")
    shape, sides = (20, 30), [32, 49]
    views = []
    for side in sides:
        height, width = fitted(shape, side, "letterbox")
        assert (height, width) == ((16, 32) if side == 32 else (32, 48))
        rows, columns = np.mgrid[:side, :side] + 0.5
        place = rows / height + 2 * columns / width
        views.append(np.stack([np.zeros_like(place), place], axis=-1).astype(np.float32))
    found = [
        result.at_own_size([view] * 2, shape, segmenter.config, False, True, sides=[side])
        for side, view in zip(sides, views, strict=True)
    ]
    rows, columns = np.mgrid[:20, :30] + 0.5
    expected = expit(rows / 20 + 2 * columns / 30)[1:-1, 1:-1]
    for one in found:
        # The border is rounded to whole pixels of the image.
        np.testing.assert_allclose(one.probabilities[1:-1, 1:-1, 1], expected, atol=0.01)
    both = result.at_own_size(views, shape, segmenter.config, False, True, sides=sides)
    mean = (found[0].probabilities + found[1].probabilities) / 2
    np.testing.assert_allclose(both.probabilities, mean, atol=1e-6)


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_the_mirror_image_is_averaged_and_its_result_is_the_mirrored_one(shown, images, fit):
    plain = with_settings(shown, fit)
    segmenter = with_settings(shown, fit, predict__flip=True)
    image = images[2]
    found = probabilities(segmenter, image)
    if fit == "stretch":
        mirrored = probabilities(plain, image[:, ::-1])[:, ::-1]
        np.testing.assert_allclose(found, (probabilities(plain, image) + mirrored) / 2, atol=1e-5)
        np.testing.assert_allclose(
            probabilities(segmenter, image[:, ::-1])[:, ::-1], found, atol=1e-5
        )
    assert np.abs(found - probabilities(plain, image)).max() > 1e-3


def test_dense_crf_refines_the_average_of_a_small_image(shown, images, monkeypatch):
    plain = probabilities(with_settings(shown), images[3])
    monkeypatch.setattr("fsseg_jax.prediction.stream.CRF_SIDE", 20)
    seen = []

    def swapped(found, image, options):
        seen.append((found, image, options.iterations))
        return found[..., ::-1]

    monkeypatch.setattr(crf, "refined", swapped)
    segmenter = with_settings(shown)
    segmenter.config.eval.crf.iterations = 3
    found = probabilities(segmenter, images[3])
    ((small, image, iterations),) = seen
    assert iterations == 3
    assert max(image.shape[:2]) == 20
    assert small.shape == (*image.shape[:2], 2)
    assert found.shape == plain.shape
    centre = np.abs(found[4:-4, 4:-4, 0] - plain[4:-4, 4:-4, 1])
    assert centre.mean() < 0.1 < np.abs(found[..., 0] - plain[..., 0]).max()


def test_dense_crf_that_is_not_installed_is_told_when_a_model_is_loaded(monkeypatch):
    monkeypatch.setattr(crf.importlib.util, "find_spec", lambda name: None)
    settings = {"image_size": 32, "devices": 1, "eval.crf.iterations": 2}
    with pytest.warns(UserWarning, match="not trained"):
        assert "needs pydensecrf" in message_of(fsseg_jax.load, "shapes:panet", **settings)


def test_annotations_that_are_drawn_are_none_of_predictions():
    message = message_of(fsseg_jax.load, "shapes:panet", support_annotation="scribble")
    assert "support_annotation = scribble: it is for episodes" in message
