"""Weak annotations in the batches of both pipelines, and in evaluation."""

import functools
import types

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import in_episode_numbering
from helpers_annotations import Objects, Pixels, possible_boxes, shrunk
from helpers_data import first_batches
from ml_collections import ConfigDict

from fsseg_jax.config import default_config
from fsseg_jax.data.annotations import Annotation, annotated, choose, square_marks, strokes
from fsseg_jax.data.pipelines.augment import episode_geometry
from fsseg_jax.data.pipelines.device import decode
from fsseg_jax.data.sampling import sample
from fsseg_jax.devices import make_mesh
from fsseg_jax.episode import EpisodeIds
from fsseg_jax.evaluation.evaluator import Evaluator
from fsseg_jax.models.panet import PANet

PIPELINES = pytest.mark.parametrize("pipeline", ["device", "tfdata"])
AUGMENT = {"flip": True, "scale": (0.7, 1.5), "rotation": 25.0, "query": True, "crop_query": True}


@functools.cache
def two_batches(pipeline, kind, augmented=False):
    """Of 2-way 2-shot episodes at 32 pixels."""
    config = default_config()
    config.update(ways=2, shots=2, image_size=32, seed=7, support_annotation=kind)
    config.annotation_width = 2
    config.data.update(pipeline=pipeline, fold=1, train_min_pixels=1)
    config.data.augment.update(AUGMENT if augmented else {"flip": False})
    config.train.batch_size = 4
    return first_batches(config, Objects(), 2)


def drawn_supports():
    """The classes and the support images of each episode in these batches."""
    ids = sample(Objects().table.items((1, 2)), 7, np.arange(8), 2, 2)
    return ids.classes, ids.supports


def marks_of(index, kind):
    label = shrunk(Objects().read(index).label, 32)
    return square_marks(Objects(), index, label, Annotation(kind, 2, 32))


@PIPELINES
@pytest.mark.parametrize("kind", ["box", "scribble"])
def test_supports_are_outlined_and_queries_stay_dense(pipeline, kind):
    """Without augmentation, each support follows from its image."""
    batch, dense = two_batches(pipeline, kind), two_batches(pipeline, "dense")
    classes, supports = drawn_supports()
    for name in ("support_image", "query_image", "query_label", "class_id", "query_index"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(dense, name))
    assert batch.support_label.dtype == np.uint8
    assert 254 not in dense.support_label
    assert {0, 1, 2} <= set(dense.query_label.ravel().tolist())
    for row, way, shot in np.ndindex(8, 2, 2):
        result, index = batch.support_label[row, way, shot], supports[row, way, shot]
        label = shrunk(Objects().read(index).label, 32)
        numbered = in_episode_numbering(label, classes[row])
        np.testing.assert_array_equal(dense.support_label[row, way, shot], numbered)
        marks = marks_of(index, kind)
        expected = [np.where(marks > 0, numbered, 254)]
        if kind == "box":
            expected = possible_boxes(numbered, marks, 2, way + 1)
            assert len(expected) > 1
        assert any((result == one).all() for one in expected)
        assert way + 1 in result


@pytest.mark.parametrize("kind", ["box", "scribble", "one_scribble"])
def test_both_pipelines_outline_the_same(kind):
    """Including the choice of the object for the box, and of the part for the scribble."""
    ours, theirs = (two_batches(pipeline, kind) for pipeline in ("device", "tfdata"))
    np.testing.assert_array_equal(ours.support_label, theirs.support_label)


def moved(codes, geometry):
    """Marks as an augmented image shows them, and 0 outside of it."""
    side, matrix, shift = geometry
    result = np.zeros((32, 32), codes.dtype)
    for row, column in np.ndindex(32, 32):
        point = matrix @ (column + 0.5, row + 0.5) + shift
        x, y = np.floor(point * len(codes) / side).astype(int)
        if 0 <= x < len(codes) and 0 <= y < len(codes):
            result[row, column] = codes[y, x]
    return result


