"""A few of the kills of `python -m tests.crash`, and what that test finds."""

import os
import sys

import pytest
from crash.programs import PROGRAMS, Program
from crash.sessions import Attack

KILLS = {"train": 5, "predict": 5, "two processes": 2}  # test_reproduce.py kills `reproduce`
SEED = int(os.environ.get("KILL_SEED", "0"))


@pytest.mark.parametrize("name", KILLS)
def test_a_program_that_is_killed_and_started_again_loses_nothing(name, tmp_path):
    (program,) = [program for program in PROGRAMS if program.name == name]
    attack = Attack(program, tmp_path, SEED)
    attack.begin()
    while not attack.kills:  # a random time may be too late
        attack.session(KILLS[name])
    assert not attack.faults


# Writes two files, each whole or not at all; the second start of it goes on.
CAREFUL = """
import os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
for name in "ab":
    if not (folder / name).exists():
        (folder / "new").write_text(name)
        os.replace(folder / "new", folder / name)
"""
# Others look like it until they are killed.
FORGETFUL = CAREFUL.replace("os.replace", "(folder / name).touch(); os.replace")
MESSY = CAREFUL.replace('"new"', 'f"{os.getpid()}"')
STUBBORN = CAREFUL.replace("for", "(folder / 'lock').open('x'); os.remove(folder / 'lock')\nfor", 1)


def attacked(text, folder):
    """A program, killed until something is found, or as often as it should survive."""

    def command(place):
        return [sys.executable, "-c", text, str(place)]

    def result(place):
        return {name: (place / name).read_bytes() for name in "ab"}

    attack = Attack(Program("small", command, result), folder, SEED)
    attack.begin()
    while not (attack.faults or attack.stale) and attack.kills < (8 if text == CAREFUL else 60):
        attack.session(3)
    return attack


def test_programs_that_lose_or_leave_something_are_found(tmp_path):
    careful = attacked(CAREFUL, tmp_path / "careful")
    assert not careful.faults
    assert not careful.stale
    assert attacked(MESSY, tmp_path / "messy").stale
    (fault,) = attacked(FORGETFUL, tmp_path / "forgetful").faults
    assert "not as they should be" in fault.what
    assert fault.kills
    (fault,) = attacked(STUBBORN, tmp_path / "stubborn").faults
    assert fault.what == "ended with status 1"
    assert "FileExistsError" in fault.log.read_text()
