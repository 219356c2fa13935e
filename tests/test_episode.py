"""Labels in episode numbering, and lists of episodes."""

import contextlib
import csv
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import message_of
from helpers_fuzz import damaged, many
from hypothesis import assume, given
from hypothesis import strategies as st

from fsseg_jax.episode import (
    EpisodeIds,
    concatenate,
    episode_label,
    episodes_hash,
    episodes_to_csv,
    read_episodes,
)
from fsseg_jax.errors import UserError


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


# ----------------------------------------------------------------------------- labels


@pytest.mark.parametrize("classes", [[7], [20, 3], [1, 2, 3]])
def test_episode_label_matches_a_loop(classes):
    rng = np.random.default_rng(0)
    label = rng.choice([0, 1, 2, 3, 7, 20, 255], (2, 9, 11)).astype(np.uint8)
    expected = np.zeros_like(label)
    for place in np.ndindex(*label.shape):
        value = int(label[place])
        if value == 255:
            expected[place] = 255
        elif value in classes:
            expected[place] = classes.index(value) + 1
    result = episode_label(jnp.asarray(label), jnp.asarray(classes, jnp.int32))
    assert result.dtype == jnp.uint8
    np.testing.assert_array_equal(result, expected)


# ----------------------------------------------------------------------------- lists

IDS = ["2008_000008", "2009_001234", "2010_000321", "a", "b", "c", "d", "e"]


def listed(classes, supports, queries):
    arrays = (np.array(x, np.int32) for x in (classes, supports, queries))
    return EpisodeIds(*arrays, np.zeros(len(queries), np.int32))


def test_format_of_one_way():
    episodes = listed([[12]], [[[0, 1]]], [2])
    text = "classes,supports,query\n12,2008_000008;2009_001234,2010_000321\n"
    assert episodes_to_csv(episodes, IDS) == text


def test_format_of_two_ways_and_of_further_columns():
    episodes = listed([[1, 5]], [[[3, 4], [5, 6]]], [7])
    text = episodes_to_csv(episodes, IDS, run=[0], iou=["61.25"])
    assert text == "classes,supports,query,run,iou\n1;5,a;b|c;d,e,0,61.25\n"


def random_list(ways=2, shots=1, count=50):
    rng = np.random.default_rng(0)
    drawn = rng.permuted(np.tile(np.arange(40), (count, 1)), axis=1)
    supports = drawn[:, 1 : ways * shots + 1].reshape(count, ways, shots)
    classes = rng.permuted(np.tile(np.arange(1, 6), (count, 1)), axis=1)[:, :ways]
    return listed(classes, supports, drawn[:, 0])


@pytest.mark.parametrize(("ways", "shots"), [(1, 1), (1, 5), (2, 1), (2, 5)])
def test_lists_are_read_back_as_written(tmp_path, ways, shots):
    episodes = random_list(ways, shots)
    ids = [f"photo {number}, the {'same' * (number % 2)}" for number in range(40)]
    path = tmp_path / "episodes.csv"
    path.write_text(episodes_to_csv(episodes, ids, run=range(50), note=["x,y"] * 50))
    assert_equal(read_episodes(path, ids, range(1, 6)), episodes)


def test_columns_may_come_in_any_order(tmp_path):
    path = tmp_path / "episodes.csv"
    path.write_text("iou,query,supports,classes\n9,e,a;b|c;d,1;5\n")
    read = read_episodes(path, IDS, [1, 5])
    assert_equal(read, listed([[1, 5]], [[[3, 4], [5, 6]]], [7]))


def test_hash_names_a_list():
    episodes = random_list()
    ids = [str(number) for number in range(40)]
    digest = episodes_hash(episodes, ids)
    assert len(digest) == 8
    assert int(digest, 16) >= 0
    assert digest == episodes_hash(random_list(), ids)
    others = [
        episodes.take(slice(49)),
        episodes.replace(query=episodes.query[::-1]),
        episodes.replace(classes=episodes.classes[:, ::-1]),
    ]
    assert digest not in [episodes_hash(other, ids) for other in others]


def test_concatenated_lists_keep_their_order():
    episodes = random_list()
    parts = [episodes.take(slice(0, 10)), episodes.take(slice(10, 12)), episodes.take(slice(12, 0))]
    assert_equal(concatenate(parts), episodes.take(slice(12)))
    assert len(concatenate(parts)) == 12


