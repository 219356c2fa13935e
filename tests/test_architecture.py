"""The rooms of the package import each other in one direction."""

import ast
import pathlib
import sys

import pytest
from commands import run

ROOT = pathlib.Path(__file__).parent.parent
LINES, OF_A_FUNCTION = 400, 60


def test_imports_point_one_way():
    """As `lint-imports` has it, by the layers in pyproject.toml."""
    pytest.importorskip("importlinter")
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("the layers are those of a clone")
    # In a process of its own, because it disables the loggers that exist where it runs.
    program = "from importlinter import cli; raise SystemExit(cli.lint_imports(no_cache=True))"
    run(sys.executable, "-c", program, cwd=ROOT)


def test_no_module_and_no_function_is_long():
    long = []
    for path in sorted((ROOT / "fsseg_jax").rglob("*.py")):
        text = path.read_text("utf-8")
        if (count := len(text.splitlines())) > LINES:
            long.append(f"{path.name}: {count} lines")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if (count := node.end_lineno - node.lineno + 1) > OF_A_FUNCTION:
                long.append(f"{path.name}, {node.name}: {count} lines")
    assert not long
