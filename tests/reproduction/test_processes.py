"""Child processes: their end, their reasons, and that none outlives who started it."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from commands import is_alive, wait_for

from fsseg_jax.reproduction.processes import Children, Failure, Stopped, reason

PYTHON = [sys.executable, "-c"]


def test_output_is_logged_and_passed_on(tmp_path, capfd):
    with Children() as children:
        children.run([*PYTHON, "print('hello')"], tmp_path / "a" / "log.txt")
        children.run([*PYTHON, "print('again')"], tmp_path / "a" / "log.txt", name="one")
        children.run([*PYTHON, "print('silent')"], tmp_path / "a" / "log.txt", echo=False)
    assert (tmp_path / "a" / "log.txt").read_text() == "hello\nagain\nsilent\n"
    err = capfd.readouterr().err
    assert "hello\n" in err
    assert "[one] again" in err
    assert "silent" not in err


def test_environment_is_added(tmp_path):
    program = "import os; print(os.environ['ADDED'], 'PATH' in os.environ)"
    with Children() as children:
        children.run([*PYTHON, program], tmp_path / "log.txt", {"ADDED": "3"})
    assert (tmp_path / "log.txt").read_text() == "3 True\n"


@pytest.mark.parametrize(
    ("program", "told"),
    [
        (
            "import sys; print('bar\\rerror: no data: name them.'); sys.exit(2)",
            "no data: name them.",
        ),
        ("raise ValueError('of this kind')", "ValueError: of this kind"),
        ("import sys; sys.exit(7)", "ended with status 7"),
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL, perhaps for lack of memory"),
        ("import os; os.kill(os.getpid(), 6)", "was killed by SIGABRT"),
        (
            "import jax; jax.jit(lambda x: x.reshape(3))(jax.numpy.zeros(2))",
            "TypeError: cannot reshape array of shape (2,)",
        ),
    ],
)
def test_failures_have_their_reason(tmp_path, program, told):
    with Children() as children, pytest.raises(Failure) as failure:
        children.run([*PYTHON, program], tmp_path / "log.txt", echo=False)
    assert str(failure.value).startswith(told)


def test_the_reason_is_of_this_call(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("error: of an earlier call\n")
    with Children() as children, pytest.raises(Failure, match="ValueError: of today"):
        children.run([*PYTHON, "raise ValueError('of today')"], log, echo=False)


def test_reason_is_the_last_error_of_a_long_log(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("error: of an earlier call\n" + "x\n" * 10000 + "error: of this one\nbye\n")
    assert reason(log, 2) == "of this one"


def test_a_terminal_that_is_gone_stops_nothing(tmp_path, monkeypatch):
    """As behind `| head`."""
    monkeypatch.setattr(sys, "stderr", open(os.devnull))  # noqa: SIM115  cannot be written to
    program = "import sys; sys.stdout.write('x' * 10**6)"
    with Children() as children:
        children.run([*PYTHON, program], tmp_path / "log.txt")
    assert (tmp_path / "log.txt").stat().st_size == 10**6


def test_what_has_shown_enough_is_ended(tmp_path):
    log = tmp_path / "log.txt"
    program = "import sys, time; print('ready', flush=True); time.sleep(60); sys.exit(1)"
    with Children() as children:
        children.run(
            [*PYTHON, program], log, enough=lambda: log.exists() and "ready" in log.read_text()
        )


def test_sigterm_reaches_children_which_may_finish(tmp_path):
    """As a training does, which saves a checkpoint."""
    saved = tmp_path / "saved"
    program = (
        "import signal, sys, time\n"
        f"def save(*_): open({str(saved)!r}, 'w').close(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\nprint('ready', flush=True)\ntime.sleep(600)"
    )
    log = tmp_path / "log.txt"

    def stop():
        wait_for(lambda: log.exists() and "ready" in log.read_text())
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    with Children() as children:
        thread.start()
        with pytest.raises(Stopped):
            children.run([*PYTHON, program], log)
        thread.join()
        assert children.status == 143
        with pytest.raises(Stopped):  # and nothing new is begun
            children.run([*PYTHON, "pass"], log)
    assert saved.exists()


def test_a_second_signal_stops_this_process_where_no_child_runs():
    """As while it reads a large data set; the first one leaves it the time to end in order."""
    with Children() as children:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)
        assert children.status == 130


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_children_end_with_a_parent_that_is_killed(tmp_path, number):
    log = tmp_path / "log.txt"
    grandchild = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    program = (
        "import pathlib, sys\n"
        "from fsseg_jax.reproduction.processes import Children\n"
        "with Children() as children:\n"
        f"    children.run([sys.executable, '-c', {grandchild!r}], pathlib.Path({str(log)!r}))\n"
    )
    parent = subprocess.Popen([*PYTHON, program])
    wait_for(lambda: log.exists() and log.read_text().endswith("\n"))
    child = int(log.read_text())
    assert is_alive(child)
    parent.send_signal(number)
    parent.wait()
    wait_for(lambda: not is_alive(child))
