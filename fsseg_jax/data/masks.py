"""What a mask shows: one rule for files, PIL images and arrays, wherever they are given.

The values of a mask are numbers: 0 is the background, 1, 2 ... are classes or objects, 254 is not
marked, and 255 is ignored. `numbers` reads them from any picture:

- Of a cut-out, which is transparent in part, what is rather opaque is 1, whatever its colours.
- Indices of a palette are numbers. Index 0 must be black, and no other. Where there are several
  others, index 0 may be transparent.
- Grey values are numbers, too; but where 0 and 255 are all values, 255 is 1 (in pictures, 254 too).
  If they are shades instead of numbers, because the format is lossy (such as JPEG) or most is
  white, and what is neither black nor white lies between the two (soft edges), all from half of
  white on is 1.
- In colour, all that is not black is 1; in lossy formats, and of more than 32 shades, all from half
  of the largest value on.
"""

import collections
import logging
import os
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer, Shaped, UInt8
from PIL import Image

from fsseg_jax.data.images import open_picture, upright
from fsseg_jax.episode import IGNORE, UNLABELLED
from fsseg_jax.errors import UserError

CLASSES = UNLABELLED - 1  # the largest class number in masks
LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "HEIF", "AVIF")  # formats of Pillow that change values
NOISE = 16  # values up to this are black in lossy formats
BRIGHT = 240 / 255  # share of white from which on something is as good as white
MOST = 0.9  # share of an image that a mask hardly covers
NUMBERS = 32  # different numbers with gaps that masks may show; more are probably shades

logger = logging.getLogger(__name__)


def read_mask(path: str | os.PathLike) -> UInt8[np.ndarray, "height width"]:
    """Reads the mask of one class: 1 where it shows anything, 254 not marked, 255 ignored.

    Raises:
        UserError: the file is missing or broken, or no mask; see `numbers`.
    """
    with open_picture(path) as file:
        return one_class(numbers(file, str(path)))


def one_class(
    label: Integer[np.ndarray, "height width"],
) -> UInt8[np.ndarray, "height width"]:
    """The label of a class whose objects have numbers: all of them become 1."""
    unknown = (label == IGNORE) | (label == UNLABELLED)
    return np.where(unknown, label, label > 0).astype(np.uint8)


def numbers(mask: Any, name: str) -> Integer[np.ndarray, "height width"]:
    """The numbers of a mask, by the rule above.

    Args:
        mask: a PIL image, or an array: booleans or integers of (height, width), or uint8 of
            (height, width, 3 or 4).
        name: what to call it in errors.

    Raises:
        UserError: it is neither, it has floating-point values, or its palette is ambiguous.
        Exception: the PIL image was opened without being read, and its file is broken.
    """
    if not isinstance(mask, Image.Image):
        if mask.ndim == 3 and mask.shape[-1] in (3, 4) and mask.dtype == np.uint8 and mask.size:
            mask = Image.fromarray(mask)
        else:
            return _grey(_checked(mask, name), lossy=False, marks=True)
    lossy = mask.format in LOSSY
    mask = upright(mask)
    if mask.mode == "F":
        raise UserError(
            f"{name} cannot be read (its values are floating-point numbers): save it with 8 bits."
        )
    cut_out = _opaque(mask)
    if cut_out is not None and not _is_label(mask, cut_out):
        return cut_out.astype(np.uint8)
    if mask.mode in ("LA", "PA"):
        mask = mask.getchannel(0)
    if mask.mode == "P":
        return _indices(mask, name)
    if mask.mode not in ("1", "L") and not mask.mode.startswith("I"):
        values = np.asarray(mask.convert("RGB"))
        brightest = values.max(axis=-1)
        if (values != brightest[..., None]).any():
            shaded = lossy or len(np.unique(brightest)) > NUMBERS
            return (_bright(brightest) if shaded else brightest > 0).astype(np.uint8)
        return _grey(brightest, lossy)
    return _grey(_checked(np.asarray(mask), name), lossy)


