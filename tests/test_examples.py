"""The examples in docstrings run and print what they say, and every public name has one."""

import doctest
import importlib
import inspect
import pathlib
import pkgutil
import re

import pytest

import fsseg_jax

PACKAGE = pathlib.Path(fsseg_jax.__file__).parent
PATHS = [path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text("utf-8")]
MODULES = sorted(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in PATHS)
REFERENCE = pathlib.Path(__file__).parent.parent / "docs" / "reference"
PAGES = "\n".join(path.read_text("utf-8") for path in REFERENCE.glob("*.md"))
PUBLIC = re.findall(r"^::: (\S+)$", PAGES, re.MULTILINE)
# What a segmenter is for.
PUBLIC += [
    f"fsseg_jax.Segmenter.{name}"
    for name in (
        *("fit", "predict", "results", "stream", "score", "compare", "overlay"),
        *("cross_validate", "save_pretrained"),
    )
]


def line(found):
    """Where it is; doctest does not know it of functions that are wrapped."""
    return inspect.getsourcelines(inspect.unwrap(pkgutil.resolve_name(found.name)))[1]


@pytest.mark.parametrize("module", [name.removesuffix(".__init__") for name in MODULES])
def test_examples_print_what_they_say(module):
    module = importlib.import_module(module)
    runner, known = doctest.DocTestRunner(), {}
    examples = [found for found in doctest.DocTestFinder().find(module) if found.examples]
    # In their order on the page; those of methods go on from that of their class.
    for found in sorted(examples, key=line):
        before = known.get(found.name.rpartition(".")[0], vars(module))
        found.globs = known[found.name] = dict(before)
        runner.run(found, clear_globs=False)
    assert runner.tries > 0
    assert runner.failures == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example(name):
    (found, *_) = doctest.DocTestFinder(recurse=False).find(pkgutil.resolve_name(name), name)
    assert found.examples
    assert "Examples:\n" in found.docstring  # the site shows those as code


def imported():
    """What README, guides and notebooks import, and what the package exports."""
    names, root = {f"fsseg_jax.{name}" for name in fsseg_jax.__all__}, PACKAGE.parent
    for page in (root / "README.md", *root.glob("docs/*.md"), *root.glob("notebooks/*.ipynb")):
        text = page.read_text("utf-8").replace('\\n",', "")
        for module, listed in re.findall(r"from (fsseg_jax[\w.]*) import ([\w, ]+)", text):
            names |= {f"{module}.{name}" for name in listed.split(", ")}
    return sorted(names)


@pytest.mark.parametrize("name", imported())
def test_what_is_imported_from_outside_is_public(name):
    thing = pkgutil.resolve_name(name)
    if inspect.ismodule(thing):
        assert any(public.startswith(f"{name}.") for public in PUBLIC)
    elif callable(thing):
        assert any(thing is pkgutil.resolve_name(public) for public in PUBLIC)
    else:  # a constant, which has no docstring: it is told where public names are
        assert any(public.startswith(f"{name.rpartition('.')[0]}.") for public in PUBLIC)
