"""The device pipeline: the episodes of the tf.data pipeline, from an array on the mesh."""

import re

import jax
import numpy as np
import pytest
from helpers import in_episode_numbering
from helpers_annotations import Pixels
from helpers_data import first_batches

from fsseg_jax.config import default_config
from fsseg_jax.data import training_items, training_pipeline
from fsseg_jax.data.pipelines.augment import OUTSIDE, episode_geometry
from fsseg_jax.data.sampling import sample
from fsseg_jax.data.source import ClassTable, LabelledImage, Source, class_numbers, count_classes
from fsseg_jax.data.sources.voc import VOC
from fsseg_jax.data.squares import read_square
from fsseg_jax.devices import AXIS, make_mesh
from fsseg_jax.episode import IGNORE, UNLABELLED, EpisodeIds
from fsseg_jax.evaluation.evaluator import Evaluator
from fsseg_jax.models.panet import PANet


@pytest.fixture(scope="module")
def source(make_voc):
    return VOC(make_voc(train=40, val=1, shown=6, seed=1), "train")


def make_config(pipeline="device", **fields):
    config = default_config("panet")
    config.image_size = 32
    config.seed = 7
    config.data.pipeline = pipeline
    config.data.train_min_pixels = 1
    config.train.batch_size = 4
    config.data.augment.flip = False
    config.update(fields)
    return config


# ----------------------------------------------------------------------------- episodes


@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize("ways", [1, 2])
def test_both_pipelines_make_the_same_episodes(source, ways, shots):
    ours, theirs = (
        first_batches(make_config(pipeline, ways=ways, shots=shots), source)
        for pipeline in ("device", "tfdata")
    )
    np.testing.assert_array_equal(ours.class_id, theirs.class_id)
    np.testing.assert_array_equal(ours.query_index, theirs.query_index)
    for name in ("support_image", "query_image"):
        left, right = (getattr(batch, name).astype(int) for batch in (ours, theirs))
        assert np.abs(left - right).max() <= 2  # images differ by far more
        assert left.std() > 20
    for name in ("support_label", "query_label"):
        left, right = (getattr(batch, name) for batch in (ours, theirs))
        assert left.dtype == right.dtype == np.uint8
        assert left.shape == right.shape
        # Between two pixels of the file, either may be the nearest.
        assert (left != right).mean() < 0.02
        assert set(np.unique(left)) == {*range(ways + 1), 255}
    assert len(set(ours.query_index.tolist())) > 6


@pytest.mark.parametrize("sampling", ["items", "photographs"])
def test_both_pipelines_take_the_same_turns(source, sampling):
    """Over an epoch and part of the next, from the compiled step."""
    config = make_config(ways=2)
    config.data.sampling, config.data.fold = sampling, 3
    items = training_items(config.data, source)
    count = items.epoch(sampling)
    steps = count // 4 + 2
    ours = first_batches(config, source, steps, devices=2)
    expected = sample(items, 7, np.arange(4 * steps), 2, 1, sampling=sampling)
    np.testing.assert_array_equal(ours.query_index, expected.query_index)
    np.testing.assert_array_equal(ours.class_id, expected.classes)
    turns = ours.query_index if sampling == "items" else items.image[ours.query_index]
    assert len(set(turns[:count].tolist())) == count
    config.data.pipeline = "tfdata"
    theirs = first_batches(config, source, 2)
    np.testing.assert_array_equal(theirs.query_index, ours.query_index[:8])
    np.testing.assert_array_equal(theirs.class_id, ours.class_id[:8])


@pytest.mark.parametrize("kind", ["dense", "scribble"])
def test_borders_may_be_background_in_both_pipelines(fresh, kind):
    """Label 255 of images becomes background; pixels outside of images stay ignored."""
    batches = {}
    for pipeline in ("device", "tfdata"):
        for border in ("ignored", "background", "ignored"):  # what is kept is not mixed up
            config = make_config(pipeline, support_annotation=kind, annotation_width=3)
            config.data.border = border
            config.data.augment.scale = (0.5, 0.5)
            batches[pipeline, border] = first_batches(config, fresh, 2)
    for pipeline in ("device", "tfdata"):
        ignored, background = (batches[pipeline, b] for b in ("ignored", "background"))
        np.testing.assert_array_equal(ignored.query_image, background.query_image)
        inside = (ignored.query_image != OUTSIDE).any(axis=-1)
        assert (ignored.query_label[inside] == IGNORE).any()
        expected = np.where(inside & (ignored.query_label == IGNORE), 0, ignored.query_label)
        assert (background.query_label == expected).mean() > 0.99
        inside = (ignored.support_image != OUTSIDE).any(axis=-1)
        assert (background.support_label[inside] == IGNORE).mean() < 0.01
        outside = IGNORE if kind == "dense" else UNLABELLED
        assert (background.support_label[~inside] == outside).mean() > 0.99
    ours, theirs = (batches[pipeline, "background"] for pipeline in ("device", "tfdata"))
    assert (ours.query_label != theirs.query_label).mean() < 0.02


