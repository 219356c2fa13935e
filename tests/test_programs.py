"""The programs as a user runs them."""

import functools
import json
import sys

import pytest
import tiny
from commands import run_program
from helpers import message_of
from PIL import Image

from fsseg_jax import evaluate, train

CONFIG = f"--config={tiny.__file__}"


@pytest.fixture
def run(users_environment):
    return functools.partial(run_program, env=users_environment)


@pytest.mark.smoke
def test_train_then_evaluate_tells_and_writes_the_results(run, tmp_path):
    options = (
        # So many that a program which grew with them would take minutes to compile.
        *("--config.data.shapes.train=1500", "--config.data.pipeline=device"),
        *("--config.train.batch_size=2", "--config.train.test_before_and_after=True"),
        *("--config.eval.runs=2", "--config.train.steps=2"),
    )
    trained = run("train", CONFIG, f"--workdir={tmp_path / 'run'}", *options)
    assert trained.stderr.splitlines()[0].startswith("devices: 1 x cpu")
    assert "held-out classes before training: mean-IoU" in trained.stderr
    assert "\ncompiling ...\n" in trained.stderr
    assert "held-out classes after training: mean-IoU" in trained.stderr
    after = json.loads((tmp_path / "run" / "evaluation" / "results.json").read_text())

    overrides = ("--config.eval.runs=1", "--config.platform=cpu", "--config.devices=1")
    evaluated = run("evaluate", f"--workdir={tmp_path / 'run'}", *overrides)
    (folder,) = (tmp_path / "run" / "evaluation").glob("1way-1shot-fold0-*")
    results = json.loads((folder / "results.json").read_text())
    assert f"mean-IoU {results['mean_iou']:.1f}" in evaluated.stdout
    assert results["protocol"]["hash"] in evaluated.stdout
    assert folder.name.endswith(results["protocol"]["hash"])
    assert results["runs"] == after["runs"][:1]  # the same weights, the same first run
    assert (folder / "report.html").is_file()
    assert f"report: {folder / 'report.html'}" in evaluated.stdout
    kept = json.loads((tmp_path / "run" / "evaluation" / "results.json").read_text())
    assert kept == after  # of another setting


def test_evaluating_a_folder_without_checkpoint_says_freshly_initialised(run, tmp_path):
    result = run("evaluate", CONFIG, f"--workdir={tmp_path / 'new'}")
    assert "freshly initialised, random weights" in result.stdout


def rows(printed, first):
    """The lines of a table that begin with a word."""
    return [line for line in printed.splitlines() if line.split()[:1] == [first]]


@pytest.mark.smoke
def test_a_benchmark_measures(run):
    result = run("benchmarks.predict", CONFIG, "--batch_sizes=2", "--repeats=1")
    assert rows(result.stdout, "panet")


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("train", ["--batch_sizes=1"]),
        ("evaluate", ["--shots=1", "--config.eval.batch_size=4", "--config.eval.episodes=8"]),
    ],
)
def test_other_benchmarks_measure(run, program, arguments):
    small = (
        "backbone=tiny:Plain",
        "image_size=40",
        "devices=1",
        "eval.runs=1",
        "data.shapes.val=48",
    )
    fields = [f"--config.{field}" for field in small]
    result = run(f"benchmarks.{program}", "--methods=panet", "--repeats=1", *arguments, *fields)
    assert rows(result.stdout, "panet")


