"""Episodes, the one data type of the library, and lists of episodes as CSV files.

An episode is one few-shot task: N classes (ways) with K labelled images (shots) each, and a query
image in which these classes are to be segmented.
"""

import csv
import dataclasses
import hashlib
import io
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Integer, Num, UInt8

from fsseg_jax.errors import UserError

# Most functions take NumPy arrays on the host and JAX arrays in compiled code alike.
AnyArray = Array | np.ndarray

# The vmapped axis of a batch of episodes, over which batch normalisation averages.
BATCH_AXIS = "episode"
IGNORE = 255  # label of pixels that are excluded from losses and metrics
UNLABELLED = 254  # label of support pixels that a weak annotation leaves unmarked
# ImageNet's statistics, by which torchvision's and timm's weights expect inputs normalised.
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


@struct.dataclass
class Episode:
    """One few-shot task; in a batch each array has one more leading axis.

    Labels are in episode numbering: 0 is background, n + 1 is the class of way n (from 0), 255 is
    ignored, and 254 is an unmarked pixel of a weakly annotated support. Pixels of way m in a
    support of way n are m + 1, so that the background excludes every class of the episode (PANet
    eq. 2).

    Images are uint8 RGB until the compiled function normalises them (`normalise`), which moves a
    quarter of the bytes to the device.

    Examples:
        >>> image, label = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)
        >>> label[8:16, 8:16] = 1  # the class of the only way
        >>> episode = Episode(
        ...     support_image=image[None, None],
        ...     support_label=label[None, None],
        ...     query_image=image,
        ...     query_label=label,
        ...     class_id=np.array([7]),
        ...     query_index=np.array(0),
        ... )
        >>> episode.normalised().support_image.shape
        (1, 1, 32, 32, 3)
    """

    support_image: Num[AnyArray, "*batch way shot height width 3"]
    support_label: UInt8[AnyArray, "*batch way shot height width"]
    query_image: Num[AnyArray, "*batch height width 3"]
    query_label: UInt8[AnyArray, "*batch height width"]
    class_id: Int[AnyArray, "*batch way"]
    # Row of the query in the table of (class, image) items.
    query_index: Int[AnyArray, "*batch"]

    def normalised(self) -> "Episode":
        """The same episode with normalised float images."""
        return dataclasses.replace(
            self,
            support_image=normalise(self.support_image),
            query_image=normalise(self.query_image),
        )


def empty_episode(ways: int, shots: int, size: int) -> Episode:
    """An episode of zeros, with normalised images, from which to infer shapes."""
    shape = (ways, shots, size, size)
    return Episode(
        support_image=jnp.zeros((*shape, 3)),
        support_label=jnp.zeros(shape, jnp.uint8),
        query_image=jnp.zeros((size, size, 3)),
        query_label=jnp.zeros((size, size), jnp.uint8),
        class_id=jnp.zeros(ways, jnp.int32),
        query_index=jnp.zeros((), jnp.int32),
    )


def normalise(image: Num[AnyArray, "*batch 3"]) -> Float[AnyArray, "*batch 3"]:
    """Normalises RGB in 0..255 by ImageNet's mean and standard deviation.

    Examples:
        >>> grey = np.full((4, 4, 3), 128, np.uint8)
        >>> bool((abs(normalise(grey)) < 0.5).all())  # near ImageNet's mean
        True
    """
    return (image.astype("float32") / 255.0 - IMAGENET_MEAN) / IMAGENET_STD


def episode_label(
    label: Integer[AnyArray, "*shape"], class_ids: Integer[AnyArray, " way"]
) -> UInt8[Array, "*shape"]:
    """Converts class ids to episode numbering (0, 1..N); 255 stays ignored.

    Examples:
        >>> label = np.array([[0, 7], [9, 255]], np.uint8)
        >>> episode_label(label, np.array([9, 7])).tolist()  # class 9 is way 0
        [[0, 2], [1, 255]]
    """
    result = jnp.where(label == IGNORE, IGNORE, 0)
    for way in range(class_ids.shape[0]):
        result = jnp.where(label == class_ids[way], way + 1, result)
    return result.astype(jnp.uint8)


