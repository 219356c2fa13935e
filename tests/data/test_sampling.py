"""The sampler draws episodes as documented, and identically everywhere."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import message_of
from helpers_data import assert_equal, chi_square

from fsseg_jax.data.sampling import Items, check_items, sample
from fsseg_jax.data.source import ClassTable
from fsseg_jax.episode import episodes_hash

SETTINGS = [(1, 1), (1, 5), (2, 1), (2, 5)]
IN_TURN = ("items", "photographs")
SETTINGS_IN_TURN = [(sampling, *setting) for sampling in IN_TURN for setting in [(1, 1), (3, 2)]]
ALL_SETTINGS = [*(("classes", *setting) for setting in SETTINGS), *SETTINGS_IN_TURN]
NAMES = {class_id: f"class {class_id}" for class_id in range(1, 30)}


def table_of(rng, counts, images):
    """A table in which class n + 1 is shown by counts[n] of the images, drawn at random."""
    shown = np.zeros((images, len(counts)), int)
    for column, count in enumerate(counts):
        shown[rng.choice(images, count, replace=False), column] = rng.integers(1, 99, count)
    return ClassTable.from_counts(shown)


@functools.cache
def make_items():
    """Unequal classes, the smallest barely large enough for 5 shots; most images show several."""
    return table_of(np.random.default_rng(0), [6, 9, 17, 30, 6], 40).items((5, 2, 3, 1))


def images_of(items, class_id):
    (row,) = np.flatnonzero(items.class_id == class_id)
    return set(items.image[items.start[row] :][: items.count[row]].tolist())


# ----------------------------------------------------------------------------- sampling


@pytest.mark.parametrize(("sampling", "ways", "shots"), ALL_SETTINGS)
def test_an_episode_depends_on_seed_and_number_alone(sampling, ways, shots):
    """So that runs can resume anywhere and be divided between processes."""
    draw = functools.partial(sample, make_items(), 7, ways=ways, shots=shots, sampling=sampling)
    all_of_them = draw(range(300))
    some = np.random.default_rng(1).permutation(300)[:50]
    assert_equal(draw(some), all_of_them.take(some))
    assert_equal(draw([131]), all_of_them.take(slice(131, 132)))
    assert_equal(draw(range(131, 300)), all_of_them.take(slice(131, None)))


@pytest.mark.parametrize(("sampling", "ways", "shots"), ALL_SETTINGS)
def test_numpy_and_compiled_jax_draw_the_same_episodes(sampling, ways, shots):
    items = make_items()
    draw = jax.jit(lambda items, index: sample(items, 3, index, ways, shots, jnp, sampling))
    index = np.concatenate([np.arange(500), 2**31 - 1 - np.arange(200)]).astype(np.int32)
    expected = sample(items, 3, index, ways, shots, sampling=sampling)
    assert_equal(draw(items, index), expected)


@pytest.mark.parametrize(("sampling", "ways", "shots"), ALL_SETTINGS)
def test_images_show_their_class_and_are_distinct(sampling, ways, shots):
    items = make_items()
    episodes = sample(items, 0, range(500), ways, shots, sampling=sampling)
    assert episodes.classes.shape == (500, ways)
    assert episodes.supports.shape == (500, ways, shots)
    assert episodes.query.shape == episodes.query_index.shape == (500,)
    np.testing.assert_array_equal(items.image[episodes.query_index], episodes.query)
    drawn_as = np.repeat(items.class_id, items.count)[episodes.query_index]
    assert ((episodes.classes == drawn_as[:, None]).sum(axis=1) == 1).all()
    of_class = {int(c): images_of(items, c) for c in items.class_id}
    for ids in map(episodes.take, range(500)):
        assert len(set(ids.classes.tolist())) == ways
        for class_id, shown in zip(ids.classes.tolist(), ids.supports.tolist(), strict=True):
            assert set(shown) <= of_class[class_id] - {int(ids.query)}
            assert len(set(shown)) == shots


@pytest.mark.parametrize(("ways", "shots"), SETTINGS)
def test_classes_of_exactly_enough_images(ways, shots):
    """All classes share the fewest possible images, all of which each episode uses."""
    shown = np.ones((shots + 1, 3), int)
    items = ClassTable.from_counts(shown).items((1, 2, 3))
    check_items(items, NAMES, ways, shots, "min_pixels")
    episodes = sample(items, 0, range(100), ways, shots)
    for row in range(100):
        for supports in episodes.supports[row]:
            assert {*supports.tolist(), int(episodes.query[row])} == set(range(shots + 1))


@pytest.mark.parametrize(("ways", "shots"), [(1, 1), (2, 5)])
def test_classes_and_images_are_uniform(ways, shots):
    items = make_items()
    episodes = sample(items, 0, range(20_000), ways, shots)
    drawn_as = np.repeat(items.class_id, items.count)[episodes.query_index]
    assert chi_square(drawn_as, items.class_id) < 4
    for class_id in items.class_id:
        options = sorted(images_of(items, class_id))
        assert chi_square(episodes.query[drawn_as == class_id], options) < 4
        # A support is uniform among what the query leaves, so over all queries too: of its own
        # way the query is.
        own = (drawn_as == class_id) & (episodes.classes[:, 0] == class_id)
        for shot in range(shots):
            assert chi_square(episodes.supports[own, 0, shot], options) < 4


def test_pairs_of_query_and_support_are_uniform():
    """Stepping over the query favours no support."""
    items = ClassTable.from_counts(np.ones((5, 1), int)).items((1,))
    episodes = sample(items, 11, range(20_000), 1, 2)
    triples = np.stack([episodes.query, *episodes.supports[:, 0].T], axis=-1) @ [25, 5, 1]
    allowed = [
        25 * a + 5 * b + c for a in range(5) for b in range(5) for c in range(5) if a != b != c != a
    ]
    assert chi_square(triples, allowed) < 4


def test_seeds_give_different_episodes():
    items = make_items()
    lists = [sample(items, seed, range(300), 1, 1) for seed in (0, 1, 2, 2**31 - 1, -1)]
    for number, left in enumerate(lists):
        for right in lists[number + 1 :]:
            for shift in (0, 1):  # nor the same episodes a number later
                same = left.query[: 300 - shift] == right.query[shift:]
                assert same.mean() < 0.15


def test_classes_of_a_hundred_thousand_episodes_are_uniform():
    """All ordered sets of classes are equally frequent, and so is each way of the query."""
    items = make_items()
    for ways in (1, 2, 3):
        episodes = sample(items, 1, range(100_000), ways, 1)
        code = episodes.classes @ 100 ** np.arange(ways)
        sets = np.array(list(itertools.permutations(items.class_id.tolist(), ways)))
        assert chi_square(code, sets @ 100 ** np.arange(ways)) < 4
        if ways > 1:
            drawn_as = np.repeat(items.class_id, items.count)[episodes.query_index]
            _, way = np.nonzero(episodes.classes == drawn_as[:, None])
            assert chi_square(way, range(ways)) < 4


# ----------------------------------------------------------------------------- queries in turn


def turns(items, sampling):
    """What takes turns, and a function that finds it in episodes."""
    if sampling == "items":
        return list(range(len(items.image))), lambda episodes: episodes.query_index
    return np.unique(items.image).tolist(), lambda episodes: episodes.query


@pytest.mark.parametrize(("sampling", "ways", "shots"), SETTINGS_IN_TURN)
def test_everything_is_the_query_once_in_an_epoch(sampling, ways, shots):
    items = make_items()
    everything, told = turns(items, sampling)
    count = items.epoch(sampling)
    assert count == len(everything)
    episodes = sample(items, 3, range(4 * count), ways, shots, sampling=sampling)
    epochs = told(episodes).reshape(4, count)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == everything
    for one, other in itertools.combinations(epochs, 2):  # in an order of its own
        assert (one == other).mean() < 5 / np.sqrt(count)
    np.testing.assert_array_equal(items.image[episodes.query_index], episodes.query)
    other_seed = told(sample(items, 4, range(count), ways, shots, sampling=sampling))
    assert (other_seed == epochs[0]).mean() < 5 / np.sqrt(count)


def test_classes_of_images_in_turn_are_uniform_among_those_shown():
    items = make_items()
    count = items.epoch("photographs")
    episodes = sample(items, 0, range(2000 * count), 1, 1, sampling="photographs")
    of_class = {int(c): images_of(items, c) for c in items.class_id}
    for image in np.unique(items.image)[:12].tolist():
        shown = [c for c in of_class if image in of_class[c]]
        drawn = episodes.classes[episodes.query == image, 0]
        assert len(drawn) == 2000
        assert (drawn == shown[0]).all() if len(shown) == 1 else chi_square(drawn, shown) < 4


@pytest.mark.parametrize("sampling", IN_TURN)
def test_the_class_of_a_query_in_turn_is_any_way(sampling):
    """A network would learn its place if that were always the same."""
    items = make_items()
    episodes = sample(items, 6, range(30_000), 3, 1, sampling=sampling)
    drawn_as = np.repeat(items.class_id, items.count)[episodes.query_index]
    _, way = np.nonzero(episodes.classes == drawn_as[:, None])
    assert chi_square(way, range(3)) < 4
    for class_id in items.class_id:  # and the other classes are uniform
        own = drawn_as == class_id
        others = episodes.classes[own & (way != 0), 0]
        assert chi_square(others, [c for c in items.class_id if c != class_id]) < 4


def test_what_a_query_in_turn_leaves_open_is_uniform():
    items = make_items()
    row, count = 11, len(items.image)
    episodes = sample(items, 9, range(2000 * count), 1, 1, sampling="items")
    own = episodes.supports[episodes.query_index == row, 0, 0]
    class_id = np.repeat(items.class_id, items.count)[row]
    left = images_of(items, class_id) - {int(items.image[row])}
    assert chi_square(own, sorted(left)) < 4


@pytest.mark.parametrize("sampling", ["classes", "items", "photographs"])
def test_what_is_compiled_does_not_grow_with_the_data(sampling):
    """Unrolled, each further round of a search may double XLA's compilation time."""
    programs = []
    for count in (16, 5000):
        images = np.arange(count, dtype=np.int32)
        items = Items.from_images([1, 2, 3], [images, images[::2], images[1:]])
        draw = functools.partial(sample, ways=2, shots=2, xp=jnp, sampling=sampling)
        jaxpr = jax.make_jaxpr(lambda items, index, draw=draw: draw(items, 0, index))(
            items, np.arange(4)
        )
        programs.append([str(equation.primitive) for equation in jaxpr.jaxpr.eqns])
    assert programs[0] == programs[1]
    assert len(programs[0]) > 20


