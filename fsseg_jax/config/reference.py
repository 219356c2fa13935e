"""The fields of the configuration as text: for `--help`, and as the page docs/config.md."""

import textwrap
from collections.abc import Iterator

from fsseg_jax.config.fields import FIELDS
from fsseg_jax.models import METHODS
from fsseg_jax.models.option import Field, options_of

SECTIONS = {
    "": "Model, input and machine",
    "data": "Data",
    "train": "Training",
    "eval": "Evaluation",
}


def sections() -> Iterator[tuple[str, dict[str, Field]]]:
    """Titles, and the fields below each by their names."""
    for prefix, title in SECTIONS.items():
        yield (
            title,
            {n: f for n, f in FIELDS.items() if n.rpartition(".")[0].split(".")[0] == prefix},
        )
    for method in METHODS.values():
        options = {f"model.{name}": field for name, field in options_of(method).items()}
        yield f"Method: {method.__name__}", options


def as_text() -> str:
    """All fields for a terminal."""
    lines = []
    for title, fields in sections():
        lines += ["", f"{title}:"]
        for name, field in fields.items():
            lines.append(f"  --config.{name}={_written(field.default)}")
            meaning = " ".join([field.doc, *_limits(field)])
            lines += textwrap.wrap(meaning, 88, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def as_markdown() -> str:
    """All fields as a page."""
    lines = [
        "# Configuration",
        "",
        "Every field, its default and its meaning; a file in [`configs/`](../configs/README.md) "
        "changes some of them, and so does the command line: `--config.train.steps=500`.",
        "(Written by `python -m fsseg_jax.config > docs/config.md`.)",
    ]
    for title, fields in sections():
        lines += ["", f"## {title}", "", "| field | default | meaning |", "| --- | --- | --- |"]
        for name, field in fields.items():
            meaning = " ".join([field.doc, *_limits(field)]).replace("|", "\\|")
            lines.append(f"| `{name}` | `{_written(field.default)}` | {meaning} |")
    return "\n".join(lines) + "\n"


def _written(value: object) -> str:
    return "''" if value == "" else str(value)


def _limits(field: Field) -> list[str]:
    """What values a field may have, in words."""
    words = []
    if field.choices:
        choices = ", ".join(choice or "''" for choice in field.choices)
        words.append(f"One of {choices}.")
    limits = {"at least": field.least, "above": field.above, "below": field.below}
    numbers = [f"{how} {number}" for how, number in limits.items() if number is not None]
    if numbers:
        words.append(f"{' and '.join(numbers)}.".capitalize())
    return words
