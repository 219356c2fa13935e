"""The declaration of one configuration option: default, documentation and limits.

The options of a method make up `config.model`; `fsseg_jax.config.fields` declares the other fields
of a configuration in the same way.
"""

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import Any

from fsseg_jax.errors import UserError

LARGEST = 2**31 - 1  # numbers are int32 in compiled programs


@dataclasses.dataclass(frozen=True)
class Field:
    """An option.

    Attributes:
        default: default value.
        doc: its meaning, with the reason for the default where one is needed.
        choices: allowed values; empty if any value is allowed.
        least, most: smallest and largest allowed value, of each number if it is a tuple.
        above, below: exclusive bounds.

    Numbers are always finite, and those without `most` at most `LARGEST`.
    """

    default: Any
    doc: str
    choices: Sequence[Any] = ()
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def check(self, name: str, value: Any) -> None:
        """Raises UserError, which names the option `name`, if a value is of another kind than the
        default or outside the limits."""
        kind = _kind(self.default)
        if self.default is not None and kind != _kind(value):
            raise UserError(f"{name} = {value!r}: it must be {kind}, such as {self.default!r}.")
        if self.choices and value not in self.choices:
            words = sorted((choice or "''" for choice in self.choices), key="''".__eq__)
            raise UserError(f"{name} = {value!r}: choose {' or '.join(words)}.")
        several = isinstance(value, tuple | list)
        for number in value if several else (value,):
            if isinstance(number, numbers.Real):
                self._check_number(name, value, number)
            elif several and all(isinstance(x, numbers.Real) for x in self.default or ()):
                raise UserError(f"{name} = {value}: it must be numbers, such as {self.default}.")

    def _check_number(self, name: str, value: Any, number: Any) -> None:
        most = LARGEST if self.most is None else self.most
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{name} = {value}: it must be finite.")
        if self.least is not None and number < self.least:
            raise UserError(f"{name} = {value}: it must be at least {self.least}.")
        if number > most or number < -most:
            sign = "least -" if number < 0 else "most "
            raise UserError(f"{name} = {value}: it must be at {sign}{most}.")
        if self.above is not None and number <= self.above:
            raise UserError(f"{name} = {value}: it must be above {self.above}.")
        if self.below is not None and number >= self.below:
            raise UserError(f"{name} = {value}: it must be below {self.below}.")


def _kind(value: Any) -> str:
    kinds = {
        "True or False": bool,
        "a number": numbers.Real,
        "text": str,
        "a tuple": tuple | list,
    }
    fitting = (kind for kind, types in kinds.items() if isinstance(value, types))
    return next(fitting, type(value).__name__)


def option(default: Any, doc: str, **limits: Any) -> Any:
    """A dataclass field of a method that is an option; `limits` are attributes of `Field`.

    Examples:
        >>> @dataclasses.dataclass
        ... class Options:  # as the fields of a method
        ...     width: int = option(32, "Channels of the embedding.", least=1)
        >>> Options().width, options_of(Options)["width"].doc
        (32, 'Channels of the embedding.')
        >>> options_of(Options)["width"].check("model.width", 0)
        Traceback (most recent call last):
            ...
        fsseg_jax.errors.UserError: model.width = 0: it must be at least 1.
    """
    return dataclasses.field(default=default, metadata={"option": Field(default, doc, **limits)})


def options_of(method: type) -> dict[str, Field]:
    """The options of a method by name, in declaration order."""
    fields = dataclasses.fields(method)
    return {f.name: f.metadata["option"] for f in fields if "option" in f.metadata}
