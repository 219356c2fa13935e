"""The programs as a user runs them."""

import json
import subprocess
import sys

import pytest

CONFIG = """
from fsseg_jax.config import default_config

def get_config():
    config = default_config("panet")
    config.backbone = "small"
    config.image_size = 32
    config.devices = 1
    config.data.name = "shapes"
    config.data.pipeline = "device"
    config.data.min_pixels = config.data.train_min_pixels = 1
    # So many that a program which grew with them would take minutes to compile.
    config.data.shapes.update(train=1500, val=60, pixels=32)
    config.eval.update(runs=2, episodes=6, gallery=1)
    config.train.update(steps=2, batch_size=2, eval_episodes=4, test_before_and_after=True)
    return config
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def run(users_environment):
    def run(program, *arguments):
        command = [sys.executable, "-m", f"fsseg_jax.{program}", *map(str, arguments)]
        pipes = {"capture_output": True, "text": True, "timeout": 300}
        return subprocess.run(command, env=users_environment, **pipes)

    return run


@pytest.mark.smoke
def test_train_then_evaluate_tells_and_writes_the_results(run, tmp_path, config_file):
    trained = run("train", f"--config={config_file}", f"--workdir={tmp_path / 'run'}")
    assert trained.returncode == 0, trained.stderr
    assert trained.stderr.splitlines()[0].startswith("devices: 1 x cpu")
    assert "held-out classes before training: mean-IoU" in trained.stderr
    assert "held-out classes after training: mean-IoU" in trained.stderr
    after = json.loads((tmp_path / "run" / "evaluation" / "results.json").read_text())

    overrides = ("--config.eval.runs=1", "--config.platform=cpu", "--config.devices=1")
    evaluated = run("evaluate", f"--workdir={tmp_path / 'run'}", *overrides)
    assert evaluated.returncode == 0, evaluated.stderr
    results = json.loads((tmp_path / "run" / "evaluation" / "results.json").read_text())
    assert f"mean-IoU {results['mean_iou']:.1f}" in evaluated.stdout
    assert results["protocol"]["hash"] in evaluated.stdout
    assert results["runs"] == after["runs"][:1]  # the same weights, the same first run
    assert (tmp_path / "run" / "evaluation" / "report.html").is_file()


def test_evaluating_a_folder_without_checkpoint_says_freshly_initialised(
    run, tmp_path, config_file
):
    result = run("evaluate", f"--config={config_file}", f"--workdir={tmp_path / 'new'}")
    assert result.returncode == 0, result.stderr
    assert "freshly initialised, random weights" in result.stdout


def rows(printed, first):
    """The lines of a table that begin with a word."""
    return [line for line in printed.splitlines() if line.split()[:1] == [first]]


@pytest.mark.smoke
def test_a_benchmark_measures(run, config_file):
    result = run("benchmarks.predict", f"--config={config_file}", "--batch_sizes=2", "--repeats=1")
    assert result.returncode == 0, result.stderr
    assert rows(result.stdout, "panet")


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("train", ["--batch_sizes=1"]),
        ("evaluate", ["--shots=1", "--config.eval.batch_size=4", "--config.eval.episodes=8"]),
    ],
)
def test_other_benchmarks_measure(run, program, arguments):
    small = ("backbone=small", "image_size=40", "devices=1", "eval.runs=1", "data.shapes.val=48")
    fields = [f"--config.{field}" for field in small]
    result = run(f"benchmarks.{program}", "--methods=panet", "--repeats=1", *arguments, *fields)
    assert result.returncode == 0, result.stderr
    assert rows(result.stdout, "panet")


def test_choices_of_a_protocol_are_compared(run, tmp_path, config_file):
    result = run(
        *("evaluation.choices", f"--config={config_file}", f"--workdir={tmp_path / 'choices'}"),
        *("--rows=base,border,letterbox", "--folds=0"),
        *("--config.eval.episodes=4", "--config.data.min_pixels=1"),
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == (tmp_path / "choices" / "choices.txt").read_text()
    assert len(rows(result.stdout, "base")) == len(rows(result.stdout, "border")) == 1
    assert len(rows(result.stdout, "letterboxed,")) == 1


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("train", ["--config.trian.steps=3"], "did you mean --config.train.steps"),
        ("train", ["--config.platform=gpu"], "platform = gpu is not available on this machine"),
        ("evaluate", ["--config.platform=gpu"], "platform = gpu is not available on this machine"),
        ("train", ["--config.shots=50"], "images, but shots = 50 needs 51"),
        ("train", ["--config.data.name=voc"], "data.root is empty"),
        ("train", ["--config.init=missing.npz"], "init = missing.npz: there is no such file"),
    ],
)
def test_wrong_input_gives_one_sentence_and_status_2(
    run, tmp_path, config_file, program, arguments, message
):
    result = run(program, f"--config={config_file}", f"--workdir={tmp_path / 'run'}", *arguments)
    assert result.returncode == 2
    *_, last = result.stderr.strip().splitlines()
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in result.stderr


# ----------------------------------------------------------------------------- without TensorFlow

WITHOUT_TENSORFLOW = """
import runpy, sys
sys.modules["tensorflow"] = None  # importing it fails, as where it is not installed
program = sys.argv.pop(1)
runpy.run_module(f"fsseg_jax.{program}", run_name="__main__", alter_sys=True)
"""


def run_without_tensorflow(program, *arguments):
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def voc_config(make_voc, tmp_path_factory):
    """PANet on a small VOCdevkit folder, which the device pipeline reads."""
    path = tmp_path_factory.mktemp("config") / "config.py"
    root = make_voc(train=30, val=30, shown=8)
    changes = f"""
    config.data.update(name="voc", root="{root}", pipeline="device")
    config.data.augment.update(flip=True, scale=(0.9, 1.1), rotation=10.0)
    config.train.update(steps=4, steps_per_dispatch=2, log_every=2, save_every=4, eval_every=4)
    return config
"""
    path.write_text(CONFIG.replace("    return config\n", changes))
    return path


def test_trains_and_evaluates_without_tensorflow(tmp_path, voc_config):
    trained = run_without_tensorflow(
        "train", f"--config={voc_config}", f"--workdir={tmp_path / 'run'}"
    )
    assert trained.returncode == 0, trained.stderr
    assert "30 images of 32 x 32 pixels on the device: 0.00 GiB" in trained.stderr
    assert "held-out classes after training: mean-IoU" in trained.stderr
    evaluated = run_without_tensorflow("evaluate", f"--workdir={tmp_path / 'run'}")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "(panet, step 4, best on base classes" in evaluated.stdout


def test_asking_for_tfdata_without_tensorflow_is_told(tmp_path, voc_config):
    result = run_without_tensorflow(
        *("train", f"--config={voc_config}", f"--workdir={tmp_path / 'run'}"),
        "--config.data.pipeline=tfdata",
    )
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1] == (
        "error: data.pipeline = tfdata needs tensorflow, which is not installed: "
        "pip install tensorflow, or set data.pipeline = device."
    )
