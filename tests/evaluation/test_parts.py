"""What several parts of an evaluation share is kept, and comes back as it was."""

import errno

import jax.numpy as jnp
import numpy as np
import pytest

from fsseg_jax.episode import EpisodeIds
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.parts import Store, shared_images


def make_features(images, side):
    """Features of two kinds whose values tell the image and the size."""
    rng = np.random.default_rng(side)
    noise = rng.standard_normal((100, 2, 3)).astype(np.float16)
    return {
        "map": jnp.asarray(noise[images]),
        "vector": jnp.asarray(images[:, None] * [1.0, side], jnp.bfloat16),
    }


def test_store_gives_back_what_it_was_given_and_keeps_nothing_else():
    store = Store(np.array([3, 5, 8, 13]))
    asked = np.array([8, 4, 3, 13])
    assert not store.has(32, asked).any()
    store.put(32, asked, make_features(asked, 32))
    store.put(48, np.array([5]), make_features(np.array([5]), 48))
    assert store.has(32, np.array([3, 4, 5, 8, 13, 99])).tolist() == [1, 0, 0, 1, 1, 0]
    assert store.has(48, np.array([3, 5])).tolist() == [0, 1]
    for side, images in ((32, np.array([13, 3, 3, 8])), (48, np.array([5, 5]))):
        expected = make_features(images, side)
        for name, array in store.get(side, images).items():
            assert array.dtype == expected[name].dtype
            np.testing.assert_array_equal(array, np.asarray(expected[name]))


def test_rows_beyond_the_images_are_padding():
    store = Store(np.array([1, 2]))
    store.put(32, np.array([1]), make_features(np.array([1, 2, 2]), 32))
    assert store.has(32, np.array([1, 2])).tolist() == [1, 0]


def test_store_of_nothing_keeps_nothing():
    store = Store(np.array([], int))
    store.put(32, np.array([1]), make_features(np.array([1]), 32))
    assert not store.has(32, np.array([1])).any()


def test_full_disk_is_an_error_that_says_what_to_do(monkeypatch):
    class Full:
        def __init__(self, **_):
            self.room = 10

        def seek(self, position):
            pass

        def write(self, data):
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            written, self.room = min(len(data), self.room), 0
            return written

    monkeypatch.setattr("tempfile.TemporaryFile", Full)
    store = Store(np.array([1]))
    with pytest.raises(UserError, match=r"No space left on device.*raise eval\.cache"):
        store.put(32, np.array([1]), make_features(np.array([1]), 32))
    assert not store.has(32, np.array([1])).any()


def test_shared_images_are_those_of_several_parts():
    episodes = EpisodeIds(
        classes=np.ones((4, 1), np.int32),
        supports=np.array([[[1]], [[2]], [[3]], [[2]]]),
        query=np.array([2, 9, 4, 3]),
        query_index=np.zeros(4, np.int32),
    )
    parts = [np.array([0, 2]), np.array([1]), np.array([3])]
    assert shared_images(episodes, parts).tolist() == [2, 3]
