"""Several processes write what one process writes, whoever is killed."""

import functools
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from commands import wait_for
from several import IMAGES, assert_same_files, command, lines_of, make_whole

LAUNCHER = pathlib.Path(__file__).parents[2] / "launch" / "local.py"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_whole(tmp_path_factory.mktemp("several"))


def launched(folder, out, log):
    start = [sys.executable, str(LAUNCHER), "--processes=2", "--cpu-devices=1", "--grace=2", "--"]
    words = [*start, *command(folder, out)]
    return subprocess.Popen(words, stdout=log.open("a"), stderr=subprocess.STDOUT)


def process_of(out, number):
    """The process id of a process by JAX's number."""
    for place in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_text().split("\0")
            variables = (place / "environ").read_text().split("\0")
        except OSError:  # it has ended
            continue
        mine = "fsseg_jax.predict" in words and f"--out={out}" in words
        if mine and f"JAX_PROCESS_ID={number}" in variables:
            return int(place.name)
    return None


@pytest.mark.skipif(not pathlib.Path("/proc/self/environ").exists(), reason="needs Linux's /proc")
def test_two_processes_of_which_one_is_killed_make_what_one_makes(whole, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"

    def begun(part):
        assert launcher.poll() is None, log.read_text()
        return lines_of(out / part) >= 2

    launcher = launched(whole, out, log)
    try:
        wait_for(functools.partial(begun, "journal-1.jsonl"), seconds=200)
        os.kill(process_of(out, 1), signal.SIGKILL)
        assert launcher.wait(timeout=60) not in (0, 1), log.read_text()
    finally:
        launcher.kill()
    kept = lines_of(out / "journal-1.jsonl") + lines_of(out / "journal.jsonl")
    assert kept >= 2

    assert launched(whole, out, log).wait(timeout=200) == 1, log.read_text()  # one cannot be read
    assert_same_files(whole, out)
    assert len((out / "journal.jsonl").read_bytes().splitlines()) == IMAGES  # none was done twice
