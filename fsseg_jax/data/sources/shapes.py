"""Rendered images, to try few-shot segmentation within minutes and without a download.

A class is a family of shapes filled with a family of textures, neither of which any other class
has, so that a class held out from training is new in every respect. Number, aspect, thickness,
period, phase, size and direction vary between objects; colours are independent of the class. An
image shows one to three objects of its main class and one or two smaller ones of other classes,
later ones in front, on a smoothly varying background.
"""

import hashlib
import math

import numpy as np
from jaxtyping import Float, Float32, UInt8
from numpy.random import Generator
from PIL import Image

from fsseg_jax.cpu.memory import free_memory
from fsseg_jax.data.source import ClassTable, LabelledImage, Source
from fsseg_jax.data.sources.figures import KINDS, REACH, unit_area
from fsseg_jax.errors import UserError
from fsseg_jax.progress import tracked

SPLITS = ("train", "val")
AREA = (0.12, 0.25)  # of an object of the main class, as a fraction of the image
DISTRACTOR = 0.5  # area of the other objects relative to that
TILT = 0.4  # largest, in radians
PERIOD = (8 / 96, 13 / 96)  # of a texture, as a fraction of the side: visible at stride 4

Pixels = UInt8[np.ndarray, "height width ..."]


def _background(rng: Generator, pixels: int) -> Float32[np.ndarray, "pixels pixels 3"]:
    """A colour that drifts across the image, with fainter patches on top."""
    canvas = np.zeros((pixels, pixels, 3), np.float32)
    for cells, strength in ((rng.integers(2, 4), 40), (rng.integers(5, 25), 12)):
        noise = rng.uniform(-strength, strength, (cells, cells, 3)) + 128
        patches = Image.fromarray(noise.astype(np.uint8))
        canvas += np.asarray(patches.resize((pixels, pixels), Image.Resampling.BICUBIC))
    return np.clip(canvas - 256 + rng.uniform(20, 235, 3).astype(np.float32), 0, 255)


def _two_colours(rng: Generator) -> Float32[np.ndarray, "2 3"]:
    """The darkest and the lightest of five random colours, in random order."""
    colours = rng.uniform(0, 255, (5, 3)).astype(np.float32)
    brightness = colours @ np.array([0.3, 0.6, 0.1], np.float32)
    return colours[rng.permutation([brightness.argmin(), brightness.argmax()])]


