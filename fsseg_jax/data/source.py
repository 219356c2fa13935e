"""A source: random access to labelled images, and the table of the classes that each shows."""

import abc
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Integer, UInt8
from numpy.typing import ArrayLike

from fsseg_jax.data.sampling import Items
from fsseg_jax.episode import IGNORE
from fsseg_jax.errors import UserError


class LabelledImage(NamedTuple):
    """A labelled image at its own size.

    Examples:
        >>> image = LabelledImage(np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8))
        >>> image.label[10:30, 20:50] = 1  # shows class 1
        >>> np.unique(image.label).tolist()
        [0, 1]
    """

    image: UInt8[np.ndarray, "height width 3"]  # RGB
    # Class ids, 0 background, 255 ignored; uint16 if there are too many classes for uint8.
    label: Integer[np.ndarray, "height width"]


def class_numbers(count: int) -> Int[np.ndarray, " classes"]:
    """The ids of `count` classes: 1, 2, ..., skipping 255, the label of ignored pixels."""
    numbers = np.arange(1, count + 1)
    return numbers + (numbers >= IGNORE)


def deal_folds(
    numbers: Int[np.ndarray, " classes"], folds: int, where: object
) -> tuple[tuple[int, ...], ...]:
    """Divides class ids into consecutive groups, as equal as possible; `where` is for errors.

    0 folds hold out nothing: the only group has all classes, and `nothing_held_out` says so.
    """
    if not 0 <= folds <= len(numbers):
        raise UserError(
            f"data.folds = {folds}: {where} has {len(numbers)} classes, of which each fold holds "
            f"out at least one: choose 1..{len(numbers)}, or 0 to hold out none."
        )
    if not folds:
        return (tuple(numbers.tolist()),)
    return tuple(tuple(fold.tolist()) for fold in np.array_split(numbers, folds))


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """How many pixels of each class an image shows: one row per (image, class) that occurs.

    Examples:
        >>> table = ClassTable.from_counts([[0, 50], [30, 2], [40, 0]])  # 3 images, 2 classes
        >>> table.items([1, 2], min_pixels=10).image.tolist()  # of class 1, then of class 2
        [1, 2, 0]
    """

    image: Int[np.ndarray, " rows"]  # row of the source
    class_id: Int[np.ndarray, " rows"]
    pixels: Int[np.ndarray, " rows"]  # at the image's own size

    @classmethod
    def from_counts(cls, counts: ArrayLike) -> "ClassTable":
        """Builds the table from pixels of shape (images, classes), in the source's order."""
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
        """The items to draw from: images with at least `min_pixels` of one of `class_ids`.

        If `sampling` is "photographs", queries of such an image may be drawn for any class that
        it shows, however few its pixels; supports may not (as in PFENet's and BAM's code,
        util/dataset.py, lines 157 and 220).

        Args:
            class_ids: ids of the classes to draw, in any order.
            min_pixels: least area in pixels, at the image's own size.
            without: classes whose images are excluded.
            sampling: see `sampling.sample`.
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
        return dataclasses.replace(items(np.isin(self.image, filtered.image)), supports=filtered)

    def take(self, images: Int[np.ndarray, " images"]) -> "ClassTable":
        """The table of these images of the source, as ascending rows, alone."""
        keep = np.isin(self.image, images)
        return ClassTable(
            np.searchsorted(images, self.image[keep]), self.class_id[keep], self.pixels[keep]
        )

    def held_back(self, ids: Sequence[str]) -> Int[np.ndarray, " images"]:
        """A fifth of the images of each class, but at least two, for tests with classes that
        training sees: by hashes of their names, so that new images move no others."""
        total = np.bincount(self.class_id)
        own = {}  # of each image, its rarest class
        for image, class_id in zip(self.image.tolist(), self.class_id.tolist(), strict=True):
            own[image] = min(own.get(image, class_id), class_id, key=lambda c: (total[c], c))
        order = sorted(own, key=lambda i: hashlib.sha256(os.fsencode(str(ids[i]))).digest())
        chosen = []
        for class_id in sorted({*own.values()}):
            shown = [image for image in order if own[image] == class_id]
            chosen += shown[: max(2, len(shown) // 5)]
        return np.array(sorted(chosen), int)


class Source(abc.ABC):
    """Labelled images by number. Class ids are the values of labels; see `class_numbers`.

    Attributes:
        name: as in `config.data.name`, with a suffix for variants of a data set.
        classes: names of the classes.
        folds: class ids that each fold holds out for testing.
        validation: class ids held out from training and testing, for selection.
        nothing_held_out: whether the classes of the only fold are for training, too.
        held_back: how many images of each class, by its id, are kept from a training for tests of
            classes that it sees; None if none are.
        ids: unique names of the images, which episode lists use.
        table: which image shows which class.
        files: (image, label) paths for pipelines that decode files themselves, or None.
        fingerprint: changes whenever a file of the source does, as a key for `cache_folder`; None
            if there are no files.
        sizes: changes whenever a file's size does, but not in a copy; None if there are no files.

    Examples:
        >>> class Squares(Source):
        ...     name, classes, folds = "squares", ("dark", "light"), ((2,), (1,))
        ...
        ...     def __init__(self, data, split):
        ...         self.ids = tuple(f"{split}{number}" for number in range(8))
        ...         self.table = ClassTable.from_counts([[100, 0], [0, 100]] * 4)
        ...
        ...     def read(self, index):
        ...         label = np.zeros((32, 32), np.uint8)
        ...         label[8:18, 8:18] = 1 + index % 2
        ...         return LabelledImage(np.stack([100 * label] * 3, axis=-1), label)
        >>> source = Squares(None, "train")
        >>> len(source), source.class_names
        (8, {1: 'dark', 2: 'light'})
        >>> count_classes(source.read(3).label, source.ids[3], source).tolist()
        [0, 100]
    """

    name: str
    classes: tuple[str, ...]
    folds: tuple[tuple[int, ...], ...]
    validation: tuple[int, ...] = ()
    nothing_held_out: bool = False
    held_back: Mapping[int, int] | None = None
    ids: tuple[str, ...]
    table: ClassTable
    files: tuple[tuple[str, str], ...] | None = None
    fingerprint: str | None = None
    sizes: str | None = None

    @abc.abstractmethod
    def read(self, index: int) -> LabelledImage:
        """Reads the image number `index`; raises UserError, naming the file, if it is broken."""

    def instances(self, index: int) -> UInt8[np.ndarray, "height width"] | None:
        """The instances of the image number `index`, numbered from 1 in any order, or None if
        unknown; 0 and 255 are not instances."""
        return None

    def photographs(self) -> Sequence[str]:
        """What tells each image from those of other splits, too: its name, or its file where splits
        have names of their own."""
        return self.ids

    def __len__(self) -> int:
        return len(self.ids)

    def digest(self) -> str:
        """Identifies the data by names and class areas, in eight hexadecimal digits."""
        digest = hashlib.sha256(repr((self.classes, self.ids)).encode())
        for column in dataclasses.astuple(self.table):
            digest.update(np.asarray(column, np.int64).tobytes())
        return digest.hexdigest()[:8]

    def contents(self) -> str:
        """Identifies the data like `digest`, and by the sizes of their files, too. It is the same
        for a copy of them elsewhere."""
        return f"{self.digest()}-{self.sizes}" if self.sizes else self.digest()

    @property
    def label_type(self) -> np.dtype:
        """The dtype of labels: uint8, or uint16 if there are too many classes for that."""
        return np.min_scalar_type(class_numbers(len(self.classes))[-1])

    @property
    def class_names(self) -> dict[int, str]:
        """Class names by class id."""
        return dict(zip(class_numbers(len(self.classes)).tolist(), self.classes, strict=True))


def count_classes(
    label: Integer[np.ndarray, "height width"], label_name: str, source: Source | type[Source]
) -> Int[np.ndarray, " classes"]:
    """Counts the pixels of each class in a label.

    Raises:
        UserError: the label has a value that is not a class of the source.
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
    """Expands `~` in `data.root`; raises UserError if there is no such folder."""
    if not str(root):
        raise UserError(f"data.root is empty: set it to the {what}.")
    root = pathlib.Path(os.path.expanduser(root))  # as it is where there is no such user
    if not os.path.isdir(root):
        raise UserError(f"data.root = {root}: there is no such folder.")
    return root