@PIPELINES
@pytest.mark.parametrize("kind", ["box", "scribble"])
def test_outlines_move_with_their_augmented_image(pipeline, kind):
    batch, dense = (two_batches(pipeline, k, augmented=True) for k in (kind, "dense"))
    np.testing.assert_array_equal(batch.support_image, dense.support_image)
    np.testing.assert_array_equal(batch.query_label, dense.query_label)
    labels = batch.support_label
    if kind == "scribble":  # marks say what lies under them
        kept = labels != 254
        np.testing.assert_array_equal(labels[kept], dense.support_label[kept])
        assert 0.05 < kept.mean() < 0.5
        assert {0, 1, 2} <= set(labels[kept].tolist())
    _, supports = drawn_supports()
    geometry = episode_geometry(7, np.arange(8), 5, 32, ConfigDict(AUGMENT))
    for row, way, shot in np.ndindex(8, 2, 2):
        slot = [field[row, 2 * way + shot] for field in geometry]
        marks = moved(marks_of(supports[row, way, shot], kind), slot)
        label = dense.support_label[row, way, shot]
        expected = [np.where(marks > 0, label, 254)]
        if kind == "box":
            expected = possible_boxes(label, marks, 2, way + 1)
        # Between two pixels, either may be the nearest.
        wrong = min((labels[row, way, shot] != one).mean() for one in expected)
        assert wrong < (0.06 if kind == "box" else 0.01)


def test_strokes_are_as_wide_on_the_networks_input_where_more_detail_is_held():
    pixels = decode(Objects(), 96, False, Annotation("scribble", 2, 32))
    for index in range(12):
        label = shrunk(Objects().read(index).label, 96)
        np.testing.assert_array_equal(pixels[index, ..., 3], label)
        np.testing.assert_array_equal(pixels[index, ..., 4], strokes(label, 6))


# ----------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_evaluation_finds_the_objects_of_its_own_squares(fit):
    source = Objects()
    config = default_config()
    config.update(image_size=48, support_annotation="box")
    config.eval.fit = fit
    episodes = EpisodeIds(
        classes=np.array([[1]]),
        supports=np.array([[[1, 3]]]),
        query=np.array([0]),
        query_index=np.array([0]),
    )
    evaluator = Evaluator(types.SimpleNamespace(patch=1), source, episodes, make_mesh(1), config)
    for row, index in ((1, 1), (2, 3)):
        label, objects = source.draw(index)
        sides = [48, 48]
        if fit == "letterbox":
            assert max(label.shape) > 48
            sides = [int(48 * side / max(label.shape)) // 8 * 8 for side in label.shape]
        objects = shrunk(objects, sides)
        numbers = evaluator.squares.marks[row][: sides[0], : sides[1]]
        pairs = set(zip(objects.ravel().tolist(), numbers.ravel().tolist(), strict=True))
        assert len(pairs) == 7  # three objects of two classes, and background


class Weighing(PANet):
    """Measures two properties of its support labels."""

    def segment(self, *arguments, **options):
        label = arguments[1].astype(jnp.float32)
        weights = jnp.sin(jnp.arange(label.size)).reshape(label.shape)
        measured = {"weighed": jnp.sum(label * weights), "class": jnp.sum(label == 1)}
        return super().segment(*arguments, **options).replace(measured=measured)


@pytest.mark.parametrize("kind", ["box", "scribble"])
def test_evaluation_outlines_supports_and_scores_by_dense_labels(kind):
    source = Objects()
    config = default_config()
    config.update(image_size=32, support_annotation=kind, annotation_width=2)
    config.eval.seed = 9
    episodes = sample(source.table.items((1, 2)), 0, np.arange(5), 2, 2)
    evaluator = Evaluator(Weighing(backbone=Pixels()), source, episodes, make_mesh(1), config)
    cache = evaluator.encode({})
    scored = evaluator.score({}, cache)
    counts, measured = scored.borders["ignored"], scored.measured
    bits = choose(9, np.arange(5), 2, 2)
    weights = np.sin(np.arange(4 * 32 * 32)).reshape(2, 2, 32, 32)
    weighed, pixels = [], []
    for row in range(5):
        numbered = np.stack(
            [shrunk(source.read(index).label, 32) for index in episodes.supports[row].ravel()]
        ).reshape(2, 2, 32, 32)
        numbered = in_episode_numbering(numbered, episodes.classes[row])
        marks = np.stack([marks_of(index, kind) for index in episodes.supports[row].ravel()])
        label = annotated(numbered, marks.reshape(2, 2, 32, 32), bits[row], kind)
        np.testing.assert_array_equal(
            evaluator.example({}, cache, row, "", 0.0).support_label, label
        )
        weighed.append(np.sum(label * weights))
        pixels.append(np.sum(label == 1))
        truth = shrunk(source.read(episodes.query[row]).label, 32)
        truth = in_episode_numbering(truth, episodes.classes[row])
        areas = [np.sum(truth == way) for way in range(3)]
        np.testing.assert_array_equal(counts[row][:, 0] + counts[row][:, 2], areas)
    np.testing.assert_array_equal(measured["class"], pixels)
    np.testing.assert_allclose(measured["weighed"], weighed, atol=1)
