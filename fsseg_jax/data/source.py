"""A source: random access to labelled photographs, and the table of which shows which class."""

import abc
import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import platformdirs
from jaxtyping import Int, UInt8
from PIL import Image
from tqdm import tqdm

from fsseg_jax.episode import Items


class Photograph(NamedTuple):
    """One labelled photograph at its own size."""

    image: UInt8[np.ndarray, "height width 3"]  # RGB
    label: UInt8[np.ndarray, "height width"]  # class id, 0 background, 255 ignored
    instance: UInt8[np.ndarray, "height width"] | None = None  # object number where known


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """How many pixels of each class each photograph shows: one row a pair that occurs."""

    photograph: Int[np.ndarray, " rows"]  # row of the source
    class_id: Int[np.ndarray, " rows"]
    pixels: Int[np.ndarray, " rows"]  # at the photograph's own size

    @classmethod
    def from_counts(cls, counts: Sequence[Int[np.ndarray, " classes"]]) -> "ClassTable":
        """From the pixels of classes 1, 2, ... in each photograph, in the source's order."""
        counts = np.asarray(counts)
        photograph, column = np.nonzero(counts)
        return cls(photograph, column + 1, counts[photograph, column])

    def items(
        self, class_ids: Sequence[int], min_pixels: int = 1, without: Sequence[int] = ()
    ) -> Items:
        """What can be drawn: photographs with at least `min_pixels` of one of `class_ids`.

        Args:
            class_ids: the classes to draw, in any order.
            min_pixels: the least area, in pixels at the photograph's own size.
            without: photographs that show any of these classes are left out.
        """
        banned = self.photograph[np.isin(self.class_id, without)]
        keep = (self.pixels >= min_pixels) & ~np.isin(self.photograph, banned)
        class_ids = np.sort(np.asarray(class_ids, np.int32))
        rows = [np.sort(self.photograph[keep & (self.class_id == c)]) for c in class_ids]
        count = np.array([len(row) for row in rows], np.int32)
        return Items(
            class_id=class_ids,
            start=(np.cumsum(count) - count).astype(np.int32),
            count=count,
            photograph=np.concatenate(rows).astype(np.int32),
        )


class Source(abc.ABC):
    """Labelled photographs by number. Class ids are label values: `classes[0]` is id 1.

    Attributes:
        name: as in `config.data.name`.
        classes: their names.
        folds: the class ids that each fold holds out for testing.
        ids: the photographs' names, unique; episode lists use them.
        table: which photograph shows which class.
        files: (photograph, label) paths for pipelines that decode files themselves, or None.
        fingerprint: changes when a file of the source does: a key for what is kept in
            `cache_folder`; None where there are no files.
    """

    name: str
    classes: tuple[str, ...]
    folds: tuple[tuple[int, ...], ...]
    ids: tuple[str, ...]
    table: ClassTable
    files: tuple[tuple[str, str], ...] | None = None
    fingerprint: str | None = None

    @abc.abstractmethod
    def read(self, index: int) -> Photograph:
        """The photograph number `index`. Raises UserError, naming the file, if it is broken."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def class_names(self) -> dict[int, str]:
        """Class id to name."""
        return dict(enumerate(self.classes, start=1))


def read_square(
    source: Source, index: int, size: int
) -> tuple[UInt8[np.ndarray, "size size 3"], UInt8[np.ndarray, "size size"]]:
    """The photograph number `index`, resized to a square: bilinear with antialiasing, as PIL does
    it, and its label to the nearest pixel."""
    image, label, _ = source.read(index)
    image = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    label = Image.fromarray(label).resize((size, size), Image.Resampling.NEAREST)
    return np.asarray(image), np.asarray(label)


def cache_folder(kind: str) -> pathlib.Path:
    """Where things of a kind that can be made again are kept on this machine."""
    return pathlib.Path(platformdirs.user_cache_dir("fsseg_jax")) / kind


def cores() -> int:
    """How many processor cores this process may use."""
    limited = hasattr(os, "sched_getaffinity")  # not on macOS
    return len(os.sched_getaffinity(0)) if limited else os.cpu_count() or 1


def parallel_map(
    function: Callable[[Any], Any], arguments: Sequence[Any], description: str, unit: str = "photo"
) -> list[Any]:
    """`function` of each argument, in order, on all cores, with a progress bar.

    Threads suffice: decoding, resizing and file access release Python's lock.
    """
    with ThreadPoolExecutor(cores()) as pool:
        return list(
            tqdm(
                pool.map(function, arguments),
                description,
                total=len(arguments),
                unit=unit,
                delay=1,  # nothing to show for work of less than a second
                mininterval=0.5,
            )
        )
