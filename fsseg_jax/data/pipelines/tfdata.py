"""Batches of episodes by tf.data: TensorFlow ops decode and augment images in parallel.

This is the only pipeline module that imports TensorFlow, which it keeps off every accelerator.

A single affine map per image, from the network's square to the file's own pixels, describes its
augmentation (flip, resize and crop, rotation): the image is shrunk with antialiasing and sampled
through the map bilinearly, its label at the nearest pixel.
"""

import functools
import itertools
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # log errors only, not build details

import tensorflow as tf

from fsseg_jax.data.annotations import BOXES, annotated, square_marks
from fsseg_jax.data.pipelines.augment import OUTSIDE, Geometry
from fsseg_jax.data.pipelines.recipe import Recipe
from fsseg_jax.data.sampling import Items
from fsseg_jax.data.source import Source
from fsseg_jax.data.squares import bordered, square
from fsseg_jax.episode import IGNORE, AnyArray, Episode, EpisodeIds
from fsseg_jax.errors import UserError

for kind in ("GPU", "TPU"):  # leave the accelerators and their memory to JAX
    tf.config.set_visible_devices([], kind)

_BYTES = [bytes([value]) for value in range(256)]
# A cyclic redundancy check is linear: setting the colour type of any PNG header from palette (3)
# to grey (0) changes its checksum by this constant.
_GREY_CHECKSUM = zlib.crc32(bytes(17)) ^ zlib.crc32(bytes(13) + b"\x03" + bytes(3))


