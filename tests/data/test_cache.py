"""Cached arrays are verified and made again when they are damaged, which is told."""

import os
import pathlib

import numpy as np
import pytest
from helpers import message_of

from fsseg_jax.data import cache
from fsseg_jax.data.cache import fingerprint, kept_array, kept_table, load_array, save_array

ARRAYS = [np.arange(24.0).reshape(4, 6), np.zeros((3, 0), int), np.array(["a", "éb"]), np.array(7)]


def saved(path, array):
    with path.open("wb") as file:
        save_array(file, array)
    return path


@pytest.mark.parametrize("array", ARRAYS)
def test_arrays_are_read_as_they_were_saved(tmp_path, array):
    found = load_array(saved(tmp_path / "x.npy", array))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("array", ARRAYS)
def test_any_changed_bit_is_noticed_and_named(tmp_path, log, array):
    path = saved(tmp_path / "x.npy", array)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, 8 * len(content), 100).tolist():
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        log.clear()
        assert load_array(path) is None
        assert str(path) in log.text
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert load_array(path) is None


def test_a_pipe_is_not_waited_for(tmp_path, log):
    os.mkfifo(tmp_path / "x.npy")
    found = kept_array(tmp_path / "x.npy", "it", lambda: np.arange(5))
    np.testing.assert_array_equal(found, np.arange(5))
    assert "not a regular file" in log.text
    assert (tmp_path / "x.npy").is_file()


def test_what_is_missing_is_computed_once_and_what_is_damaged_again(tmp_path, log):
    calls = []

    def compute():
        calls.append(None)
        return np.arange(5)

    path = tmp_path / "new" / "x.npy"
    for expected in (1, 1):
        np.testing.assert_array_equal(kept_array(path, "it", compute), np.arange(5))
        assert len(calls) == expected
    assert not log.messages
    path.write_bytes(path.read_bytes()[:-1])
    for _ in range(2):
        np.testing.assert_array_equal(kept_array(path, "it", compute), np.arange(5))
    assert len(calls) == 2
    assert [str(path) in message for message in log.messages] == [True]


def test_a_folder_that_takes_no_files_is_told_and_named(tmp_path, log):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "x.npy"
    np.testing.assert_array_equal(kept_array(path, "it", lambda: np.arange(5)), np.arange(5))
    assert [str(path) in message for message in log.messages] == [True]


def test_a_damaged_class_table_is_counted_again(cache_home, log):
    def table():
        return kept_table("some", "0123", lambda number: np.array([number, 3]), [1, 2])

    first = table()
    path = cache_home / "fsseg_jax" / "class_tables" / "some-0123.npy"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    second = table()
    np.testing.assert_array_equal(first.pixels, second.pixels)
    assert str(path) in log.text


# ----------------------------------------------------------------------------- keys


def test_names_that_are_not_utf8_have_keys(tmp_path):
    names = [os.fsdecode(b"caf\xe9.jpg"), os.fsdecode(b"caf\xe8.jpg")]
    for name in names:
        (tmp_path / name).write_text("x")
    keys = {fingerprint([tmp_path / name]) for name in names}
    assert len(keys) == 2


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def scandir(folder):
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(cache.os, "scandir", scandir)
    message = message_of(fingerprint, [tmp_path / "1.jpg"])
    assert message.startswith(f"{tmp_path} cannot be read (Permission denied)")
    monkeypatch.undo()
    assert str(tmp_path / "none") in message_of(fingerprint, [pathlib.Path(tmp_path, "none", "1")])
