"""PASCAL VOC 2012 with SBD's annotations, from a VOCdevkit folder: the base of PASCAL-5i."""

import hashlib
import logging
import os
import pathlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fsseg_jax.data.source import ClassTable, Photograph, Source, cache_folder, parallel_map
from fsseg_jax.episode import IGNORE
from fsseg_jax.errors import UserError

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle"),
    *("bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person"),
    *("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

logger = logging.getLogger(__name__)


class VOC(Source):
    """One split of a VOCdevkit folder.

    `SegmentationClassAug` (VOC's and SBD's labels together) is used where it exists, otherwise
    VOC's own `SegmentationClass`; `SegmentationObject` gives instances where it exists.

    Args:
        root: the folder that holds `JPEGImages` and `ImageSets`, or one above it.
        split: a list in `ImageSets/Segmentation`, without `.txt`; empty for `trainaug` (VOC's
            and SBD's training photographs together) where it exists, otherwise `train`.

    Raises:
        UserError: parts are missing, a label exceeds the classes, or a label and its photograph
            differ in size.
    """

    name = "voc"
    classes = CLASSES
    folds = tuple(tuple(range(5 * fold + 1, 5 * fold + 6)) for fold in range(4))

    def __init__(self, root: str | os.PathLike, split: str) -> None:
        self.root = _find_root(root)
        lists = self.root / "ImageSets" / "Segmentation"
        split = split or ("trainaug" if (lists / "trainaug.txt").is_file() else "train")
        split_file = lists / f"{split}.txt"
        if not split_file.is_file():
            found = ", ".join(sorted(file.stem for file in lists.glob("*.txt"))) or "none"
            raise UserError(f"{split_file} is missing: the splits there are {found}.")
        self.ids = tuple(split_file.read_text().split())
        if not self.ids:
            raise UserError(f"{split_file} names no photographs.")
        labels = _label_folder(self.root)
        if labels.name == "SegmentationClass":
            logger.info("%s has no SegmentationClassAug: using VOC's own labels.", self.root)
        photographs = self.root / "JPEGImages"
        self.files = tuple(
            (str(photographs / f"{name}.jpg"), str(labels / f"{name}.png")) for name in self.ids
        )
        instances = self.root / "SegmentationObject"
        self._instances = instances if instances.is_dir() else None
        self.fingerprint = self._fingerprint([photographs, labels])
        self.table = self._cached_table()

    def read(self, index: int) -> Photograph:
        """The photograph number `index`; raises UserError, naming the file, if it is broken."""
        image_file, label_file = self.files[index]
        try:
            with Image.open(image_file) as file:
                image = np.asarray(file.convert("RGB"))
        except OSError as error:
            raise UserError(f"{image_file} cannot be read ({error}): replace the file.") from None
        instance = None
        if self._instances:
            instance_file = self._instances / f"{self.ids[index]}.png"
            instance = read_label(instance_file) if instance_file.is_file() else None
        return Photograph(image, read_label(label_file), instance)

    def _fingerprint(self, folders: list[pathlib.Path]) -> str:
        """A hash of the photographs' names, sizes and times of change."""
        digest = hashlib.sha256("\n".join(self.ids).encode())
        wanted = {os.path.basename(path) for files in self.files for path in files}
        for folder in folders:
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.name in wanted:
                        status = entry.stat()
                        line = f"{entry.path}:{status.st_size}:{status.st_mtime_ns}\n"
                        digest.update(line.encode())
        return digest.hexdigest()[:16]

    def _cached_table(self) -> ClassTable:
        """The class table, kept in the user's cache folder until a file of the data changes."""
        cache = cache_folder("class_tables") / f"{self.name}-{self.fingerprint}.npz"
        if cache.is_file():
            with np.load(cache) as table:
                return ClassTable(table["photograph"], table["class_id"], table["pixels"])
        table = ClassTable.from_counts(
            parallel_map(self._count, self.files, f"class table of {self.root}")
        )
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            temporary = cache.with_suffix(f".{os.getpid()}.npz")
            np.savez(temporary, **vars(table))
            temporary.replace(cache)
        except OSError as error:
            logger.warning("the class table cannot be kept for the next time: %s", error)
        return table

    def _count(self, files: tuple[str, str]) -> np.ndarray:
        """Pixels of each class in one label, checked against its photograph."""
        image_file, label_file = files
        label = read_label(label_file)
        try:
            with Image.open(image_file) as file:
                width, height = file.size
        except OSError as error:
            raise UserError(f"{image_file} cannot be read ({error}): replace the file.") from None
        if label.shape != (height, width):
            raise UserError(
                f"{label_file} is {label.shape[1]} x {label.shape[0]} pixels, but its photograph "
                f"{image_file} is {width} x {height}: they must be of one size."
            )
        counts = np.bincount(label.ravel(), minlength=256)
        largest = np.flatnonzero(counts[:IGNORE])[-1:].sum()
        if largest > len(self.classes):
            raise UserError(
                f"{label_file} has the label {largest}, but {self.name} has {len(self.classes)} "
                f"classes: labels are 0..{len(self.classes)} and {IGNORE} for ignored pixels."
            )
        return counts[1 : len(self.classes) + 1]


def read_label(path: str | os.PathLike) -> UInt8[np.ndarray, "height width"]:
    """Reads a PNG of class ids: a palette's indices or grey values."""
    try:
        with Image.open(path) as file:
            if file.mode not in ("P", "L"):
                raise UserError(
                    f"{path} is an image of mode {file.mode}, not of class ids: labels are 8-bit "
                    "palette or greyscale PNGs."
                )
            return np.asarray(file)
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises about broken PNGs
        raise UserError(f"{path} cannot be read ({error}): replace the file.") from None


def _label_folder(root: pathlib.Path) -> pathlib.Path:
    """VOC's and SBD's labels together where they exist, otherwise VOC's own."""
    both = root / "SegmentationClassAug"
    return both if both.is_dir() else root / "SegmentationClass"


def _find_root(root: str | os.PathLike) -> pathlib.Path:
    """The folder with the parts, at `root` or where VOC's archive puts it below."""
    if not str(root):
        raise UserError("data.root is empty: set it to the VOCdevkit folder.")
    root = pathlib.Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"data.root = {root}: there is no such folder.")
    below = ("", "VOC2012", "VOCdevkit/VOC2012")
    found = next((root / name for name in below if (root / name / "JPEGImages").is_dir()), root)
    parts = {
        "JPEGImages": found / "JPEGImages",
        "ImageSets/Segmentation": found / "ImageSets" / "Segmentation",
        "SegmentationClassAug (or SegmentationClass)": _label_folder(found),
    }
    if missing := [name for name, path in parts.items() if not path.is_dir()]:
        raise UserError(
            f"data.root = {root} lacks {' and '.join(missing)}: it must be a VOCdevkit folder."
        )
    return found