FAR = [0, 1, 999_999, 10**9, 2**31 - 1]


def test_episodes_far_away_are_made_directly():
    """Without drawing the preceding ones, which would take hours."""
    items = make_items()
    far = sample(items, 0, FAR, 2, 2)
    for row, number in enumerate(FAR):
        assert_equal(sample(items, 0, [number], 2, 2), far.take(slice(row, row + 1)))
        around = sample(items, 0, range(max(0, number - 3), number + 1), 2, 2)
        assert_equal(around.take(slice(-1, None)), far.take(slice(row, row + 1)))
    block = sample(items, 0, np.arange(10**9, 10**9 + 20_000), 2, 2)
    assert chi_square(block.classes[:, 0], items.class_id) < 4
    assert (block.query != sample(items, 0, range(20_000), 2, 2).query).mean() > 0.9
    draw = jax.jit(lambda items, index: sample(items, 0, index, 2, 2, xp=jnp))
    assert_equal(draw(items, np.array(FAR, np.int32)), far)


def test_episodes_are_the_same_in_every_version():
    """Published figures name their episodes by hash, so that a change makes them incomparable."""
    items = ClassTable.from_counts(np.ones((20, 3), int)).items((1, 2, 3))
    ids = [str(number) for number in range(20)]
    hashes = [episodes_hash(sample(items, 4, range(100), ways, 2), ids) for ways in (1, 2)]
    assert hashes == ["a5d12ccd", "483899e6"]


@pytest.mark.parametrize(
    ("counts", "ways", "shots", "message"),
    [
        ([[5, 5], [5, 0], [5, 5]], 1, 2, "class 2' has 2 images, but shots = 2 needs 3 (the shots"),
        ([[5, 0], [5, 0]], 1, 1, "class 2' has 0 images, but shots = 1 needs 2 (the shots"),
        ([[5, 5]] * 4, 3, 1, "ways = 3, but there are only 2 classes"),
    ],
)
def test_impossible_settings_are_refused(counts, ways, shots, message):
    items = ClassTable.from_counts(counts).items((1, 2))
    told = message_of(check_items, items, NAMES, ways, shots, "min_pixels")
    assert message in told
    assert ("lower shots or min_pixels" in told) == (ways == 1)
