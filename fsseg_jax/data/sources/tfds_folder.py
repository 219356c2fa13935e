"""Checks the JSON files of a TFDS data set before TFDS reads them.

A data set may come from anybody, but TFDS imports the Python classes that it names, formats file
names by a template in it, and counts records by what it says.
"""

import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from fsseg_jax.data.source import class_numbers
from fsseg_jax.errors import UserError

# As TFDS names them.
FEATURES, INFO, METADATA = "features.json", "dataset_info.json", "metadata.json"
# TFDS's own features. ("type" is the name in data sets that were prepared before TFDS 4.3.)
_OWN = re.compile(r"tensorflow_datasets\.core\.features\.(\w+\.)*\w+")
_CLASS = ("pythonClassName", "python_class_name", "type")
_TEMPLATE = re.compile(
    r"(\{(DATASET|SPLIT|FILEFORMAT|SHARD_INDEX|NUM_SHARDS|SHARD_X_OF_Y)\}|[^{}])*"
)
_NAME = re.compile(r"(?!\.*$)[^/\\\0]{1,150}")  # of a file


def check_folder(folder: pathlib.Path, allow_code: bool) -> None:
    """Checks what a prepared data set says of itself.

    Args:
        folder: that of a version, with `features.json`.
        allow_code: whether it may name classes of other modules than TFDS's, which TFDS imports.

    Raises:
        UserError: it names such a class or files outside of the folder, or a file is broken.
    """
    features, info = (_read(folder / name) for name in (FEATURES, INFO))
    for path, described in ((FEATURES, features), (INFO, info.get("features"))):
        for name in () if allow_code else _classes(described, folder / path):
            if not _OWN.fullmatch(name):
                raise UserError(
                    f"{folder / path} names the class {name!r}, which is not TFDS's: it would run "
                    "code; if you trust the data set, set data.tfds.allow_code = True."
                )
    _check_names(info, folder / INFO)


def own_metadata(folder: pathlib.Path) -> dict[str, Any]:
    """What our builders add: `classes`, `folds` and `instances`; empty for other data sets.

    Raises:
        UserError: the file is broken.
    """
    path = folder / METADATA
    defined = _read(path).get("fsseg_jax") if path.is_file() else None
    if defined is None:
        return {}
    try:
        classes, lists = defined["classes"], defined["folds"]
        numbers = [
            number
            for chosen in lists.values()
            for fold in [*chosen["folds"], chosen["validation"]]
            for number in fold
        ]
        known = {*class_numbers(len(classes))}
        fits = known.issuperset(numbers) and all(isinstance(x, str) for x in classes)
        fits = fits and isinstance(classes, list) and isinstance(defined["instances"], str)
    except (KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise UserError(f"{path} has no classes and folds that fit: prepare the data set again.")
    return defined


def _read(path: pathlib.Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): prepare the data set again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no object of JSON: prepare the data set again.")
    return content


def _classes(part: Any, path: pathlib.Path) -> Iterator[str]:
    """The names of classes in a description of features, and in JSON in its strings."""
    try:
        waiting = [part]
        while waiting:
            match waiting.pop():
                case dict(fields):
                    yield from (fields[x] for x in _CLASS if isinstance(fields.get(x), str))
                    waiting += fields.values()
                case list(parts):
                    waiting += parts
                case str(text) if "{" in text:  # features that TFDS keeps as JSON in a string
                    try:
                        waiting.append(json.loads(text))
                    except ValueError:
                        continue
    except RecursionError as error:
        raise UserError(f"{path} cannot be read ({error}): prepare the data set again.") from None


def _check_names(info: dict[str, Any], path: pathlib.Path) -> None:
    """Raises UserError unless all names can be parts of the names of files in the folder."""
    splits = info.get("splits") or []
    if not isinstance(splits, list) or not all(isinstance(split, dict) for split in splits):
        raise UserError(f"{path} has no list of splits: prepare the data set again.")
    named = [(field, info.get(field)) for field in _both("configName", "fileFormat")]
    named += [("name", info.get("name")), *(("splits.name", split.get("name")) for split in splits)]
    for field, name in named:
        if name and not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise UserError(
                f"{path}: {field} = {str(name)[:80]!r} is not a name: prepare it again."
            )
    for split in splits:
        for field in _both("filepathTemplate"):
            template = split.get(field) or ""
            inside = isinstance(template, str) and _TEMPLATE.fullmatch(template)
            parts = pathlib.PurePath(template).parts if inside else ("..",)
            if ".." in parts or pathlib.PurePath(template).is_absolute() or "\0" in template:
                raise UserError(
                    f"{path}: {field} = {str(template)[:80]!r} does not name files in its folder: "
                    "prepare the data set again."
                )


def _both(*names: str) -> list[str]:
    """Fields as JSON names them, and as protocol buffers do, which are read, too."""
    return [*names, *(re.sub(r"[A-Z]", lambda x: f"_{x[0].lower()}", name) for name in names)]
