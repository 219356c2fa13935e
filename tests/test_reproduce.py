"""`python -m fsseg_jax.reproduce` as a user runs it: from nothing to a table, whatever happens."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import commands
import pytest
from helpers import message_of
from small_tables import command, figures, table

import fsseg_jax
from fsseg_jax.training import curves


@pytest.fixture(scope="module")
def run(users_environment):
    """A function that runs the program."""

    def run(*arguments, status=0, **options):
        return commands.run(*command(*arguments, **options), env=users_environment, status=status)

    return run


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """A table that was not interrupted, with its models; and what was printed."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, run(workdir, "--episodes=48", f"--checkpoints={workdir / 'models'}")


def test_a_table_from_nothing(whole):
    workdir, result = whole
    untrained, trained = table(workdir)["rows"]
    assert [row["label"] for row in (untrained, trained)] == ["PANet, untrained", "PANet"]
    (before,), (after,) = untrained["figures"], trained["figures"]
    assert before["episodes"] == after["episodes"]  # both tested on the same ones
    assert before["training"] == {}
    facts = after["training"]["0"]
    assert (facts["steps"], facts["batch_size"], facts["episodes"]) == (24, 2, 48)
    assert facts["part"] == pytest.approx(48 / (600 * 8))
    assert facts["seed"] == 0
    assert facts["minutes"] > 0
    assert facts["devices"].startswith("1 x cpu")
    assert facts["changed"]["train.batch_size"] == 2
    folder = workdir / "tables" / "shapes"
    text = (folder / "table.txt").read_text()
    assert text in result.stdout
    assert f"{after['ours']['0']:.1f}" in text
    assert "trained on 48 episodes (1 % of the published training), 24 steps of 2" in text
    page = (folder / "table.html").read_text()
    assert "data:image/png;base64," in page  # learning curves
    assert (folder / "curves.png").is_file()


def test_learning_curves_are_of_base_and_held_out_classes(whole):
    """And, since a young model calls hardly anything the object, at the best threshold too."""
    workdir, _ = whole
    (run,) = {path.parents[1] for path in workdir.rglob("tensorboard/events*")}
    drawn = curves.read(run)
    steps = [5, 10, 15, 20, 24]
    for classes in ("base", "novel"):
        plain, best = (
            drawn[f"selection/{classes}_{name}"] for name in ("mean_iou", "at_best_threshold")
        )
        assert list(plain) == list(best) == steps
        # 0.5 is one of the thresholds.
        assert all(best[step].value >= plain[step].value - 0.01 for step in steps)
    assert set(drawn["train/loss"]) == set(range(1, 25))


def test_the_trained_model_can_be_given_to_others(whole):
    workdir, _ = whole
    (folder,) = (path for path in (workdir / "models").iterdir() if path.is_dir())
    segmenter = fsseg_jax.load(folder)
    assert segmenter.config.train.steps == 24
    card = (folder / "README.md").read_text()
    figure = table(workdir)["rows"][1]["figures"][0]
    assert "license: apache-2.0\n---" in card
    assert "trained on 48 episodes" in card
    assert f"| {figure['ours']['0']:.1f} |" in card
    assert figure["protocols"][0] in card


def test_the_same_words_again_do_nothing_again(whole, run):
    workdir, _ = whole
    stamps = {path: path.stat().st_mtime_ns for path in workdir.rglob("checkpoints/**/*")}
    result = run(workdir, "--episodes=48")
    assert "compiling" not in result.stderr
    assert "training:" not in result.stderr
    assert "testing" not in result.stderr
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("checkpoints/**/*")} == stamps


def test_a_part_of_the_table_leaves_the_rest_of_it_there(whole, run):
    workdir, _ = whole
    before = figures(workdir)
    run(workdir, "--episodes=48", rows="PANet, untrained")
    assert figures(workdir) == before


