"""What `predict` has done so far: a file in its folder with a line of JSON for each image.

Several processes that write into one folder have a file each, which the first one collects. The
files may have been damaged or changed: what they say is checked before it is believed.
"""

import io
import itertools
import json
import logging
import math
import os
import pathlib
import posixpath
import re
import threading
from collections.abc import Iterator, Mapping
from typing import IO, Any, NamedTuple

from fsseg_jax.checksums import checksum_of
from fsseg_jax.data.formats.coco_outlines import decompress
from fsseg_jax.data.images import MOST_PIXELS
from fsseg_jax.errors import UserError
from fsseg_jax.files import lock, write_bytes, writing

JOURNAL = "journal.jsonl"
PARTS = "journal-*.jsonl"  # of the processes besides the first

# What reading a line of anything, and looking into it, may raise.
_DAMAGED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
CHECKSUM = "checksum"  # of the other fields of a line
# The fields of a line besides it, and of an object.
_LINE = {"photograph", "size", "changed", "output", "height", "width", "confidence", "objects"}
_OBJECT = {"category_id", "segmentation", "bbox", "area", "iscrowd", "score"}

_NUMBER = re.compile("[1-9][0-9]{0,5}")  # of an output whose shorter names were taken

FORGOTTEN = -1  # the size of an image that is to be done again; see `forget`

logger = logging.getLogger(__name__)


class Entry(NamedTuple):
    """What the journal says about an image that is done."""

    size: int
    changed: int
    place: int  # of its line in the journal