# ----------------------------------------------------------------------------- lists


@struct.dataclass
class EpisodeIds:
    """Which classes and images make up each of B episodes; images are rows of the source.

    Examples:
        >>> ids = EpisodeIds(  # two episodes of one way and two shots, of images by their rows
        ...     classes=np.array([[3], [7]]),
        ...     supports=np.array([[[10, 11]], [[20, 21]]]),
        ...     query=np.array([12, 22]),
        ...     query_index=np.array([0, 1]),
        ... )
        >>> len(ids), ids.take(slice(1)).images.tolist()
        (2, [[10, 11, 12]])
    """

    classes: Integer[AnyArray, "*batch way"]
    supports: Integer[AnyArray, "*batch way shot"]
    query: Integer[AnyArray, "*batch"]
    query_index: Integer[AnyArray, "*batch"]

    @property
    def images(self) -> Integer[AnyArray, "batch slot"]:
        """All images of each episode: the supports, way by way, then the query."""
        supports = self.supports.reshape(len(self), -1)
        xp = np if isinstance(supports, np.ndarray) else jnp
        return xp.concatenate([supports, self.query[:, None]], axis=1)

    def take(self, rows: Any) -> "EpisodeIds":
        """Selects episodes by a slice or an array of positions."""
        return jax.tree.map(lambda field: field[rows], self)

    def __len__(self) -> int:
        return self.query.shape[0]


COLUMNS = ("classes", "supports", "query")
# What is escaped in a name: separators, control characters and bytes that are not UTF-8, what would
# begin a formula in a spreadsheet, and a `%` that would be read as an escape.
_ESCAPED = re.compile(
    r"^[=+\-@]|[;|\x00-\x1f\x7f\udc80-\udcff]"
    r"|%(?=2B|2D|3B|3D|40|7C|25|7F|[01][0-9A-F]|[89A-F][0-9A-F])"
)
_ESCAPE = re.compile(r"%(2B|2D|3B|3D|40|7C|25|7F|[01][0-9A-F]|[89A-F][0-9A-F])")


def episodes_to_csv(
    episodes: EpisodeIds, image_ids: Sequence[str], **columns: Sequence[Any]
) -> str:
    """Writes episodes as CSV, such as `12,2008_000008;2009_001234,2010_000321`.

    Class ids are joined by `;`, the images of a way by `;` and the ways by `|`. Any further
    `columns` follow. Of a name, characters that separate others or control, and those at its
    beginning that make a formula in a spreadsheet (`=`, `+`, `-`, `@`), are written as in URLs
    (`%3B` for `;`), and so is `%` where it would be read as such a code.

    Examples:
        >>> one = np.array([[3]]), np.array([[[0, 1]]]), np.array([2]), np.array([0])
        >>> print(episodes_to_csv(EpisodeIds(*one), ["a", "b", "c"], run=[0]), end="")
        classes,supports,query,run
        3,a;b,c,0
    """
    written = [_ESCAPED.sub(_escape, name) for name in image_ids]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *columns])
    for row in range(len(episodes)):
        ways = (";".join(written[int(i)] for i in shots) for shots in episodes.supports[row])
        writer.writerow(
            [
                ";".join(map(str, episodes.classes[row])),
                "|".join(ways),
                written[int(episodes.query[row])],
                *(column[row] for column in columns.values()),
            ]
        )
    return text.getvalue()


def episodes_hash(episodes: EpisodeIds, image_ids: Sequence[str]) -> str:
    """Hashes a list of episodes to eight hexadecimal digits."""
    return hashlib.sha256(episodes_to_csv(episodes, image_ids).encode()).hexdigest()[:8]