def decode_label(png: tf.Tensor) -> tf.Tensor:
    """Decodes a PNG of class ids to (height, width, 1) uint8.

    TensorFlow's decoder maps a palette's indices to colours. To keep the indices, a palette file
    is first declared greyscale: the colour type and checksum of its header change, and everything
    between the header and the pixels (the palette) is dropped.
    """
    depth = tf.io.decode_raw(tf.strings.substr(png, 24, 1), tf.uint8)[0]
    is_palette = tf.equal(tf.strings.substr(png, 25, 1), b"\x03")

    def as_grey() -> tf.Tensor:
        checksum = tf.bitwise.bitwise_xor(
            tf.io.decode_raw(tf.strings.substr(png, 29, 4), tf.uint8),
            tf.constant(list(_GREY_CHECKSUM.to_bytes(4, "big")), tf.uint8),
        )
        parts = tf.strings.split(png, b"IDAT", maxsplit=1)
        return tf.strings.join(
            [
                tf.strings.substr(png, 0, 25),
                b"\x00",
                tf.strings.substr(png, 26, 3),
                tf.strings.reduce_join(tf.gather(_BYTES, tf.cast(checksum, tf.int32))),
                tf.strings.substr(parts[0], -4, 4),  # the length of the pixels' chunk
                b"IDAT",
                parts[1],
            ]
        )

    label = tf.io.decode_png(tf.cond(is_palette, as_grey, lambda: png), channels=1)
    # The decoder stretches grey values of 1, 2 and 4 bits to 0..255: undo this for indices.
    step = 255 // (tf.bitwise.left_shift(1, tf.cast(depth, tf.int32)) - 1)
    return tf.where(is_palette, label // tf.cast(step, tf.uint8), label)


def augment(
    image: tf.Tensor, label: tf.Tensor, geometry: Geometry, size: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Applies the same flip, resize and crop, and rotation to an image and its label.

    Pixels outside the image are grey (`OUTSIDE`) with label 255.

    Args:
        image: (height, width, 3) uint8.
        label: (height, width, 1) uint8 or int32.
        geometry: the image's augmentation, as tensors.
        size: side of the result.

    Returns:
        (size, size, 3) uint8, and (size, size) of the label's dtype.
    """
    side, matrix, shift = geometry
    image_size = tf.cast(tf.shape(image)[:2], tf.float32)
    square = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=tf.cast([side, side], tf.int32),
        scale=side / image_size,
        translation=[0.0, 0.0],
        kernel_type="triangle",
        antialias=True,
    )
    image = _transform(square, matrix, shift, size, "BILINEAR", fill=OUTSIDE)
    # Adding half a grey level turns the cast's truncation into rounding. Weights are positive
    # and sum to 1, so that values stay in 0..255.
    image = tf.cast(image + 0.5, tf.uint8)

    return image[0], nearest(label, geometry, size, outside=IGNORE)


def nearest(codes: tf.Tensor, geometry: Geometry, size: int, outside: int) -> tf.Tensor:
    """Samples codes, (height, width, 1), at the nearest pixel to each of (size, size)."""
    side, matrix, shift = geometry
    to_file = (tf.cast(tf.shape(codes)[:2], tf.float32) / side)[::-1]
    matrix, shift = matrix * to_file[:, None], shift * to_file
    # The operation fills with 0, so subtract the wanted fill value first and add it afterwards.
    outside = tf.cast(outside, codes.dtype)
    moved = _transform(codes[None] - outside, matrix, shift, size, "NEAREST", fill=0) + outside
    return moved[0, ..., 0]


def _transform(
    images: tf.Tensor, matrix: tf.Tensor, shift: tf.Tensor, size: int, interpolation: str, fill: int
) -> tf.Tensor:
    """Samples `images` at matrix @ (x, y) + shift.

    Coordinates start at the corner of the image, whereas the op counts from a pixel's centre.
    """
    shift += tf.reduce_sum(matrix, axis=1) * 0.5 - 0.5
    rows = tf.concat([matrix, shift[:, None]], axis=1)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.concat([tf.reshape(rows, [1, 6]), tf.zeros([1, 2])], axis=1),
        output_shape=[size, size],
        fill_value=float(fill),
        interpolation=interpolation,
        fill_mode="CONSTANT",
    )


def batches(source: Source, items: Items, recipe: Recipe, start: int = 0) -> Iterator[Episode]:
    """Yields this process's slices of all batches from step `start` on, as NumPy arrays.

    A batch is a pure function of the source, items, recipe and its step, whichever step the stream
    starts at. At the batch of a broken file, UserError is raised.
    """
    iterator = iter(_dataset(source, items, recipe, start).as_numpy_iterator())
    for step in itertools.count(start):
        try:
            batch = next(iterator)
        # TensorFlow's messages may quote the file's bytes, which are not always valid UTF-8.
        except (tf.errors.OpError, UnicodeDecodeError) as error:
            _reread(source, recipe.episodes(items, _numbers(recipe, step)), recipe)
            raise UserError(f"a file of step {step} cannot be decoded: {error}") from None
        if recipe.marked:
            supports = batch["support_label"], batch.pop("marks")
            episodes = zip(*supports, recipe.choices(_numbers(recipe, step)), strict=True)
            batch["support_label"] = np.stack(
                [annotated(*episode, recipe.annotation.kind) for episode in episodes]
            )
        yield Episode(**batch)


def _numbers(recipe: Recipe, step: int) -> np.ndarray:
    """Numbers of this process's episodes in a step."""
    return step * recipe.batch_size + recipe.process * recipe.share + np.arange(recipe.share)


def _reread(source: Source, ids: EpisodeIds, recipe: Recipe) -> None:
    """Reads a batch's images one by one, to raise the UserError that names the broken file."""
    for number in np.unique(ids.images):
        source.read(number)
        if recipe.annotation.kind in BOXES:
            source.instances(number)


def _dataset(source: Source, items: Items, recipe: Recipe, start: int) -> tf.data.Dataset:
    """The steps from `start` on, as dictionaries of an Episode's fields and, if any, `marks`."""
    load = _loader(source, recipe)

    def augmented(number: tf.Tensor, geometry: Geometry) -> tuple[tf.Tensor, ...]:
        image, label, *marks = load(number)
        marks = [nearest(mark, geometry, recipe.image_size, outside=0) for mark in marks]
        return *augment(image, label, geometry, recipe.image_size), *marks

    drawn = tf.data.Dataset.range(start, np.iinfo(np.int64).max).map(_drawing(items, recipe))
    images = (
        drawn.map(lambda images, _: images)
        .unbatch()
        .map(augmented, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(recipe.share * recipe.slots, drop_remainder=True)
    )
    ids = drawn.map(lambda _, ids: ids)
    assemble = functools.partial(_assemble, recipe)
    dataset = tf.data.Dataset.zip(ids, images).map(assemble).prefetch(2)
    options = tf.data.Options()
    options.threading.max_intra_op_parallelism = 1  # images are processed in parallel already
    return dataset.with_options(options)


def _drawing(items: Items, recipe: Recipe) -> Callable[[tf.Tensor], Any]:
    """A function of a step: ((image numbers, geometry), (class ids, query indices))."""
    count = recipe.share * recipe.slots

    @functools.lru_cache(maxsize=64)  # the streams of images and of ids are a few steps apart
    def drawn_at(step: int) -> tuple[AnyArray, ...]:
        numbers = _numbers(recipe, step)
        ids, geometry = recipe.episodes(items, numbers), recipe.geometry(numbers)
        integers = (ids.images.ravel(), ids.classes, ids.query_index)
        flat = (field.reshape(-1, *field.shape[2:]) for field in geometry)
        return *(field.astype(np.int32) for field in integers), *flat

    def draw(step: tf.Tensor) -> Any:
        drawn = tf.numpy_function(
            lambda step: drawn_at(int(step)),
            [step],
            (tf.int32,) * 3 + (tf.float32,) * 3,
            stateful=False,
        )
        shapes = ([count], [recipe.share, recipe.ways], [recipe.share])
        shapes += ([count], [count, 2, 2], [count, 2])
        images, classes, query_index, *geometry = map(tf.ensure_shape, drawn, shapes)
        return (images, Geometry(*geometry)), (classes, query_index)

    return draw


def _loader(source: Source, recipe: Recipe) -> Callable[[tf.Tensor], tuple[tf.Tensor, ...]]:
    """A function of an image's number: the image, its label and, if any, its marks."""
    if source.files and not recipe.marked:
        return _file_loader(source.files, recipe.border)
    # Not uint16, which TensorFlow's projective transform does not support.
    label_type = tf.uint8 if source.label_type == np.uint8 else tf.int32

    def read(number: np.ndarray) -> tuple[np.ndarray, ...]:
        whole = bordered(source.read(int(number)), recipe.border)
        arrays = [whole.image, whole.label[..., None].astype(label_type.as_numpy_dtype)]
        if recipe.marked:
            label = square(whole, recipe.image_size).label
            arrays.append(square_marks(source, int(number), label, recipe.annotation)[..., None])
        return tuple(arrays)

    def load(number: tf.Tensor) -> tuple[tf.Tensor, ...]:
        types = (tf.uint8, label_type, tf.uint8)[: 2 + recipe.marked]
        image, *codes = tf.numpy_function(read, [number], types, stateful=False)
        image.set_shape([None, None, 3])
        for code in codes:
            code.set_shape([None, None, 1])
        return image, *codes

    return load


def _file_loader(
    files: Sequence[tuple[str, str]], border: str
) -> Callable[[tf.Tensor], tuple[tf.Tensor, ...]]:
    """As `_loader`, decoding (JPEG, PNG label) files in TensorFlow."""
    image_files, label_files = (tf.constant(paths) for paths in zip(*files, strict=True))

    def load(number: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # The accurate transform gives exactly Pillow's pixels, which evaluation uses.
        image = tf.io.decode_jpeg(
            tf.io.read_file(image_files[number]), channels=3, dct_method="INTEGER_ACCURATE"
        )
        label = decode_label(tf.io.read_file(label_files[number]))
        if border == "background":
            label = tf.where(label == IGNORE, tf.zeros_like(label), label)
        return image, label

    return load


def _assemble(
    recipe: Recipe, ids: tuple[tf.Tensor, ...], arrays: tuple[tf.Tensor, ...]
) -> dict[str, tf.Tensor]:
    """A step's fields of an Episode from its ids, and its images, labels and marks in a row."""
    size = recipe.image_size
    by_slot = [recipe.share, recipe.slots, size, size]
    by_shot = [recipe.share, recipe.ways, recipe.shots, size, size]
    classes, query_index = ids
    images = tf.reshape(arrays[0], [*by_slot, 3])
    labels, *marks = (tf.reshape(array, by_slot) for array in arrays[1:])
    renumbered = tf.cast(tf.where(labels == IGNORE, IGNORE, 0), tf.uint8)
    for way in range(recipe.ways):
        is_class = labels == tf.cast(classes[:, way, None, None, None], labels.dtype)
        renumbered = tf.where(is_class, tf.cast(way + 1, tf.uint8), renumbered)
    episodes = {
        "support_image": tf.reshape(images[:, :-1], [*by_shot, 3]),
        "support_label": tf.reshape(renumbered[:, :-1], by_shot),
        "query_image": images[:, -1],
        "query_label": renumbered[:, -1],
        "class_id": classes,
        "query_index": query_index,
    }
    if marks:
        episodes["marks"] = tf.reshape(marks[0][:, :-1], by_shot)
    return episodes
