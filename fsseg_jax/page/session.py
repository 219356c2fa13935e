"""What a visitor of the page has: images, what is marked in them, classes, and predictions.

Images are kept at up to `limits.LONG_SIDE` pixels a side. Their files, in a folder of the visitor's
own, have the name of their number: `.png` the image, `.jpg` a small one, `.marks` what is marked,
`.planes` what is predicted, the last two as gzip files of one byte for each pixel.
"""

import contextlib
import dataclasses
import gzip
import os
import pathlib
import secrets
import shutil
import threading
import time
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fsseg_jax.data.images import open_picture
from fsseg_jax.data.source import LabelledImage
from fsseg_jax.episode import UNLABELLED
from fsseg_jax.errors import UserError
from fsseg_jax.page import limits
from fsseg_jax.prediction.pictures import as_image

Planes = UInt8[np.ndarray, "3 height width"]
# What may be marked: the background, a class, or nothing.
VALUES = np.isin(np.arange(256), [*range(limits.CLASSES + 1), UNLABELLED])
# Held while an image is in memory at the size of what was uploaded: requests come at the same time.
large_image = threading.Lock()


@dataclasses.dataclass
class Picture:
    """An image of a visitor."""

    number: int
    name: str
    size: tuple[int, int]  # height and width of what was uploaded
    shape: tuple[int, int]  # height and width of what is kept
    marked: tuple[int, ...] = ()  # the classes that are marked in it
    has_marks: bool = False  # of classes or of the background
    rest: bool = False  # whether all that is not marked is background
    background: bool = False  # whether some of it is known to be background
    boxed: bool = False  # whether some marks are boxes, which contain background as well
    confidence: float | None = None  # of the prediction, in 0..1; None without one
    made_by: int = -1  # the session's `version` that the prediction was made by

    @property
    def is_whole(self) -> bool:
        """Whether the marks are the true mask of the whole image."""
        return self.has_marks and self.rest and not self.boxed


