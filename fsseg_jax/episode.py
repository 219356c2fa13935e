"""Episodes: the one data type of the library, how they are drawn, and how they are listed.

An episode is one few-shot task: N classes (ways) with K labelled photographs (shots) each, and
a query photograph in which the classes are to be found. Which photographs make the i-th episode
is a pure function of (seed, i), so that any process can make any episode, a run resumes from
nothing but its step number, and an evaluation can be repeated anywhere.
"""

import csv
import dataclasses
import hashlib
import io
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Integer, Num, UInt8

from fsseg_jax.errors import UserError

# What NumPy makes on the host, and JAX on the devices: much here and elsewhere takes both.
AnyArray = Array | np.ndarray

# The name of the vmapped axis of a batch of episodes, for a normalisation that sees all of them.
BATCH_AXIS = "episode"
IGNORE = 255  # the label of pixels that count for nothing
UNLABELLED = 254  # of support pixels that nobody marked: neither a class nor the background
# ImageNet's statistics, in which torchvision's and timm's weights expect their input.
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


@struct.dataclass
class Episode:
    """One few-shot task, without a batch axis (a batch has one more axis in front of each).

    Labels are in episode numbering: 0 background, n + 1 where way n's class is, 255 ignored, and
    in supports that are outlined by less than a mask 254 where nobody has marked anything. A
    support photograph of way n may show way m too: its pixels are then m + 1, so that the
    background excludes every class of the episode (PANet eq. 2).

    Photographs travel as uint8 RGB and become normalised floats inside the compiled function
    (`normalise`), which moves a quarter of the bytes to the device.
    """

    support_image: Num[AnyArray, "*batch way shot height width 3"]
    support_label: UInt8[AnyArray, "*batch way shot height width"]
    query_image: Num[AnyArray, "*batch height width 3"]
    query_label: UInt8[AnyArray, "*batch height width"]
    class_id: Int[AnyArray, "*batch way"]
    # Row of the query in the table of (class, photograph) items.
    query_index: Int[AnyArray, "*batch"]

    def normalised(self) -> "Episode":
        """The same episode with normalised float photographs."""
        return dataclasses.replace(
            self,
            support_image=normalise(self.support_image),
            query_image=normalise(self.query_image),
        )


def empty_episode(ways: int, shots: int, size: int) -> Episode:
    """An episode of black, normalised photographs that show nothing: for shapes."""
    shape = (ways, shots, size, size)
    return Episode(
        support_image=jnp.zeros((*shape, 3)),
        support_label=jnp.zeros(shape, jnp.uint8),
        query_image=jnp.zeros((size, size, 3)),
        query_label=jnp.zeros((size, size), jnp.uint8),
        class_id=jnp.zeros(ways, jnp.int32),
        query_index=jnp.zeros((), jnp.int32),
    )


def normalise(image: Num[AnyArray, "*batch 3"]) -> Float[AnyArray, "*batch 3"]:
    """RGB in 0..255 to ImageNet's zero mean and unit variance."""
    return (image.astype("float32") / 255.0 - IMAGENET_MEAN) / IMAGENET_STD


def episode_label(
    label: Integer[AnyArray, "*shape"], class_ids: Integer[AnyArray, " way"]
) -> UInt8[Array, "*shape"]:
    """Data set numbering (class ids, 255) to episode numbering (0, 1..N, 255)."""
    result = jnp.where(label == IGNORE, IGNORE, 0)
    for way in range(class_ids.shape[0]):
        result = jnp.where(label == class_ids[way], way + 1, result)
    return result.astype(jnp.uint8)


# ----------------------------------------------------------------------------- sampling


@struct.dataclass
class Items:
    """Which photographs show which class: one row an item, that is a (class, photograph) pair.

    The rows of a class are consecutive and ascend by photograph: class `class_id[j]` has rows
    `start[j]` to `start[j] + count[j]`. The other way round, the j-th photograph that shows a
    class has the rows `by_photograph[shown_start[j]]` and on, `shown_count[j]` of them. A pytree
    of arrays, so that the sampler can run inside a compiled function as well as in NumPy.

    Where supports are drawn from others than queries are, `supports` has them, of the same classes.
    """

    class_id: Integer[AnyArray, " classes"]
    start: Integer[AnyArray, " classes"]
    count: Integer[AnyArray, " classes"]
    image: Integer[AnyArray, " items"]
    by_image: Integer[AnyArray, " items"]
    shown_start: Integer[AnyArray, " photographs"]
    shown_count: Integer[AnyArray, " photographs"]
    supports: "Items | None" = None

    @classmethod
    def from_images(
        cls, class_ids: Sequence[int], images: Sequence[Integer[np.ndarray, " _"]]
    ) -> "Items":
        """From each class's photographs, in ascending order, as rows of the source."""
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
        """How many episodes one epoch has: one a photograph where they take turns, or an item."""
        return len(self.shown_start if sampling == "photographs" else self.image)


