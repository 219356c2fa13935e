"""The rooms of the package import each other in one direction."""

import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def test_imports_point_one_way(monkeypatch):
    """As `lint-imports` has it, by the layers in pyproject.toml."""
    cli = pytest.importorskip("importlinter.cli")
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("the layers are those of a clone")
    monkeypatch.chdir(ROOT)
    assert cli.lint_imports(no_cache=True) == 0