@pytest.mark.parametrize("rotation", [0.0, 30.0])
def test_both_pipelines_augment_alike(source, rotation):
    """They show the same window of the same image, although the device resizes it twice."""
    pipelines = {}
    for pipeline in ("device", "tfdata"):
        config = make_config(pipeline, image_size=48)
        config.data.augment.update(flip=True, scale=(0.7, 1.2), rotation=rotation)
        pipelines[pipeline] = first_batches(config, source)
    ours, theirs = pipelines["device"], pipelines["tfdata"]
    for name in ("query_image", "query_label"):
        left, right = (getattr(batch, name).astype(int) for batch in (ours, theirs))
        mirrored = right[:, :, ::-1]
        if name == "query_image":
            error, other = (np.abs(left - x).mean((1, 2, 3)) for x in (right, mirrored))
        else:
            error, other = ((left != x).mean((1, 2)) for x in (right, mirrored))
            assert error.mean() < 0.1  # the borders of objects are one pixel wide
        assert (error < 0.6 * other).all(), name  # another window would be told


def test_batches_are_those_of_the_sampler_whatever_the_step_before(source):
    config = make_config(ways=2, shots=2)
    items = training_items(config.data, source)
    pipeline = training_pipeline(config, source, items, make_mesh(1))
    batch = jax.jit(pipeline.draw)(pipeline.feed(1), 0, 1000)
    ids = sample(items, 7, 4000 + np.arange(4), 2, 2)
    np.testing.assert_array_equal(batch.class_id, ids.classes)
    squares = np.stack([read_square(source, n, 32)[0] for n in range(len(source))])
    np.testing.assert_array_equal(batch.support_image, squares[ids.supports])
    np.testing.assert_array_equal(batch.query_image, squares[ids.query])


def test_more_detail_may_be_held_than_is_shown(source):
    """Enlarging squares of 64 pixels twice comes close to tf.data, which reads the file."""
    errors = {}
    for size in (0, 64):
        config = make_config()
        config.data.augment.scale = (2.0, 2.0)
        config.data.device.size = size
        ours = first_batches(config, source).query_image.astype(int)
        config.data.pipeline = "tfdata"
        errors[size] = np.abs(ours - first_batches(config, source).query_image).mean()
    assert errors[64] < 0.5 * errors[0]


@pytest.mark.parametrize("sharded", [False, True])
def test_eight_devices_make_the_batches_of_one(source, sharded):
    config = make_config(ways=2)
    config.train.batch_size = 8
    config.data.augment.update(flip=True, scale=(0.7, 1.2))
    expected = first_batches(config, source)
    config.data.device.sharded = sharded
    batches = first_batches(config, source, devices=8)

    def assert_same(left, right):
        difference = left.astype(int) - right
        assert np.abs(difference).max() <= 1  # sums in another order round differently
        assert (difference != 0).mean() < 0.001

    jax.tree.map(assert_same, batches, expected)


@pytest.mark.parametrize("sharded", [False, True])
def test_batches_are_split_and_images_stay_where_they_are(source, sharded):
    config = make_config()
    config.train.batch_size = 8
    config.data.device.sharded = sharded
    mesh = make_mesh(8)
    pipeline = training_pipeline(config, source, training_items(config.data, source), mesh)
    pixels = pipeline.feed(1).pixels
    held = [shard.data.shape[0] for shard in pixels.addressable_shards]
    assert held == [5 if sharded else 40] * 8
    draw = jax.jit(pipeline.draw)
    batch = draw(pipeline.feed(1), 0, 0)
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
    assert batch.query_image.sharding.is_equivalent_to(spec, 4)
    # No device is sent the images of all others.
    program = draw.lower(pipeline.feed(1), 0, 0).compile().as_text()
    assert not re.search(r"u8\S* all-gather", program)  # of ids it is
    assert ("reduce-scatter" in program or "all-reduce" in program) == sharded


