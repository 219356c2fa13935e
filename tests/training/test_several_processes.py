"""Several processes train what one trains, and go on after one of them has died."""

import functools
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from commands import wait_for
from training_runs import assert_identical, saved_state, tiny_config

LAUNCHER = pathlib.Path(__file__).parents[2] / "launch" / "local.py"
SAVED = 100  # steps, which take long enough for a checkpoint to be copied before it is removed
OPTIONS = (
    *(f"--config={tiny.__file__}", "--config.devices=0", f"--config.train.save_every={SAVED}"),
    *("--config.train.learning_rate=2e-4", "--config.train.schedule=constant"),
    "--config.train.eval_every=10000",
)


def start(workdir, steps, processes=2):
    """Starts two processes of four devices each, or others with eight in all."""
    command = [sys.executable, str(LAUNCHER), f"--processes={processes}", "--grace=20"]
    command += [f"--cpu-devices={8 // processes}"]
    command += ["--", sys.executable, "-m", "fsseg_jax.train", *OPTIONS]
    command += [f"--workdir={workdir}", f"--config.train.steps={steps}"]
    # As users compile: what is not optimised rounds differently in one process and in two.
    environment = os.environ | {"XLA_FLAGS": ""}
    with (workdir.parent / f"{workdir.name}.log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def disagreeing(tmp_path, program, *options):
    """What the second of two processes prints, which gets `options` besides."""
    code = f"import sys; extra = {list(options)!r} if '1' == os.environ['JAX_PROCESS_ID'] else []"
    command = [
        sys.executable,
        str(LAUNCHER),
        "--processes=2",
        "--cpu-devices=1",
        "--grace=20",
        "--",
    ]
    command += [sys.executable, "-c", f"import os, runpy; {code}; {program}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)


def test_processes_with_other_facts_end_with_one_sentence(tmp_path):
    """Long facts and short ones, numbers that are missing, and whatever else is told apart."""
    program = (
        "from fsseg_jax import devices; from fsseg_jax.errors import UserError; "
        "from fsseg_jax.config import default_config; config = default_config(); "
        "config.distributed = True; devices.start(config)\n"
        "for facts in ({'a': 1}, {'a': 1, 'long': 'x' * 5000 * (1 + len(extra))}, {'b': extra}):\n"
        "    try:\n"
        "        devices.check_agreement(facts)\n"
        "        print('agreed', flush=True)\n"
        "    except UserError as error:\n"
        "        print(str(error)[:60], flush=True)"
    )
    done = disagreeing(tmp_path, program, "extra")
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if not line.startswith("[Gloo]")]
    first, *others = told
    assert first == "agreed"
    assert others[0].startswith("process 1 has long = xxx")
    assert others[1].startswith("process 1 has b = ['extra'], but process 0 has []: start all")


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--config.train.learning_rate=0.02", "train.learning_rate = 0.02"),
        ("--workdir=elsewhere", "--workdir = "),
    ],
)
def test_processes_with_other_settings_do_not_train(tmp_path, option, named):
    words = ["train", *OPTIONS, f"--workdir={tmp_path / 'run'}", "--config.distributed=True"]
    program = (
        f"sys.argv = {words!r} + extra; "
        "runpy.run_module('fsseg_jax.train', run_name='__main__', alter_sys=True)"
    )
    done = disagreeing(tmp_path, program, option)
    assert done.returncode == 2
    (sentence,) = [line for line in done.stderr.splitlines() if "error: " in line]
    assert sentence.startswith(f"error: process 1 has {named}")
    assert "start all processes with the same command" in sentence
    assert not (tmp_path / "run" / "checkpoints").exists()


def processes_of(workdir):
    """Process ids by JAX's number of the process."""
    found = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (
                (folder / name).read_text().split("\0") for name in ("cmdline", "environ")
            )
        except OSError:  # it has ended
            continue
        if "fsseg_jax.train" in command and f"--workdir={workdir}" in command:
            number = dict(line.split("=", 1) for line in environment if "=" in line)
            if "JAX_PROCESS_ID" in number:
                found[int(number["JAX_PROCESS_ID"])] = int(folder.name)
    return found


@pytest.mark.skipif(not pathlib.Path("/proc/self/environ").exists(), reason="needs Linux's /proc")
def test_a_pair_trains_what_one_process_does_ends_together_and_resumes_exactly(tmp_path):
    def saved(path):
        assert launcher.poll() is None, log.read_text()
        return path.is_dir()

    pair, first, second, log = (tmp_path / name for name in ("pair", "1", "2", "pair.log"))
    with start(pair, steps=10_000) as launcher:
        try:
            for step, copy in ((SAVED, first), (2 * SAVED, second)):
                place = pathlib.Path("checkpoints", "last", str(step))
                wait_for(functools.partial(saved, pair / place), seconds=300)
                shutil.copytree(pair / place, copy / place)
            os.kill(processes_of(pair)[1], signal.SIGKILL)
            status = launcher.wait(timeout=60)
        finally:
            launcher.kill()
    assert status not in (0, 143)
    assert "the same command continues" in log.read_text()
    assert not processes_of(pair)

    config = tiny_config(schedule="constant")
    assert start(tmp_path / "single", steps=SAVED, processes=1).wait(timeout=300) == 0
    one, other = saved_state(config, tmp_path / "single"), saved_state(config, first)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)

    assert start(first, steps=2 * SAVED).wait(timeout=300) == 0
    assert f"resuming from step {SAVED}" in (tmp_path / "1.log").read_text()
    assert_identical(saved_state(config, first), saved_state(config, second))


@pytest.mark.parametrize(
    ("during", "status", "told"),
    [
        ("Selection.score", 130, "at step 1, saved; the same command continues"),
        ("StopRequest.__exit__", 0, "trained 1 steps"),
    ],
)
def test_ctrl_c_to_one_of_two_processes_after_the_last_step(tmp_path, during, status, told):
    """In the last selection it stops both. When all is done, it delays neither: JAX's own way of
    telling the other process would have it wait for minutes, once a second has passed."""
    words = ["train", *OPTIONS, f"--workdir={tmp_path / 'run'}", "--config.distributed=True"]
    owner, name = during.split(".")
    program = (
        "import signal, time; from fsseg_jax.training.stop import StopRequest; "
        "from fsseg_jax.evaluation.selection import Selection; "
        f"ordinary = {during}\n"
        "def interrupted(*a):\n"
        "    extra and (os.kill(os.getpid(), signal.SIGINT), time.sleep(2))\n"
        "    return ordinary(*a)\n"
        f"{owner}.{name} = interrupted; "
        f"sys.argv = {[*words, '--config.train.steps=1']!r}; "
        "runpy.run_module('fsseg_jax.train', run_name='__main__', alter_sys=True)"
    )
    done = disagreeing(tmp_path, program, "extra")
    assert done.returncode == status, done.stderr
    assert told in done.stderr
