"""`python -m fsseg_jax` tells what there is."""

import pathlib
import re
import sys

from commands import run

import fsseg_jax
from fsseg_jax.__main__ import PROGRAMS


def test_it_tells_the_version_the_programs_and_the_devices():
    printed = run(sys.executable, "-m", "fsseg_jax").stdout
    assert printed.startswith(f"fsseg_jax {fsseg_jax.__version__}: ")
    assert "\n  python -m fsseg_jax.train          Trains a model\n" in printed
    assert "panet_vgg16" in printed
    assert re.search(r"\ndevices: \d+ x cpu", printed)


def test_no_program_is_left_out():
    folder = pathlib.Path(fsseg_jax.__file__).parent
    found = {
        path.stem
        for path in folder.glob("*.py")
        if "command_line.run(main)" in path.read_text("utf-8") and path.stem != "__main__"
    }
    assert {name.removeprefix("data.") for name in PROGRAMS} == found
