"""Methods, backbones and sources by name: those of this package, and those of any other module."""

import importlib
from collections.abc import Mapping
from typing import TypeVar

from fsseg_jax.errors import UserError

T = TypeVar("T")


def find(name: str, known: Mapping[str, T], field: str) -> T:
    """What a field of the configuration names.

    Args:
        name: a key of `known`, or `package.module:Name` for what another module holds.
        known: what this package has, by name.
        field: of the configuration, for errors.

    Raises:
        UserError: there is no such thing.
    """
    if name in known:
        return known[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise UserError(
            f"{field} = {name!r}: choose one of {', '.join(known)}, or package.module:Name for one "
            "of your own."
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ModuleNotFoundError, ValueError) as error:
        raise UserError(
            f"{field} = {name!r}: {error}; the module must be installed, or stand in the folder "
            "where the program is started."
        ) from None
    except AttributeError:
        raise UserError(f"{field} = {name!r}: {module} has no {attribute}.") from None
