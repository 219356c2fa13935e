"""FSS-1000: a thousand classes of ten images each, with its own training and test classes."""

import itertools
import logging
import os
import pathlib
import zlib

import numpy as np
from jaxtyping import Bool, Integer

from fsseg_jax.data.cache import kept_table, stamp
from fsseg_jax.data.images import check_size, open_picture, read_image, upright
from fsseg_jax.data.listing import check_utf8, left_out, list_folder, read_lines
from fsseg_jax.data.source import LabelledImage, Source, count_classes, existing_root
from fsseg_jax.errors import UserError

TRAINING_CLASSES = 520
# Names of the lists of classes: the authors', and those in published code.
LISTS = {
    "train": ("train.txt", "trn.txt"),
    "val": ("val.txt",),
    "test": ("test.txt", "fss_test_set.txt"),
}

logger = logging.getLogger(__name__)


class FSS1000(Source):
    """One split of the FSS-1000 folder, or of a part of it.

    Each class is a folder of images `1.jpg`, `2.jpg`, ... with masks `1.png`, `2.png`, ..., in
    which white (above 127) is the class. Lists of class names, one per line, define the classes
    for training (`train.txt` or `trn.txt`), selection (`val.txt`) and the test (`test.txt` or
    `fss_test_set.txt`). The authors publish only the last one: without the other two, the first 520
    of the other classes, sorted by name, are for training and the rest for selection. Other files
    in the class folders are left out, and masks without white are empty: both are logged.

    Class ids follow the sorted names of all classes. The single fold holds out the test classes;
    `validation` has the classes for selection.

    Args:
        root: the folder that holds the class folders, or one above it that has them in
            `fewshot_data` or `fewshot_data/fewshot_data`; the lists may be in any of these.
        split: "train" (or empty) for the images of the training classes, or "test" for those of
            all other classes; samplers separate selection and test by class ids.

    Raises:
        UserError: the folder, a list or a mask is missing, a list names a class without a folder,
            a class is in no list or in two, or a class has no images or masks of another size.
    """

    name = "fss1000"

    def __init__(self, root: str | os.PathLike, split: str) -> None:
        if split not in ("", "train", "test"):
            raise UserError(
                f"split = {split!r}: fss1000 has train and test (with validation classes in test)."
            )
        folders = [existing_root(root, "FSS-1000 folder")]
        while (below := folders[-1] / "fewshot_data").is_dir():
            folders.append(below)
        folder = folders[-1]
        self.classes = tuple(path.name for path in list_folder(folder).folders)
        if not self.classes:
            raise UserError(f"{folder} has no class folders: data.root must be FSS-1000's folder.")
        check_utf8(self.classes, folder)
        lists = _class_lists(folders, self.classes)
        number_of = {name: number for number, name in self.class_names.items()}
        numbers = {kind: tuple(sorted(number_of[name] for name in lists[kind])) for kind in LISTS}
        self.folds = (numbers["test"],)
        self.validation = numbers["val"]

        shown = numbers["test"] + numbers["val"] if split == "test" else numbers["train"]
        self._class_of = []
        self.pairs, others, self._empty = [], [], []
        for number in sorted(shown):
            images, unknown = _images(folder / self.class_names[number])
            self._class_of += [number] * len(images)
            self.pairs += [(path, path.with_suffix(".png")) for path in images]
            others += unknown
        if not self.pairs:
            raise UserError(f"{folder} has no classes for split = {split or 'train'}: list some.")
        if others:
            logger.info("%s: %s: they are no *.jpg, nor masks.", folder, left_out(others))
        self.ids = tuple(f"{path.parent.name}/{path.stem}" for path, _ in self.pairs)
        # Adding a class outside this split renumbers its classes.
        key, self.sizes = stamp(itertools.chain.from_iterable(self.pairs))
        self.fingerprint = f"{key}-{zlib.crc32(repr(self.classes).encode()):08x}"
        self.table = kept_table(self.name, self.fingerprint, self._count, range(len(self.ids)))
        if self._empty:  # while counting, not if the table was kept
            logger.warning(
                "%s: %s: the masks have no value above 127.", folder, left_out(sorted(self._empty))
            )

    def read(self, index: int) -> LabelledImage:
        """Reads the image number `index`; raises UserError, naming the file, if it is broken."""
        return LabelledImage(read_image(self.pairs[index][0]), self._label(index))

    def _label(self, index: int) -> Integer[np.ndarray, "height width"]:
        mask = read_white(self.pairs[index][1])
        return mask * self.label_type.type(self._class_of[index])

    def _count(self, index: int) -> np.ndarray:
        """Counts the pixels of each class in a label, and checks its size."""
        image, mask = self.pairs[index]
        label = self._label(index)
        check_size(label, str(mask), image)
        if not label.any():
            self._empty.append(mask)
        return count_classes(label, str(mask), self)


