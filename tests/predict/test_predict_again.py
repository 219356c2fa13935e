"""Runs that are repeated, stopped, or find something wrong."""

import json
import os
import re

import numpy as np
import pytest
from drawn import draw, files_of, inside, outline, read, save
from helpers import message_of

from fsseg_jax.prediction import output as predictions_module

# pycocotools's own, of NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_a_second_run_computes_nothing_but_what_is_new_changed_or_lost(run, folders, capsys):
    run()
    first = (folders / "out" / "predictions.json").read_bytes()
    assert len(run.segmented) == 5
    assert run() == 0
    assert run.segmented == []
    assert (folders / "out" / "predictions.json").read_bytes() == first
    assert "5 images (5 of them before), 0 skipped:" in capsys.readouterr().out

    save(folders / "query" / "b.jpeg", draw(50, "red", size=(50, 40))[0])
    save(folders / "query" / "new.jpg", draw(51, "red")[0])
    (folders / "out" / "masks" / "sub" / "a.png").unlink()
    (folders / "query" / "a.png").unlink()
    assert run() == 0
    assert run.segmented == ["b.jpeg", "new.jpg", "sub/a.JPG"]
    coco = json.loads((folders / "out" / "predictions.json").read_text())
    names = ["a.jpg", "b.jpeg", "new.jpg", "sub/a.JPG", "sub/deep/c.bmp"]
    assert [image["file_name"] for image in coco["images"]] == names
    assert (coco["images"][1]["height"], coco["images"][1]["width"]) == (50, 40)
    assert read(folders / "out" / "masks" / "b.png").shape == (50, 40)


def test_files_that_were_lost_or_damaged_since_are_made_again(run, folders):
    run("--save=masks,overlays")
    out = folders / "out"
    pictures = [path for path in out.rglob("*") if path.suffix in (".png", ".jpg")]
    before = {path: path.read_bytes() for path in pictures}
    masks, overlays, thumbnails = (
        sorted((out / kind).rglob("*.*")) for kind in ("masks", "overlays", "thumbnails")
    )
    masks[0].write_bytes(before[masks[0]][:60])
    overlays[1].write_bytes(before[overlays[1]][:-10])
    thumbnails[2].unlink()
    run.segmented.clear()
    assert run("--save=masks,overlays") == 0
    assert len(run.segmented) == 3
    assert {path: path.read_bytes() for path in pictures} == before


SCORE = re.compile(rb'(?<="score": )[^,}]+|(?<="confidence": )[^,}]+')
CHECKSUM = re.compile(rb'"checksum": "[0-9a-f]*"')


@pytest.mark.parametrize("how", ["stopped", "torn line"])
def test_a_run_that_was_killed_goes_on(run, folders, monkeypatch, how):
    run(out="whole")
    if how == "stopped":
        note = predictions_module.Predictions.note

        def killed(self, record):
            if record["photograph"].startswith("sub"):
                raise KeyboardInterrupt
            note(self, record)

        with monkeypatch.context() as patch:
            patch.setattr(predictions_module.Predictions, "note", killed)
            with pytest.raises(KeyboardInterrupt):
                run()
        expected = ["sub/a.JPG", "sub/deep/c.bmp"]
        assert not (folders / "out" / "predictions.json").exists()
    else:
        run()
        journal = folders / "out" / "journal.jsonl"
        journal.write_bytes(journal.read_bytes()[:-9])
        expected = ["sub/deep/c.bmp"]
    assert run() == 0
    assert run.segmented == expected
    assert files_of(folders / "out") == files_of(folders / "whole")
    for name in files_of(folders / "whole"):
        out, whole = ((folders / run / name).read_bytes() for run in ("out", "whole"))
        # Before jax 0.10.2 a score's rounding depends on the image's place in its batch.
        if name.endswith((".json", ".jsonl")):
            scores = [[float(x) for x in SCORE.findall(text)] for text in (out, whole)]
            np.testing.assert_allclose(*scores, atol=2e-4)
            # And with it the checksum of the line.
            out, whole = (CHECKSUM.sub(b"", SCORE.sub(b"", text)) for text in (out, whole))
        assert out == whole


def test_other_supports_or_settings_need_another_folder(run, folders, segmenter, monkeypatch):
    run()
    before = files_of(folders / "out")
    image, boxes = draw(60, "red")
    save(folders / "support" / "red" / "2.png", image)
    save(folders / "support" / "red" / "2_mask.png", inside(boxes["red"]))
    message = message_of(run)
    assert f"--out = {folders / 'out'} holds predictions made with supports = " in message
    assert "choose another --out, or remove" in message
    for name in ("2.png", "2_mask.png"):
        (folders / "support" / "red" / name).unlink()
    run()
    assert run.segmented == []
    changed = segmenter.config.copy_and_resolve_references()
    changed.image_size = 48
    monkeypatch.setattr(segmenter, "config", changed)
    assert "image_size = 32, not 48" in message_of(run)
    assert files_of(folders / "out") == before


