"""The reference of the configuration is that of the code."""

import pathlib
import sys

import pytest

from fsseg_jax import train
from fsseg_jax.config import default_config, reference
from fsseg_jax.config.checks import flatten
from fsseg_jax.models import METHODS

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "config.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text("utf-8") == reference.as_markdown()


def test_every_field_of_every_method_stands_there_once_with_its_default():
    rows = {}
    for title, fields in reference.sections():
        for name, field in fields.items():
            method = title.removeprefix("Method: ").lower() if name.startswith("model.") else ""
            assert (method, name) not in rows
            rows[method, name] = field
    for method in METHODS:
        flat = flatten(default_config(method))
        del flat["method"]
        for name, default in flat.items():
            field = rows.pop((method, name)) if name.startswith("model.") else rows["", name]
            assert field.default == default
            assert field.doc.endswith((".", ".)"))
            field.check(name, default)
    assert {method for method, _ in rows} == {""}


def test_help_lists_the_fields(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "--help"])
    with pytest.raises(SystemExit):
        train.main()
    text = capsys.readouterr().out
    for name in ("train.learning_rate=0.001", "eval.threshold=''", "model.similarity_scale=20.0"):
        assert f"--config.{name}\n" in text
    assert "One of step, poly, constant." in text