@struct.dataclass
class EpisodeIds:
    """Episodes by name only, B of them; photographs are rows of the source."""

    classes: Integer[AnyArray, "*batch way"]
    supports: Integer[AnyArray, "*batch way shot"]
    query: Integer[AnyArray, "*batch"]
    query_index: Integer[AnyArray, "*batch"]

    @property
    def images(self) -> Integer[AnyArray, "batch slot"]:
        """All photographs of each episode: supports way by way, and the query last."""
        supports = self.supports.reshape(len(self), -1)
        xp = np if isinstance(supports, np.ndarray) else jnp
        return xp.concatenate([supports, self.query[:, None]], axis=1)

    def take(self, rows: Any) -> "EpisodeIds":
        """The episodes at `rows`: a slice or an array of positions."""
        return jax.tree.map(lambda field: field[rows], self)

    def __len__(self) -> int:
        return self.query.shape[0]


def check_items(
    items: Items, names: Mapping[int, str], ways: int, shots: int, filter_name: str
) -> None:
    """Raises UserError where `items` cannot give an episode of `ways` ways and `shots` shots.

    Args:
        items: what can be drawn.
        names: class id to name.
        ways, shots: N and K.
        filter_name: the setting that says which photographs count, for the remedy.
    """
    if len(items.class_id) < ways:
        raise UserError(
            f"ways = {ways}, but there are only {len(items.class_id)} classes to draw from: "
            "lower ways or choose another fold."
        )
    supports = items.supports or items
    for class_id, count in zip(supports.class_id, supports.count, strict=True):
        if count < shots + 1:
            raise UserError(
                f"class {names[int(class_id)]!r} has {count} photographs, but shots = {shots} "
                f"needs {shots + 1} (the shots and a query): lower shots or {filter_name}, or add "
                "photographs."
            )


def _mix(x: Integer[AnyArray, "*shape"]) -> Integer[AnyArray, "*shape"]:
    """An invertible 32-bit mixer ("lowbias32" of Wellons' hash prospector)."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def random_bits(
    seed: int, index: Integer[AnyArray, "*shape"], draw: int, xp: ModuleType = np
) -> Integer[AnyArray, "*shape"]:
    """Random uint32 for draw number `draw` of item `index`: a hash, the same in NumPy and JAX."""
    golden = 0x9E3779B9  # 2^32 / golden ratio: spreads small integers over all bits
    constants = np.array([seed, draw], np.int64) * golden % 2**32
    seed_bits, draw_bits = constants.astype(np.uint32)
    mixed_seed = _mix(np.array([seed_bits]) ^ np.uint32(golden))[0]
    return _mix(_mix(xp.asarray(index).astype(np.uint32) ^ mixed_seed) + draw_bits)


ROUNDS = 64  # of a shuffle
SHUFFLE = 4000  # number of the draw that keys a round; episodes and augmentation have lower ones


def permuted(
    seed: int,
    epoch: Integer[AnyArray, " batch"],
    position: Integer[AnyArray, " batch"],
    count: int,
    xp: ModuleType = np,
) -> Int[AnyArray, " batch"]:
    """Which of 0..count-1 comes at `position` in the order that belongs to `seed` and `epoch`.

    The swap-or-not shuffle (Hoang, Morris and Rogaway, CRYPTO 2012), which needs no table: each
    round pairs every number x with key - x, and a random bit of the pair says whether the two
    change places. Every round is a permutation, for every count. By the paper's bound on its
    mixing, after 64 rounds the places of any two of 10,000 numbers are those of a perfect shuffle
    to within 1e-5.

    Args:
        seed: any integer.
        epoch: from 0; each has another order.
        position: 0..count-1.
        count: how many there are, up to 2^30.
        xp: `numpy`, or `jax.numpy` inside a compiled function; both give the same.
    """
    rounds = xp.asarray(epoch) * ROUNDS + xp.arange(ROUNDS)[:, None]
    keys = random_bits(seed, rounds, SHUFFLE, xp)

    def swap_or_not(number: Any, place: Integer[AnyArray, " batch"]) -> Integer[AnyArray, " batch"]:
        key = keys[number]
        partner = (key % np.uint32(count) + (np.uint32(count) - place)) % np.uint32(count)
        bits = _mix(_mix(xp.maximum(place, partner)) ^ key)  # the same for both of the pair
        return xp.where(bits >> 31 == 1, partner, place)

    place = xp.asarray(position).astype(np.uint32)
    if xp is np:
        for number in range(ROUNDS):
            place = swap_or_not(number, place)
    else:  # a loop, as so many operations would take long to compile
        place = jax.lax.fori_loop(0, ROUNDS, swap_or_not, place, unroll=4)
    return place.astype(np.int32)


def _draw_outside(
    bits: Integer[AnyArray, " batch"],
    size: Integer[AnyArray, " batch"],
    taken: Sequence[Integer[AnyArray, " batch"]],
    xp: ModuleType,
) -> Integer[AnyArray, " batch"]:
    """A uniform position in 0..size-1 that is none of `taken` (positions >= size are no-ones).

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
    """Where `photograph` stands among the photographs of class number `row`, or far outside."""
    last = items.image.shape[0] - 1

    def halve(_: Any, bounds: tuple[Any, Any]) -> tuple[Any, Any]:
        low, high = bounds
        middle = (low + high) // 2
        right = (low < high) & (items.image[xp.minimum(middle, last)] < image)
        return xp.where(right, middle + 1, low), xp.where(right, high, middle)

    bounds = items.start[row], items.start[row] + items.count[row]
    rounds = items.image.shape[0].bit_length()  # of a binary search, in lock step
    if xp is np:
        for number in range(rounds):
            bounds = halve(number, bounds)
    else:  # a loop: XLA fuses a chain of rounds, and takes twice as long for each (jaxlib 0.12.0)
        bounds = jax.lax.fori_loop(0, rounds, halve, bounds)
    low, _ = bounds
    inside = low < items.start[row] + items.count[row]
    found = inside & (items.image[xp.minimum(low, last)] == image)
    return xp.where(found, low - items.start[row], np.iinfo(np.int32).max).astype(np.int32)


