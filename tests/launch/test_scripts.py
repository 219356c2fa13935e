"""launch/slurm.sh and launch/tpu_vm.sh, with other programs in place of the cluster's."""

import os
import pathlib
import shutil
import subprocess

import pytest
from commands import assert_wrong_input

FOLDER = pathlib.Path(__file__).parents[2] / "launch"
pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")

# An option that a shell which is not careful takes apart or expands.
OPTIONS = ["--config=configs/quickstart.py", "--workdir=/shared/my runs/$HOME 'a'"]


@pytest.fixture
def run(tmp_path):
    """A function that runs a script in a folder of its own."""
    (tmp_path / "bin").mkdir()

    def run(script, *arguments, **variables):
        return subprocess.run(
            ["bash", FOLDER / script, *arguments],
            cwd=tmp_path,
            env={"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", **variables},
            capture_output=True,
            text=True,
            timeout=20,
        )

    return run


def pretend(folder, name, then=""):
    """Makes a command that notes its arguments, a line each, in a file of its name."""
    command = folder / "bin" / name
    command.write_text(
        f"#!/usr/bin/env bash\nprintf '%s\\n' \"$@\" >> {folder / name}.txt\n{then}\n"
    )
    command.chmod(0o755)


def arguments_of(folder, name):
    file = folder / f"{name}.txt"
    return file.read_text().splitlines() if file.exists() else None


# ----------------------------------------------------------------------------------------- slurm.sh


@pytest.mark.parametrize(("status", "requeued"), [(0, None), (143, ["requeue", "77"]), (2, None)])
def test_a_job_that_was_stopped_is_requeued(tmp_path, run, status, requeued):
    pretend(tmp_path, "srun", f"exit {status}")
    pretend(tmp_path, "scontrol")
    result = run("slurm.sh", *OPTIONS, SLURM_JOB_ID="77", SLURM_CPUS_PER_TASK="6")
    assert result.returncode == status, result.stderr
    assert arguments_of(tmp_path, "scontrol") == requeued
    started = arguments_of(tmp_path, "srun")
    assert {"--kill-on-bad-exit=1", "--cpus-per-task=6"} < {*started}
    program = started[started.index("python") :]
    assert program[:4] == ["python", "-m", "fsseg_jax.train", "--config.distributed=True"]
    assert program[-2:] == OPTIONS


@pytest.mark.parametrize("words", [["predict"], ["train"], []])
def test_a_job_trains_or_segments(tmp_path, run, words):
    pretend(tmp_path, "srun")
    pretend(tmp_path, "scontrol")
    assert run("slurm.sh", *words, *OPTIONS, SLURM_JOB_ID="77").returncode == 0
    started = arguments_of(tmp_path, "srun")
    name = f"fsseg_jax.{words[0] if words else 'train'}"
    assert started[started.index("-m") + 1 :][:2] == [name, "--config.distributed=True"]
    assert started[-2:] == OPTIONS


def test_tasks_behind_a_proxy_find_each_other(tmp_path, run):
    pretend(tmp_path, "srun", f'echo "$no_grpc_proxy" > {tmp_path / "without"}')
    pretend(tmp_path, "scontrol", "printf 'node1\\nnode2\\n'")
    job = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node[1-2]"}
    assert run("slurm.sh", *OPTIONS, https_proxy="http://proxy", **job).returncode == 0
    assert (tmp_path / "without").read_text() == "node1,node2\n"
    assert arguments_of(tmp_path, "scontrol") == ["show", "hostnames", "node[1-2]"]


def test_tasks_and_gpus_of_a_node_are_as_many():
    lines = (FOLDER / "slurm.sh").read_text().splitlines()
    settings = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    gpus = next(line for line in settings if line.startswith("--gres=gpu:")).split(":")[1]
    assert f"--ntasks-per-node={gpus}" in settings
    assert "--signal=TERM@120" in settings


def test_a_job_without_options_or_outside_slurm_is_told(run):
    assert_wrong_input(run("slurm.sh", SLURM_JOB_ID="77"), "there are no options")
    assert_wrong_input(run("slurm.sh", *OPTIONS), "this is not a SLURM job")


