"""Batches of episodes by tf.data: decoding and augmentation in TensorFlow ops, in parallel.

The only pipeline module that imports TensorFlow, which it keeps off every accelerator.

One affine map a photograph, from the network's square to the file's own pixels, is the single
description of an augmentation (flip, resize and crop, rotation): the photograph is shrunk with
antialiasing and sampled through it bilinearly, its label to the nearest pixel.
"""

import functools
import os
import zlib
from collections.abc import Iterator

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors, not notes on how it was built

import tensorflow as tf
from ml_collections import ConfigDict

from fsseg_jax.data.annotations import BOXES, DENSE, Annotation, annotated, choose, square_marks
from fsseg_jax.data.pipelines.augment import OUTSIDE, Geometry, episode_geometry
from fsseg_jax.data.source import Source
from fsseg_jax.data.squares import bordered, square
from fsseg_jax.episode import IGNORE, AnyArray, Episode, Items, sample
from fsseg_jax.errors import UserError

for kind in ("GPU", "TPU"):  # the accelerators belong to JAX, memory included
    tf.config.set_visible_devices([], kind)

_BYTES = [bytes([value]) for value in range(256)]
# A cyclic redundancy check is linear: setting the colour type of any PNG header from palette (3)
# to grey (0) changes its checksum by this constant.
_GREY_CHECKSUM = zlib.crc32(bytes(17)) ^ zlib.crc32(bytes(13) + b"\x03" + bytes(3))


def decode_label(png: tf.Tensor) -> tf.Tensor:
    """Decodes a PNG of class ids to (height, width, 1) uint8.

    TensorFlow's decoder returns a palette's colours. Its indices are what the file stores, so a
    palette file is first declared grey: the colour type and the checksum of its header change,
    and what stands between header and pixels (the palette) is left out.
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
    # Grey values of 1, 2 and 4 bits come stretched to 0..255; indices must not.
    step = 255 // (tf.bitwise.left_shift(1, tf.cast(depth, tf.int32)) - 1)
    return tf.where(is_palette, label // tf.cast(step, tf.uint8), label)


def augment(
    image: tf.Tensor, label: tf.Tensor, geometry: Geometry, size: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Flip, resize and crop, rotation; the same geometry for photograph and label.

    What lies outside the photograph is grey (`OUTSIDE`) with label 255.

    Args:
        image: (height, width, 3) uint8.
        label: (height, width, 1) uint8 or int32.
        geometry: of this photograph, as tensors.
        size: side of the result.

    Returns:
        (size, size, 3) uint8 and (size, size) as the label.
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
    # Casting truncates: half a grey level rounds. No value leaves 0..255, as all weights are
    # positive and sum to 1.
    image = tf.cast(image + 0.5, tf.uint8)

    return image[0], nearest(label, geometry, size, outside=IGNORE)


def nearest(codes: tf.Tensor, geometry: Geometry, size: int, outside: int) -> tf.Tensor:
    """The codes, (height, width, 1), on which the window's pixels fall: (size, size)."""
    side, matrix, shift = geometry
    to_file = (tf.cast(tf.shape(codes)[:2], tf.float32) / side)[::-1]
    matrix, shift = matrix * to_file[:, None], shift * to_file
    # The operation fills with 0: what is to be there is taken away before, and added again.
    outside = tf.cast(outside, codes.dtype)
    moved = _transform(codes[None] - outside, matrix, shift, size, "NEAREST", fill=0) + outside
    return moved[0, ..., 0]


def _transform(
    images: tf.Tensor, matrix: tf.Tensor, shift: tf.Tensor, size: int, interpolation: str, fill: int
) -> tf.Tensor:
    """Samples `images` at matrix @ (x, y) + shift; coordinates start at the corner, not at a
    pixel's centre, which is where TensorFlow's op counts from."""
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