def read_episodes(
    path: str | os.PathLike, image_ids: Sequence[str], class_ids: Sequence[int]
) -> EpisodeIds:
    """Reads a list of episodes; columns beyond `classes,supports,query` are ignored.

    Args:
        path: a CSV file as `episodes_to_csv` writes it.

    Raises:
        UserError: the file or a column is missing, an image or a class is unknown, episodes
            differ in ways or shots, a class is in two ways, or a query is among its supports.

    Examples:
        >>> import tempfile
        >>> lines = "classes,supports,query", "3,a;b,c"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "episodes.csv")
        ...     _ = path.write_text(os.linesep.join(lines))
        ...     ids = read_episodes(path, image_ids=["a", "b", "c"], class_ids=[3])
        >>> ids.supports.tolist(), ids.query.tolist()
        ([[[0, 1]]], [2])
    """
    path = pathlib.Path(os.path.expanduser(path))
    if not os.path.isfile(path):
        raise UserError(f"{path}: there is no such episode list.")
    try:
        return _read_list(path, image_ids, class_ids)
    except (OSError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}): replace the file.") from None


def _read_list(
    path: pathlib.Path, image_ids: Sequence[str], class_ids: Sequence[int]
) -> EpisodeIds:
    rows = {name: row for row, name in enumerate(image_ids)}
    classes, supports, queries = [], [], []
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.DictReader(file)
        if missing := [column for column in COLUMNS if column not in (reader.fieldnames or ())]:
            raise UserError(f"{path}: the column {missing[0]!r} is missing from its first line.")
        for line in reader:
            where = f"{path}, line {reader.line_num}"
            numbers, ways, query = _read_line(line, rows, where)
            if unknown := set(numbers) - set(class_ids):
                raise UserError(f"{where}: class {min(unknown)} is not in this data set.")
            if len(set(numbers)) < len(numbers):
                raise UserError(f"{where}: a class is in two ways of the episode.")
            if any(query in way for way in ways):
                raise UserError(f"{where}: the query is also a support of its episode.")
            classes.append(numbers)
            supports.append(ways)
            queries.append(query)
            shape = [len(numbers), [len(way) for way in ways]]
            if shape != [len(classes[0]), [len(supports[0][0])] * len(classes[0])]:
                raise UserError(f"{where}: all episodes must have the same ways and shots.")
    if not queries:
        raise UserError(f"{path}: the list has no episodes.")
    return EpisodeIds(
        np.array(classes, np.int32),
        np.array(supports, np.int32),
        np.array(queries, np.int32),
        np.zeros(len(queries), np.int32),
    )


def _read_line(
    line: Mapping[str, str], rows: Mapping[str, int], where: str
) -> tuple[list[int], list[list[int]], int]:
    """Parses the classes, supports and query of an episode; `rows` maps image names to rows."""
    try:
        if None in line.values():
            raise ValueError("too few columns")
        classes = [int(name) for name in line["classes"].split(";")]
        ways = [way.split(";") for way in line["supports"].split("|")]
        supports = [[_row(name, rows) for name in way] for way in ways]
        return classes, supports, _row(line["query"], rows)
    except KeyError as error:
        raise UserError(
            f"{where}: image {error.args[0]!r} is not in this data set's split."
        ) from None
    except (ValueError, AttributeError):
        raise UserError(
            f"{where}: expected class ids joined by ';' and images joined by ';' "
            "and '|' (as in 12,2008_000008;2009_001234,2010_000321)."
        ) from None


def _escape(found: re.Match[str]) -> str:
    return f"%{ord(found[0]) & 0xFF:02X}"  # of a byte that is not UTF-8, U+DC00 and the byte


def _row(written: str, rows: Mapping[str, int]) -> int:
    """The row of an image by its name, escaped or, in a list by others, as it is."""

    def character(found: re.Match[str]) -> str:
        code = int(found[1], 16)
        return chr(code if code < 0x80 else 0xDC00 + code)

    name = _ESCAPE.sub(character, written)
    return rows[name if name in rows else written]


def concatenate(parts: Sequence[EpisodeIds]) -> EpisodeIds:
    """Concatenates lists of episodes."""
    return jax.tree.map(lambda *fields: np.concatenate(fields), *parts)
