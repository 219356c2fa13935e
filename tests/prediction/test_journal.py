"""Any journal is continued: what is damaged is done again, and nothing elsewhere is touched."""

import contextlib
import copy
import functools
import json
import os
import pathlib
import resource

import numpy as np
import pytest
from fuzz import EXAMPLES
from helpers import message_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutated
from pycocotools import mask as coco_mask

from fsseg_jax.checksums import checksum_of
from fsseg_jax.errors import UserError
from fsseg_jax.prediction.journal import Journal
from fsseg_jax.prediction.output import Predictions, Query
from fsseg_jax.prediction.result import Result
from fsseg_jax.prediction.table import write_table

FACTS = {"classes": ["cat", "dog"], "supports": "0123", "image_size": 32}
NAMES = ("a.jpg", "a.png", "deep/b.jpg")
LABEL = np.pad(np.array([[1, 2]], np.uint8), 3)
RESULT = Result(LABEL, np.array([0.9, 0.75, 0.5]), 0.625, None)


def queries(folder):
    return [Query(str(folder / "query" / name), name, n, 10 + n) for n, name in enumerate(NAMES)]


def write(folder, images=NAMES):
    """Writes results of images that are not there yet."""
    image = np.zeros((*LABEL.shape, 3), np.uint8)
    with Predictions(folder / "out", FACTS) as predictions:
        predictions.choose_names(queries(folder))
        for query in queries(folder):
            if query.name in images and not predictions.done(query):
                predictions.note(predictions.write(query, image, RESULT))
        records = functools.partial(predictions.records, queries(folder))
        write_table(folder / "out", records, FACTS["classes"], "json")


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder around a folder of results, the lines of its journal, and all its files."""
    folder = tmp_path_factory.mktemp("around")
    write(folder)
    lines = (folder / "out" / "journal.jsonl").read_text().splitlines()
    return folder, [json.loads(line) for line in lines], contents(folder)


def renew(folder, files):
    """Makes the files what they were, and others none."""
    for path in contents(folder).keys() - files.keys():
        path.unlink()
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def outcome(written, name, content):
    """Runs on with another journal or other facts; whatever they are, only `out` is changed."""
    folder, _, files = written
    renew(folder, files)
    (folder / "x.png").write_bytes(b"of somebody else")
    (folder / "out" / name).write_bytes(content)
    told = None
    try:
        write(folder)
    except UserError as error:
        told = error
    assert "\n" not in str(told)
    outside = {path for path in contents(folder) if folder / "out" not in path.parents}
    assert outside == {folder / "x.png"}
    assert not pathlib.Path("/tmp/x.png").exists()
    return told


FUZZ = settings(
    max_examples=EXAMPLES // 4,  # each writes files
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def check_complete(folder):
    coco = json.loads((folder / "out" / "predictions.json").read_text(), parse_constant=pytest.fail)
    assert [image["file_name"] for image in coco["images"]] == list(NAMES)
    assert len({image["mask_file"] for image in coco["images"]}) == len(NAMES)
    for image in coco["images"]:
        assert (folder / "out" / image["mask_file"]).is_file()
        assert (image["height"], image["width"]) == LABEL.shape
    assert [entry["category_id"] for entry in coco["annotations"]] == [1, 2] * len(NAMES)


@FUZZ
@given(content=st.binary(max_size=300))
def test_any_bytes_are_a_journal_of_nothing(written, content):
    assert outcome(written, "journal.jsonl", content) is None
    check_complete(written[0])


@FUZZ
@given(data=st.data())
def test_any_changes_of_a_journal_leave_results_whole(written, data):
    lines = data.draw(mutated(written[1]))
    lines = lines if isinstance(lines, list) else [lines]
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(content)))
        content = content[:place] + data.draw(st.binary(max_size=3)) + content[place + 2 :]
    assert outcome(written, "journal.jsonl", content) is None
    coco = json.loads((written[0] / "out" / "predictions.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == list(NAMES)
    assert len({image["mask_file"] for image in coco["images"]}) == len(NAMES)
    assert {entry["category_id"] for entry in coco["annotations"]} <= {1, 2}


@FUZZ
@given(data=st.data())
def test_any_changes_of_the_facts_are_told(written, data):
    content = data.draw(st.binary(max_size=60) | mutated(FACTS))
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    told = outcome(written, "made_by.json", content)
    try:
        same = dict(json.loads(content)) == FACTS
    except (ValueError, TypeError):
        same = False
    assert (told is None) == same


@pytest.mark.parametrize("content", [b"[" * 100_000, b'[["a\\nb", "c\\nd"]]', b"3", b""])
def test_facts_of_something_else_are_told_in_a_line(written, content):
    assert str(written[0] / "out") in str(outcome(written, "made_by.json", content))


@pytest.mark.parametrize(
    "change",
    [
        {"output": "../../x"},
        {"output": "/tmp/x"},
        {"output": "a/../../../x"},
        {"output": "b"},
        {"output": "a.jpg.1234567"},
        {"output": ["a"]},
        {"size": "10"},
        {"changed": 1.0},
        {"height": True},
        {"confidence": 1.5},
        {"confidence": "1"},
        {"objects": 3},
        {"objects": [{}]},
        {"objects": [{"id": 3, "category_id": 1}]},
    ],
)
def test_damaged_lines_are_counted_and_their_images_done_again(written, change, log):
    folder, lines, _ = written
    lines = [lines[0] | change, *lines[1:]]
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    assert outcome(written, "journal.jsonl", content) is None
    assert log.messages == [
        f"{folder / 'out' / 'journal.jsonl'}: 1 damaged lines are ignored; images "
        "that are on no other are segmented again"
    ]
    check_complete(folder)


def test_numbers_that_have_changed_are_not_believed(written, log):
    folder, lines, _ = written
    changed = copy.deepcopy(lines)
    changed[0]["objects"][0]["area"] += 7000
    content = b"".join(json.dumps(line).encode() + b"\n" for line in changed)
    assert outcome(written, "journal.jsonl", content) is None
    assert "1 damaged lines are ignored" in log.text
    check_complete(folder)


def test_of_two_images_with_one_output_the_first_keeps_it(written, log):
    folder, (first, second, *others), _ = written
    # "a" may be that of a.png, too.
    lines = [first, second | {"output": first["output"]}, *others]
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    assert outcome(written, "journal.jsonl", content) is None
    assert len(log.messages) == 1
    check_complete(folder)


def test_a_folder_of_masks_may_be_a_link_and_what_a_killed_run_left_in_it_is_removed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    write(tmp_path, images=())
    (tmp_path / "out" / "masks").symlink_to(tmp_path / "elsewhere")
    left = [tmp_path / "elsewhere" / ".0123abcd.partial", tmp_path / "out" / ".01234567.partial"]
    for path in left:
        path.touch()
    mine = tmp_path / "out" / ".partial"
    mine.touch()
    write(tmp_path)
    assert (tmp_path / "elsewhere" / "deep" / "b.png").is_file()
    assert not any(path.exists() for path in left)
    assert mine.exists()


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
@pytest.mark.parametrize("part", ["journal.jsonl", "journal-1.jsonl"])
def test_a_journal_that_is_no_file_is_told_and_not_followed(tmp_path, kind, part):
    """A link would have been shortened where it leads, and a pipe waited for."""
    write(tmp_path, images=())
    journal, elsewhere = tmp_path / "out" / part, tmp_path / "mine"
    elsewhere.write_text("of somebody else")
    journal.unlink(missing_ok=True)
    if kind == "folder":
        journal.mkdir()
    elif kind == "pipe":
        os.mkfifo(journal)
    else:
        journal.symlink_to(elsewhere)
    if part == "journal.jsonl":
        assert f"{part} is not a file: remove it" in message_of(write, tmp_path)
    else:
        write(tmp_path)  # alone
        assert f"{part} is not a file: remove it" in message_of(Journal, tmp_path / "out", 2, 1)
    assert elsewhere.read_text() == "of somebody else"


@pytest.mark.parametrize("counts", ["", "0", "nnnnnnnn", "N", "P`IU^kHefZPh>2F=0laLY", "é"])
def test_run_lengths_that_are_none_are_done_again(written, counts):
    """pycocotools hangs at some of them; lines of earlier versions have no checksum."""
    folder, lines, _ = written
    forged = {key: x for key, x in copy.deepcopy(lines[0]).items() if key != "checksum"}
    forged["objects"][0]["segmentation"]["counts"] = counts
    forged["checksum"] = checksum_of(forged)
    assert outcome(written, "journal.jsonl", json.dumps(forged).encode() + b"\n") is None
    with Predictions(folder / "out", FACTS) as predictions:
        assert predictions.recorded(queries(folder)[0]) is None
        np.testing.assert_array_equal(predictions.recorded(queries(folder)[1]), LABEL)
    lines = copy.deepcopy(lines)
    for line in lines:
        del line["checksum"]
    lines[0]["objects"][0]["segmentation"]["counts"] = counts
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    assert outcome(written, "journal.jsonl", content) is None
    coco = json.loads((folder / "out" / "predictions.json").read_text())
    for entry in coco["annotations"]:
        mask = coco_mask.decode(entry["segmentation"])
        np.testing.assert_array_equal(mask, entry["category_id"] == LABEL)


def test_a_disk_that_is_full_is_told_and_the_next_run_goes_on(tmp_path, monkeypatch):
    write(tmp_path, images=NAMES[:1])
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    note = Predictions.note

    def full(self, record):
        length = (tmp_path / "out" / "journal.jsonl").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (length + 20, most[1]))
        try:
            note(self, record)
        finally:
            with contextlib.suppress(OSError):
                self._journal.file.flush()  # as closing it does
            resource.setrlimit(resource.RLIMIT_FSIZE, most)

    with monkeypatch.context() as patch:
        patch.setattr(Predictions, "note", full)
        assert "cannot be written (File too large)" in message_of(write, tmp_path)
    write(tmp_path)
    check_complete(tmp_path)


# ----------------------------------------------------------------------------- several processes


def part(folder, number, names, **options):
    """Writes results of images as one of several processes."""
    image = np.zeros((*LABEL.shape, 3), np.uint8)
    with Predictions(folder / "out", FACTS, part=number, **options) as predictions:
        predictions.choose_names(queries(folder))
        found = [query.name for query in queries(folder) if predictions.done(query)]
        for query in queries(folder):
            if query.name in names:
                predictions.note(predictions.write(query, image, RESULT))
    return found


def test_what_other_processes_noted_is_collected_even_of_one_that_was_killed(tmp_path):
    write(tmp_path / "whole")
    assert part(tmp_path, 0, NAMES[:1]) == []
    assert part(tmp_path, 1, NAMES[1:2]) == ["a.jpg"]
    assert part(tmp_path, 2, NAMES[2:], read=False) == []
    file = tmp_path / "out" / "journal-2.jsonl"
    file.write_bytes(file.read_bytes() + b'{"photograph": "a.jp')  # it was killed meanwhile
    with Predictions(tmp_path / "out", FACTS) as predictions:
        assert all(map(predictions.done, queries(tmp_path)))
    write(tmp_path)
    out, whole = tmp_path / "out", tmp_path / "whole" / "out"
    lines = [sorted((x / "journal.jsonl").read_bytes().splitlines()) for x in (out, whole)]
    assert lines[0] == lines[1]
    assert [*out.glob("journal-*")] == []
    assert (out / "predictions.json").read_bytes() == (whole / "predictions.json").read_bytes()


def test_an_image_that_two_processes_have_done_is_there_once(tmp_path):
    write(tmp_path / "whole")
    for number in (0, 1, 2):
        part(tmp_path, number, NAMES)
    write(tmp_path, images=())
    one, other = (x / "out" / "predictions.json" for x in (tmp_path, tmp_path / "whole"))
    assert one.read_bytes() == other.read_bytes()


def test_what_is_not_saved_is_not_missed_and_files_are_spread_where_they_are_many(tmp_path):
    with Predictions(tmp_path, FACTS, save=("masks",), spread=True) as predictions:
        predictions.choose_names(queries(tmp_path))
        for query in queries(tmp_path):
            predictions.note(predictions.write(query, None, RESULT))
        (record, *_) = predictions.records(queries(tmp_path))
    with Predictions(tmp_path, FACTS, save=("masks",)) as predictions:  # spread, as it was
        assert all(map(predictions.done, queries(tmp_path)))
        assert predictions.mask_file(queries(tmp_path)[0]) == tmp_path / record["mask_file"]
    assert not (tmp_path / "overlays").exists()
    places = [path.relative_to(tmp_path / "masks").parts for path in tmp_path.rglob("*.png")]
    assert sorted(map(len, places)) == [2, 2, 3]  # a folder besides the names
    with Predictions(tmp_path, FACTS) as predictions:  # overlays are missing
        assert not any(map(predictions.done, queries(tmp_path)))
    with Predictions(tmp_path, FACTS, save=()) as predictions:
        assert all(map(predictions.done, queries(tmp_path)))
        assert "mask_file" not in next(predictions.records(queries(tmp_path)))
