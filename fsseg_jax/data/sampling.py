"""Which classes and images make the i-th episode: a pure function of (seed, i).

Any process can therefore make any episode, a run resumes from its step number alone, and an
evaluation can be repeated anywhere.
"""

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np
from flax import struct
from jaxtyping import Int, Integer

from fsseg_jax.episode import AnyArray, EpisodeIds
from fsseg_jax.errors import UserError


@struct.dataclass
class Items:
    """Which images show which class: one row per item, which is a (class, image) pair.

    Class `class_id[j]` has the rows `start[j]` to `start[j] + count[j]`, in ascending order of
    their images. Conversely, the j-th image that shows any class has `shown_count[j]` rows, from
    `by_image[shown_start[j]]` on. This is a pytree of arrays, so that the sampler runs in NumPy
    and inside compiled functions alike.

    `supports` holds the items that supports are drawn from where these differ from the queries'.
    """

    class_id: Integer[AnyArray, " classes"]
    start: Integer[AnyArray, " classes"]
    count: Integer[AnyArray, " classes"]
    image: Integer[AnyArray, " items"]
    by_image: Integer[AnyArray, " items"]
    shown_start: Integer[AnyArray, " images"]
    shown_count: Integer[AnyArray, " images"]
    supports: "Items | None" = None

    @classmethod
    def from_images(
        cls, class_ids: Sequence[int], images: Sequence[Integer[np.ndarray, " _"]]
    ) -> "Items":
        """Builds the table from the images of each class, as ascending rows of the source."""
        count = np.array([len(shown) for shown in images], np.int32)
        image = np.concatenate(images).astype(np.int32)
        shown_count = np.unique(image, return_counts=True)[1].astype(np.int32)
        return cls(
            class_id=np.asarray(class_ids, np.int32),
            start=(np.cumsum(count) - count).astype(np.int32),
            count=count,
            image=image,
            by_image=np.argsort(image, kind="stable").astype(np.int32),
            shown_start=(np.cumsum(shown_count) - shown_count).astype(np.int32),
            shown_count=shown_count,
        )

    def epoch(self, sampling: str) -> int:
        """The episodes in one epoch: one per image if "photographs" take turns, else per item."""
        return len(self.shown_start if sampling == "photographs" else self.image)


def check_items(
    items: Items,
    names: Mapping[int, str],
    ways: int,
    shots: int,
    filter_name: str,
    held_back: Mapping[int, int] | None = None,
) -> None:
    """Raises UserError unless every class has enough images for `ways` ways and `shots` shots.

    The message contains the class's name, and the name of the field that filters images.

    Args:
        held_back: how many further images of each class are kept for tests (`Source.held_back`).
    """
    if len(items.class_id) < ways:
        raise UserError(
            f"ways = {ways}, but there are only {len(items.class_id)} classes to draw from: "
            "lower ways or choose another fold."
        )
    supports = items.supports or items
    for class_id, count in zip(supports.class_id, supports.count, strict=True):
        if count < shots + 1:
            needed, besides = f"{shots + 1} (the shots and a query)", ""
            if back := (held_back or {}).get(int(class_id), 0):
                besides = f" besides {back} that are held back for tests"
                # What `ClassTable.held_back` leaves of so many are the shots and a query.
                needed += f", so {shots + 1 + max(2, shots // 4)} in all"
            raise UserError(
                f"class {names[int(class_id)]!r} has {count} images{besides}, but shots = {shots} "
                f"needs {needed}: lower shots or {filter_name}, or add images."
            )


