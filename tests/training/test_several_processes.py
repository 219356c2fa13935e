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
OPTIONS = (
    *(f"--config={tiny.__file__}", "--config.devices=0", "--config.data.pipeline=device"),
    *("--config.train.learning_rate=1e-3", "--config.train.schedule=constant"),
    *("--config.train.save_every=20", "--config.train.eval_every=10000"),
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

    pair, first, second, log = (tmp_path / name for name in ("pair", "20", "40", "pair.log"))
    with start(pair, steps=10_000) as launcher:
        try:
            for step, copy in ((20, first), (40, second)):
                place = pathlib.Path("checkpoints", "last", str(step))
                wait_for(functools.partial(saved, pair / place), seconds=300)
                shutil.copytree(pair / place, copy / place)
            os.kill(processes_of(pair)[1], signal.SIGKILL)
            status = launcher.wait(timeout=60)
        finally:
            launcher.kill()
    assert status not in (0, 143)
    assert "the same command continues from the last checkpoint" in log.read_text()
    assert not processes_of(pair)

    config = tiny_config(schedule="constant")
    assert start(tmp_path / "single", steps=20, processes=1).wait(timeout=300) == 0
    one, other = saved_state(config, tmp_path / "single"), saved_state(config, first)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)

    assert start(first, steps=40).wait(timeout=300) == 0
    assert "resuming from step 20" in (tmp_path / "20.log").read_text()
    assert_identical(saved_state(config, first), saved_state(config, second))