def read_white(path: str | os.PathLike) -> Bool[np.ndarray, "height width"]:
    """Where a mask has a grey, red, green or blue value above 127, ignoring transparency.

    Raises:
        UserError: the file is missing or broken, or its values are 0 and 1.
    """
    with open_picture(path) as file:
        mask = upright(file)
        if mask.mode == "F":
            raise ValueError("its values are floating-point numbers instead of 8 or 16 bits")
        sixteen = mask.mode.startswith("I")
        values = np.asarray(mask if sixteen else mask.convert("RGB"))
    values = values if sixteen else values.max(axis=-1)
    if values.max(initial=0) == 1:
        raise UserError(
            f"{path} is a mask of the values 0 and 1, but only those above 127 are the class: save "
            "it with 0 and 255."
        )
    return values > 127


def _images(folder: pathlib.Path) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """A class's images, in ascending order of their numbers, and what is not one or a mask."""
    listing = list_folder(folder)
    found = [path for path in listing.files if path.suffix == ".jpg"]
    if not found:
        raise UserError(f"{folder} holds no images (*.jpg): add some, or remove the class.")
    known = {*found, *(path.with_suffix(".png") for path in found)}
    others = [path for paths in listing for path in paths if path not in known]
    return sorted(found, key=lambda path: (len(path.stem), path.stem)), others


def _class_lists(
    folders: list[pathlib.Path], classes: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
    """The names of the classes for training ("train"), selection ("val") and the test ("test")."""
    found = {}
    for kind, names in LISTS.items():
        files = [folder / name for name in names for folder in folders]
        if file := next((file for file in files if file.is_file()), None):
            found[kind] = file
    if "test" not in found:
        raise UserError(
            f"{folders[0]} lacks the list of test classes: put fss_test_set.txt or test.txt there."
        )
    if len(found) == 2:
        missing = "val.txt" if "train" in found else "train.txt"
        raise UserError(
            f"{folders[0]} lacks {missing}: give lists of the training and of the validation "
            "classes, or neither."
        )
    lists = {kind: _read_list(file, classes) for kind, file in found.items()}
    if len(found) == 1:
        others = tuple(name for name in classes if name not in lists["test"])
        lists |= {"train": others[:TRAINING_CLASSES], "val": others[TRAINING_CLASSES:]}
        logger.info(
            "%s lists only test classes: of the others, by name, %d train and %d select.",
            *(folders[0], len(lists["train"]), len(lists["val"])),
        )
    seen: dict[str, str] = {}
    for kind, names in lists.items():
        for name in names:
            if other := seen.get(name):
                raise UserError(f"{name} is in the lists {other} and {kind}: keep it in one.")
            seen[name] = kind
    if missing := [name for name in classes if name not in seen]:
        raise UserError(
            f"{folders[-1] / missing[0]} is in none of the lists of classes: add {missing[0]} to "
            "one, or remove the folder."
        )
    return lists


def _read_list(file: pathlib.Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The classes that a list names; lines may also name their images (`class/1.jpg`)."""
    names = tuple(dict.fromkeys(line.split("/")[0].strip() for line in read_lines(file)))
    if not names:
        raise UserError(f"{file} names no classes.")
    if missing := [name for name in names if name not in classes]:
        raise UserError(
            f"{file} names the class {missing[0]}, which has no folder: add the folder, or remove "
            "the line."
        )
    return names
