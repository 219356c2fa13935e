"""A source: random access to labelled photographs, and the table of which shows which class.

Then what several sources need: reading files with errors that name them, and keeping a class
table until a file changes.
"""

import abc
import contextlib
import dataclasses
import hashlib
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import platformdirs
from jaxtyping import Bool, Int, Integer, UInt8
from PIL import Image, ImageOps
from tqdm import tqdm

from fsseg_jax.episode import IGNORE, Items
from fsseg_jax.errors import UserError

logger = logging.getLogger(__name__)


class Photograph(NamedTuple):
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

    photograph: Int[np.ndarray, " rows"]  # row of the source
    class_id: Int[np.ndarray, " rows"]
    pixels: Int[np.ndarray, " rows"]  # at the photograph's own size

    @classmethod
    def from_counts(cls, counts: Sequence[Int[np.ndarray, " classes"]]) -> "ClassTable":
        """From the pixels of each class in each photograph, classes in the source's order."""
        counts = np.asarray(counts)
        photograph, column = np.nonzero(counts)
        return cls(photograph, class_numbers(counts.shape[1])[column], counts[photograph, column])

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
        banned = self.photograph[np.isin(self.class_id, without)]
        keep = (self.pixels >= min_pixels) & ~np.isin(self.photograph, banned)
        class_ids = np.sort(np.asarray(class_ids, np.int32))

        def items(keep: Bool[np.ndarray, " rows"]) -> Items:
            shown = [np.sort(self.photograph[keep & (self.class_id == c)]) for c in class_ids]
            return Items.from_photographs(class_ids, shown)

        filtered = items(keep)
        if sampling != "photographs":
            return filtered
        return items(np.isin(self.photograph, filtered.photograph)).replace(supports=filtered)


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
    def read(self, index: int) -> Photograph:
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


def square(photograph: Photograph, size: int, fit: str = "stretch") -> Photograph:
    """A photograph resized to a square: bilinear with antialiasing, as PIL does it, and its label
    to the nearest pixel.

    Args:
        photograph: at its own size.
        size: side of the square.
        fit: "stretch", or "letterbox" to keep its proportions: the photograph stands in the upper
            left corner (see `fitted`), and the rest is black and ignored.
    """
    shape = fitted(photograph.label.shape, size, fit)
    image = Image.fromarray(photograph.image).resize(shape[::-1], Image.Resampling.BILINEAR)
    label = Image.fromarray(photograph.label).resize(shape[::-1], Image.Resampling.NEAREST)
    border = [(0, size - side) for side in shape]
    return Photograph(
        np.pad(np.asarray(image), [*border, (0, 0)]),
        np.pad(np.asarray(label), border, constant_values=IGNORE),
    )


