"""Small tables that `reproduce` makes in a minute, and what they say."""

import json
import os
import sys

ROWS = "PANet, untrained,PANet"
SMALL = [
    *("--config.image_size=32", "--config.data.shapes.pixels=32", "--config.train.batch_size=2"),
    *("--config.data.shapes.train=60", "--config.data.shapes.val=60", "--config.devices=1"),
    *("--config.data.min_pixels=1", "--config.data.train_min_pixels=1", "--config.eval.gallery=1"),
    *("--config.backbone=tiny:Plain", "--config.data.pipeline=device"),
    *("--config.train.eval_episodes=4", "--config.eval.episodes=6", "--config.train.save_every=2"),
]


def command(workdir, *words, rows=ROWS):
    """The words of a call."""
    where = ["--table=shapes", f"--workdir={workdir}", f"--rows={rows}"]
    return [sys.executable, "-m", "fsseg_jax.reproduce", *where, *SMALL, *words]


def table(workdir):
    return json.loads((workdir / "tables" / "shapes" / "results.json").read_text())


def figures(workdir):
    """What a table says, but for how long it took."""
    rows = table(workdir)["rows"]
    for figure in (figure for row in rows for figure in row["figures"]):
        figure["runs"] = [os.path.basename(run) for run in figure["runs"]]
        for facts in figure["training"].values():
            facts.pop("minutes")
    return rows