# ---------------------------------------------------------------------------------------- tpu_vm.sh

VARIABLES = {"TPU_NAME": "my-tpu", "ZONE": "a-zone", "PROJECT": "my-project"}

# In place of workers: the command runs here, in a home folder that is `worker`.
GCLOUD = """
export HOME=$PWD/worker
case " $* " in
    *" scp "*) cp "$5" "$HOME/${6#*:}" ;;
    *) for last; do :; done; cd "$HOME" && bash -c "${last#--command=}" ;;
esac
"""

# In place of the program: notes its options, and saves a checkpoint on SIGTERM.
TRAINING = """#!/usr/bin/env bash
trap 'echo saved; exit 143' TERM
printf '%s\\n' "$@" > options.txt
for _ in {1..200}; do sleep 0.05; done
"""


@pytest.fixture
def worker(tmp_path):
    """The home folder of a worker on which the project is installed."""
    pretend(tmp_path, "gcloud", GCLOUD)
    folder = tmp_path / "worker"
    python = folder / "fsseg_jax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(TRAINING)
    python.chmod(0o755)
    return folder


@pytest.mark.parametrize("program", ["train", "predict"])
def test_a_program_runs_detached_until_it_is_stopped(tmp_path, run, worker, program):
    started = run("tpu_vm.sh", program, *OPTIONS, **VARIABLES)
    assert started.returncode == 0, started.stderr
    try:
        for _ in range(100):
            status = run("tpu_vm.sh", "status", **VARIABLES).stdout
            if ": running;" in status and (worker / "fsseg_jax" / "options.txt").exists():
                break
        assert ": running;" in status
        again = run("tpu_vm.sh", program, *OPTIONS, **VARIABLES)
        assert_wrong_input(again, "something runs already on")
    finally:
        stopped = run("tpu_vm.sh", "stop", **VARIABLES)
    assert stopped.stdout.endswith(": ended with status 143\n")
    assert (worker / "fsseg_jax" / "run.log").read_text() == "saved\nended with status 143\n"
    options = (worker / "fsseg_jax" / "options.txt").read_text().splitlines()
    assert options[:3] == ["-m", f"fsseg_jax.{program}", "--config.distributed=True"]
    assert options[-2:] == OPTIONS
    status = run("tpu_vm.sh", "status", **VARIABLES).stdout
    assert status.endswith(": not running; ended with status 143\n")
    used = arguments_of(tmp_path, "gcloud")
    assert used[:5] == ["compute", "tpus", "tpu-vm", "ssh", "my-tpu"]
    assert used[5:8] == ["--zone=a-zone", "--project=my-project", "--worker=all"]


def test_stopping_what_does_not_run_does_nothing(run, worker):
    stopped = run("tpu_vm.sh", "stop", **VARIABLES)
    assert (stopped.returncode, stopped.stderr) == (0, "")


def test_setup_copies_the_project_and_installs_it(tmp_path, run, worker):
    shutil.rmtree(worker / "fsseg_jax" / ".venv")
    pretend(tmp_path, "uv")
    result = run("tpu_vm.sh", "setup", **VARIABLES)
    assert result.returncode == 0, result.stderr
    for name in ("pyproject.toml", "fsseg_jax/train.py", "configs/quickstart.py"):
        copied, original = worker / "fsseg_jax" / name, FOLDER.parent / name
        assert copied.read_bytes() == original.read_bytes()
    assert not list(worker.rglob("__pycache__"))
    used = arguments_of(tmp_path, "uv")
    assert used[0] == "venv"
    assert used[-2:] == ["-e", ".[tpu,tfdata]"]


@pytest.mark.parametrize("missing", VARIABLES)
def test_a_missing_variable_is_named(run, worker, missing):
    given = {name: value for name, value in VARIABLES.items() if name != missing}
    assert_wrong_input(run("tpu_vm.sh", "stop", **given), f"{missing} is not set")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "say what to do"), (["delete"], "say what to do"), (["train"], "there are no options")],
)
def test_wrong_commands_are_told(run, worker, arguments, message):
    assert_wrong_input(run("tpu_vm.sh", *arguments, **VARIABLES), message)
