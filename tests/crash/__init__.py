"""The crash test: programs of the library are killed, started again, and have lost nothing.

`python -m tests.crash` (see `__main__`), and a few kills in `test_crash.py`.
"""

import pathlib
import sys

# What other tests use, as pytest would find it.
_TESTS = pathlib.Path(__file__).parents[1]
sys.path += [str(folder) for folder in (_TESTS, _TESTS / "training", _TESTS / "predict")]

import xla_flags  # noqa: E402, F401  before JAX
