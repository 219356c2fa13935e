"""Programs that tests start, and what becomes of them."""

import subprocess
import sys
import time

import psutil


def run(*command, status=0, **options):
    """Runs a command to its end, which has to be of this status."""
    options = {"capture_output": True, "text": True, "timeout": 500, **options}
    done = subprocess.run(list(map(str, command)), check=False, **options)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def run_program(name, *arguments, without=None, **options):
    """Runs a program of the library, perhaps as where some other module is not installed."""
    words = ["-m", f"fsseg_jax.{name}"]
    if without is not None:
        start = f"import runpy, sys; sys.modules[{without!r}] = None"  # importing it fails
        start += f"; runpy.run_module('fsseg_jax.{name}', run_name='__main__', alter_sys=True)"
        words = ["-c", start]
    return run(sys.executable, *words, *arguments, **options)


def assert_wrong_input(done, message):
    """One sentence, of which `message` is a part, and nothing else was told."""
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("error: ")
    assert message in sentence


def wait_for(condition, seconds=20):
    """Waits until the condition gives something, and returns it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return found


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # which only awaits its parent
    except psutil.NoSuchProcess:
        return False