def fitted(shape: tuple[int, int], size: int, fit: str) -> tuple[int, int]:
    """Height and width of a photograph of `shape` in the square that `square` makes of it.

    "letterbox" is PFENet's `Resize` (util/transform.py, lines 70 to 122): the longer side becomes
    `size`, the other one follows, and then both are floored to multiples of 8.
    """
    if fit != "letterbox":  # "own" is about queries: all that become squares are stretched
        return size, size
    ratio, longer = size / max(shape), max(shape)
    height, width = (size if side == longer else int(side * ratio) for side in shape)
    return max(8, height // 8 * 8), max(8, width // 8 * 8)


def bordered(photograph: Photograph, border: str) -> Photograph:
    """A photograph whose pixels of label 255 stay "ignored", or are "background"."""
    if border == "ignored":
        return photograph
    label = photograph.label
    return photograph._replace(label=np.where(label == IGNORE, 0, label).astype(label.dtype))


def read_square(source: Source, index: int, size: int, border: str = "ignored") -> Photograph:
    """The photograph number `index` as a square; see `bordered` and `square`."""
    return square(bordered(source.read(index), border), size)


@contextlib.contextmanager
def open_picture(path: str | os.PathLike) -> Iterator[Image.Image]:
    """A picture that is open while the context is.

    Raises:
        UserError: the file is absent or broken, be it found out now or when pixels are decoded.
    """
    try:
        with Image.open(path) as file:
            yield file
    except UserError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read ({error}): replace the file.") from None


def read_image(path: str | os.PathLike) -> UInt8[np.ndarray, "height width 3"]:
    """Reads a photograph as RGB, upright (as its EXIF orientation says), on white where it is
    transparent.

    Raises:
        UserError: the file is absent or broken.
    """
    with open_picture(path) as file:
        return rgb(file)


def rgb(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of a picture of any mode, as `read_image` gives them."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip to 8
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def read_label(path: str | os.PathLike) -> UInt8[np.ndarray, "height width"]:
    """Reads a PNG of class ids (or object numbers): a palette's indices or grey values."""
    with open_picture(path) as file:
        if file.mode not in ("P", "L"):
            raise UserError(
                f"{path} is an image of mode {file.mode}, not of class ids: labels are 8-bit "
                "palette or greyscale PNGs."
            )
        return np.asarray(file)


def read_mask(path: str | os.PathLike, above: int = 0) -> Bool[np.ndarray, "height width"]:
    """Reads where a mask, a PNG of any kind, is not black; transparency does not matter.

    Args:
        path: of the mask.
        above: what grey value, or what value of red, green or blue, still is none of the class.

    Raises:
        UserError: the file is absent or broken.
    """
    with open_picture(path) as file:
        mask = ImageOps.exif_transpose(file)
        if mask.mode == "1":
            mask = mask.convert("L")
        elif mask.mode != "L" and not mask.mode.startswith("I"):
            mask = mask.convert("RGB")
        values = np.asarray(mask)
    return values > above if values.ndim == 2 else (values > above).any(axis=-1)


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Height and width of a photograph as `read_image` gives it, without decoding it.

    Raises:
        UserError: the file is absent or broken.
    """
    with open_picture(path) as file:
        turned = file.getexif().get(0x0112, 1) > 4  # EXIF's orientations by a quarter
        return file.size if turned else file.size[::-1]


def check_size(
    label: Integer[np.ndarray, "height width"], label_name: str, photograph: str | os.PathLike
) -> None:
    """Raises UserError unless a label has the size of its photograph."""
    height, width = image_size(photograph)
    if label.shape != (height, width):
        raise UserError(
            f"{label_name} is {label.shape[1]} x {label.shape[0]} pixels, but its photograph "
            f"{photograph} is {width} x {height}: they must be of one size."
        )


def count_classes(
    label: Integer[np.ndarray, "height width"], label_name: str, source: Source
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


def fingerprint(files: Iterable[str | os.PathLike]) -> str:
    """A hash of the files' names in their order, sizes and times of change."""
    files = [os.fspath(path) for path in files]
    digest = hashlib.sha256("\n".join(files).encode())
    wanted = {}
    for path in files:
        wanted.setdefault(os.path.dirname(path), set()).add(os.path.basename(path))
    for folder in sorted(wanted):
        with os.scandir(folder or ".") as entries:  # one call a folder, not one a file
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name in wanted[folder]:
                    status = entry.stat()
                    line = f"{entry.path}:{status.st_size}:{status.st_mtime_ns}\n"
                    digest.update(line.encode())
    return digest.hexdigest()[:16]


def kept_table(
    name: str, key: str, count: Callable[[Any], np.ndarray], arguments: Sequence[Any]
) -> ClassTable:
    """The class table, kept in the user's cache folder.

    Args:
        name: of the source.
        key: changes when the table does.
        count: gives the pixels of each class in one photograph, classes in the source's order.
        arguments: of `count`, one a photograph.
    """
    cache = cache_folder("class_tables") / f"{name}-{key}.npz"
    if cache.is_file():
        with np.load(cache) as table:
            return ClassTable(table["photograph"], table["class_id"], table["pixels"])
    table = ClassTable.from_counts(parallel_map(count, arguments, f"class table of {name}"))
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_suffix(f".{os.getpid()}.npz")
        np.savez(temporary, **vars(table))
        temporary.replace(cache)
    except OSError as error:
        logger.warning("the class table cannot be kept for the next time: %s", error)
    return table


def existing_root(root: str | os.PathLike, what: str) -> pathlib.Path:
    """`data.root`, with `~` expanded; raises UserError where there is no folder."""
    if not str(root):
        raise UserError(f"data.root is empty: set it to the {what}.")
    root = pathlib.Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"data.root = {root}: there is no such folder.")
    return root


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