def _mix(x: Integer[AnyArray, "*shape"]) -> Integer[AnyArray, "*shape"]:
    """An invertible 32-bit mixer ("lowbias32" of Wellons' hash prospector)."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def random_bits(
    seed: int, index: Integer[AnyArray, "*shape"], draw: int, xp: ModuleType = np
) -> Integer[AnyArray, "*shape"]:
    """Hashes (seed, index, draw) to a random uint32, identically in NumPy and JAX."""
    golden = 0x9E3779B9  # 2^32 / golden ratio: spreads small integers over all bits
    constants = np.array([seed, draw], np.int64) * golden % 2**32
    seed_bits, draw_bits = constants.astype(np.uint32)
    mixed_seed = _mix(np.array([seed_bits]) ^ np.uint32(golden))[0]
    return _mix(_mix(xp.asarray(index).astype(np.uint32) ^ mixed_seed) + draw_bits)


ROUNDS = 64  # rounds of the shuffle
SHUFFLE = 4000  # first draw number of the shuffle; episodes and augmentation use lower ones


def permuted(
    seed: int,
    epoch: Integer[AnyArray, " batch"],
    position: Integer[AnyArray, " batch"],
    count: int,
    xp: ModuleType = np,
) -> Int[AnyArray, " batch"]:
    """Which of 0..count-1 stands at `position` in the permutation of `seed` and `epoch`.

    This is the swap-or-not shuffle (Hoang, Morris and Rogaway, CRYPTO 2012), which needs no table:
    each round pairs every number x with key - x, and a random bit of the pair decides whether the
    two swap places. Every round is a permutation, for any count. By the paper's bound on its
    mixing, after 64 rounds the places of any two of 10,000 numbers are those of a perfect shuffle
    to within 1e-5.

    Args:
        seed: any integer.
        epoch: number of the epoch, from 0.
        position: positions in 0..count-1.
        count: length of the permutation, up to 2^30.
        xp: `numpy`, or `jax.numpy` inside a compiled function; results are the same.
    """
    rounds = xp.asarray(epoch) * ROUNDS + xp.arange(ROUNDS)[:, None]
    keys = random_bits(seed, rounds, SHUFFLE, xp)

    def swap_or_not(number: Any, place: Integer[AnyArray, " batch"]) -> Integer[AnyArray, " batch"]:
        key = keys[number]
        partner = (key % np.uint32(count) + (np.uint32(count) - place)) % np.uint32(count)
        bits = _mix(_mix(xp.maximum(place, partner)) ^ key)  # the same for both numbers of the pair
        return xp.where(bits >> 31 == 1, partner, place)

    place = xp.asarray(position).astype(np.uint32)
    if xp is np:
        for number in range(ROUNDS):
            place = swap_or_not(number, place)
    else:  # unrolled, so many operations would compile slowly
        place = jax.lax.fori_loop(0, ROUNDS, swap_or_not, place, unroll=4)
    return place.astype(np.int32)


def _draw_outside(
    bits: Integer[AnyArray, " batch"],
    size: Integer[AnyArray, " batch"],
    taken: Sequence[Integer[AnyArray, " batch"]],
    xp: ModuleType,
) -> Integer[AnyArray, " batch"]:
    """A uniform position in 0..size-1 outside `taken`, whose entries >= size are ignored.

    Draws among the free positions, then steps over the taken ones in ascending order.
    """
    if not taken:
        return (bits % size.astype(np.uint32)).astype(np.int32)
    ascending = xp.sort(xp.stack(taken), axis=0)
    free = size - (ascending < size).sum(axis=0)
    position = (bits % free.astype(np.uint32)).astype(np.int32)
    for occupied in ascending:
        position = position + (position >= occupied)
    return position


def _position(
    items: Items,
    row: Integer[AnyArray, " batch"],
    image: Integer[AnyArray, " batch"],
    xp: ModuleType,
) -> Integer[AnyArray, " batch"]:
    """The position of `image` among the images of class number `row`; maximal if absent."""
    last = items.image.shape[0] - 1

    def halve(_: Any, bounds: tuple[Any, Any]) -> tuple[Any, Any]:
        low, high = bounds
        middle = (low + high) // 2
        right = (low < high) & (items.image[xp.minimum(middle, last)] < image)
        return xp.where(right, middle + 1, low), xp.where(right, high, middle)

    bounds = items.start[row], items.start[row] + items.count[row]
    rounds = items.image.shape[0].bit_length()  # of a binary search, in lockstep over the batch
    if xp is np:
        for number in range(rounds):
            bounds = halve(number, bounds)
    else:  # unrolled, XLA fuses the rounds, and each doubles compilation time (jaxlib 0.12.0)
        bounds = jax.lax.fori_loop(0, rounds, halve, bounds)
    low, _ = bounds
    inside = low < items.start[row] + items.count[row]
    found = inside & (items.image[xp.minimum(low, last)] == image)
    return xp.where(found, low - items.start[row], np.iinfo(np.int32).max).astype(np.int32)


def sample(
    items: Items,
    seed: int,
    index: Integer[AnyArray, " batch"] | Sequence[int],
    ways: int,
    shots: int,
    xp: ModuleType = np,
    sampling: str = "classes",
) -> EpisodeIds:
    """Draws the episodes number `index` of `seed`.

    The classes of an episode are distinct. The query is drawn for one of them, each with the same
    probability, and may show others too. The supports of a way are distinct images of its class,
    none of which is the query.

    Args:
        items: items to draw from; see `check_items`.
        seed: any integer.
        index: numbers of the episodes, from 0.
        ways, shots: N and K.
        xp: `numpy`, or `jax.numpy` inside a compiled function; episodes are the same.
        sampling: how queries are drawn. "classes": classes are uniform, and so are the images of
            each. "items": every item is the query once per epoch of as many episodes, in an order
            that differs between epochs, so that classes count as often as they occur.
            "photographs": likewise every image is the query once per epoch, for a class drawn
            uniformly among those it shows. The other classes and all supports are uniform.

    Examples:
        >>> items = Items.from_images([3, 7], [np.arange(0, 4), np.arange(4, 8)])  # two classes
        >>> episodes = sample(items, seed=0, index=range(100), ways=1, shots=2)
        >>> episodes.supports.shape, np.unique(episodes.classes).tolist()
        ((100, 1, 2), [3, 7])
    """
    numbers = xp.asarray(index)
    draws = iter(range(1 + ways * (1 + shots) + 1))

    def bits() -> Integer[AnyArray, " batch"]:
        return random_bits(seed, numbers, next(draws), xp)

    rows = []
    if sampling != "classes":
        query_index = _in_turn(items, seed, numbers, sampling, bits, xp)
        past = items.start[None] + items.count[None] <= query_index[:, None]
        rows.append(past.sum(axis=1).astype(np.int32))
    class_count = xp.full(numbers.shape, items.class_id.shape[0], np.int32)
    while len(rows) < ways:
        rows.append(_draw_outside(bits(), class_count, rows, xp))
    rows = xp.stack(rows, axis=1)

    query_way = (bits() % np.uint32(ways)).astype(np.int32)[:, None]
    if sampling == "classes":
        query_row = xp.take_along_axis(rows, query_way, axis=1)[:, 0]
        query_index = items.start[query_row] + _draw_outside(bits(), items.count[query_row], [], xp)
    else:  # the query's class comes first so far: swap it into a random way
        way = xp.arange(ways)[None]
        order = xp.where(way == query_way, 0, xp.where(way == 0, query_way, way))
        rows = xp.take_along_axis(rows, order, axis=1)
    query = items.image[query_index]
    supports = _draw_supports(items.supports or items, rows, query, shots, bits, xp)
    return EpisodeIds(items.class_id[rows], supports, query, query_index)


def _draw_supports(
    items: Items,
    rows: Integer[AnyArray, "batch way"],
    query: Integer[AnyArray, " batch"],
    shots: int,
    bits: Callable[[], Integer[AnyArray, " batch"]],
    xp: ModuleType,
) -> Integer[AnyArray, "batch way shot"]:
    """Distinct images of each way's class, given as a row of `items`, without the query."""
    supports = []
    for row in rows.T:
        taken = [_position(items, row, query, xp)]
        for _ in range(shots):
            taken.append(_draw_outside(bits(), items.count[row], taken, xp))
        supports.append(items.image[items.start[row][:, None] + xp.stack(taken[1:], axis=1)])
    return xp.stack(supports, axis=1)


def _in_turn(
    items: Items,
    seed: int,
    index: Integer[AnyArray, " batch"],
    sampling: str,
    bits: Callable[[], Integer[AnyArray, " batch"]],
    xp: ModuleType,
) -> Int[AnyArray, " batch"]:
    """The query's item in each episode, where "items" or "photographs" take turns."""
    count = items.epoch(sampling)
    turn = permuted(seed, index // count, index % count, count, xp)
    if sampling == "items":
        return turn
    shown = _draw_outside(bits(), items.shown_count[turn], [], xp)
    return items.by_image[items.shown_start[turn] + shown]
