"""Learning curves are what the writer was given, whatever a run went through."""

import pathlib

import numpy as np
import pytest
import tensorboardX
from PIL import Image

from fsseg_jax.training import curves
from fsseg_jax.training import summaries as summaries_module
from fsseg_jax.training.summaries import Summaries


def write(folder, values, purge=None):
    """Values by tag and step, as a training writes them."""
    with tensorboardX.SummaryWriter(str(folder / "tensorboard"), purge_step=purge) as writer:
        for tag, points in values.items():
            for step, value in points.items():
                writer.add_scalar(tag, value, step)


def test_summaries_are_what_tensorflow_and_our_curves_read(tmp_path, monkeypatch):
    """Of a run that was stopped after step 4, and goes on from step 3."""
    tensorflow = pytest.importorskip("tensorflow")
    seconds = iter(range(10**9, 10**9 + 1000))
    monkeypatch.setattr("time.time", lambda: float(next(seconds)))
    for start in (1, 3):
        summaries = Summaries(tmp_path / "tensorboard", start)
        for step in (start, start + 1, start + 2):
            summaries.add({"train/loss": step / start, "train/rate": 0.5}, step)
    assert values_of(tmp_path) == {
        "train/loss": pytest.approx({1: 1.0, 2: 2.0, 3: 1.0, 4: 4 / 3, 5: 5 / 3}),
        "train/rate": dict.fromkeys(range(1, 6), 0.5),
    }
    first, second = sorted((tmp_path / "tensorboard").iterdir())
    for file, start in ((first, 1), (second, 3)):
        version, session, *events = tensorflow.compat.v1.train.summary_iterator(str(file))
        assert version.file_version == "brain.Event:2"
        assert session.session_log.status == session.session_log.START
        assert session.step == start
        assert [event.step for event in events] == [
            step for step in (start, start + 1, start + 2) for _ in range(2)
        ]


def test_curves_that_cannot_be_written_are_a_warning_and_no_more(tmp_path, monkeypatch, log):
    """As on a full disk, where tensorboardX's writer would wait forever."""
    full = pathlib.Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    opened = []
    monkeypatch.setattr(
        summaries_module.RecordWriter, "__init__", lambda self, path: opened.append(path)
    )
    monkeypatch.setattr(summaries_module.RecordWriter, "_writer", full.open("wb"), raising=False)
    summaries = Summaries(tmp_path / "tensorboard", 1)
    for step in range(100):
        summaries.add({"train/loss": 1.0}, step)
    assert len(opened) == 1
    assert log.text.count("tensorboard cannot be written: no more curves") == 1
    (tmp_path / "file").write_text("no folder")
    Summaries(tmp_path / "file", 1).add({"train/loss": 1.0}, 1)


def values_of(folder):
    read = curves.read(folder)
    return {tag: {s: p.value for s, p in curve.items()} for tag, curve in read.items()}


def test_what_was_done_again_counts_once(tmp_path, monkeypatch):
    """A run that was killed at step 30 goes on from its checkpoint of step 20."""
    seconds = iter(range(10**9, 10**9 + 1000))
    monkeypatch.setattr("time.time", lambda: float(next(seconds)))  # files are named by the second
    write(tmp_path, {"train/loss": {10: 3.0, 20: 2.0, 30: 9.0}, "old": {10: 1.0}})
    write(tmp_path, {"train/loss": {30: 1.5, 40: 1.0}}, purge=21)
    assert values_of(tmp_path) == {
        "train/loss": {10: 3.0, 20: 2.0, 30: 1.5, 40: 1.0},
        "old": {10: 1.0},
    }
    times = [point.time for point in curves.read(tmp_path)["train/loss"].values()]
    assert times == sorted(times)


@pytest.mark.parametrize("cut", [1, 7, 13, 20])
def test_the_event_that_is_being_written_is_left_out(tmp_path, cut):
    write(tmp_path, {"train/loss": {1: 0.5, 2: 0.25}})
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-cut])
    assert values_of(tmp_path) == {"train/loss": {1: 0.5}}


def test_a_run_that_has_not_begun_has_no_curves(tmp_path):
    assert curves.read(tmp_path / "none") == {}
    assert not curves.draw({"none": tmp_path / "none"}, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_the_picture_shows_base_and_held_out_classes(tmp_path):
    colours = {}
    for which in ("base", "novel", "base+novel"):
        folder = tmp_path / which
        scores = {f"selection/{name}_mean_iou": {1: 20.0, 9: 60.0} for name in which.split("+")}
        write(folder, {"train/loss": {1: 2.0, 9: 1.0}, **scores})
        assert curves.draw({which: folder}, folder / "curves.png")
        with Image.open(folder / "curves.png") as picture:
            pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        colours[which] = {
            name
            for name, colour in curves.COLOURS.items()
            if (pixels == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=1).any()
        }
    assert colours == {"base": {"base"}, "novel": {"novel"}, "base+novel": {"base", "novel"}}


def test_damaged_events_are_left_out(tmp_path):
    write(tmp_path, {"train/loss": {1: 1.0, 2: 2.0, 3: 3.0}})
    (file,) = (tmp_path / "tensorboard").iterdir()
    whole = file.read_bytes()
    written = {(1, 1.0), (2, 2.0), (3, 3.0)}
    for place in range(len(whole)):
        for flip in (1, 0x80):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            kept = set(values_of(tmp_path).get("train/loss", {}).items())
            assert kept <= written, place
    file.write_bytes(whole[:-30] + b"\xff" * 10 + whole[-20:])
    assert set(curves.read(tmp_path)["train/loss"]) == {1, 2}