def batches(
    source: Source,
    items: Items,
    *,
    ways: int,
    shots: int,
    batch_size: int,
    image_size: int,
    seed: int,
    augmentation: ConfigDict,
    annotation: Annotation = DENSE,
    sampling: str = "classes",
    border: str = "ignored",
    start: int = 0,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Episode]:
    """Batches of episodes number start * batch_size and on, without end, as NumPy arrays.

    A pure function of the arguments: batch number `step` is the same whether the stream started
    there or earlier. Each of `processes` processes makes its own slice of every batch.

    Args:
        source: the photographs.
        items: what to draw.
        ways, shots: N and K.
        batch_size: episodes a step, over all processes.
        image_size: side of the square that photographs are resized to.
        seed: of the episodes and of the augmentation.
        augmentation: `config.data.augment`.
        annotation: how supports are outlined.
        sampling: how queries come, see `episode.sample`.
        border: what pixels of label 255 count as, see `source.bordered`; those outside of the
            photographs are ignored all the same.
        start: the first step.
        process, processes: this process's number and how many there are.

    Raises:
        UserError: a file is broken (at its batch).
    """
    local_size = batch_size // processes
    slots = ways * shots + 1  # photographs an episode: way by way, and the query last

    def numbers(step: int) -> np.ndarray:
        return step * batch_size + process * local_size + np.arange(local_size)

    @functools.lru_cache(maxsize=64)  # photographs and ids are two streams, a few steps apart
    def drawn_at(step: int) -> tuple[AnyArray, ...]:
        index = numbers(step)
        ids = sample(items, seed, index, ways, shots, sampling=sampling)
        geometry = episode_geometry(seed, index, slots, image_size, augmentation)
        geometry = (field.reshape(-1, *field.shape[2:]) for field in geometry)
        integers = (ids.images.ravel(), ids.classes, ids.query_index)
        return *(field.astype(np.int32) for field in integers), *geometry

    def draw(step: np.ndarray) -> tuple[AnyArray, ...]:
        return drawn_at(int(step))

    def names(step: tf.Tensor) -> tuple[tf.Tensor, ...]:
        drawn = tf.numpy_function(draw, [step], (tf.int32,) * 3 + (tf.float32,) * 3, stateful=False)
        count = local_size * slots
        shapes = ([count], [local_size, ways], [local_size], [count], [count, 2, 2], [count, 2])
        photographs, classes, query_index, *geometry = map(tf.ensure_shape, drawn, shapes)
        return (photographs, Geometry(*geometry)), (classes, query_index)

    marked = annotation.kind != "dense"
    if source.files and not marked:
        image_files, label_files = (tf.constant(paths) for paths in zip(*source.files, strict=True))

        def load(photograph: tf.Tensor) -> tuple[tf.Tensor, ...]:
            # The accurate transform gives the very pixels that Pillow gives the evaluation.
            image = tf.io.decode_jpeg(
                tf.io.read_file(image_files[photograph]),
                channels=3,
                dct_method="INTEGER_ACCURATE",
            )
            label = decode_label(tf.io.read_file(label_files[photograph]))
            if border == "background":
                label = tf.where(label == IGNORE, tf.zeros_like(label), label)
            return image, label
    else:
        # TensorFlow's operation knows no uint16.
        label_type = tf.uint8 if max(source.class_names) < IGNORE else tf.int32

        def read(photograph: np.ndarray) -> tuple[np.ndarray, ...]:
            whole = bordered(source.read(int(photograph)), border)
            arrays = [whole.image, whole.label[..., None].astype(label_type.as_numpy_dtype)]
            if marked:
                label = square(whole, image_size).label
                marks = square_marks(source, int(photograph), label, annotation)
                arrays.append(marks[..., None])
            return tuple(arrays)

        def load(photograph: tf.Tensor) -> tuple[tf.Tensor, ...]:
            types = (tf.uint8, label_type, tf.uint8)[: 2 + marked]
            image, *codes = tf.numpy_function(read, [photograph], types, stateful=False)
            image.set_shape([None, None, 3])
            for code in codes:
                code.set_shape([None, None, 1])
            return image, *codes

    def photograph(number: tf.Tensor, geometry: Geometry) -> tuple[tf.Tensor, ...]:
        image, label, *marks = load(number)
        marks = [nearest(mark, geometry, image_size, outside=0) for mark in marks]
        return *augment(image, label, geometry, image_size), *marks

    def assemble(
        ids: tuple[tf.Tensor, ...], photographs: tuple[tf.Tensor, ...]
    ) -> dict[str, tf.Tensor]:
        classes, query_index = ids
        images, labels, *marks = photographs
        images = tf.reshape(images, [local_size, slots, image_size, image_size, 3])
        labels = tf.reshape(labels, [local_size, slots, image_size, image_size])
        renumbered = tf.cast(tf.where(labels == IGNORE, IGNORE, 0), tf.uint8)
        for way in range(ways):
            is_class = labels == tf.cast(classes[:, way, None, None, None], labels.dtype)
            renumbered = tf.where(is_class, tf.cast(way + 1, tf.uint8), renumbered)
        shape = [local_size, ways, shots, image_size, image_size]
        episodes = {
            "support_image": tf.reshape(images[:, :-1], [*shape, 3]),
            "support_label": tf.reshape(renumbered[:, :-1], shape),
            "query_image": images[:, -1],
            "query_label": renumbered[:, -1],
            "class_id": classes,
            "query_index": query_index,
        }
        if marked:
            whole = tf.reshape(marks[0], [local_size, slots, image_size, image_size])
            episodes["marks"] = tf.reshape(whole[:, :-1], shape)
        return episodes

    steps = tf.data.Dataset.range(start, np.iinfo(np.int64).max)
    drawn = steps.map(names)
    ids = drawn.map(lambda _, ids: ids)
    photographs = (
        drawn.map(lambda photographs, _: photographs)
        .unbatch()
        .map(photograph, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(local_size * slots, drop_remainder=True)
    )
    dataset = tf.data.Dataset.zip(ids, photographs).map(assemble).prefetch(2)
    options = tf.data.Options()
    options.threading.max_intra_op_parallelism = 1  # photographs are parallel already
    dataset = dataset.with_options(options)

    iterator = iter(dataset.as_numpy_iterator())
    step = start
    while True:
        try:
            batch = next(iterator)
        # Messages that quote the file are not always text.
        except (tf.errors.OpError, UnicodeDecodeError) as error:
            # The decoder does not say which file: read this batch's again, one by one.
            ids = sample(items, seed, numbers(step), ways, shots, sampling=sampling)
            for number in np.unique(ids.images):
                source.read(number)
                if annotation.kind in BOXES:
                    source.instances(number)
            raise UserError(f"a file of step {step} cannot be decoded: {error}") from None
        if marked:
            labels, marks = batch["support_label"], batch.pop("marks")
            bits = choose(seed, numbers(step), ways, shots)
            batch["support_label"] = np.stack(
                [
                    annotated(*episode, annotation.kind)
                    for episode in zip(labels, marks, bits, strict=True)
                ]
            )
        yield Episode(**batch)
        step += 1
