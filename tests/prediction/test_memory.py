"""Large images and results wait for memory, and are told if there is none."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from helpers import message_of
from PIL import Image
from segmenters import make_segmenter

from fsseg_jax.errors import UserError
from fsseg_jax.prediction import memory, result, stream
from fsseg_jax.prediction.memory import room_for
from fsseg_jax.prediction.pictures import as_image


@pytest.fixture
def free(monkeypatch):
    """Pretends that so many bytes are free."""

    def pretend(size):
        monkeypatch.setattr(memory, "free_memory", lambda: size)

    return pretend


def test_an_image_that_does_not_fit_is_told_and_others_follow(free, fitted, images, tmp_path):
    path = tmp_path / "large.png"
    Image.new("L", (3000, 2000)).save(path)
    free(3000 * 2000 * memory.BYTES - 1)
    bad, good = fitted.stream([path, images[0]], skip_errors=True)
    assert f"{path} is 3000 x 2000 pixels, which needs 0.11 GiB of memory" in str(bad)
    np.testing.assert_array_equal(good, fitted.predict(images[0]))
    with pytest.raises(UserError, match=r"^images\[0\] is 3000 x 2000 pixels"):
        as_image(Image.open(path), "images[0]")
    free(3000 * 2000 * memory.BYTES)
    assert as_image(path, "").shape == (2000, 3000, 3)


def test_large_images_are_in_work_while_half_of_the_free_memory_holds_them(free):
    side = int(memory.SMALL**0.5) + 1
    free(4 * side**2 * memory.BYTES)  # two at once
    both, working, most = threading.Barrier(2), set(), []

    def work(number):
        with room_for("image", side, side):
            working.add(number)
            both.wait(timeout=20)
            most.append(len(working))
            both.wait(timeout=20)
            working.remove(number)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert max(most) == 2
    assert memory._held == 0


def test_probabilities_that_do_not_fit_are_told(free, fitted, images):
    free(4 * 2 * images[0][..., 0].size - 1)
    height, width, _ = images[0].shape
    message = message_of(fitted.predict, images[0], return_probabilities=True)
    assert f"an image of {width} x {height} pixels has 2 probabilities for each" in message
    assert "leave out probabilities" in message
    fitted.predict(images[0])


def test_results_wait_until_those_before_are_taken(fitted, images, monkeypatch):
    expected = fitted.predict(images, return_probabilities=True)
    begun, function = [], result.at_own_size

    def counted(logits, shape, *arguments, **options):
        begun.append(shape)
        return function(logits, shape, *arguments, **options)

    monkeypatch.setattr("fsseg_jax.prediction.segmenter.at_own_size", counted)
    monkeypatch.setattr(stream, "RESULTS", 1)
    results = fitted.stream(images, True, batch_size=4)
    for number, (found, wanted) in enumerate(zip(results, expected, strict=True)):
        assert len(begun) <= number + 2
        for array, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(array, other, atol=1e-5)  # of other batches


def test_large_images_are_enlarged_by_parts(fitted, images, monkeypatch):
    expected = fitted.predict(images, return_probabilities=True)
    monkeypatch.setattr(result, "TILE", 2 * 60 * 7)
    results = fitted.stream(images, True, return_scores=True)
    for (mask, every), (other, others, scores) in zip(expected, results, strict=True):
        np.testing.assert_allclose(others, every, atol=1e-6)
        np.testing.assert_array_equal(other, mask)
        for number in np.unique(mask):
            np.testing.assert_allclose(scores[number], every[mask == number, number].mean(), 1e-5)


def test_scores_are_mean_probabilities(fitted, images):
    mask, every, scores = next(fitted.stream(images[:1], True, return_scores=True))
    for number in (0, 1):
        inside = mask == number
        expected = every[..., number].mean(where=inside, dtype=np.float64) if inside.any() else 0
        np.testing.assert_allclose(scores[number], expected, rtol=1e-12)
    ((_, alone),) = fitted.stream(images[:1], return_scores=True)
    np.testing.assert_array_equal(alone, scores)


def test_a_batch_is_no_larger_than_its_images(shown, images):
    segmenter = make_segmenter().fit(*shown)
    assert len(segmenter.predict(images[:3], batch_size=10**9)) == 3


def test_a_device_whose_memory_is_full_is_told(shown, images, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    segmenter = make_segmenter(fit="letterbox").fit(*shown)
    monkeypatch.setitem(vars(segmenter._programs), "segment", full)
    message = message_of(segmenter.predict, images[:3], batch_size=4)
    assert "4 images at once, of 32 pixels a side, need more memory than the devices" in message
