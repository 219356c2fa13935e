"""Learning curves are what the writer was given, whatever a run went through."""

import numpy as np
import pytest
import tensorboardX
from PIL import Image

from fsseg_jax.training import curves


def write(folder, values, purge=None):
    """Values by tag and step, as a training writes them."""
    with tensorboardX.SummaryWriter(str(folder / "tensorboard"), purge_step=purge) as writer:
        for tag, points in values.items():
            for step, value in points.items():
                writer.add_scalar(tag, value, step)


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
