"""Images as large as they are are dealt to few canvases, and no figure tells to which."""

import logging

import jax
import numpy as np
import pytest
from by_hand import make_evaluator
from PIL import Image

from fsseg_jax.backbones.small import Small
from fsseg_jax.config import default_config
from fsseg_jax.data.sampling import sample
from fsseg_jax.devices import make_mesh
from fsseg_jax.evaluation.buckets import canvas_for, group, place, resized
from fsseg_jax.evaluation.metrics import run_metrics
from fsseg_jax.evaluation.run import evaluate
from fsseg_jax.models import init_variables
from fsseg_jax.models.panet import PANet
from fsseg_jax.training.checkpoints import Loaded

SIZE = 33
OWN = {"fit": "own", "scored_at": "photograph", "feature_dtype": "float32", "batch_size": 4}
UNSURE = 1e-4  # two classes that differ by less at a pixel may change places by rounding


def random_shapes(count=200, seed=0):
    """Of images: mostly 375 x 500 or 500 x 375, and others, as in PASCAL VOC."""
    rng = np.random.default_rng(seed)
    shapes = rng.integers(96, 501, (count, 2))
    usual = rng.random(count) < 0.6
    shapes[usual] = np.array([[375, 500], [500, 375], [333, 500]])[rng.integers(0, 3, usual.sum())]
    return shapes


