"""Rematerialisation: the backward pass recomputes a block's activations instead of storing them."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn


def rematerialisable(method: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a module's method a block: if the module's field `rematerialise` is set, only the
    inputs are kept for the backward pass.

    Parameters, their names, results and dropout masks are the same either way. Pass arrays by
    position and settings by keyword.
    """

    @functools.wraps(method)
    def block(module: nn.Module, *inputs: Any, **settings: Any) -> Any:
        function = functools.partial(method, **settings)
        return (nn.remat(function) if module.rematerialise else function)(module, *inputs)

    return block
