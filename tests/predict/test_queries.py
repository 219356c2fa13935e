"""Which images below --query are segmented, and what is told of the others."""

import json
import os
import sys

import numpy as np
import pytest
from drawn import files_of, save
from helpers import message_of

from fsseg_jax.data.images import read_image
from fsseg_jax.errors import UserError
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
        f"{query}: left out as their names are not those of images: 2, such as own/notes.txt",
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


# ----------------------------------------------------------------------------- lists and addresses


def test_a_list_names_images_below_its_folder_or_elsewhere(query, tmp_path, log):
    (own,) = find_queries(query)
    lines = ["own/a.png", "", f"{tmp_path}/elsewhere/deep/b.png", "../elsewhere/deep/b.png"]
    (query / "list").write_text("\n".join([*lines, "own/./a.png", "s3://bucket/c/d.jpg", "no.jpg"]))
    found = {q.name: q for q in find_queries(query / "list")}
    elsewhere = f"{tmp_path}/elsewhere/deep/b.png".lstrip("/")
    assert [*found] == sorted(["own/a.png", elsewhere, "bucket/c/d.jpg", "no.jpg"])
    assert found["own/a.png"][1:] == own[1:]  # as if found in the folder
    assert found["bucket/c/d.jpg"].path == "s3://bucket/c/d.jpg"
    np.testing.assert_array_equal(read_image(found[elsewhere].path), PIXELS)
    assert log.messages == [
        f"{query / 'list'}: left out as they are listed more than once: 2, "
        f"such as {min(elsewhere, 'own/a.png')}"
    ]
    assert names(query / "list", [tmp_path / "elsewhere"]) == sorted([*found.keys() - {elsewhere}])


def test_a_list_of_nothing_is_told(query):
    (query / "list").write_text("\n\n")
    assert "holds no images" in message_of(find_queries, query / "list")


def test_folders_and_lists_at_a_url(query, log):
    import fsspec

    store = fsspec.filesystem("memory")
    store.pipe(
        {
            "/bucket/x/a.png": (query / "own" / "a.png").read_bytes(),
            "/bucket/x/deep/b.png": b"a text",
            "/bucket/x/notes.md": b"a text",
            "/bucket/list.txt": b"x/a.png\nmemory://bucket/x/deep/b.png\n",
        }
    )
    try:
        first, second = find_queries("memory://bucket/x")
        assert (first.name, second.name) == ("a.png", "deep/b.png")
        assert (first.size, second.size) == ((query / "own" / "a.png").stat().st_size, 6)
        np.testing.assert_array_equal(read_image(first.path), PIXELS)
        assert f"{second.path} cannot be read" in message_of(read_image, second.path)
        assert "left out as their names are not those of images: 1, such as notes.md" in log.text
        listed = find_queries("memory://bucket/list.txt")
        assert [q.name for q in listed] == ["bucket/x/a.png", "bucket/x/deep/b.png"]
        np.testing.assert_array_equal(read_image(listed[0].path), PIXELS)
        store.pipe("/bucket/x/a.png", b"changed")
        assert find_queries("memory://bucket/x")[0][2:] != first[2:]
    finally:
        store.rm("/bucket", recursive=True)
    with pytest.raises(UserError, match="cannot be read"):
        find_queries("nosuchkind://bucket/x")
