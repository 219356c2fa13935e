"""The tf.data pipeline gives the sampler's episodes, decoded and augmented as documented."""

import io
import itertools
import os
import pathlib
import zlib

import jax
import numpy as np
import pytest
import tensorflow as tf
from helpers_data import ALL, assert_equal, assert_same_picture, options
from PIL import Image

from fsseg_jax.data.annotations import Annotation
from fsseg_jax.data.pipelines import tfdata
from fsseg_jax.data.pipelines.recipe import Recipe
from fsseg_jax.data.sampling import sample
from fsseg_jax.data.source import ClassTable, LabelledImage, Source
from fsseg_jax.data.sources.voc import VOC
from fsseg_jax.data.squares import read_square
from fsseg_jax.episode import episode_label
from fsseg_jax.errors import UserError

# ----------------------------------------------------------------------------- labels


def decode(png):
    return tfdata.decode_label(tf.constant(png)).numpy()


def saved(picture, **options):
    file = io.BytesIO()
    picture.save(file, "png", **options)
    return file.getvalue()


def opened(png):
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture), picture.mode


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("shape", [(7, 9), (33, 64)])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_labels_are_indices(bits, shape, transparent):
    rng = np.random.default_rng(bits)
    label = rng.integers(0, 2**bits, shape, np.uint8)
    for _ in range(3):
        picture = Image.fromarray(label)
        picture.putpalette(rng.integers(0, 256, 3 * 2**bits).tolist())
        options = {"transparency": bytes(range(2**bits))} if transparent else {}
        png = saved(picture, bits=bits, **options)
        assert png[24:26] == bytes([bits, 3])  # it is a palette file of so many bits
        assert (b"tRNS" in png) == transparent
        result = decode(png)
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result[..., 0], label)
        np.testing.assert_array_equal(result[..., 0], opened(png)[0])


def interlaced_png(label):
    """A palette PNG in Adam7's order, which Pillow reads but does not write."""

    def chunk(name, content):
        checksum = zlib.crc32(name + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + name + content + checksum

    height, width = (side.to_bytes(4, "big") for side in label.shape)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2)]
    passes += [(0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [b"\0" + row.tobytes() for y, x, dy, dx in passes for row in label[y::dy, x::dx]]
    palette = np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes()
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", width + height + bytes([8, 3, 0, 0, 1]))
        + chunk(b"PLTE", palette)
        + chunk(b"IDAT", zlib.compress(b"".join(rows)))
        + chunk(b"IEND", b"")
    )


def test_interlaced_palette_labels_are_indices():
    label = np.random.default_rng(0).integers(0, 256, (19, 27), np.uint8)
    png = interlaced_png(label)
    np.testing.assert_array_equal(opened(png)[0], label)
    np.testing.assert_array_equal(decode(png)[..., 0], label)


def test_labels_of_a_data_set_are_decoded_as_pillow_does(voc_source):
    modes = set()
    for _, path in voc_source.files:
        png = pathlib.Path(path).read_bytes()
        label, mode = opened(png)
        np.testing.assert_array_equal(decode(png)[..., 0], label)
        modes.add(mode)
    assert modes == {"P", "L"}


# ----------------------------------------------------------------------------- batches

NONE, FLIP = options(), options(flip=True)


class Numbered(Source):
    """Distinguishable images: number n has the colour (n, 200 in the left half, n)."""

    name = "numbered"
    classes = ("cat", "dog", "horse")
    folds = ((1,), (2, 3))
    ids = tuple("abcdefghi")

    def __init__(self, broken=None):
        self.broken = broken
        counts = np.ones((9, 3), int)
        counts[::2, 0] = counts[:4, 1] = 0
        self.table = ClassTable.from_counts(counts)

    def read(self, index):
        if index == self.broken:
            raise UserError(f"image {self.ids[index]} is broken.")
        image = np.full((8, 8, 3), index, np.uint8)
        image[:, :4, 1] = 200
        label = np.zeros((8, 8), np.uint8)
        for row, class_id in enumerate(self.table.class_id[self.table.image == index]):
            label[2 * row : 2 * row + 2] = class_id
        return LabelledImage(image, label)


@pytest.fixture(scope="module")
def voc_source(make_voc):
    return VOC(make_voc(train=12, val=1, classes=range(1, 7), shown=3), "train")


@pytest.fixture(scope="module")
def memory_source(make_source):
    return make_source()


def stream(source, settings=ALL, start=0, **fields):
    """Batches of a recipe with defaults for irrelevant fields."""
    defaults = {"ways": 2, "shots": 2, "batch_size": 4, "image_size": 32, "seed": 3}
    items = source.table.items(range(1, len(Numbered.classes) + 1))
    recipe = Recipe(augmentation=settings, **(defaults | fields))
    return tfdata.batches(source, items, recipe, start)


def take(count, batches):
    """Copies of the first batches, whose memory a pipeline may reuse."""
    return [jax.tree.map(np.array, batch) for batch in itertools.islice(batches, count)]


@pytest.mark.parametrize("kind", ["voc_source", "memory_source"])
def test_batches_do_not_depend_on_where_the_stream_starts(request, kind):
    source = request.getfixturevalue(kind)
    first = take(5, stream(source))
    assert_equal(take(2, stream(source, start=3)), first[3:])
    assert (first[0].query_image != first[1].query_image).any()


@pytest.mark.parametrize("kind", ["voc_source", "memory_source"])
def test_slices_of_all_processes_make_the_batch(request, kind):
    source = request.getfixturevalue(kind)
    whole = take(2, stream(source, start=1))
    slices = [take(2, stream(source, start=1, process=p, processes=2)) for p in range(2)]
    for batch, *parts in zip(whole, *slices, strict=True):
        assert parts[0].query_image.shape[0] == 2
        assert_equal(jax.tree.map(lambda *x: np.concatenate(x), *parts), batch)


@pytest.mark.parametrize(("ways", "shots"), [(1, 2), (3, 1)])
@pytest.mark.parametrize("kind", ["voc_source", "memory_source"])
def test_batches_hold_the_images_that_the_sampler_names(request, kind, ways, shots):
    source = request.getfixturevalue(kind)
    batches = take(2, stream(source, NONE, ways=ways, shots=shots))
    items = source.table.items((1, 2, 3))
    squares = [read_square(source, number, 32) for number in range(len(source))]
    images, labels = (np.stack(arrays) for arrays in zip(*squares, strict=True))
    for step, batch in enumerate(batches):
        ids = sample(items, 3, 4 * step + np.arange(4), ways, shots)
        shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), batch)
        assert shapes.support_image == ((4, ways, shots, 32, 32, 3), "uint8")
        assert shapes.support_label == ((4, ways, shots, 32, 32), "uint8")
        assert shapes.query_image == ((4, 32, 32, 3), "uint8")
        assert shapes.query_label == ((4, 32, 32), "uint8")
        assert batch.class_id.dtype == batch.query_index.dtype == np.int32
        np.testing.assert_array_equal(batch.class_id, ids.classes)
        np.testing.assert_array_equal(batch.query_index, ids.query_index)
        assert_same_picture(batch.support_image, images[ids.supports])
        assert_same_picture(batch.query_image, images[ids.query])
        for row in range(4):
            pairs = [(batch.query_label[row], labels[ids.query[row]])]
            for way, shot in np.ndindex(ways, shots):
                number = ids.supports[row, way, shot]
                pairs.append((batch.support_label[row, way, shot], labels[number]))
                assert way + 1 in batch.support_label[row, way, shot]
            for result, label in pairs:
                expected = episode_label(label, ids.classes[row])
                assert (result != expected).mean() < 0.005