def test_killed_at_any_moment_it_ends_with_the_same_table(whole, run, tmp_path, users_environment):
    """With SIGKILL, which nothing can prepare for, and with SIGTERM: soon after the first step, the
    first checkpoint and the beginning of the test, and wherever else chance has it."""
    rng = random.Random(os.environ.get("KILL_SEED", "0"))
    words = command(tmp_path, "--episodes=48")
    moments = ["*/tensorboard/events*", "*/checkpoints/last/*", "tables/shapes/cells/panet-1*/log*"]
    met = 0
    for kill in range(int(os.environ.get("KILLS", "3"))):
        process = subprocess.Popen(words, env=users_environment, stderr=subprocess.DEVNULL)
        moment = moments[kill % 3]
        if any(tmp_path.glob(moment)):
            time.sleep(rng.uniform(1, 25))
        while process.poll() is None and not any(tmp_path.glob(moment)):
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 2))
        met += process.poll() is None
        process.send_signal(signal.SIGKILL if kill % 2 else signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGKILL, -signal.SIGTERM, 143)
    assert met
    run(tmp_path, "--episodes=48")
    assert figures(tmp_path) == figures(whole[0])


def test_a_training_that_fails_is_named_and_the_others_go_on(run, tmp_path):
    """Two at a time; CANet stores predictions, which a moved query would not fit."""
    words = ["--episodes=4", "--config.data.augment.query=True", "--at_once=2"]
    result = run(tmp_path, *words, rows="CANet,PANet", status=1)
    results = table(tmp_path)
    ((place, why),) = results["failed"].items()
    assert place == "CANet, 1-way 1-shot, fold 0"
    assert "stores predictions in the query's coordinates" in why
    assert f"failed: {place}: {why}" in result.stdout
    rows = {row["label"]: row["figures"][0]["ours"]["0"] for row in results["rows"]}
    assert rows["CANet"] is None
    assert rows["PANet"] is not None


def test_a_time_is_measured_divided_and_kept(run, tmp_path):
    words = ["--minutes=30", "--config.train.steps=30"]
    result = run(tmp_path, *words, "--dry_run", rows="PANet")
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("train ")]
    # Half an hour is enough for all that the user asks for.
    assert "30 steps of 2 (60 episodes, 1.2 % of the published training), about" in line
    assert "minutes with its tests" in line
    plan = json.loads((tmp_path / "tables" / "shapes" / "plan.json").read_text())
    assert list(plan["speeds"]) == ["1 x cpu (cpu), 1 at a time"]
    assert plan["steps"] == {}  # a dry run decides nothing
    assert not any(tmp_path.rglob("checkpoints/last/*"))
    result = run(tmp_path, *words, "--dry_run", rows="PANet")
    assert "measuring" not in result.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--table=panet-9"], "--table = panet-9: choose one of"),
        (["--rows=PANet,SSD"], "--rows: shapes has no row 'ssd'; it has PANet, untrained; PANet"),
        (["--folds=7"], "--folds = 7: expected some of 0"),
        (["--shots=x"], "--shots = x: expected some of 1"),
        (["--minutes=0"], "--minutes = 0.0: it must be a number above 0"),
        (["--minutes=nan"], "--minutes = nan: it must be a number above 0"),
        (["--config.data.fold=1"], "--config.data.fold: the table's columns set it; use --folds"),
        (["--minutes=1", "--episodes=3"], "both limit the trainings"),
        (["--weights=vgg16"], "--weights: vgg16: expected backbone=file"),
        (["--config.train.stepz=3"], "--config.train.stepz: there is no such config key"),
        (["--config.platform=abacus"], "platform = 'abacus': choose"),
        (["--config.devices=two"], "--config.devices"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_is_wrong_is_told_in_a_sentence(monkeypatch, tmp_path, words, told):
    from fsseg_jax import reproduce

    arguments = ["--table=shapes", f"--workdir={tmp_path}", *words]
    monkeypatch.setattr(sys, "argv", ["reproduce", *arguments])
    assert told in message_of(reproduce.main)
    assert not any(tmp_path.rglob("checkpoints"))
