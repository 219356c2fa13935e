"""Rematerialisation: the backward pass computes a block's activations again, none are kept."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jaxlib.version

# On CPUs, XLA took the barriers that keep the second computation apart out first, merged equal
# computations next, and nothing was gained (jaxlib 0.10.0 to 0.11.0; not so in 0.11.1 to 0.12.0.1).
# Functions compiled with these options keep them.
CPU_OPTIONS = (
    {"xla_disable_hlo_passes": "cse_barrier_expander"}
    if jaxlib.version.__version_info__ < (0, 11, 1)
    else {}
)


def rematerialisable(method: Callable[..., Any]) -> Callable[..., Any]:
    """A module's method as a block: where the module's field `rematerialise` is set, only its
    inputs are kept for the backward pass.

    Parameters, their names, results and draws of dropout are the same either way. Arrays are
    passed by position, and settings by keyword.
    """

    @functools.wraps(method)
    def block(module: nn.Module, *inputs: Any, **settings: Any) -> Any:
        function = functools.partial(method, **settings)
        return (nn.remat(function) if module.rematerialise else function)(module, *inputs)

    return block