def test_folders_of_something_else_are_left_alone(run, folders):
    save(folders / "out" / "masks" / "a.png", np.zeros((3, 3), np.uint8))
    assert "holds masks but no predictions" in message_of(run)
    assert files_of(folders / "out") == {"masks/a.png"}


def test_bad_images_are_told_and_skipped(run, folders, log):
    query = folders / "query"
    (query / "0.jpg").write_text("a text")
    (query / "empty.png").touch()
    (query / "b.jpeg").write_bytes((query / "b.jpeg").read_bytes()[:700])
    assert run("--batch_size=2") == 1
    told = [message for message in log.messages if "skipped" in message]
    names = ["0.jpg", "b.jpeg", "empty.png"]
    assert len(told) == 3
    for name, line in zip(names, told, strict=True):
        assert line.startswith(f"skipped: {query / name} cannot be read")
    coco = json.loads((folders / "out" / "predictions.json").read_text())
    done = ["a.jpg", "a.png", "sub/a.JPG", "sub/deep/c.bmp"]
    assert [image["file_name"] for image in coco["images"]] == done
    masks = {"a.png", "a.png.png", "sub/a.png", "sub/deep/c.png"}
    assert files_of(folders / "out" / "masks") == masks
    save(query / "0.jpg", draw(70, "red")[0])
    assert run() == 1
    assert run.segmented == ["0.jpg", "b.jpeg", "empty.png"]


@pytest.mark.parametrize("extra", [(), ("--accept",)])
def test_names_of_masks_that_are_too_long_are_told(run, folders, extra):
    if extra:
        run()
    for suffix in (".jpg", ".png"):  # to the second name, a suffix is added
        save(folders / "query" / f"{'x' * 251}{suffix}", draw(1, "red")[0])
    assert "cannot be written (File name too long)" in message_of(run, *extra)


def test_what_an_earlier_image_was_given_goes_with_it(run, folders):
    run()
    (folders / "query" / "b.jpeg").write_text("a text")
    assert run() == 1
    assert not (folders / "out" / "masks" / "b.png").exists()
    assert not (folders / "out" / "overlays" / "b.jpg").exists()


@pytest.mark.parametrize("after", [0, 1, 5, 11])
def test_a_full_disk_is_told_and_leaves_nothing_half_written(run, folders, monkeypatch, after):
    run(out="whole")
    replace, left = os.replace, [after]

    def full(source, target):
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        message = message_of(run)
    assert "No space left on device" in message
    assert str(folders / "out") in message
    written = files_of(folders / "out")
    assert written <= files_of(folders / "whole")  # nothing temporary
    for name in written - {"journal.jsonl"}:
        assert (folders / "out" / name).read_bytes() == (folders / "whole" / name).read_bytes()
    assert run() == 0
    assert len(run.segmented) <= 5 - max(0, (after - 6) // 3)  # of three files each
    assert files_of(folders / "out") == files_of(folders / "whole")


def test_a_folder_that_cannot_be_written_to_is_told(run, folders):
    (folders / "file").write_text("no folder")
    message = message_of(run, out="file/out")
    assert f"{folders / 'file'}" in message
    assert "choose another folder" in message


def test_missing_and_empty_folders_are_told(run, folders):
    assert f"--support = {folders / 'no'}: there is no" in message_of(run, support="no")
    assert f"--query = {folders / 'no'}: there is no" in message_of(run, query="no")
    (folders / "empty").mkdir()
    assert f"{folders / 'empty'} holds no annotated" in message_of(run, support="empty")
    assert f"{folders / 'empty'} holds no images" in message_of(run, query="empty")
    truth = f"--truth={folders / 'empty'}"
    assert f"--truth = {folders / 'empty'} has no mask" in message_of(run, truth)
    assert "--truth = no: there is no" in message_of(run, "--truth=no")
    assert "is --truth or in --out" in message_of(run, f"--truth={folders / 'query'}")
    assert "--batch_size = 0" in message_of(run, "--batch_size=0")
    assert "--suport: there is no such option; did you mean --support?" in message_of(
        run, "--suport=x"
    )
    save(folders / "blank" / "x.jpg", np.zeros((9, 9, 3), np.uint8))
    outline(folders / "blank" / "x.json", {}, size=(9, 9))
    assert "outline no objects" in message_of(run, support="blank")
    assert not run.segmented


def test_one_writer_at_a_time(run, folders):
    run()
    facts = json.loads((folders / "out" / "made_by.json").read_text())
    with predictions_module.Predictions(folders / "out", facts):
        assert "is being written by another process" in message_of(run)
    assert run() == 0


@pytest.mark.parametrize("damage", [None, b"", b"[", b"5", b"[" * 100_000, "digit"])
def test_a_damaged_cross_validation_is_made_again(run, folders, damage):
    assert run() == 0
    file = folders / "out" / "cross_validation.json"
    whole = file.read_bytes()
    file.unlink()
    if damage is not None:
        file.write_bytes(whole.replace(b"1", b"2", 1) if damage == "digit" else damage)
    assert run() == 0
    assert run.segmented == []
    assert file.read_bytes() == whole
