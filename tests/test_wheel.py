"""What an installation from a wheel has beside the package: `configs/`, and with it the tables."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from fsseg_jax.evaluation.published import TABLES

CLONE = pathlib.Path(__file__).parent.parent
PARTS = ("fsseg_jax", "configs", "pyproject.toml", "README.md", "LICENSE")
BUILD = "import setuptools.build_meta as m, sys; m.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A function that runs a program of an installed wheel, in a folder outside any clone."""
    pytest.importorskip("setuptools", minversion="77")
    pytest.importorskip("pip")
    folder = tmp_path_factory.mktemp("wheel")
    source, elsewhere, venv = folder / "source", folder / "elsewhere", folder / "venv"
    elsewhere.mkdir()
    for part in PARTS:
        if (CLONE / part).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(CLONE / part, source / part, ignore=ignore)
        else:
            shutil.copy(CLONE / part, source / part)
    _run(sys.executable, "-c", BUILD, str(folder), cwd=source)
    (wheel,) = folder.glob("*.whl")
    _run(sys.executable, "-m", "venv", "--without-pip", str(venv))
    python = str(venv / "bin" / "python")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index")
    _run(*pip, str(wheel))
    # All else is there already; what is installed in editable mode is not found this way.
    packages = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p.endswith("-packages"))}

    def run(*arguments):
        return _run(python, "-m", *arguments, cwd=elsewhere, env=os.environ | packages)

    run.share = venv / "share" / "fsseg_jax" / "configs"
    return run


def _run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_shows_a_table_with_what_is_missing(installed):
    text = installed("fsseg_jax.evaluate", "--table=mfnet-11")
    assert TABLES["mfnet-11"].title in text
    for row in TABLES["mfnet-11"].rows:
        assert all(str(percent) in text for percent in row.published.values())
        assert row.note in text
    # Settings that start from another one find it.
    assert f"--config={installed.share / 'mfnet_res50_coco.py'}" in text
