"""Several processes train what one trains, and go on after one of them has died."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from fsseg_jax.config import load_config
from fsseg_jax.models import create_model
from fsseg_jax.training.checkpoints import LAST, Checkpoints
from fsseg_jax.training.state import abstract_state

LAUNCHER = pathlib.Path(__file__).parents[2] / "launch" / "local.py"
CONFIG = """
from fsseg_jax.config import default_config

def get_config():
    config = default_config("panet")
    config.backbone = "small"
    config.image_size = 32
    config.data.name = "shapes"
    config.data.pipeline = "device"
    config.data.min_pixels = config.data.train_min_pixels = 1
    config.data.shapes.update(train=60, val=60, pixels=32)
    config.train.update(steps=20, batch_size=8, learning_rate=1e-3, schedule="constant")
    config.train.update(log_every=10, save_every=20, eval_every=10_000, eval_episodes=4)
    config.eval.update(runs=1, episodes=4, gallery=1)
    return config
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes") / "config.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def start(config_file):
    """A function that starts two processes of four devices each, or others with eight in all."""
    # As users compile: what is not optimised rounds differently in one process and in two.
    environment = os.environ | {"XLA_FLAGS": ""}

    def start(workdir, *overrides, processes=2):
        command = [sys.executable, str(LAUNCHER), f"--processes={processes}", "--grace=20"]
        command += [f"--cpu-devices={8 // processes}"]
        command += ["--", sys.executable, "-m", "fsseg_jax.train", f"--config={config_file}"]
        command += [f"--workdir={workdir}", *overrides]
        with (workdir.parent / f"{workdir.name}.log").open("a") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    return start


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


def state_of(config, workdir):
    model = create_model(config)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = Checkpoints(workdir).restore(LAST, abstract_state(model, config, 1), one)
    return jax.tree.map(np.asarray, state)


@pytest.mark.skipif(not pathlib.Path("/proc/self/environ").exists(), reason="needs Linux's /proc")
def test_a_pair_trains_what_one_process_does_ends_together_and_resumes_exactly(
    tmp_path, start, config_file
):
    pair, first, second, log = (tmp_path / name for name in ("pair", "20", "40", "pair.log"))
    with start(pair, "--config.train.steps=10000") as launcher:
        try:
            for step, copy in ((20, first), (40, second)):
                saved = pathlib.Path("checkpoints", "last", str(step))
                deadline = time.monotonic() + 300
                while not (pair / saved).is_dir():
                    assert time.monotonic() < deadline, log.read_text()
                    assert launcher.poll() is None, log.read_text()
                    time.sleep(0.02)
                shutil.copytree(pair / saved, copy / saved)
            os.kill(processes_of(pair)[1], signal.SIGKILL)
            status = launcher.wait(timeout=60)
        finally:
            launcher.kill()
    assert status not in (0, 143)
    assert "the same command continues from the last checkpoint" in log.read_text()
    assert not processes_of(pair)

    config = load_config(str(config_file))
    assert start(tmp_path / "single", processes=1).wait(timeout=300) == 0
    one, other = state_of(config, tmp_path / "single"), state_of(config, first)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)

    assert start(first, "--config.train.steps=40").wait(timeout=300) == 0
    assert "resuming from step 20" in (tmp_path / "20.log").read_text()
    jax.tree.map(np.testing.assert_array_equal, state_of(config, first), state_of(config, second))