# ----------------------------------------------------------------------------- many classes


class Many(Source):
    """520 classes; each image shows two whose low bytes equal one another's, those of background,
    or those of reserved labels."""

    name = "many"
    classes = tuple(f"class {number}" for number in range(520))
    pairs = ((44, 300), (254, 510), (256, 511), (1, 257))
    shown = tuple(sorted(sum(pairs, ())))
    folds = (tuple(np.setdiff1d(class_numbers(520), shown).tolist()),)
    ids = tuple(f"image {number}" for number in range(16))

    def __init__(self):
        counts = [count_classes(self.read(index).label, "", self) for index in range(16)]
        self.table = ClassTable.from_counts(counts)

    def read(self, index):
        label = np.zeros((32, 32), np.uint16)
        label[2 + index : 12 + index, 3:15], label[4:20, 17:30] = self.pairs[index % 4]
        label[25:28, 5:20] = 255
        image = np.zeros((32, 32, 3), np.uint8)
        for channel, value in enumerate((0, *self.pairs[index % 4])):
            image[label == value, channel] = 255
        return LabelledImage(image, label)


@pytest.mark.parametrize("rotation", [0.0, 25.0])
@pytest.mark.parametrize("pipeline", ["device", "tfdata"])
def test_ids_beyond_a_byte_are_not_taken_for_others(pipeline, rotation):
    many = Many()
    config = make_config(pipeline, ways=4)
    config.train.batch_size = 8
    scale = (0.8, 1.3) if rotation else (1.0, 1.0)
    config.data.augment.update(rotation=rotation, scale=scale)
    batches = first_batches(config, many)
    items = many.table.items(many.shown)
    ids = sample(items, 7, np.arange(24), 4, 1)
    np.testing.assert_array_equal(batches.class_id, ids.classes)
    assert set(ids.classes.ravel().tolist()) == set(many.shown)
    geometry = episode_geometry(7, np.arange(24), 5, 32, config.data.augment)
    window = np.stack(np.meshgrid(np.arange(32) + 0.5, np.arange(32) + 0.5), axis=-1)
    for row, slot in np.ndindex(24, 5):
        label = many.read(ids.images[row, slot]).label
        side, matrix, shift = (field[row, slot] for field in geometry)
        points = np.floor((window @ matrix.T + shift) * 32 / side).astype(int)
        x, y = np.clip(np.moveaxis(points, -1, 0), 0, 31)
        inside = ((points >= 0) & (points < 32)).all(-1)
        expected = in_episode_numbering(np.where(inside, label[y, x], 255), ids.classes[row])
        result = batches.query_label[row] if slot == 4 else batches.support_label[row, slot, 0]
        assert result.dtype == np.uint8
        # Between two pixels, either may be the nearest.
        assert (result != expected).mean() <= (0.01 if rotation else 0)


@pytest.mark.parametrize("scored_at", ["network", "photograph"])
def test_evaluation_tells_ids_beyond_a_byte_apart(scored_at):
    """As each class and the background has its own colour, the prediction is perfect."""
    many = Many()
    config = make_config()
    config.eval.scored_at = scored_at
    order = [0, 1, 2, 3] * 2
    classes = np.array([*many.pairs, *(pair[::-1] for pair in many.pairs)])
    supports = np.array([[[pair], [pair + 4]] for pair in order])
    query = np.array([pair + 8 for pair in order])
    episodes = EpisodeIds(classes, supports, query, query)
    scorer = Evaluator(PANet(backbone=Pixels()), many, episodes, make_mesh(1), config)
    cache = scorer.encode({})
    counts = scorer.score({}, cache).borders["ignored"]
    for row in range(8):
        label = in_episode_numbering(many.read(query[row]).label, classes[row])
        areas = [(label == way).sum() for way in range(3)]
        np.testing.assert_array_equal(counts[row], [[area, 0, 0] for area in areas])
        prediction = scorer.predict({}, cache, row)
        np.testing.assert_array_equal(prediction[label != 255], label[label != 255])
    support_label = scorer.example({}, cache, 4, "", 1.0).support_label
    expected = [[in_episode_numbering(many.read(row).label, classes[4])] for row in (0, 4)]
    np.testing.assert_array_equal(support_label, expected)
