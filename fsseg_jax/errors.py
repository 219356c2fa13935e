"""The exception for wrong input."""

import reprlib
from typing import Any


class UserError(ValueError):
    """Wrong input, described by one sentence that names the cause and the remedy.

    Command-line programs print only this sentence and exit with status 2.

    Examples:
        >>> from fsseg_jax.config import load_config, override
        >>> try:
        ...     override(load_config("quickstart"), ["--config.train.step=500"])
        ... except UserError as error:
        ...     print(error)
        --config.train.step: there is no such config key; did you mean --config.train.steps?
    """


def brief(value: Any) -> str:
    """A value that may be anything, for an error: its `repr` in a line, with its middle left out if
    it is long."""
    return " ".join(_REPR.repr(value).split())


_REPR = reprlib.Repr()
_REPR.maxother = _REPR.maxstring = _REPR.maxlong = 100
