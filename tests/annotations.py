"""The annotations of the library's functions are checked as the tests call them.

It is imported before the library and JAX.
"""

from collections.abc import Callable

import xla_flags  # noqa: F401  before JAX
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable) -> Callable:
    """beartype for annotations of arrays: tests replace other things by doubles.

    Constructors are left out, because JAX makes pytrees of shapes and of placeholders too; so is
    `forward`, which tells wrong shapes itself.
    """
    if function.__qualname__.endswith("__init__") or function.__qualname__ == "forward":
        return function
    hints = function.__annotations__
    function.__annotations__ = {n: hint for n, hint in hints.items() if "jaxtyping" in repr(hint)}
    return _check(function)


install_import_hook("fsseg_jax", "annotations.check")
