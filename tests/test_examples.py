"""The examples in docstrings run and print what they say."""

import doctest
import importlib

import pytest

MODULES = [
    *("fsseg_jax.episode", "fsseg_jax.prediction.loading", "fsseg_jax.prediction.segmenter"),
    *(f"fsseg_jax.models.{method}" for method in ("panet", "canet", "sst", "ltafnet", "mfnet")),
]


@pytest.mark.parametrize("module", MODULES)
def test_examples_print_what_they_say(module):
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted > 0
    assert results.failed == 0
