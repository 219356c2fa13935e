"""Which images below --query are segmented, and what is told of the others."""

import json
import os
import sys

import numpy as np
import pytest
from drawn import files_of, save
from helpers import message_of

from fsseg_jax.prediction.queries import find_queries

PIXELS = np.zeros((2, 3, 3), np.uint8)


@pytest.fixture
def query(tmp_path):
    folder = tmp_path / "query"
    save(folder / "own" / "a.png", PIXELS)
    save(tmp_path / "elsewhere" / "deep" / "b.png", PIXELS)
    return folder


def names(folder, without=()):
    return [query.name for query in find_queries(folder, without)]


def test_links_to_folders_are_followed_and_name_their_images(query, tmp_path, log):
    (query / "link").symlink_to(tmp_path / "elsewhere")
    (query / "own" / "c.png").symlink_to(tmp_path / "elsewhere" / "deep" / "b.png")
    assert names(query) == ["link/deep/b.png", "own/a.png", "own/c.png"]
    assert names(query, [tmp_path / "elsewhere" / "deep"]) == ["own/a.png", "own/c.png"]
    assert not log.messages


def test_links_in_circles_end_and_each_folder_is_taken_once(query, tmp_path, log):
    (query / "again").symlink_to(query / "own")  # before it by name
    (query / "own" / "up").symlink_to(query)
    (query / "own" / "further up").symlink_to(tmp_path)
    (query / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "deep" / "back").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "around").symlink_to(query / "link")
    assert names(query) == ["link/deep/b.png", "own/a.png"]
    assert log.messages == [
        f"{query}: left out as the folders that they link to are taken already, or above: 5, such "
        "as again"
    ]


def test_a_link_into_what_is_left_out_is_left_out(query, tmp_path):
    save(tmp_path / "out" / "masks" / "deep" / "b.png", PIXELS)
    (query / "link").symlink_to(tmp_path / "out" / "masks" / "deep")
    (query / "out").symlink_to(tmp_path / "out")
    assert names(query, [tmp_path / "out" / "masks"]) == ["own/a.png"]
    assert names(query, [tmp_path]) == ["own/a.png"]  # truth may lie around the queries


def test_what_is_no_image_is_counted_and_named(query, log):
    for name in ("z.txt", "own/notes.txt", ".hidden"):
        (query / name).touch()
    (query / "broken.jpg").symlink_to(query / "nowhere")
    (query / "circle.jpg").symlink_to(query / "circle.jpg")
    os.mkfifo(query / "pipe.png")
    assert names(query) == ["own/a.png"]
    assert log.messages == [
        f"{query}: left out as their names are no images': 2, such as own/notes.txt",
        f"{query}: left out as they are broken links, or no regular files: 3, such as broken.jpg",
    ]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
def test_names_that_are_no_utf8_are_kept(run, folders):
    name = os.fsdecode(b"caf\xe9")
    save(folders / "query" / "sub" / f"{name}.png", PIXELS)
    assert run() == 0
    assert f"masks/sub/{name}.png" in files_of(folders / "out")
    coco = json.loads((folders / "out" / "predictions.json").read_text("ascii"))
    assert f"sub/{name}.png" in {image["file_name"] for image in coco["images"]}
    assert run() == 0
    assert run.segmented == []


def test_a_loop_of_nothing_but_links_holds_no_images(tmp_path):
    (tmp_path / "query").mkdir()
    (tmp_path / "query" / "up").symlink_to(tmp_path / "query")
    assert "holds no images" in message_of(find_queries, tmp_path / "query")
