"""`fsseg`, which is `python -m fsseg_jax`: it tells what there is, and runs the programs."""

import pathlib
import re
import subprocess
import sys

import pytest
from commands import run

import fsseg_jax
from fsseg_jax import __main__ as fsseg

HEAVY = ("jax", "flax", "matplotlib", "scipy", "skimage", "PIL", "numpy")


def test_it_tells_the_version_the_programs_and_the_devices():
    printed = run(sys.executable, "-m", "fsseg_jax").stdout
    assert printed.startswith(f"fsseg_jax {fsseg_jax.__version__}: ")
    assert "\n  fsseg train       Trains a model\n" in printed
    assert "panet_vgg16" in printed
    assert re.search(r"\ndevices: \d+ x cpu", printed)


def test_no_program_is_left_out():
    folder = pathlib.Path(fsseg_jax.__file__).parent
    found = {
        path.stem
        for path in folder.glob("*.py")
        if "command_line.run(main)" in path.read_text("utf-8")
    }
    assert set(fsseg.PROGRAMS) == found


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_that_takes_long(option):
    code = (
        f"import sys; sys.argv = ['fsseg', {option!r}]; from fsseg_jax.__main__ import main; "
        f"assert main() == 0; print(sorted(sys.modules.keys() & set({HEAVY})))"
    )
    printed = run(sys.executable, "-c", code).stdout
    assert printed.startswith(f"fsseg_jax {fsseg_jax.__version__}")
    assert printed.endswith("\n[]\n")


def test_a_program_has_the_options_and_the_status_that_it_has_by_itself():
    command = (sys.executable, "-m", "fsseg_jax", "evaluate")
    usage = run(*command, "--help").stdout
    assert usage.startswith("usage: fsseg evaluate ")
    assert "--workdir DIR" in usage
    wrong = subprocess.run([*command, "--wrokdir=x"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr == "error: --wrokdir: there is no such option; did you mean --workdir?\n"


def test_a_wrong_name_is_told_with_the_one_that_is_meant(monkeypatch, capsys):
    for name, hint in (("trian", "did you mean fsseg train?"), ("x", "fsseg --help lists all.")):
        monkeypatch.setattr(sys, "argv", ["fsseg", name])
        assert fsseg.main() == 2
        assert capsys.readouterr().err == f"error: fsseg {name}: there is no such program; {hint}\n"


def test_what_the_package_exports_is_imported_when_it_is_used():
    code = (
        "import sys, fsseg_jax; assert 'jax' not in sys.modules; "
        "assert set(fsseg_jax.__all__) <= set(dir(fsseg_jax)); "
        "names = [getattr(fsseg_jax, name).__name__ for name in fsseg_jax.__all__]; "
        "assert names == fsseg_jax.__all__, names; print('jax' in sys.modules); "
        "fsseg_jax.evaluation.metrics"  # as if all modules had been imported
    )
    assert run(sys.executable, "-c", code).stdout == "True\n"
    with pytest.raises(AttributeError, match="module 'fsseg_jax' has no attribute 'laod'"):
        fsseg_jax.laod  # noqa: B018