def test_images_are_augmented_each_on_its_own():
    batches = take(50, stream(Numbered(), FLIP, image_size=8))
    flips = []
    for batch in batches:
        supports = batch.support_image[..., 0, 0, 1].reshape(4, -1)
        flips.append(np.column_stack([supports, batch.query_image[:, 0, 0, 1]]) != 200)
    flips = np.concatenate(flips).astype(float)  # 200 episodes of 5 images
    assert np.abs(flips.mean(axis=0) - 0.5).max() < 0.16  # four standard deviations and a half
    correlation = np.corrcoef(flips.T) - np.eye(5)
    assert np.abs(correlation).max() < 0.32


# ----------------------------------------------------------------------------- faults


def steps_until_fault(batches, limit=50):
    """The number of batches before a UserError, and its message."""
    for count in range(limit):
        try:
            next(batches)
        except UserError as error:
            return count, str(error)
    pytest.fail("no fault was found")


@pytest.mark.parametrize("left", ["half", "10 bytes", "nothing"])
@pytest.mark.parametrize("part", [0, 1])
def test_a_broken_file_is_named_at_its_batch(make_voc, part, left):
    source = VOC(make_voc(train=12, val=1, classes=range(1, 7), shown=3), "train")
    ids = sample(source.table.items((1, 2, 3)), 3, range(50), 1, 1)
    first_use = {}
    for step, number in zip(np.arange(50).repeat(2), ids.images.ravel().tolist(), strict=True):
        first_use.setdefault(number, step)
    number, step = max(first_use.items(), key=lambda use: use[1])
    path = pathlib.Path(source.files[number][part])
    if left == "nothing":
        path.unlink()
    else:
        os.truncate(path, 10 if left == "10 bytes" else path.stat().st_size // 2)
    count, message = steps_until_fault(stream(source, ways=1, shots=1, batch_size=1))
    assert count == step > 0
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize("kind", ["box", "scribble"])
def test_a_broken_file_of_objects_is_named_where_boxes_need_it(make_voc, kind):
    root = make_voc(train=12, val=1, classes=range(1, 7), shown=3, objects=True)
    source = VOC(root, "train")
    ids = sample(source.table.items((1, 2, 3)), 3, range(20), 1, 1)
    number = int(ids.query[0])
    path = root / "SegmentationObject" / f"{source.ids[number]}.png"
    path.write_bytes(path.read_bytes()[:60])
    settings = {"ways": 1, "shots": 1, "batch_size": 1, "annotation": Annotation(kind, 5, 32)}
    batches = stream(source, **settings)
    if kind == "scribble":  # which needs no objects
        next(batches)
        return
    count, message = steps_until_fault(batches)
    assert count == 0
    assert str(path) in message
    assert "\n" not in message


def test_a_fault_of_a_source_without_files_is_told():
    count, message = steps_until_fault(stream(Numbered(broken=4), batch_size=1))
    assert message == "image e is broken."
    ids = sample(Numbered().table.items((1, 2, 3)), 3, range(count + 1), 2, 2)
    assert (ids.images == 4).any(axis=1).tolist() == [False] * count + [True]
