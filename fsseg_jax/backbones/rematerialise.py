"""Rematerialisation: the backward pass computes a block's activations again, none are kept."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn


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