def _place(rng: Generator, radii: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 2"]:
    """Centres as fractions of the side, each the best of 16 random ones at avoiding the others.

    Objects that do not fit overlap.
    """
    centres = np.zeros((len(radii), 2))
    for number, radius in enumerate(radii):
        margin = min(0.9 * radius, 0.5)
        options = rng.uniform(margin, 1 - margin, (16, 2))
        distance = np.linalg.norm(options[:, None] - centres[:number], axis=-1) - radii[:number]
        centres[number] = options[distance.min(axis=1, initial=1).argmax()]
    return centres


def _paint(
    kind: int,
    rng: Generator,
    centre: Float[np.ndarray, "2"],
    radius: float,
    canvas: Float32[np.ndarray, "pixels pixels 3"],
) -> tuple[tuple[slice, slice], np.ndarray]:
    """Draws one object of `radius` pixels on the canvas.

    Returns:
        the object's window on the canvas, and its mask within the window.
    """
    pixels = len(canvas)
    row, column = (float(c) * pixels for c in centre)
    aspect = math.exp(rng.uniform(-0.12, 0.12))
    reach = REACH * radius * 1.13 + 1
    rows, columns = (
        slice(max(0, math.floor(c - reach)), min(pixels, math.ceil(c + reach)))
        for c in (row, column)
    )
    down = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + (0.5 - row)
    right = np.arange(columns.start, columns.stop, dtype=np.float32) + (0.5 - column)
    angle = rng.uniform(-TILT, TILT)
    cosine, sine = math.cos(angle), math.sin(angle)
    x, y = right * cosine + down * sine, down * cosine - right * sine

    outline = KINDS[kind].shape(x * (aspect / radius), y / (aspect * radius), rng) * radius
    period = rng.uniform(*PERIOD) * pixels
    phase = rng.uniform(-0.5, 0.5, 2).tolist()
    mix = KINDS[kind].texture(x / period + phase[0], y / period + phase[1], rng)[..., None]
    first, second = _two_colours(rng)
    cover = np.clip(0.5 - outline, 0, 1)[..., None]  # antialiasing: coverage of each pixel
    part = canvas[rows, columns]
    part += cover * (first + mix * (second - first) - part)
    return (rows, columns), outline < 0


def render(split: str, index: int, pixels: int) -> tuple[Pixels, Pixels, Pixels]:
    """Renders an image, its label and its instances, deterministically.

    Classes take turns as the main one. The same image at another side shows the same scene.

    Examples:
        >>> image, label, instances = render("val", 0, pixels=64)
        >>> image.shape, label.shape, bool((label > 0).any())
        ((64, 64, 3), (64, 64), True)
        >>> KINDS[0].name in {KINDS[number - 1].name for number in np.unique(label[label > 0])}
        True
    """
    rng = np.random.default_rng([SPLITS.index(split), index])
    canvas = _background(rng, pixels)
    label = np.zeros((pixels, pixels), np.uint8)
    instance = np.zeros((pixels, pixels), np.uint8)

    main = index % len(KINDS)
    others = rng.choice(np.arange(1, len(KINDS)), rng.integers(1, 3), replace=False)
    kinds = [main] * int(rng.integers(1, 4)) + [(main + int(k)) % len(KINDS) for k in others]
    kinds = [kinds[k] for k in rng.permutation(len(kinds))]
    least, most = np.log(AREA)
    areas = np.exp(rng.uniform(least, most, len(kinds)))
    areas[np.array(kinds) != main] *= DISTRACTOR
    radii = np.sqrt(areas / [unit_area(kind) for kind in kinds])
    centres = _place(rng, radii)
    for number, kind in enumerate(kinds):
        window, inside = _paint(kind, rng, centres[number], radii[number] * pixels, canvas)
        label[window][inside] = kind + 1
        instance[window][inside] = number + 1
    return np.rint(canvas).astype(np.uint8), label, instance


class Shapes(Source):
    """One split, rendered at once and kept in memory: 46 kB per image at 96 pixels.

    Args:
        split: train or val.
        size: number of images; a larger split begins with the images of a smaller one.
        pixels: side of the images.

    Raises:
        UserError: the split is neither train nor val, size or pixels is too small, or the images
            do not fit into memory.
    """

    name = "shapes"
    classes = tuple(kind.name for kind in KINDS)
    folds = tuple(tuple(range(6 * fold + 1, 6 * fold + 7)) for fold in range(4))

    def __init__(self, split: str, size: int, pixels: int = 96) -> None:
        if split not in SPLITS:
            raise UserError(f"split = {split!r}: shapes has {' and '.join(SPLITS)}.")
        if size < 1:
            raise UserError(f"{size} images of shapes: there must be at least one.")
        if pixels < 32:
            raise UserError(f"pixels = {pixels}: shapes need a side of at least 32 pixels.")
        needed, free = 5 * size * pixels**2, free_memory()
        if needed > free:
            raise UserError(
                f"data.shapes: {size} images of {pixels} x {pixels} pixels need "
                f"{needed / 2**30:.0f} GiB of memory, but {free / 2**30:.0f} are free: lower "
                f"data.shapes.{split} or data.shapes.pixels."
            )
        self.ids = tuple(f"{split}_{index:06d}" for index in range(size))
        self._images = np.empty((size, pixels, pixels, 3), np.uint8)
        self._labels = np.empty((2, size, pixels, pixels), np.uint8)  # labels and instances
        # Without `parallel_map`: images are so small that threads would only wait for the GIL.
        for index in tracked(range(size), f"rendering {split}", size):
            image, label, instance = render(split, index, pixels)
            self._images[index], self._labels[:, index] = image, (label, instance)
        for array in (self._images, self._labels):
            array.setflags(write=False)  # `read` hands out views
        bins = len(KINDS) + 1
        self.table = ClassTable.from_counts(
            [np.bincount(label.ravel(), minlength=bins)[1:] for label in self._labels[0]]
        )

    def read(self, index: int) -> LabelledImage:
        """The image number `index`."""
        return LabelledImage(self._images[index], self._labels[0, index])

    def digest(self) -> str:
        """Identifies the data by names and sizes, as pixels may differ between processors that
        round differently."""
        what = repr((self.classes, self.ids, self._images.shape))
        return hashlib.sha256(what.encode()).hexdigest()[:8]

    def instances(self, index: int) -> UInt8[np.ndarray, "height width"]:
        """The instances of the image number `index`."""
        return self._labels[1, index]
