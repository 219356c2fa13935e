"""Ctrl-C in programs: the exit status, what is printed, and a second one that ends them at once."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import tiny
from commands import run_program

from fsseg_jax import interrupts


@pytest.fixture
def start(tmp_path):
    """A function that starts a program with this `main`, and waits until that calls `begin`."""

    def start(main):
        head = (
            "import hashlib, os, signal, time\n"
            "from fsseg_jax import command_line\n"
            "def begin():\n    print('begun', flush=True)\n"
            "def main():\n"
        )
        program = head + textwrap.indent(main, "    ") + "\ncommand_line.run(main)"
        # A background job of a shell would inherit that Ctrl-C is ignored.
        inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, **pipes)
        signal.signal(signal.SIGINT, inherited)
        assert process.stdout.readline() == "begun\n"
        return process

    return start


def test_a_program_cleans_up_and_ends_with_status_130(start, tmp_path):
    process = start("try:\n    begin()\n    time.sleep(60)\nfinally:\n    open('left', 'w')")
    process.send_signal(signal.SIGINT)
    result = process.communicate(timeout=30)
    assert process.returncode == 130
    assert result[1].endswith("stopped by Ctrl-C\n")
    assert process.returncode == 130
    assert (tmp_path / "left").exists()


def test_a_second_one_ends_what_does_not_come_back_from_compiled_code(start):
    process = start("begin()\nhashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)")
    time.sleep(1)  # until it is in compiled code
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "\n"
    assert process.stderr.readline() == "stopping; once more ends it at once\n"
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 130


def test_an_interruption_that_python_cannot_raise_ends_the_program(start):
    process = start(
        "class Last:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(1)\n"
        "begin()\nlast = Last()\ndel last\ntime.sleep(60)"
    )
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Exception ignored" not in errors


@pytest.mark.parametrize("module", ["jax", "orbax.checkpoint"])
def test_imports_end_at_once_and_quietly(tmp_path, module):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.meta_path.insert(0, Interrupts())\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    options = {"env": os.environ | {"PYTHONPATH": path}, "status": 130}
    words = (f"--config={tiny.__file__}", f"--workdir={tmp_path / 'run'}")
    assert run_program("train", *words, **options).stderr == ""


def test_programs_of_others_keep_their_own_handler(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys, "argv", ["-m"])
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-m", "other.program"])
    interrupts.end_imports_quietly()
    assert signal.getsignal(signal.SIGINT) is before


def test_training_says_how_to_go_on_and_ends_with_status_130(tmp_path, users_environment):
    words = [f"--config={tiny.__file__}", f"--workdir={tmp_path}", "--config.train.steps=100000"]
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "fsseg_jax.train", *words],
        env=users_environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, inherited)
    while not any(tmp_path.glob("checkpoints/last/2*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped by Ctrl-C at step" in errors
    assert "saved; the same command continues" in errors
    assert "Traceback" not in errors


def test_the_status_is_that_of_ctrl_c_if_other_processes_have_ended_after_it(start):
    """A signal to all of them may end another one first, which this one sees as an error of JAX."""
    process = start(
        "import jax\njax.distributed.is_initialized = lambda: True\ncommand_line.LAST_WORDS = 0\n"
        "try:\n    begin()\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    time.sleep(0.2)\n"
        "    raise jax.errors.JaxRuntimeError('INTERNAL: closed by peer') from None"
    )
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
