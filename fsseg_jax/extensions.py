"""Finds methods, backbones and sources by name, in this package or in any other module."""

import importlib
import pathlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from fsseg_jax.errors import UserError, brief

T = TypeVar("T")
# Where modules were when the runs that name them were trained. Nothing is imported from there
# because of it, as a run may be somebody else's: errors tell it.
_known: dict[str, str] = {}


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
        place = _known.get(module)
        there = f", which was {brief(place)} when it was trained" if place else ""
        raise UserError(
            f"{field} = {brief(name)}: {error}; install the module, or start the program in the "
            f"folder that contains it{there}, or name that folder in PYTHONPATH."
        ) from None


def places(names: Iterable[str]) -> dict[str, str]:
    """The folders in which the modules of names such as `package.module:Name` were found."""
    found = {}
    for name in names:
        module, colon, _ = name.partition(":")
        file = getattr(sys.modules.get(module), "__file__", None)
        if colon and file:
            depth = module.count(".") + (pathlib.Path(file).stem == "__init__")
            found[module] = str(pathlib.Path(file).absolute().parents[depth])
    return found


def note(known: Any) -> None:
    """Notes what `places` said when a run was trained, as its checkpoint has it, for errors."""
    if isinstance(known, Mapping):
        _known.update({str(module): str(place) for module, place in known.items()})
