"""Finds methods, backbones and sources by name, in this package or in any other module."""

import importlib
from collections.abc import Mapping
from typing import TypeVar

from fsseg_jax.errors import UserError, brief

T = TypeVar("T")


def find(name: str, known: Mapping[str, T], field: str) -> T:
    """The object that `field` of the configuration names.

    `name` is a key of `known`, or `package.module:Name` for an object of another module.

    Raises:
        UserError: there is no such object.
    """
    if name in known:
        return known[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise UserError(
            f"{field} = {brief(name)}: choose one of {', '.join(known)}, or package.module:Name "
            "for your own."
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except AttributeError:
        raise UserError(f"{field} = {brief(name)}: {module} has no {attribute}.") from None
    except Exception as error:  # a module that fails raises its own
        raise UserError(
            f"{field} = {brief(name)}: {error}; install the module, or start the program in the "
            "folder that contains it."
        ) from None