def label_image(mask: Image.Image, name: str) -> Integer[np.ndarray, "height width *rgb"]:
    """The values of a label image, which are numbers whatever they are: a palette's indices or grey
    values, or RGB where it has colours of three channels.

    Raises:
        UserError: its format is lossy, or it has floating-point values.
    """
    if mask.format in LOSSY or mask.mode == "F":
        raise UserError(f"{name} has no exact numbers of classes: save it as PNG, with 8 bits.")
    mask = upright(mask)
    if mask.mode in ("LA", "PA"):
        mask = mask.getchannel(0)
    if mask.mode == "1":
        return np.asarray(mask).astype(np.uint8)  # 0 and 1
    if mask.mode in ("L", "P") or mask.mode.startswith("I"):
        return np.asarray(mask)
    return np.asarray(mask.convert("RGB"))


def is_cut_out(path: str | os.PathLike) -> bool:
    """Whether a picture is transparent in part, as removers of backgrounds write it; it is its own
    mask.

    Raises:
        UserError: it cannot be read.
    """
    with open_picture(path) as file:
        return file.has_transparency_data and _opaque(upright(file)) is not None


def scribble(mask: Any, name: str) -> Integer[np.ndarray, "height width"]:
    """The numbers of a picture of scribbles: 254 where nothing is marked.

    Of a picture with transparency, what is rather transparent is not marked, black is background,
    and any other colour is class 1. Without transparency, a grey or palette picture or an array has
    numbers, and 254 where nothing is marked.

    Args, Raises: see `numbers`; also UserError if all is marked, as then it is a mask.
    """
    if not isinstance(mask, Image.Image) and mask.ndim == 3 and mask.shape[-1] == 4:
        mask = Image.fromarray(mask)
    if isinstance(mask, Image.Image):
        mask = upright(mask)
        opaque = _opaque(mask)
        if opaque is not None:
            coloured = np.asarray(mask.convert("RGBA"))[..., :3].any(axis=-1)
            return np.where(opaque, coloured, UNLABELLED).astype(np.uint8)
        mask = np.asarray(mask)
    label = _checked(mask, name)
    if not (label == UNLABELLED).any():
        raise UserError(
            f"{name} marks all of its image: leave what is not marked transparent, or "
            f"{UNLABELLED} in an array; or give it as a mask."
        )
    return label


def _checked(values: np.ndarray, name: str) -> Shaped[np.ndarray, "height width"]:
    kind = values.dtype
    if values.ndim == 2 and kind.kind in "biu":
        return values
    raise UserError(
        f"{name} is an array of {kind} and shape {values.shape}: a mask is a path, a PIL image, or "
        "an array of booleans or class numbers and shape (height, width), or of colours."
    )


def _opaque(mask: Image.Image) -> Bool[np.ndarray, "height width"] | None:
    """Where a cut-out is at least half as opaque as anywhere; None if it is so everywhere."""
    if not mask.has_transparency_data:
        return None
    alpha = np.asarray(mask.convert("RGBA").getchannel("A")).astype(int)
    opaque = 2 * alpha >= alpha.max(initial=1)
    return None if opaque.all() or not opaque.any() else opaque


def _is_label(mask: Image.Image, opaque: Bool[np.ndarray, "height width"]) -> bool:
    """Whether a picture that is transparent in part has numbers all the same: of its palette, black
    index 0 alone is transparent, and there are several others, but fewer than of a photograph."""
    if mask.mode != "P":
        return False
    indices = np.asarray(mask)
    coloured = np.asarray(mask.convert("RGB")).any(axis=-1)
    several = 1 < len(np.setdiff1d(indices, [0])) <= NUMBERS
    return several and np.array_equal(opaque, indices > 0) and np.array_equal(opaque, coloured)


def _indices(mask: Image.Image, name: str) -> UInt8[np.ndarray, "height width"]:
    indices = np.asarray(mask)
    coloured = np.asarray(mask.convert("RGB")).any(axis=-1)
    disagree = (indices > 0) != coloured
    if np.setdiff1d(indices, [0, IGNORE]).size:
        disagree &= indices != IGNORE  # which is ignored, in whatever colour
    if disagree.any():
        raise UserError(
            f"{name} is a palette mask whose background is ambiguous, as its index 0 is not black "
            "or another one is: save it as greyscale, or give index 0, and no other, the colour "
            "black."
        )
    binary = np.isin(indices, [0, IGNORE]).all()
    return (indices > 0).astype(np.uint8) if binary else indices


