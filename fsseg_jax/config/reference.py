"""The fields of the configuration as text, for `--help` and docs/config.md."""

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
    "predict": "Prediction",
}


def sections() -> Iterator[tuple[str, dict[str, Field]]]:
    """Titles of the sections, with the fields of each by name."""
    for prefix, title in SECTIONS.items():
        yield (
            title,
            {n: f for n, f in FIELDS.items() if n.rpartition(".")[0].split(".")[0] == prefix},
        )
    for method in METHODS.values():
        options = {f"model.{name}": field for name, field in options_of(method).items()}
        yield f"Method: {method.__name__}", options


def as_text() -> str:
    """All fields as text for a terminal."""
    lines = []
    for title, fields in sections():
        lines += ["", f"{title}:"]
        for name, field in fields.items():
            lines.append(f"  --config.{name}={_written(field.default)}")
            meaning = " ".join([field.doc, *_limits(field)])
            lines += textwrap.wrap(meaning, 88, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def as_markdown() -> str:
    """All fields as a Markdown page."""
    lines = [
        "# Configuration",
        "",
        "All fields, with their defaults and meanings. Files in "
        "[`configs/`](../configs/README.md) and the command line change them: "
        "`--config.train.steps=500`.",
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
    """The values that a field may have, in words."""
    words = []
    if field.choices:
        choices = ", ".join(choice or "''" for choice in field.choices)
        words.append(f"One of {choices}.")
    limits = {
        "at least": field.least,
        "above": field.above,
        "at most": field.most,
        "below": field.below,
    }
    numbers = [f"{how} {number}" for how, number in limits.items() if number is not None]
    if numbers:
        words.append(f"{' and '.join(numbers)}.".capitalize())
    return words