def area(shapes, parts):
    """Pixels of the canvases, in multiples of 32, of all images."""
    largest = [shapes[rows].max(axis=0) for rows in parts]
    canvases = [np.ceil(side / 32) * 32 for side in largest]
    return sum(canvas.prod() * len(rows) for canvas, rows in zip(canvases, parts, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_every_image_is_in_one_of_few_groups(seed):
    shapes, areas = random_shapes(seed=seed), []
    for count in (1, 2, 4, 8, 1000):
        parts = group(shapes, count)
        assert 1 <= len(parts) <= count
        assert all(len(rows) for rows in parts)
        assert sorted(np.concatenate(parts).tolist()) == list(range(len(shapes)))
        areas.append(area(shapes, parts))
    assert areas == sorted(areas, reverse=True)  # more groups have fewer pixels to spare
    whole = shapes.max(axis=0)
    assert areas[0] == (np.ceil(whole / 32) * 32).prod() * len(shapes)
    assert areas[-1] == (np.ceil(shapes / 32) * 32).prod(axis=1).sum()  # one a size
    assert areas[2] < 0.85 * areas[0]  # four groups save much of it


def test_groups_are_the_best_where_all_can_be_tried():
    """Three images in two groups: against each of the three ways to join two of them."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        shapes = rng.integers(32, 500, (3, 2))
        possible = [[[a], [b, c]] for a, b, c in ((0, 1, 2), (1, 0, 2), (2, 0, 1))]
        best = min(area(shapes, [np.array(rows) for rows in parts]) for parts in possible)
        assert area(shapes, group(shapes, 2)) == best


def test_one_size_is_one_group():
    assert [rows.tolist() for rows in group(np.full((5, 2), 77), 4)] == [[0, 1, 2, 3, 4]]


def halved(height, width, times=12):
    """The sizes of its maps, but for a single position."""
    sizes = []
    for _ in range(1 + times):
        sizes.append((height, width))
        height, width = (height + 1) // 2, (width + 1) // 2
    return set(sizes) - {(1, 1)}


@pytest.mark.parametrize("avoid", [32, 33, 64, 80, 321, 417, 473])
def test_maps_of_a_canvas_are_told_from_those_of_supports(avoid):
    for largest in np.random.default_rng(0).integers(8, 700, (50, 2)):
        height, width = canvas_for(largest, avoid)
        assert height % 32 == width % 32 == 0
        assert (height, width) >= tuple(largest)
        assert width >= largest[1]
        assert not halved(height, width) & halved(avoid, avoid, 5)
        # No smaller than it must be.
        assert height - largest[0] < 32
        if width - largest[1] >= 32:
            assert halved(height, width - 32) & halved(avoid, avoid, 5)


def test_images_stand_in_the_upper_left_corner():
    image = np.random.default_rng(0).integers(1, 256, (30, 20, 3), np.uint8)
    smaller = resized(image, np.array([21, 14]))
    expected = np.asarray(Image.fromarray(image).resize((14, 21), Image.BILINEAR))
    np.testing.assert_array_equal(smaller, expected)
    np.testing.assert_array_equal(resized(image, np.array([30, 20])), image)
    canvas = np.zeros((32, 32, 3), np.uint8)
    place(canvas, smaller)
    np.testing.assert_array_equal(canvas[:21, :14], smaller)
    assert not canvas[21:].any()
    assert not canvas[:, 14:].any()


# ----------------------------------------------------------------------------- an evaluation


@pytest.fixture(scope="module")
def source(make_source):
    """Images of several sizes, one twice as wide and one twice as high as most are."""
    source = make_source()
    for number, axis in ((0, 0), (3, 1)):
        doubled = [part.repeat(2, axis) for part in source.images[number]]
        source.images[number] = doubled
    return source


@pytest.fixture(scope="module")
def model():
    return PANet(backbone=Small(width=16))


@pytest.fixture(scope="module")
def variables(model):
    return init_variables(model, jax.random.key(0), ways=2, shots=1)


@pytest.fixture(scope="module")
def episodes(source):
    episodes = sample(source.table.items(range(1, 7)), 0, range(12), ways=2, shots=1)
    assert {0, 3} <= set(episodes.query.tolist())
    return episodes


def test_figures_do_not_depend_on_the_groups_and_each_compiles_one_function(
    source, model, variables, episodes, caplog
):
    """But for pixels where the two most probable classes are equal up to rounding."""

    def compiled(name):
        messages = [record.getMessage() for record in caplog.records]
        return len([m for m in messages if f"Finished XLA compilation of jit({name})" in m])

    encoded = set()

    def score(buckets):
        evaluator = make_evaluator(model, source, episodes, SIZE, buckets=buckets, **OWN)
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING, "jax"):
            caches = evaluator.encode(variables)
            counts = evaluator.score(variables, caches)
        assert len(evaluator.buckets) == len(caches) == buckets
        canvases = {bucket.queries.views[0].images.shape[1:3] for bucket in evaluator.buckets}
        assert len(canvases) == buckets == compiled("score")
        sizes = {*canvases, (SIZE, SIZE)}  # of supports
        assert compiled("encode") == len(sizes - encoded)
        encoded.update(sizes)
        return evaluator, caches, counts

    evaluator, caches, counts = score(1)
    _, _, others = score(2)
    unsure = []
    for row, query in enumerate(episodes.query):
        height, width = source.images[query][1].shape
        _, probabilities = evaluator.scorer.predict(variables, caches[0], evaluator.rows.take(row))
        second, first = np.sort(probabilities[:height, :width], axis=-1)[..., 1:].transpose(2, 0, 1)
        unsure.append((np.log(first / second) < UNSURE).sum())
    assert sum(unsure) <= 2 * len(episodes)  # so that there is something to compare
    for border, values in counts.borders.items():
        difference = np.abs(others.borders[border] - values).max(axis=(1, 2))
        assert (difference <= unsure).all()
        assert (values[:, 1:, 0].sum(axis=0) > 0).all()
        figures = [
            run_metrics(x.borders[border], episodes.classes, source.class_names)
            for x in (counts, others)
        ]
        assert figures[0]["mean_iou"] == pytest.approx(figures[1]["mean_iou"], abs=0.01)
    for name, values in counts.measured.items():
        np.testing.assert_allclose(others.measured[name], values, rtol=1e-4)
    for row, query in enumerate(episodes.query):  # nothing of a canvas counts
        total = counts.borders["background"][row, :, [0, 2]].sum()
        assert total == source.images[query][1].size


def test_what_does_not_fit_into_memory_is_scored_in_parts(source, model, variables, tmp_path, log):
    """Canvases of a part are others than those of all images."""
    results = []
    for number, gibibytes in enumerate((8.0, 0.0001)):
        config = default_config()
        config.image_size, config.data.min_pixels, config.backbone = SIZE, 1, "small"
        config.eval.update(OWN, runs=1, episodes=4, buckets=1, gallery=0, cache=gibibytes)
        folder, loaded = tmp_path / str(number), Loaded(variables, "of the test")
        results.append(evaluate(config, model, loaded, source, make_mesh(1), folder))
    assert "scoring in 2 parts" in log.text
    one, other = results
    assert one["episodes_hash"] == other["episodes_hash"]
    for border, figures in one["borders"].items():
        assert other["borders"][border] == pytest.approx(figures, abs=0.05)