def test_choices_of_a_protocol_are_compared(run, tmp_path):
    options = (
        *("--rows=base,border,letterbox", "--folds=0"),
        *("--config.eval.episodes=4", "--config.data.min_pixels=1"),
    )
    result = run("evaluation.choices", CONFIG, f"--workdir={tmp_path / 'choices'}", *options)
    assert result.stdout == (tmp_path / "choices" / "choices.txt").read_text()
    assert len(rows(result.stdout, "base")) == len(rows(result.stdout, "border")) == 1
    assert len(rows(result.stdout, "letterboxed,")) == 1


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("train", ["--config.platform=gpu"], "platform = gpu is not available on this machine"),
        ("evaluate", ["--config.platform=gpu"], "platform = gpu is not available on this machine"),
    ],
)
def test_wrong_input_gives_one_sentence_and_status_2(run, tmp_path, program, arguments, message):
    result = run(program, CONFIG, f"--workdir={tmp_path / 'run'}", *arguments, status=2)
    *_, last = result.stderr.strip().splitlines()
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        (train, ["--config.trian.steps=3"], "did you mean --config.train.steps"),
        (train, ["--config.shots=50"], "images, but shots = 50 needs 51"),
        (train, ["--config.data.name=voc"], "data.root is empty"),
        (train, ["--config.init=missing.npz"], "init = missing.npz: there is no such file"),
        (train, ["--workdir="], "--workdir is empty"),
        (evaluate, ["--out", ""], "--out is empty"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_other_wrong_input_is_told(monkeypatch, tmp_path, program, arguments, message):
    words = [CONFIG, f"--workdir={tmp_path / 'run'}", *arguments]
    monkeypatch.setattr(sys, "argv", [program.__name__, *words])
    assert message in message_of(program.main)


# ----------------------------------------------------------------------------- without TensorFlow

run_without_tensorflow = functools.partial(run_program, without="tensorflow")


@pytest.fixture(scope="module")
def on_voc(make_voc):
    """Options of a run on a small VOCdevkit folder, which the device pipeline reads."""
    root = make_voc(train=30, val=30, shown=8)
    return [
        *(CONFIG, "--config.data.name=voc", f"--config.data.root={root}"),
        *("--config.data.pipeline=device", "--config.data.augment.rotation=10.0"),
        *("--config.train.steps=4", "--config.train.steps_per_dispatch=2"),
        *("--config.train.eval_every=4", "--config.train.test_before_and_after=True"),
    ]


def test_trains_and_evaluates_without_tensorflow(tmp_path, on_voc):
    trained = run_without_tensorflow("train", f"--workdir={tmp_path / 'run'}", *on_voc)
    assert "30 images of 32 x 32 pixels on the device: 0.00 GiB" in trained.stderr
    assert "held-out classes after training: mean-IoU" in trained.stderr
    evaluated = run_without_tensorflow("evaluate", f"--workdir={tmp_path / 'run'}")
    assert "(panet, step 4, best on base classes" in evaluated.stdout


def test_training_on_own_classes_needs_neither_tensorflow_nor_folds(tmp_path):
    folder = tmp_path / "images" / "mug"
    folder.mkdir(parents=True)
    for number in range(15):
        Image.effect_noise((40, 40), 60).convert("RGB").save(folder / f"{number}.jpg")
        mask = Image.new("L", (40, 40))
        mask.paste(255, (5, 5, 20 + number, 20))
        mask.save(folder / f"{number}.png")
    options = [
        *(CONFIG, "--config.data.name=folder", f"--config.data.root={folder.parent}"),
        *("--config.data.folds=0", "--config.data.pipeline=auto", "--config.data.min_pixels=1"),
        *("--config.data.train_min_pixels=1", "--config.train.steps=2", "--config.eval.episodes=8"),
        *("--config.train.eval_every=2", "--config.train.test_before_and_after=True"),
    ]
    trained = run_without_tensorflow("train", f"--workdir={tmp_path / 'run'}", *options)
    assert "TensorFlow is not installed: data.pipeline = device" in trained.stderr
    assert "12 images, 12 items of 1 base classes" in trained.stderr
    assert "held-back images after training: mean-IoU" in trained.stderr


def test_asking_for_tfdata_without_tensorflow_is_told(tmp_path, on_voc):
    options = (f"--workdir={tmp_path / 'run'}", *on_voc, "--config.data.pipeline=tfdata")
    result = run_without_tensorflow("train", *options, status=2)
    assert result.stderr.strip().splitlines()[-1] == (
        "error: data.pipeline = tfdata needs tensorflow, which is not installed: "
        "pip install tensorflow, or set data.pipeline = device."
    )
