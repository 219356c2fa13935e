"""Checksums of arrays, by which damaged weights are told from good ones."""

import json
import pathlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xxhash

from fsseg_jax.errors import UserError


def checksums(tree: Any) -> dict[str, str]:
    """The XXH3 checksums of the arrays of a tree, by their names, as in params/backbone/kernel."""
    return {name: xxhash.xxh3_64_hexdigest(_bytes(x)) for name, x in _named(tree).items()}


def checksum_of(values: Mapping[str, Any]) -> str:
    """The checksum of values that JSON can hold; tuples are lists in it."""
    return xxhash.xxh3_64_hexdigest(json.dumps(values, sort_keys=True).encode())


def checksum_of_code() -> str:
    """The checksum of this package's modules."""
    package = pathlib.Path(__file__).parent
    sums = xxhash.xxh3_64()
    for path in sorted(package.rglob("*.py")):
        sums.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return sums.hexdigest()


def examine(tree: Any) -> tuple[dict[str, str], str | None]:
    """The checksums of the arrays of a tree, and the name of the first that is not finite, if any.

    Both read all bytes, without Python's lock: they are computed at the same time.
    """
    with ThreadPoolExecutor(1) as other:
        sums = other.submit(checksums, tree)
        bad = not_finite(tree)
        return sums.result(), bad


def verify(tree: Any, known: Mapping[str, str] | None, place: str, remedy: str) -> None:
    """Checks arrays that were read.

    Args:
        known: their checksums when they were saved; None if they were saved without.
        place: what they were read from, and
        remedy: what to do if they are wrong, for the error.

    Raises:
        UserError: an array is not the one that was saved, or is not finite.
    """
    found, bad = examine(tree)
    if known is not None:
        known = known if isinstance(known, Mapping) else {}  # it comes from a file
        if damaged := [name for name in found if found[name] != known.get(name)]:
            others = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
            raise UserError(
                f"{place} is damaged or was changed, or devices disagreed when it was saved: the "
                f"checksum of {damaged[0]}{others} is not the saved one; {remedy}."
            )
    if bad:
        raise UserError(f"{place} is useless: {bad} is not finite; {remedy}.")


def not_finite(tree: Any) -> str | None:
    """The name of the first array of a tree that is not finite, or None."""
    for name, array in _named(tree).items():
        array = np.asarray(array)
        if jnp.issubdtype(array.dtype, jnp.inexact) and not np.isfinite(array).all():
            return name
    return None


def _named(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def _bytes(array: Any) -> memoryview:
    """The bytes of an array; bfloat16 has no buffer of its own."""
    return np.ascontiguousarray(array).view(np.uint8).data
