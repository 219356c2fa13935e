"""The examples in docstrings run and print what they say."""

import doctest
import importlib
import pathlib

import pytest

import fsseg_jax

PACKAGE = pathlib.Path(fsseg_jax.__file__).parent
PATHS = [path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text("utf-8")]
MODULES = sorted(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in PATHS)


@pytest.mark.parametrize("module", [name.removesuffix(".__init__") for name in MODULES])
def test_examples_print_what_they_say(module):
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("name", fsseg_jax.__all__)
def test_what_the_package_exports_has_an_example(name):
    (example, *_) = doctest.DocTestFinder(recurse=False).find(getattr(fsseg_jax, name))
    assert example.examples
