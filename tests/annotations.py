"""The annotations of the library's functions are checked as the tests call them.

It is imported before the library and JAX.
"""

import xla_flags  # noqa: F401  before JAX

# isort: split
# The hook has modules compiled anew that those of the library import: not these.
import flax.linen  # noqa: F401
import huggingface_hub  # noqa: F401
import ml_collections  # noqa: F401
import optax  # noqa: F401
import scipy.ndimage
import scipy.stats  # noqa: F401
import skimage  # noqa: F401

# isort: split
from collections.abc import Callable

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