def _grey(
    values: Shaped[np.ndarray, "height width"], lossy: bool, marks: bool = False
) -> Integer[np.ndarray, "height width"]:
    """The numbers that grey values mean. `marks`: whether 254 is not marked even beside 0 alone."""
    if values.dtype == bool:
        return values.astype(np.uint8)
    if lossy:
        return _bright(values).astype(np.uint8)
    white = 2**16 - 1 if values.max(initial=0) == 2**16 - 1 else IGNORE
    if any(np.isin(values, [0, x]).all() for x in ((white,) if marks else (white, UNLABELLED))):
        return (values > 0).astype(np.uint8)
    if _is_shaded(values, white):
        return (2 * values.astype(int) >= white).astype(np.uint8)
    return values


def _bright(values: Integer[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    half = int(values.max(initial=0)) // 2
    return values > max(half, NOISE)


def _is_shaded(values: Integer[np.ndarray, "height width"], white: int) -> bool:
    """Whether grey values are shades of black and white instead of numbers: white is there and most
    that is not black is nearly white, while the others, which are not 1, 2 ..., lie between the
    two, and touch white. The border of a label, of 255, would part them from black."""
    black, bright = values == 0, values >= BRIGHT * white
    others = ~black & ~bright
    shown = np.unique(values[others]).tolist()
    counted = shown and shown == [*range(1, len(shown) + 1)]
    most = 2 * np.count_nonzero(bright) > np.count_nonzero(~black)
    if counted or not most or not (values == white).any():
        return False
    white_side = _pairs(others, bright)
    return white_side > 0 and 2 * _pairs(black, others) >= white_side


def _pairs(one: Bool[np.ndarray, "h w"], other: Bool[np.ndarray, "h w"]) -> int:
    """How many pixels of one mask are beside, above or below one of the other."""
    return sum(
        int(np.count_nonzero(first[:-1] & second[1:]))
        for a, b in ((one, other), (one.T, other.T))
        for first, second in ((a, b), (b, a))
    )


# ----------------------------------------------------------------------------- classes


def as_classes(
    labels: Sequence[Integer[np.ndarray, "_ _"]], names: Sequence[str]
) -> tuple[list[UInt8[np.ndarray, "_ _"]], tuple[int, ...]]:
    """Labels whose numbers are classes, in which these become 1, 2 ... in ascending order.

    Args:
        labels: what `numbers` gives for each mask.
        names: what to call the masks in errors.

    Returns:
        the labels, and the number that each class had: `(8, 15)` of VOC's labels of cats and
        people.

    Raises:
        UserError: a number is not 0..255, or there are so many with gaps between them that they are
            probably shades.
    """
    shown: set[int] = set()
    for label, name in zip(labels, names, strict=True):
        found = np.unique(label).tolist()
        if wrong := [x for x in found if not 0 <= x <= IGNORE]:
            raise UserError(
                f"{name} has the value {wrong[0]}: classes are numbered 1..{CLASSES}, 0 is the "
                f"background, {UNLABELLED} is not marked and {IGNORE} ignored."
            )
        shown |= {*found} - {0, UNLABELLED, IGNORE}
        if len(shown) > NUMBERS and max(shown) > len(shown):
            raise UserError(
                f"{name} shows, or it and those before, {len(shown)} different numbers, up to "
                f"{max(shown)}: if they are shades, give (mask > 127); otherwise number the "
                "classes 1, 2 ... without gaps."
            )
    order = sorted(shown)
    own = np.zeros(IGNORE + 1, np.uint8)
    own[order] = np.arange(1, len(order) + 1)
    own[[UNLABELLED, IGNORE]] = UNLABELLED, IGNORE
    return [own[label] for label in labels], (*order,)


_covering: collections.deque[int] = collections.deque(maxlen=10_000)


def warn_if_covering(label: Integer[np.ndarray, "height width"], name: str) -> None:
    """Warns, once for each mask, of one that covers nearly all of its image: the whole image is
    hardly the object, and nothing shows what is not."""
    shown = (label > 0) & (label < UNLABELLED)
    if shown.size and shown.mean() > MOST:
        key = zlib.crc32(shown.tobytes(), hash(shown.shape) & 0xFFFFFFFF)
        if key not in _covering:
            _covering.append(key)
            logger.warning(
                "%s covers %.0f %% of its image: is it the mask, and black or transparent where "
                "the object is not?",
                *(name, 100 * shown.mean()),
            )
