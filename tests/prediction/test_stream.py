"""A stream of images gives the results of `predict`, in order and with bounded memory."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from segmenters import assert_same, make_segmenter

from fsseg_jax.errors import UserError


class Counted:
    """An endless iterator that counts what was taken of it, and remembers who took it."""

    def __init__(self, images):
        self.images, self.taken, self.threads = itertools.cycle(images), 0, set()

    def __iter__(self):
        return self

    def __next__(self):
        self.taken += 1
        self.threads.add(threading.current_thread())
        return next(self.images)


def test_a_stream_takes_no_more_than_three_batches_ahead(fitted, images):
    expected = fitted.predict(images)
    counted = Counted(images)
    stream = fitted.stream(counted, batch_size=2)
    assert counted.taken == 0
    for given, mask in enumerate(itertools.islice(stream, 20)):
        np.testing.assert_array_equal(mask, expected[given % len(expected)])
        assert counted.taken <= given + 3 * 2
    assert counted.threads == {threading.current_thread()}


def test_a_stream_that_is_closed_early_takes_no_more_and_leaves_no_threads(fitted, images):
    before, counted = threading.active_count(), Counted(images)
    stream = fitted.stream(counted, batch_size=2)
    next(stream)
    stream.close()
    assert threading.active_count() == before
    assert counted.taken <= 3 * 2
    assert list(stream) == []


def test_a_stream_keeps_the_supports_that_it_began_with(shown, images):
    segmenter = make_segmenter().fit(*shown)
    expected = segmenter.predict(images[:3], True)
    stream = segmenter.stream(images[:3], True)
    inverted = [np.where(mask == 255, 255, 1 - mask).astype(np.uint8) for mask in shown[1]]
    segmenter.fit(shown[0], inverted)
    others = segmenter.predict(images[:3])
    assert_same(list(stream), expected)
    assert any((mask != other).any() for (mask, _), other in zip(expected, others, strict=True))


def test_threads_may_share_a_segmenter_of_several_devices(shown, images):
    segmenter = make_segmenter(devices=4).fit(*shown)
    expected = segmenter.predict(images, True)

    def work(_):
        return [segmenter.predict(images, True, batch_size=4) for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(work, range(4)):
            for result in results:
                assert_same(result, expected)


def test_broken_images_stop_a_stream_in_their_turn_or_are_skipped(fitted, images, tmp_path):
    absent, broken = tmp_path / "absent.jpg", np.zeros((4, 5, 7), np.uint8)
    queries = [*images[:3], absent, images[3], broken, broken, images[4]]
    expected = fitted.predict([*images[:5]])
    for batch_size in (1, 2, 8):
        stream = fitted.stream(queries, batch_size=batch_size)
        for mask in expected[:3]:
            np.testing.assert_array_equal(next(stream), mask)
        with pytest.raises(UserError, match=r"absent\.jpg cannot be read"):
            next(stream)
        results = list(fitted.stream(queries, batch_size=batch_size, skip_errors=True))
        assert [isinstance(result, UserError) for result in results] == [
            *(False, False, False, True, False, True, True, False)
        ]
        assert str(results[5]).startswith("images[5] is an array of uint8 and shape (4, 5, 7)")
        good = [result for result in results if not isinstance(result, UserError)]
        for result, mask in zip(good, expected, strict=True):
            np.testing.assert_array_equal(result, mask)
    with pytest.raises(UserError, match=r"absent\.jpg cannot be read"):
        fitted.predict(queries)
