"""Only JSON that would keep its parser busy for hours is stopped."""

import io
import json
import random

import pytest
from helpers import message_of

from fsseg_jax.data.formats import json_guard
from fsseg_jax.data.formats.json_guard import DEEPEST, GuardedFile


def read(content, size=16):
    """All parts of a guarded file."""
    file = GuardedFile(io.BytesIO(content), "x.json")
    return b"".join(iter(lambda: file.read(size), b""))


@pytest.mark.parametrize("size", [1, 2, 3, 16, 999])
@pytest.mark.parametrize(
    "text", ["[" * 500, "{" * 500, "\\" * 500, '"' * 500, '\\"[' * 300, "]" * 500, "é[\\"]
)
def test_strings_hold_any_brackets(size, text):
    content = json.dumps({"a": [text, {text: [text]}], "b": [[1, 2], text]}).encode()
    assert read(content, size) == content


def test_many_lists_are_not_deep():
    content = json.dumps([[[number]] for number in range(500)]).encode()
    assert read(content) == content


@pytest.mark.parametrize("content", [b'["%s"]', b"[%s]", b'["%s'])
def test_endless_strings_and_numbers_are_stopped(monkeypatch, content):
    monkeypatch.setattr(json_guard, "LONGEST", 1000)
    assert read(content % (b"1" * 900))
    assert "more than 1000 characters" in message_of(read, content % (b"1" * 1100))


def test_long_lists_of_numbers_are_not_long_numbers(monkeypatch):
    monkeypatch.setattr(json_guard, "LONGEST", 1000)
    content = json.dumps(list(range(5000))).encode()
    assert read(content) == content


def test_a_byte_order_mark_is_skipped():
    for size in (3, 5, 99):
        assert read(b"\xef\xbb\xbf[1]", size) == b"[1]"


def test_the_depth_is_that_of_the_parsed_content():
    """Of random nesting, with the characters that matter in strings, read in parts."""
    draw = random.Random(0)

    def nested(depth):
        text = "".join(draw.choices('[]{}"\\,a', k=draw.randrange(6)))
        if depth == 0:
            return text
        return [nested(depth - 1), text] if draw.random() < 0.5 else {text: nested(depth - 1)}

    for _ in range(50):
        for depth in (DEEPEST, DEEPEST + 1):
            content = json.dumps(nested(depth)).encode()
            size = draw.randrange(1, 40)
            if depth == DEEPEST:
                assert read(content, size) == content
            else:
                assert "deep" in message_of(read, content, size)