def sample(
    items: Items,
    seed: int,
    index: Integer[AnyArray, " batch"],
    ways: int,
    shots: int,
    xp: ModuleType = np,
    sampling: str = "classes",
) -> EpisodeIds:
    """The episodes number `index` of `seed`.

    The classes of an episode are distinct; the query shows one of them (which of the others it
    shows is left to chance), any with the same probability; the supports of a way are distinct
    photographs of its class, none of them the query.

    Args:
        items: what can be drawn; see `check_items`.
        seed: any integer.
        index: numbers of the episodes, from 0.
        ways, shots: N and K.
        xp: `numpy`, or `jax.numpy` inside a compiled function; both give the same episodes.
        sampling: where the queries come from. "classes": all classes are uniform, and so are the
            photographs of each. "items": every item is the query once in an epoch of as many
            episodes as there are items, in an order of the epoch's own, so that classes count as
            often as they occur. "photographs": so is every photograph, in an epoch of as many as
            there are, its class drawn uniformly among those that it shows. The other ways'
            classes, and all supports, are uniform.
    """
    index = xp.asarray(index)
    draws = iter(range(1 + ways * (1 + shots) + 1))

    def bits() -> Integer[AnyArray, " batch"]:
        return random_bits(seed, index, next(draws), xp)

    rows = []
    if sampling != "classes":
        query_index = _in_turn(items, seed, index, sampling, bits, xp)
        past = items.start[None] + items.count[None] <= query_index[:, None]
        rows.append(past.sum(axis=1).astype(np.int32))
    class_count = xp.full(index.shape, items.class_id.shape[0], np.int32)
    while len(rows) < ways:
        rows.append(_draw_outside(bits(), class_count, rows, xp))
    rows = xp.stack(rows, axis=1)

    query_way = (bits() % np.uint32(ways)).astype(np.int32)[:, None]
    if sampling == "classes":
        query_row = xp.take_along_axis(rows, query_way, axis=1)[:, 0]
        query_index = items.start[query_row] + _draw_outside(bits(), items.count[query_row], [], xp)
    else:  # the query's class, which is the first, changes places: no way has it always
        way = xp.arange(ways)[None]
        order = xp.where(way == query_way, 0, xp.where(way == 0, query_way, way))
        rows = xp.take_along_axis(rows, order, axis=1)
    query = items.image[query_index]

    candidates, supports = items.supports or items, []
    for way in range(ways):
        row = rows[:, way]
        taken = [_position(candidates, row, query, xp)]
        for _ in range(shots):
            taken.append(_draw_outside(bits(), candidates.count[row], taken, xp))
        rows_of = candidates.start[row][:, None] + xp.stack(taken[1:], axis=1)
        supports.append(candidates.image[rows_of])
    return EpisodeIds(
        classes=items.class_id[rows],
        supports=xp.stack(supports, axis=1),
        query=query,
        query_index=query_index,
    )


