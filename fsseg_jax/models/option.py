"""One option: its default, its meaning and its limits, declared in one place.

`config.model` consists of the options of a method, and the other fields of the configuration are
declared in the same way (`fsseg_jax.config.fields`).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from fsseg_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Field:
    """An option.

    Attributes:
        default: its value unless something else is said.
        doc: what it means, with the reason for the default where it needs one.
        choices: the values that it may take; any where there are none.
        least: the smallest value that it may take.
        above, below: values that it must not reach.
    """

    default: Any
    doc: str
    choices: Sequence[Any] = ()
    least: float | None = None
    above: float | None = None
    below: float | None = None

    def check(self, name: str, value: Any) -> None:
        """Raises UserError where a value is not within the limits; `name` names the option."""
        if self.choices and value not in self.choices:
            words = sorted((choice or "''" for choice in self.choices), key="''".__eq__)
            raise UserError(f"{name} = {value!r}: choose {' or '.join(words)}.")
        if self.least is not None and value < self.least:
            raise UserError(f"{name} = {value}: it must be at least {self.least}.")
        if self.above is not None and value <= self.above:
            raise UserError(f"{name} = {value}: it must be above {self.above}.")
        if self.below is not None and value >= self.below:
            raise UserError(f"{name} = {value}: it must be below {self.below}.")


def option(default: Any, doc: str, **limits: Any) -> Any:
    """A field of a method's dataclass, with what `Field` says of it."""
    return dataclasses.field(default=default, metadata={"option": Field(default, doc, **limits)})


def options_of(method: type) -> dict[str, Field]:
    """The options of a method by name, in the order of their declaration."""
    fields = dataclasses.fields(method)
    return {f.name: f.metadata["option"] for f in fields if "option" in f.metadata}
