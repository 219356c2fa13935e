"""A source: random access to labelled photographs, and the table of which shows which class."""

import abc
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Integer, UInt8

from fsseg_jax.data.sampling import Items
from fsseg_jax.episode import IGNORE
from fsseg_jax.errors import UserError


class LabelledImage(NamedTuple):
    """One labelled photograph at its own size."""

    image: UInt8[np.ndarray, "height width 3"]  # RGB
    # Class id, 0 background, 255 ignored; uint16 where there are more classes than uint8 holds.
    label: Integer[np.ndarray, "height width"]


def class_numbers(count: int) -> Int[np.ndarray, " classes"]:
    """The ids of `count` classes: 1, 2, ... without 255, which is the label of ignored pixels."""
    numbers = np.arange(1, count + 1)
    return numbers + (numbers >= IGNORE)


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """How many pixels of each class each photograph shows: one row a pair that occurs."""

    image: Int[np.ndarray, " rows"]  # row of the source
    class_id: Int[np.ndarray, " rows"]
    pixels: Int[np.ndarray, " rows"]  # at the photograph's own size

    @classmethod
    def from_counts(cls, counts: Sequence[Int[np.ndarray, " classes"]]) -> "ClassTable":
        """From the pixels of each class in each photograph, classes in the source's order."""
        table = np.asarray(counts)
        image, column = np.nonzero(table)
        return cls(image, class_numbers(table.shape[1])[column], table[image, column])

    def items(
        self,
        class_ids: Sequence[int],
        min_pixels: int = 1,
        without: Sequence[int] = (),
        sampling: str = "classes",
    ) -> Items:
        """What can be drawn: photographs with at least `min_pixels` of one of `class_ids`.

        Where "photographs" take turns, a query may be asked for any of the classes that such a
        photograph shows, by however few pixels; supports may not. (So in PFENet's and BAM's codes,
        util/dataset.py, lines 157 and 220.)

        Args:
            class_ids: the classes to draw, in any order.
            min_pixels: the least area, in pixels at the photograph's own size.
            without: photographs that show any of these classes are left out.
            sampling: see `episode.sample`.
        """
        banned = self.image[np.isin(self.class_id, without)]
        keep = (self.pixels >= min_pixels) & ~np.isin(self.image, banned)
        class_ids = np.sort(np.asarray(class_ids, np.int32)).tolist()

        def items(keep: Bool[np.ndarray, " rows"]) -> Items:
            shown = [np.sort(self.image[keep & (self.class_id == c)]) for c in class_ids]
            return Items.from_images(class_ids, shown)

        filtered = items(keep)
        if sampling != "photographs":
            return filtered
        drawn = items(np.isin(self.image, filtered.image))
        return dataclasses.replace(drawn, supports=filtered)


class Source(abc.ABC):
    """Labelled photographs by number. Class ids are label values: see `class_numbers`.

    Attributes:
        name: as in `config.data.name`, with what distinguishes data sets of one kind.
        classes: their names.
        folds: the class ids that each fold holds out for testing.
        validation: class ids that are held out from training and testing, to select by.
        ids: the photographs' names, unique; episode lists use them.
        table: which photograph shows which class.
        files: (photograph, label) paths for pipelines that decode files themselves, or None.
        fingerprint: changes when a file of the source does: a key for what is kept in
            `cache_folder`; None where there are no files.
    """

    name: str
    classes: tuple[str, ...]
    folds: tuple[tuple[int, ...], ...]
    validation: tuple[int, ...] = ()
    ids: tuple[str, ...]
    table: ClassTable
    files: tuple[tuple[str, str], ...] | None = None
    fingerprint: str | None = None

    @abc.abstractmethod
    def read(self, index: int) -> LabelledImage:
        """The photograph number `index`. Raises UserError, naming the file, if it is broken."""

    def instances(self, index: int) -> UInt8[np.ndarray, "height width"] | None:
        """The objects of the photograph number `index`, numbered from 1 in any order, where they
        are known; 0 and 255 are none."""
        return None

    def __len__(self) -> int:
        return len(self.ids)

    def digest(self) -> str:
        """Eight hexadecimal digits that tell data apart: names, and the pixels of each class."""
        digest = hashlib.sha256(repr((self.classes, self.ids)).encode())
        for column in dataclasses.astuple(self.table):
            digest.update(np.asarray(column, np.int64).tobytes())
        return digest.hexdigest()[:8]

    @property
    def class_names(self) -> dict[int, str]:
        """Class id to name."""
        numbers = class_numbers(len(self.classes)).tolist()
        return dict(zip(numbers, self.classes, strict=True))


def count_classes(
    label: Integer[np.ndarray, "height width"], label_name: str, source: Source | type[Source]
) -> Int[np.ndarray, " classes"]:
    """Pixels of each class in one label.

    Raises:
        UserError: a value of the label is no class of the source.
    """
    count = len(source.classes)
    numbers = class_numbers(count)
    pixels = np.bincount(label.ravel(), minlength=numbers[-1] + 1)
    known = np.isin(np.arange(len(pixels)), [0, IGNORE, *numbers])
    if wrong := np.flatnonzero(pixels * ~known).tolist():
        raise UserError(
            f"{label_name} has the label {wrong[-1]}, but {source.name} has {count} classes: "
            f"labels are 0..{numbers[-1]} and {IGNORE} for ignored pixels."
        )
    return pixels[numbers]


def existing_root(root: str | os.PathLike, what: str) -> pathlib.Path:
    """`data.root`, with `~` expanded; raises UserError where there is no folder."""
    if not str(root):
        raise UserError(f"data.root is empty: set it to the {what}.")
    root = pathlib.Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"data.root = {root}: there is no such folder.")
    return root
