"""Values of JSON with something exchanged in them, for hypothesis."""

import copy

from hypothesis import strategies as st

NUMBERS = (-1, 0, 1, 2, 7, 255, 40_000, 65_536, 2**31, -(2**31), 2**63, 10**400, 0.5, -0.0)
NUMBERS += (1e-320, 1e5, 1e308, -1e308, float("nan"), float("inf"))
TEXTS = ("", " ", "x", "\0", ".", "..", "../../x", "/tmp/x", "a/../../x", "C:\\1.jpg", "~")
TEXTS += ("x\0y", "\udcff", "\ud800", "é", "0" * 64, "o" * 64, "9" * 5000, "1.jpg", "cat")
NESTED = (
    [],
    {},
    [[]],
    [[[1]]],
    {"a": 1},
    [None] * 4,
    [1] * 4,
    [1, 2] * 3,
    [[1, 2] * 3],
    [True] * 6,
)
VALUES = st.one_of(
    st.sampled_from((None, True, False, *NUMBERS, *TEXTS)),
    st.sampled_from(NESTED).map(copy.deepcopy),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
)


def places(value, path=()):
    """The paths of everything in a value."""
    yield path
    pairs = value.items() if isinstance(value, dict) else ()
    pairs = enumerate(value) if isinstance(value, list) else pairs
    for key, inner in pairs:
        yield from places(inner, (*path, key))


@st.composite
def mutated(draw, value):
    """The value with another one in one to three places, or something missing or repeated."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from([p for p in places(value) if p] or [(None,)]))
        if last is None:
            return draw(VALUES)
        owner = value
        for key in path:
            owner = owner[key]
        action = draw(st.sampled_from(("replace", "replace", "replace", "remove", "repeat")))
        if action == "remove":
            del owner[last]
        elif action == "repeat" and isinstance(owner, list):
            owner.insert(last, copy.deepcopy(owner[last]))
        else:
            owner[last] = draw(VALUES)
    return value