HEADER = "classes,supports,query\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, ": there is no such episode list"),
        ("classes,query\n12,a\n", ": the column 'supports' is missing"),
        ("", ": the column 'classes' is missing"),
        (HEADER, ": the list has no episodes"),
        (HEADER + "12,a,b\n12,a,nowhere\n", ", line 3: image 'nowhere' is not in"),
        (HEADER + "12,a;nowhere,b\n", ", line 2: image 'nowhere' is not in"),
        (HEADER + "cat,a,b\n", ", line 2: expected class ids joined by ';'"),
        (HEADER + "12\n", ", line 2: expected class ids joined by ';'"),
        (HEADER + "12,a\n", ", line 2: expected class ids joined by ';'"),
        (HEADER + "12,a,b\n13,a,b\n", ", line 3: class 13 is not in this data set"),
        (HEADER + "12,a;b,b\n", ", line 2: the query is also a support"),
        (HEADER + "1;12,a|b,b\n", ", line 2: the query is also a support"),
        (HEADER + "12,a,c\n12,a;b,c\n", ", line 3: all episodes must have the same ways and shots"),
        (HEADER + "12,a,c\n1;12,a|b,c\n", ", line 3: all episodes must have the same ways"),
        (HEADER + "1;12,a|b;c,d\n", ", line 2: all episodes must have the same ways and shots"),
        (HEADER + "1;12,a;b,d\n", ", line 2: all episodes must have the same ways and shots"),
    ],
)
def test_errors_tell_the_place(tmp_path, text, message):
    path = tmp_path / "list.csv"
    if text is not None:
        path.write_text(text)
    told = message_of(read_episodes, path, IDS, [1, 12])
    assert told.startswith(f"{path}{message}")


# ----------------------------------------------------------------------------- names

STRANGE = (
    *(
        "=1+1",
        "+1",
        "-1",
        "@x",
        "a=b",
        "x;y",
        "a|b",
        "a,b",
        'a "b"',
        "a\nb",
        "a\r\nb",
        "a\tb",
        "\tc",
    ),
    *("%3B", "%", "%%3B", "%2;", "100%", "%zz", "%25", "%253B", "caf\udce9", "é", " x ", "%E9"),
)


def one_each(ids):
    """Episodes in which each image is the query once, and a support."""
    rows = np.arange(len(ids))
    supports = np.stack([np.roll(rows, 1), np.roll(rows, 2)], axis=1)[:, None]
    return listed(np.ones((len(ids), 1), int), supports, rows)


def test_strange_names_are_read_back_and_are_no_formulas(tmp_path):
    path = tmp_path / "list.csv"
    text = episodes_to_csv(one_each(STRANGE), STRANGE)
    path.write_bytes(text.encode())
    assert_equal(read_episodes(path, STRANGE, [1]), one_each(STRANGE))
    cells = [cell for row in csv.reader(text.splitlines()) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert text.count("\n") == 1 + len(STRANGE)
    assert len(episodes_hash(one_each(STRANGE), STRANGE)) == 8


def test_ordinary_names_are_written_as_they_are():
    ids = ["2008_000008", "cat/1-2", "a b", "50% off", "a%20b", "x=1", "a@b", "é"]
    lines = episodes_to_csv(one_each(ids), ids).splitlines()[1:]
    assert [line.split(",")[2] for line in lines] == ids


def test_names_that_others_wrote_as_they_are_are_read(tmp_path):
    (tmp_path / "list.csv").write_text(HEADER + "1,=x,a%3Bb\n")
    read = read_episodes(tmp_path / "list.csv", ["=x", "a%3Bb"], [1])
    assert_equal(read, listed([[1]], [[[0]]], [1]))


@many
@given(ids=st.lists(st.text(min_size=1, max_size=6), min_size=3, max_size=5, unique=True))
def test_any_names_are_read_back(tmp_path, ids):
    ids = [
        os.fsdecode(name.encode(errors="replace") + b"\xe9" * (n % 2)) for n, name in enumerate(ids)
    ]
    assume(len(set(ids)) == len(ids))
    path = tmp_path / "list.csv"
    path.write_bytes(episodes_to_csv(one_each(ids), ids).encode())
    assert_equal(read_episodes(path, ids, [1]), one_each(ids))


@many
@given(content=damaged((HEADER + "1;5,a;b|c;d,e\n5;1,b;c|d;e,a\n").encode()))
def test_any_list_is_read_or_refused(tmp_path, content):
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        episodes = read_episodes(path, IDS, [1, 5])
        assert episodes.images.max() < len(IDS)
