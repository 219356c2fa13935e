"""PASCAL VOC 2012 with SBD's annotations, from a VOCdevkit folder: the basis of PASCAL-5i."""

import collections
import itertools
import logging
import os
import pathlib

import numpy as np
from jaxtyping import UInt8

from fsseg_jax.data.cache import kept_table, stamp
from fsseg_jax.data.images import check_size, read_image, read_label
from fsseg_jax.data.listing import check_name, read_lines
from fsseg_jax.data.source import LabelledImage, Source, count_classes, existing_root
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

    Labels are read from `SegmentationClassAug` (VOC's and SBD's labels together) if it exists,
    otherwise from VOC's own `SegmentationClass`, and instances from `SegmentationObjectAug` or
    `SegmentationObject`.

    Args:
        root: the folder that holds `JPEGImages` and `ImageSets`, or one above it.
        split: a list in `ImageSets/Segmentation`, without `.txt`; empty for `trainaug` (VOC's
            and SBD's training images together) if it exists, otherwise `train`.

    Raises:
        UserError: parts are missing, the list names an image twice or outside of the folder, a
            label has an unknown class, or a label and its image differ in size.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        ...         pathlib.Path(root, name).mkdir(parents=True)
        ...     Image.new("RGB", (60, 40)).save(f"{root}/JPEGImages/2007_000001.jpg")
        ...     Image.new("L", (60, 40), 15).save(f"{root}/SegmentationClass/2007_000001.png")
        ...     _ = pathlib.Path(root, "ImageSets/Segmentation/val.txt").write_text("2007_000001")
        ...     source = VOC(root, "val")
        >>> len(source), source.class_names[int(source.table.class_id[0])]
        (1, 'person')
    """

    name = "voc"
    classes = CLASSES
    folds = tuple(tuple(range(5 * fold + 1, 5 * fold + 6)) for fold in range(4))
    files: tuple[tuple[str, str], ...]

    def __init__(self, root: str | os.PathLike, split: str) -> None:
        self.root = _find_root(root)
        lists = self.root / "ImageSets" / "Segmentation"
        split = split or ("trainaug" if (lists / "trainaug.txt").is_file() else "train")
        split_file = lists / f"{split}.txt"
        if not os.path.isfile(split_file):
            found = ", ".join(sorted(file.stem for file in lists.glob("*.txt"))) or "none"
            if split == "trainaug":
                raise UserError(
                    f"{split_file} is missing: python -m fsseg_jax.data.prepare pascal5i "
                    "--root=data makes it from VOC and SBD; or set data.split (for training "
                    f"data.train_split) to one of the splits there: {found}."
                )
            raise UserError(f"{split_file} is missing: the splits there are {found}.")
        self.ids = tuple(name for line in read_lines(split_file) for name in line.split())
        if not self.ids:
            raise UserError(f"{split_file} lists no images.")
        for name, count in collections.Counter(self.ids).items():
            check_name(name, f"{split_file}: the name of an image")
            if count > 1:
                raise UserError(f"{split_file} lists {name} {count} times: list it once.")
        labels = _label_folder(self.root)
        if labels.name == "SegmentationClass":
            logger.info("%s has no SegmentationClassAug: using VOC's own labels.", self.root)
        images = self.root / "JPEGImages"
        self.files = tuple(
            (str(images / f"{name}.jpg"), str(labels / f"{name}.png")) for name in self.ids
        )
        self._objects = [
            self.root / folder for folder in ("SegmentationObjectAug", "SegmentationObject")
        ]
        files = [path for files in self.files for path in files]
        objects = (sorted(folder.glob("*.png")) for folder in self._objects)
        self.fingerprint, self.sizes = stamp(itertools.chain(files, *objects))
        self.table = kept_table(self.name, self.fingerprint, self._count, self.files)

    def read(self, index: int) -> LabelledImage:
        """Reads the image number `index`; raises UserError, naming the file, if it is broken."""
        image_file, label_file = self.files[index]
        return LabelledImage(read_image(image_file), read_label(label_file))

    def instances(self, index: int) -> UInt8[np.ndarray, "height width"] | None:
        """The instances of the image number `index`, if the data set has them."""
        paths = (folder / f"{self.ids[index]}.png" for folder in self._objects)
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            return None
        objects = read_label(path)
        check_size(objects, str(path), self.files[index][0])
        return objects

    def _count(self, files: tuple[str, str]) -> np.ndarray:
        """Counts the pixels of each class in a label, and checks its size."""
        image_file, label_file = files
        label = read_label(label_file)
        check_size(label, label_file, image_file)
        return count_classes(label, label_file, self)


def _label_folder(root: pathlib.Path) -> pathlib.Path:
    """The folder of VOC's and SBD's labels together if it exists, otherwise of VOC's own."""
    both = root / "SegmentationClassAug"
    return both if both.is_dir() else root / "SegmentationClass"


def _find_root(root: str | os.PathLike) -> pathlib.Path:
    """Finds the folder with these parts: `root`, or where VOC's archive puts it below."""
    root = existing_root(root, "VOCdevkit folder")
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
