"""Folders are listed, and names outside of a data set are refused."""

import os
import pathlib

import pytest
from helpers import message_of

from fsseg_jax.data.listing import check_name, check_utf8, list_folder, read_lines


def test_a_folder_has_files_folders_and_what_is_neither(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("c.txt", "a.jpg", ".hidden"):
        (tmp_path / name).write_text("")
    (tmp_path / "__MACOSX").mkdir()
    os.symlink(tmp_path / "b", tmp_path / "d")
    os.symlink(tmp_path / "a.jpg", tmp_path / "e.jpg")
    os.symlink(tmp_path / "nowhere", tmp_path / "f")
    os.symlink(tmp_path / "g", tmp_path / "g")  # leads to itself
    names = [[path.name for path in paths] for paths in list_folder(tmp_path)]
    assert names == [["a.jpg", "c.txt", "e.jpg"], ["b", "d"], ["f", "g"]]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def iterdir(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(pathlib.Path, "iterdir", iterdir)
    assert f"{tmp_path} cannot be read (Permission denied)" in message_of(list_folder, tmp_path)


@pytest.mark.parametrize(
    "name", ["1.jpg", "day/1.jpg", "./1.jpg", "a..b/c...jpg", "caf\udce9.jpg", "12:30.jpg", "a b"]
)
def test_names_inside_of_the_folder_are_fine(name):
    check_name(name, "it")


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../1.jpg", "day/../../1.jpg", "/etc/passwd", "//host/share", "1\0.jpg"),
        *("C:\\1.jpg", "\\1.jpg", "\\\\host\\share\\1.jpg", "day\\..\\1.jpg", "x" * 5000),
    ],
)
def test_names_outside_of_the_folder_are_refused(name):
    message = message_of(check_name, name, "list.txt: it")
    assert message.startswith("list.txt: it = '")
    assert len(message) < 300


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"a\r\n\r\n b \n", ["a", "b"]),
        (b"\xef\xbb\xbfa\nb", ["a", "b"]),
        ("é".encode(), ["é"]),
        (b"caf\xe9\n", [os.fsdecode(b"caf\xe9")]),  # Latin-1, as the file's name may be
        (b"", []),
    ],
)
def test_lines_are_read_in_any_encoding_of_their_names(tmp_path, content, lines):
    (tmp_path / "list.txt").write_bytes(content)
    assert read_lines(tmp_path / "list.txt") == lines


@pytest.mark.parametrize("content", [None, "é\n".encode("utf-16"), b"\0"])
def test_lists_that_are_no_text_are_named(tmp_path, content):
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content)
    assert f"{tmp_path / 'list.txt'} cannot be read" in message_of(
        read_lines, tmp_path / "list.txt"
    )


def test_classes_that_cannot_be_written_are_named():
    check_utf8(["cat", "Кот"], "here")
    assert "'caf\\udce9'" in message_of(check_utf8, ["cat", "caf\udce9"], "here")
