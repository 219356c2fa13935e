"""The rooms of the package import each other in one direction."""

import pathlib
import sys

import pytest
from commands import run

ROOT = pathlib.Path(__file__).parent.parent


def test_imports_point_one_way():
    """As `lint-imports` has it, by the layers in pyproject.toml."""
    pytest.importorskip("importlinter")
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("the layers are those of a clone")
    # In a process of its own, because it disables the loggers that exist where it runs.
    program = "from importlinter import cli; raise SystemExit(cli.lint_imports(no_cache=True))"
    run(sys.executable, "-c", program, cwd=ROOT)
