"""Damaged files, for tests of what reads them."""

import contextlib
import itertools
import json
import os

import numpy as np
from fuzz import EXAMPLES
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from mutations import mutated

from fsseg_jax.errors import UserError

# Each example has files of its own content in one folder.
many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    database=None,
)
_TIMES = itertools.count(10**18, 10**6)


@st.composite
def damaged(draw, *valid):
    """Any bytes, or one of the valid contents with bytes changed, cut off, removed or repeated."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=64))
    content = draw(st.sampled_from(valid))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        stop = draw(
            st.integers(start, min(len(content), start + draw(st.sampled_from((1, 8, 999)))))
        )
        middle = draw(
            st.one_of(
                st.binary(max_size=4),
                st.just(b""),
                st.just(content[start:stop] * 2),
                st.sampled_from(
                    (b"\xef\xbb\xbf", b"\xff", b"\0", b"\r\n", b'"', b",", b"9" * 5000)
                ),
            )
        )
        content = content[:start] + middle + content[stop:]
        if draw(st.integers(0, 9)) == 0:
            content = content[:start]
    return content


def mistaken(valid):
    """JSON of which some values are others, are missing or occur once more."""
    return mutated(valid).map(lambda content: json.dumps(content).encode())


def write(path, content):
    """Writes a file whose time differs from that of all before, so that no cache is of another."""
    path.write_bytes(content)
    time = next(_TIMES)
    os.utime(path, ns=(time, time))


def read_all(make):
    """A source of which everything is read and right, or None if a UserError refuses it."""
    with contextlib.suppress(UserError):
        source = make()
        assert len(set(source.ids)) == len(source.ids) > 0
        for row in range(len(source)):
            image, label = source.read(row)
            assert image.shape == (*label.shape, 3)
            shown, pixels = np.unique(label, return_counts=True)
            counted = source.table.image == row
            expected = dict(zip(shown.tolist(), pixels.tolist(), strict=True))
            for number in (0, 255):
                expected.pop(number, None)
            classes, pixels = source.table.class_id[counted], source.table.pixels[counted]
            assert dict(zip(classes.tolist(), pixels.tolist(), strict=True)) == expected
            instances = source.instances(row)
            assert instances is None or instances.shape == label.shape
        return source
    return None
