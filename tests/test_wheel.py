"""What an installation from a wheel has beside the package: `configs/`, and with it the tables."""

import os
import pathlib
import shutil
import sys

import commands
import pytest

from fsseg_jax.evaluation.published import TABLES

CLONE = pathlib.Path(__file__).parent.parent
PARTS = ("fsseg_jax", "configs", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
BUILD = "import setuptools.build_meta as m, sys; m.build_wheel(sys.argv[1])"


def test_an_installed_wheel_shows_a_table_with_what_is_missing(tmp_path):
    """In a folder outside any clone."""
    pytest.importorskip("setuptools", minversion="77")
    pytest.importorskip("setuptools_scm")
    pytest.importorskip("pip")
    source, elsewhere, venv = tmp_path / "source", tmp_path / "elsewhere", tmp_path / "venv"
    elsewhere.mkdir()
    for part in PARTS:
        if (CLONE / part).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(CLONE / part, source / part, ignore=ignore)
        else:
            shutil.copy(CLONE / part, source / part)
    commands.run(sys.executable, "-c", BUILD, tmp_path, cwd=source)
    (wheel,) = tmp_path.glob("*.whl")
    commands.run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index")
    commands.run(*pip, wheel)
    # All else is there already; what is installed in editable mode is not found this way.
    packages = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p.endswith("-packages"))}
    listed = commands.run(
        python.with_name("fsseg"), "--help", cwd=elsewhere, env=os.environ | packages
    )
    assert "fsseg train" in listed.stdout
    show = (python, "-m", "fsseg_jax.evaluate", "--table=mfnet-11")
    text = commands.run(*show, cwd=elsewhere, env=os.environ | packages).stdout
    assert TABLES["mfnet-11"].title in text
    for row in TABLES["mfnet-11"].rows:
        assert all(str(percent) in text for percent in row.published.values())
        assert row.note in text
    # Settings that start from another one find it.
    share = venv / "share" / "fsseg_jax" / "configs"
    assert f"--config={share / 'mfnet_res50_coco.py'}" in text
