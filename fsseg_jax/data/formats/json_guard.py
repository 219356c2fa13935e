"""Guards ijson, which has no limits, against JSON that would keep it busy for hours."""

import codecs
import os
import re
from typing import Any

import numpy as np

from fsseg_jax.errors import UserError

DEEPEST = 100  # nesting of lists and objects; ijson's time grows with its square
LONGEST = 2**24  # bytes of a string or number, for which the same holds

_ESCAPED = re.compile(rb"\\.", re.DOTALL)
_STEP = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # of the nesting, as int8
_OTHER = bytes(set(range(256)) - set(b"[{]}"))


class GuardedFile:
    """A binary file for `ijson`, whose parts are checked before it parses them.

    A byte order mark at its beginning is skipped.

    Args:
        file: the file, or what else has its `read`.
        path: its path, for errors.
    """

    def __init__(self, file: Any, path: str | os.PathLike) -> None:
        self._file, self._path = file, path
        self._depth, self._length = 0, 0
        self._in_string = self._begun = False
        self._rest = b""  # a backslash at the end of the part before

    def read(self, size: int = -1) -> bytes:
        """Reads the next bytes.

        Raises:
            UserError: they are nested too deeply, or belong to an endless string or number.
        """
        content = self._file.read(size)
        if not self._begun and content:
            self._begun = True
            content = content.removeprefix(codecs.BOM_UTF8) or self._file.read(size)
        self._check(content)
        return content

    def _check(self, content: bytes) -> None:
        content = self._rest + content
        self._rest = b""
        if b"\\" in content:
            content = _ESCAPED.sub(b"", content)
            self._rest = b"\\" if content.endswith(b"\\") else b""
        pieces = content.split(b'"')
        outside = b"".join(pieces[self._in_string :: 2])
        ends = len(pieces) > 1 or b"," in outside
        self._length = 0 if ends else self._length + len(content)
        if self._length > LONGEST:
            raise UserError(
                f"{self._path} has a string or number of more than {LONGEST} characters: replace "
                "the file."
            )
        self._in_string ^= len(pieces) % 2 == 0
        steps = np.frombuffer(outside.translate(_STEP, _OTHER), np.int8)
        if steps.size:
            depths = self._depth + np.cumsum(steps, dtype=np.int64)
            self._depth = int(depths[-1])
            if depths.max() > DEEPEST:
                raise UserError(
                    f"{self._path} nests lists or objects more than {DEEPEST} deep: replace the "
                    "file."
                )