class Journal:
    """The journal of a folder; one process at a time has a file of it open.

    Lines that are damaged are ignored and counted: their images are segmented again.

    Args:
        folder: the folder of results.
        classes: the number of classes.
        part: of which of several processes; the first one, 0, collects what the others have left,
            before they begin.
        read: whether to read what is done; who is told what to do need not know.

    Raises:
        UserError: the journal cannot be written (in `append` and `collect` too), or another process
            has it open.
    """

    def __init__(
        self, folder: pathlib.Path, classes: int, part: int = 0, read: bool = True
    ) -> None:
        self.folder, self._classes = folder, classes
        self._one_by_one = threading.Lock()
        self.entries: dict[str, Entry] = {}  # by the image's name
        # Names of images by their outputs, which are most of the memory: as few of them as can be.
        self._owners: dict[str, str] = {}
        self.file = open_journal(folder, part)
        lock(self.file.fileno(), folder)
        if part and read:
            with writing(folder), (folder / JOURNAL).open("rb") as whole:
                self._read(whole)
        elif not part:
            self.file.seek(0)
            end = self._read(self.file)
            with writing(folder):
                self.file.truncate(end)
            self.collect()

    def output(self, name: str) -> str:
        """The name of an image's mask and overlay: the one that it has, or the first free one."""
        free = None
        for number, output in enumerate(output_names(name)):
            owner = self._owners.get(output.casefold())
            if owner == name:
                return output
            free = output if owner is None and free is None else free
            if number >= len(_short_names(name)) and free is not None:
                break
        assert free is not None  # there is no end of names
        self._owners[free.casefold()] = name
        return free

    def own(self, name: str, output: str) -> None:
        """Gives an image the output that another process has chosen."""
        self._owners[output.casefold()] = name

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a line; several threads may."""
        with self._one_by_one, writing(self.folder):
            place = self.file.seek(0, os.SEEK_END)
            line = {**record, CHECKSUM: checksum_of(record)}
            self.file.write(json.dumps(line).encode() + b"\n")
            self.file.flush()
            self._enter(record, place)

    def record(self, name: str) -> dict[str, Any]:
        """The line of an image."""
        self.file.seek(self.entries[name].place)
        return json.loads(self.file.readline())

    def collect(self) -> None:
        """Adds the lines of other processes, which have ended, and removes their files."""
        for path in sorted(self.folder.glob(PARTS)):
            if path.is_symlink() or not path.is_file():
                continue  # reading a pipe would wait for ever
            with writing(self.folder):
                with path.open("rb") as part:
                    self._read(part, copied=True)
                # What another computer's crash may undo must not be removed before it is safe.
                os.fsync(self.file.fileno())
                path.unlink()

    def _read(self, file: IO[bytes], copied: bool = False) -> int:
        """Enters the lines of a file, perhaps copying them to the journal; returns their end."""
        end = ignored = 0
        place = self.file.seek(0, os.SEEK_END) if copied else 0
        for line in file:
            if not line.endswith(b"\n"):  # the last one, if the run ended while it was written
                break
            try:
                self._enter(json.loads(line, parse_constant=_no_number), place + end)
            except _DAMAGED:
                ignored += 1
                if copied:
                    continue
            if copied:
                self.file.write(line)
            end += len(line)
        if copied:
            self.file.flush()
        if ignored:
            logger.warning(
                "%s: %d damaged lines are ignored; images that are on no other are segmented again",
                *(file.name, ignored),
            )
        return end

    def _enter(self, record: Mapping[str, Any], place: int) -> None:
        """Enters a line; raises an error if it is none that `predict` writes."""
        own = {key: value for key, value in record.items() if key != CHECKSUM}
        _check(own, self._classes)
        if CHECKSUM in record:
            _require(record[CHECKSUM] == checksum_of(own))
        else:  # a line of an earlier version
            _require(has_runs(own))
        name, output = record["photograph"], record["output"]
        # Two images with one output would overwrite each other's, and one has a single output.
        _require(self._owners.get(output.casefold(), name) == name)
        _require(name not in self.entries or self.output(name) == output)
        self._owners[output.casefold()] = name
        self.entries[name] = Entry(record["size"], record["changed"], place)


def open_journal(folder: pathlib.Path, part: int = 0) -> io.BufferedRandom:
    """Opens the journal of a process: the first one goes on with it, others begin.

    Raises:
        UserError: it cannot be written, or is a link or no file; a link may lead to anything.
    """
    path = folder / (PARTS.replace("*", str(part)) if part else JOURNAL)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(f"{path} is not a file: remove it, or choose another folder.")
    with writing(folder):
        return path.open("w+b" if part else "a+b")


def forget(folder: pathlib.Path) -> None:
    """Makes images that are done count as changed since: they are done again, and keep their names.
    The caller has locked the journal."""
    lines: dict[str, bytes] = {}
    for line in (folder / JOURNAL).read_bytes().splitlines():
        try:
            record = {**json.loads(line), "size": FORGOTTEN, "objects": []}
            record.pop(CHECKSUM, None)
            whole = {**record, CHECKSUM: checksum_of(record)}
            lines[record["photograph"]] = json.dumps(whole).encode()
        except _DAMAGED:
            continue
    write_bytes(folder / JOURNAL, b"".join(line + b"\n" for line in lines.values()))


def output_names(name: str) -> Iterator[str]:
    """The names that the mask and the overlay of an image may have, by preference."""
    return itertools.chain(_short_names(name), (f"{name}.{n}" for n in itertools.count(2)))


def _short_names(name: str) -> tuple[str, str]:
    return posixpath.splitext(name)[0], name


def _check(record: Mapping[str, Any], classes: int) -> None:
    """Raises an error unless a line is of the form that `predict` writes."""
    _require(record.keys() == _LINE)
    name, output = record["photograph"], record["output"]
    shape = [record["height"], record["width"]]
    _require(all(type(text) is str for text in (name, output)))
    _require(all(type(n) is int for n in (record["size"], record["changed"], *shape)))
    _require(min(shape) > 0 and math.prod(shape) <= MOST_PIXELS)
    # Only names of files below --query are looked up here, and an output is one of those that its
    # image may have: a line cannot name a file elsewhere.
    further = output.removeprefix(f"{name}.")
    _require(output in _short_names(name) or _NUMBER.fullmatch(further))
    _require(type(record["confidence"]) in (int, float) and 0 <= record["confidence"] <= 1)
    for found in record["objects"]:
        _require(found.keys() == _OBJECT and found["segmentation"].keys() == {"size", "counts"})
        size, counts = found["segmentation"]["size"], found["segmentation"]["counts"]
        _require(size == shape and type(size) is list and type(counts) is str)
        whole = found["category_id"], found["area"], found["iscrowd"], *size
        _require(all(type(n) is int for n in whole) and 1 <= whole[0] <= classes and not whole[2])
        numbers = [*found["bbox"], found["score"]]
        _require(len(numbers) == 5 and all(type(x) in (int, float) for x in numbers))
        _require(all(map(math.isfinite, numbers)))


def has_runs(record: Mapping[str, Any]) -> bool:
    """Whether the run lengths of a line's objects are some: pycocotools hangs at others. This takes
    as long as all else, and is left out where a checksum is right."""
    try:
        for found in record["objects"]:
            runs = decompress(found["segmentation"]["counts"])
            _require(runs.sum() == record["height"] * record["width"])
            _require(runs[1::2].sum() == found["area"])
    except ValueError:
        return False
    return True


def _require(good: Any) -> None:
    if not good:
        raise ValueError


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not a number of JSON")