def _in_turn(
    items: Items,
    seed: int,
    index: Integer[AnyArray, " batch"],
    sampling: str,
    bits: Callable[[], Integer[AnyArray, " batch"]],
    xp: ModuleType,
) -> Int[AnyArray, " batch"]:
    """The query's item in each episode where "items" or "photographs" take turns."""
    count = items.epoch(sampling)
    turn = permuted(seed, index // count, index % count, count, xp)
    if sampling == "items":
        return turn
    shown = _draw_outside(bits(), items.shown_count[turn], [], xp)
    return items.by_image[items.shown_start[turn] + shown]


# ----------------------------------------------------------------------------- lists

COLUMNS = ("classes", "supports", "query")


def episodes_to_csv(
    episodes: EpisodeIds, image_ids: Sequence[str], **columns: Sequence[Any]
) -> str:
    """Episodes as CSV: `12,2008_000008;2009_001234,2010_000321`, and any further columns.

    Class ids are joined by `;`, the photographs of a way by `;` and the ways by `|`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *columns])
    for row in range(len(episodes)):
        ways = (";".join(image_ids[int(i)] for i in shots) for shots in episodes.supports[row])
        writer.writerow(
            [
                ";".join(map(str, episodes.classes[row])),
                "|".join(ways),
                image_ids[int(episodes.query[row])],
                *(column[row] for column in columns.values()),
            ]
        )
    return text.getvalue()


def episodes_hash(episodes: EpisodeIds, image_ids: Sequence[str]) -> str:
    """Eight hexadecimal digits that name a list of episodes."""
    return hashlib.sha256(episodes_to_csv(episodes, image_ids).encode()).hexdigest()[:8]


def read_episodes(
    path: str | os.PathLike, image_ids: Sequence[str], class_ids: Sequence[int]
) -> EpisodeIds:
    """Reads a list of episodes; columns beyond `classes,supports,query` are ignored.

    Args:
        path: a CSV file as `episodes_to_csv` writes it.
        photograph_ids: the names of the source's photographs; results are rows of it.
        class_ids: the classes that the source has.

    Raises:
        UserError: the file is absent, a column or name is unknown, or the rows differ in ways or
            shots, or an episode's query is one of its supports.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: there is no such episode list.")
    rows = {name: row for row, name in enumerate(image_ids)}
    classes, supports, queries = [], [], []
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.DictReader(file)
        if missing := [column for column in COLUMNS if column not in (reader.fieldnames or ())]:
            raise UserError(f"{path}: the column {missing[0]!r} is missing from its first line.")
        for line in reader:
            where = f"{path}, line {reader.line_num}"
            try:
                if None in line.values():
                    raise ValueError("too few columns")
                classes.append([int(name) for name in line["classes"].split(";")])
                supports.append(
                    [[rows[name] for name in way.split(";")] for way in line["supports"].split("|")]
                )
                queries.append(rows[line["query"]])
            except KeyError as error:
                raise UserError(
                    f"{where}: photograph {error.args[0]!r} is not in this data set's split."
                ) from None
            except (ValueError, AttributeError):
                raise UserError(
                    f"{where}: expected class ids joined by ';' and photographs joined by ';' "
                    "and '|' (as in 12,2008_000008;2009_001234,2010_000321)."
                ) from None
            if unknown := set(classes[-1]) - set(class_ids):
                raise UserError(f"{where}: class {min(unknown)} is not in this data set.")
            if any(queries[-1] in way for way in supports[-1]):
                raise UserError(f"{where}: the query is also a support of its episode.")
            shape = [len(classes[-1]), [len(way) for way in supports[-1]]]
            if shape != [len(classes[0]), [len(supports[0][0])] * len(classes[0])]:
                raise UserError(f"{where}: all episodes must have the same ways and shots.")
    if not queries:
        raise UserError(f"{path}: the list has no episodes.")
    return EpisodeIds(
        np.array(classes, np.int32),
        np.array(supports, np.int32),
        np.array(queries, np.int32),
        np.zeros(len(queries), np.int32),
    )


def concatenate(parts: Sequence[EpisodeIds]) -> EpisodeIds:
    """Lists of episodes one after the other."""
    return jax.tree.map(lambda *fields: np.concatenate(fields), *parts)
