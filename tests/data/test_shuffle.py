"""The counter-based random bits and shuffle are uniform, and identical in NumPy and JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_data import chi_square

from fsseg_jax.data.sampling import SHUFFLE, _mix, permuted, random_bits


@pytest.mark.parametrize("count", [1, 2, 3, 64, 1000, 11_394])
def test_every_number_has_its_place(count):
    order = permuted(0, np.full(count, 7), np.arange(count), count)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(count))


def test_a_permutation_is_that_of_the_published_shuffle():
    """Swap-or-not on the whole table, pair by pair, as in the paper's figure 1."""
    count, epoch = 10, 3
    table = list(range(count))  # which number stands at which place
    for number in range(64):
        key = int(random_bits(5, np.array([epoch * 64 + number]), SHUFFLE)[0])
        for place in range(count):
            partner = (key % count - place) % count
            mixed = _mix(_mix(np.array([place], np.uint32)) ^ np.uint32(key))
            if partner < place and mixed[0] >> 31:
                table = [{place: partner, partner: place}.get(at, at) for at in table]
    order = permuted(5, np.full(count, epoch), np.arange(count), count)
    assert order.tolist() == table


@pytest.mark.parametrize("count", [11_394, 500_000, 2**30])
def test_numpy_and_compiled_jax_permute_alike(count):
    position = np.unique(np.linspace(0, count - 1, 5000).astype(np.int32))
    epoch = (position % 11).astype(np.int32)
    draw = jax.jit(lambda epoch, position: permuted(8, epoch, position, count, jnp))
    result = np.asarray(draw(epoch, position))
    np.testing.assert_array_equal(result, permuted(8, epoch, position, count))
    assert result.min() >= 0
    assert result.max() < count


def test_places_are_uniform():
    """Each number's place, and its distance from others, over many epochs and seeds."""
    count, epochs = 12, 2000
    for seed in (0, 1):
        epoch, position = np.divmod(np.arange(epochs * count), count)
        orders = permuted(seed, epoch, position, count).reshape(epochs, count)
        for place in range(count):
            assert chi_square(orders[:, place], range(count)) < 4.5
        for step in (1, 2, count // 2):  # pairs of places: distances take any value but 0
            distance = (orders - np.roll(orders, step, axis=1)) % count
            assert chi_square(distance.ravel(), range(1, count)) < 4.5
        # The same place in the next epoch knows nothing of this one.
        both = orders[:-1, 0] * count + orders[1:, 0]
        assert chi_square(both, range(count**2)) < 4.5
    first = np.zeros(1, int)
    seeds = np.concatenate([permuted(seed, first, first + 5, count) for seed in range(800)])
    assert chi_square(seeds, range(count)) < 4.5


def test_a_large_order_looks_random():
    """Its ascents, fixed points and displacements are those of a random permutation."""
    count = 50_000
    order = permuted(0, np.zeros(count, int), np.arange(count), count)
    ascents = (np.diff(order) > 0).sum()
    assert abs(ascents - (count - 1) / 2) < 4.5 * np.sqrt((count + 1) / 12)
    assert (order == np.arange(count)).sum() < 8  # Poisson, of mean 1
    assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < 4.5 / np.sqrt(count)
    halves = (order[: count // 2] < count // 2).sum()
    assert abs(halves - count / 4) < 4.5 * np.sqrt(count / 16)


def test_random_bits_are_balanced_and_uncorrelated():
    bits = np.stack([random_bits(0, np.arange(4000), draw) for draw in range(4)])
    ones = (bits[..., None] >> np.arange(32, dtype=np.uint32)) & 1
    assert abs(ones.mean(axis=1) - 0.5).max() < 0.5 * 4.5 / np.sqrt(4000)
    correlation = np.corrcoef(np.concatenate([bits, bits[:, ::-1]]).astype(float))
    np.fill_diagonal(correlation, 0)
    assert abs(correlation).max() < 4.5 / np.sqrt(4000)
    shifted = np.corrcoef(bits[0, 1:].astype(float), bits[0, :-1].astype(float))
    assert abs(shifted[0, 1]) < 4.5 / np.sqrt(4000)