class Session:
    """A visitor of the page; threads may share it.

    Attributes:
        classes: the names of the classes by their numbers, 1 to `limits.CLASSES`; some may be free.
        pictures: the images by their numbers, in the order in which they came.
        fit: what is known of the model that the last search made of the examples; see
            `segmenting.told`. None before.
        version: grows with every change of what predictions depend on.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700)
        self.lock = threading.RLock()
        self.classes: dict[int, str] = {1: "object"}
        self.pictures: dict[int, Picture] = {}
        self.fit: dict[str, Any] | None = None
        self.version, self._numbers = 0, 0

    def state(self) -> dict[str, Any]:
        """All of it but the pixels, as JSON."""
        with self.lock:
            return {
                "classes": dict(sorted(self.classes.items())),
                "fit": self.fit,
                "pictures": [self.describe(picture) for picture in self.pictures.values()],
            }

    def describe(self, picture: Picture) -> dict[str, Any]:
        """A picture as JSON."""
        fields = dataclasses.asdict(picture) | {"stale": picture.made_by != self.version}
        return fields | {"whole": picture.is_whole}

    def file(self, number: int, kind: str) -> pathlib.Path:
        """A file of an image, which may not exist."""
        return self._folder / f"{number}.{kind}"

    def picture(self, number: int) -> Picture:
        """An image; raises UserError if it is not there, or not any more."""
        try:
            return self.pictures[number]
        except KeyError:
            raise UserError("The image is no longer there: load the page again.") from None

    def add(self, upload: pathlib.Path, name: str) -> Picture:
        """Adds an image from an uploaded file.

        Raises:
            UserError: it is not an image, it is too large, or there are too many.
        """
        name = pathlib.PurePosixPath(name.replace("\\", "/")).name[-200:] or "image"
        name = _printable(name)
        self._check_room()
        with large_image:
            try:
                check_pixels(upload, name)
                image = as_image(upload, name)
            except UserError as error:
                raise UserError(str(error).replace(str(upload), name)) from None
            size = image.shape[:2]
            kept = Image.fromarray(image)
            del image
            kept.thumbnail((limits.LONG_SIDE, limits.LONG_SIDE))
        small = kept.copy()
        small.thumbnail((limits.THUMBNAIL, limits.THUMBNAIL))
        with self.lock:
            self._check_room()
            self._numbers += 1
            number = self._numbers
        kept.save(self.file(number, "png"), compress_level=1)
        small.save(self.file(number, "jpg"), quality=85)
        picture = Picture(number, name, size, (kept.height, kept.width))
        with self.lock:
            self.pictures[number] = picture
        return picture

    def _check_room(self) -> None:
        if len(self.pictures) >= limits.FILES:
            raise UserError(
                f"There are {limits.FILES} images, which is all that the page takes: remove some, "
                "or use fsseg_jax.predict."
            )

    def remove(self, number: int) -> None:
        """Removes an image."""
        with self.lock:
            picture = self.picture(number)
            self.version += bool(picture.marked)
            del self.pictures[number]
        for kind in ("png", "jpg", "marks", "planes"):
            self.file(number, kind).unlink(missing_ok=True)

    def name_classes(self, names: Mapping[str, Any]) -> None:
        """Takes other classes; what is marked or predicted as one that is gone is so no longer.

        Raises:
            UserError: they are not names by numbers.
        """
        numbers = {str(n): n for n in range(1, limits.CLASSES + 1)}
        if not names or not numbers.keys() >= names.keys():
            raise UserError(f"There are 1 to {limits.CLASSES} classes, numbered from 1.")
        classes = {}
        for number, name in names.items():
            if not isinstance(name, str) or not name.strip() or len(name) > limits.NAME:
                raise UserError(
                    f"Class {number} needs a name of up to {limits.NAME} characters: give it one."
                )
            classes[numbers[number]] = _printable(name.strip())
        if len({*classes.values()}) < len(classes):
            raise UserError("Two classes have the same name: give them different ones.")
        with self.lock:
            gone = self.classes.keys() - classes.keys()
            self.classes = classes
            for picture in self.pictures.values() if gone else ():
                self._forget(picture, [*gone])

    def _forget(self, picture: Picture, classes: list[int]) -> None:
        """Removes what is marked and predicted as these classes."""
        if {*classes} & {*picture.marked}:
            marks = self.marks(picture)
            marks[np.isin(marks, classes)] = UNLABELLED
            self.mark(picture.number, marks.tobytes(), picture.rest, picture.boxed)
        if picture.confidence is not None:
            planes = self.planes(picture)
            mask, best, probability = planes
            probability[np.isin(best, classes)] = 0
            mask[np.isin(mask, classes)] = 0
            write(self.file(picture.number, "planes"), planes.tobytes())

    def mark(self, number: int, content: bytes, rest: bool, boxed: bool) -> Picture:
        """Takes what is marked in an image, instead of earlier marks.

        Args:
            number: the image's.
            content: a byte for each pixel: 0 for the background, n for class n, 254 for neither.
            rest, boxed: see `Picture`.

        Raises:
            UserError: they are not marks of this image.
        """
        with self.lock:
            picture = self.picture(number)
            marks = np.frombuffer(content, np.uint8)
            present = np.bincount(marks, minlength=256) > 0
            height, width = picture.shape
            if len(marks) != height * width or (present & ~VALUES).any():
                raise UserError("What is marked does not fit the image: load the page again.")
            self.version += 1
            picture.has_marks = bool(present[:UNLABELLED].any())
            picture.rest, picture.boxed = rest and picture.has_marks, boxed and picture.has_marks
            picture.background = picture.rest or bool(present[0])
            picture.marked = (*(n for n in np.flatnonzero(present).tolist() if n in self.classes),)
            if picture.has_marks:
                write(self.file(number, "marks"), content)
            else:
                self.file(number, "marks").unlink(missing_ok=True)
            return picture

    def image(self, picture: Picture) -> UInt8[np.ndarray, "height width 3"]:
        """The pixels of an image as it is kept."""
        return as_image(self.file(picture.number, "png"), picture.name)

    def marks(self, picture: Picture) -> UInt8[np.ndarray, "height width"]:
        """What is marked in an image: 0 for the background, n for class n, 254 for neither."""
        if not picture.has_marks:
            return np.full(picture.shape, UNLABELLED, np.uint8)
        marks = read(self.file(picture.number, "marks"))
        return marks.reshape(picture.shape)

    def supports(self) -> list[LabelledImage]:
        """The images in which a class is marked, or that are known to show none, with the numbers
        of classes as they are here.

        Raises:
            UserError: no class is marked.
        """
        with self.lock:
            self.check_marked()
            supports = []
            for picture in self.pictures.values():
                if picture.marked or picture.is_whole:
                    marks = self.marks(picture)
                    if picture.rest:
                        marks[marks == UNLABELLED] = 0
                    supports.append(LabelledImage(self.image(picture), marks))
        return supports

    def check_marked(self) -> None:
        """Raises UserError if no class is marked in any image."""
        with self.lock:
            if not any(picture.marked for picture in self.pictures.values()):
                raise UserError("Nothing is marked yet: draw on the object in one of the images.")

    def planes(self, picture: Picture) -> Planes:
        """What is predicted for an image; see `segmenting.planes_of`."""
        return read(self.file(picture.number, "planes")).reshape(3, *picture.shape)

    def keep(self, picture: Picture, planes: Planes, confidence: float, version: int) -> None:
        """Keeps what is predicted for an image, unless that has been removed meanwhile."""
        with self.lock:
            if picture.number in self.pictures:
                write(self.file(picture.number, "planes"), planes.tobytes())
                picture.confidence, picture.made_by = confidence, version


def _printable(text: str) -> str:
    """A text without control characters, and halves of characters, which no file could hold.

    Joiners stay, which Persian and families of emoji are written with.
    """
    return "".join("_" if unicodedata.category(x) in ("Cc", "Cs") else x for x in text)


def write(file: pathlib.Path, content: bytes) -> None:
    """Writes a gzip file, which is whole whenever it is read."""
    partial = file.with_name(f"{secrets.token_hex(8)}.partial")
    partial.write_bytes(gzip.compress(bytes(content), 1))
    partial.replace(file)


def read(file: pathlib.Path) -> UInt8[np.ndarray, " bytes"]:
    """The bytes of such a file, which may be changed."""
    return np.frombuffer(bytearray(gzip.decompress(file.read_bytes())), np.uint8)


def check_pixels(file: str | os.PathLike, name: str) -> None:
    """Raises UserError, before an image is decoded, if it has too many pixels or is none."""
    with open_picture(file) as image:
        width, height = image.size
    if width * height > limits.PIXELS:
        raise UserError(
            f"{name} is {width} x {height} pixels, but the page takes up to "
            f"{limits.PIXELS // 10**6} million: scale it down."
        )


class Sessions:
    """All visitors; those that have not been seen for long go."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self._sessions: dict[str, Session] = {}
        self._seen: dict[str, float] = {}

    def new(self) -> str:
        """A new visitor, by the name that nobody else knows.

        Raises:
            UserError: there are too many.
        """
        with self._lock:
            oldest = time.monotonic() - limits.KEPT
            for name in [name for name, seen in self._seen.items() if seen < oldest]:
                self._remove(name)
            empty = (name for name, session in self._sessions.items() if not session.pictures)
            if len(self._sessions) >= limits.VISITORS:
                with contextlib.suppress(StopIteration):
                    self._remove(next(empty))
            if len(self._sessions) >= limits.VISITORS:
                raise UserError(
                    f"The page has {limits.VISITORS} visitors, which is all that it takes: end it "
                    "(Ctrl-C) and start it again."
                )
            name = secrets.token_urlsafe(16)
            self._sessions[name] = Session(self._folder / secrets.token_hex(8))
            self._seen[name] = time.monotonic()
            return name

    def get(self, name: str) -> Session | None:
        """A visitor, if there is one of this name."""
        with self._lock:
            if name in self._sessions:
                self._seen[name] = time.monotonic()
            return self._sessions.get(name)

    def _remove(self, name: str) -> None:
        del self._seen[name]
        shutil.rmtree(self._sessions.pop(name)._folder, ignore_errors=True)


def names_of(classes: Mapping[int, str], supports: Sequence[LabelledImage]) -> dict[int, str]:
    """The classes that supports show, with their names."""
    shown = {n for support in supports for n in np.unique(support.label).tolist()}
    return {n: name for n, name in sorted(classes.items()) if n in shown}
