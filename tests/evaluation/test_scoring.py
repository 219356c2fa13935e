"""Scoring at each image's own size, at several scales of the query, letterboxed and with queries at
their own size gives the counts of resizing each episode's logits by hand."""

import functools

import by_hand
import flax.linen as nn
import jax
import numpy as np
import pytest
from by_hand import Stem, count
from helpers import in_episode_numbering, up_sampled
from PIL import Image
from scipy.special import softmax
from small_models import draw_variables

from fsseg_jax.backbones.convolution import Conv
from fsseg_jax.data.sampling import sample
from fsseg_jax.data.source import LabelledImage
from fsseg_jax.data.squares import square
from fsseg_jax.episode import normalise
from fsseg_jax.evaluation.metrics import run_metrics
from fsseg_jax.evaluation.parts import scaled_side
from fsseg_jax.evaluation.scorer import THRESHOLDS
from fsseg_jax.models import METHODS
from fsseg_jax.models.resize import interpolation_matrix

try:
    import torch
except ImportError:
    torch = None

SIZE = 33
MULTI = 49  # a size of which 0.7, 1 and 1.3 are three different sides
SCALES = (0.7, 1.0, 1.3)
UNSURE = 1e-4  # two classes that differ by less at a pixel may change places by rounding
TINY = {
    "panet": {},
    "canet": {"width": 8},
    "sst": {"width": 8},
    "ltafnet": {"width": 8, "refinement_width": 4},
    "mfnet": {"width": 8},
}


@pytest.fixture(scope="module")
def source(make_source):
    """Images of as many sizes as there are, some much longer than wide or wider than long."""
    source = make_source(images=9)
    for number, (step, axis) in enumerate([(3, 0), (2, 1), (3, 1)]):
        keep = (slice(None),) * axis + (slice(None, None, step),)
        source.images[number] = [part[keep] for part in source.images[number]]
    shapes = [label.shape for _, label, _ in source.images]
    assert len(set(shapes)) == len(shapes)
    assert all((label == 255).any() for _, label, _ in source.images)
    return source


@functools.cache
def make_panet(align_corners=False, kind=METHODS["panet"], **options):
    model = kind(backbone=Stem(), align_corners=align_corners, **options)
    image = np.zeros((SIZE, SIZE, 3), np.float32)
    return model, model.init(jax.random.key(0), image, method="encode")


def draw(source, count=5, ways=2, shots=1):
    return sample(source.table.items(range(1, 7)), 0, range(count), ways, shots)


def make_evaluator(model, source, episodes, size=SIZE, **options):
    options = {"batch_size": 2, "scored_at": "photograph", **options}
    return by_hand.make_evaluator(model, source, episodes, size, **options)


# ------------------------------------------------------------------------- by hand


def letterboxed(shape, size):
    """The longer side as long as the square, and both multiples of 8."""
    return [max(8, side * size // max(shape) // 8 * 8) for side in shape]


def fit(image, label, size, letterbox):
    """An image in a square of side `size`."""
    new_height = new_width = size
    if letterbox:
        new_height, new_width = letterboxed(label.shape, size)
    canvas = np.zeros((size, size, 3), np.uint8)
    labels = np.full((size, size), 255, np.uint8)
    new = (new_width, new_height)
    canvas[:new_height, :new_width] = Image.fromarray(image).resize(new, Image.BILINEAR)
    labels[:new_height, :new_width] = Image.fromarray(label).resize(new, Image.NEAREST)
    return canvas, labels


def interpolate(logits, shape, align_corners):
    logits = np.asarray(logits, np.float64)
    if torch is None:
        rows, columns = (
            interpolation_matrix(n_in, n_out, align_corners).astype(np.float64)
            for n_in, n_out in zip(logits.shape, shape, strict=False)
        )
        return np.einsum("Hh,hwc,Ww->HWc", rows, logits, columns)
    (planes,) = up_sampled(torch, logits[None], shape, align_corners)
    return planes.permute(1, 2, 0).numpy()


def enlarged(image, scale):
    """An image at a multiple of its own size."""
    size = tuple(max(8, round(side * scale)) for side in image.shape[1::-1])
    return np.asarray(Image.fromarray(image).resize(size, Image.BILINEAR))


def probabilities_by_hand(
    model, variables, source, ids, size=SIZE, sides=None, letterbox=False, network=False, own=()
):
    """Probabilities of one episode at the size of its query, and the query's label.

    Queries are squares of each of `sides`, or as large as they are times each of `own`.
    """
    encode = jitted(model, "encode")
    segment = jitted(model, "segment")
    image, label_of_query, _ = source.images[ids.query]
    label = fit(image, label_of_query, size, letterbox)[1] if network else label_of_query
    shape = label.shape
    squares = [
        [fit(*source.images[i][:2], size, letterbox) for i in shots] for shots in ids.supports
    ]
    images = np.array([[pair[0] for pair in shots] for shots in squares])
    labels = np.array(
        [[in_episode_numbering(y, ids.classes) for _, y in shots] for shots in squares]
    )
    features = [[encode(variables, normalise(image)) for image in shots] for shots in images]
    features = [jax.tree.map(lambda *x: np.stack(x), *shots) for shots in features]
    features = jax.tree.map(lambda *x: np.stack(x), *features)
    queries = [fit(image, label_of_query, side, letterbox)[0] for side in sides or [size]]
    if own:
        queries = [enlarged(image, scale) for scale in own]
    total = 0
    for query in map(normalise, queries):
        logits = segment(variables, features, labels, encode(variables, query), query).logits
        assert np.isfinite(logits).all()
        assert logits.shape[2] == len(ids.classes) + 1
        longer = (max(shape),) * 2 if letterbox else shape
        logits = interpolate(logits, longer, model.align_corners)[: shape[0], : shape[1]]
        total = total + softmax(logits, axis=-1)
    return total / len(queries), in_episode_numbering(label, ids.classes)


@functools.cache
def jitted(model, method):
    return jax.jit(functools.partial(model.apply, method=method))


def check_counts(model, variables, source, episodes, evaluator, masks=True, **options):
    """The evaluator's counts are those by hand, but for pixels where two classes are as likely."""
    caches = evaluator.encode(variables)
    scored = evaluator.score(variables, caches)
    assert scored.thresholds is None  # unless they are asked for
    counts = scored.borders["ignored"]
    expected, unsure = [], 0
    for row in range(len(episodes)):
        ids = episodes.take(row)
        probabilities, truth = probabilities_by_hand(model, variables, source, ids, **options)
        prediction = probabilities.argmax(axis=-1)
        first, second = np.sort(probabilities, axis=-1)[..., -1:-3:-1].transpose(2, 0, 1)
        clear = np.log(first / second) > UNSURE
        unsure += (~clear).sum()
        expected.append(count(prediction, truth, len(ids.classes) + 1))
        assert np.abs(counts[row] - expected[row]).max() <= (~clear).sum()
        # What a square has beside the image is no border, and never counts.
        inside = np.s_[:, :]
        if options.get("letterbox") and options.get("network"):
            size = options.get("size", SIZE)
            shape = source.images[ids.query][1].shape
            inside = tuple(slice(side) for side in letterboxed(shape, size))
        parts = prediction[inside], truth[inside]
        with_border = count(*parts, len(ids.classes) + 1, "background")
        found = scored.borders["background"][row]
        assert np.abs(found - with_border).max() <= (~clear).sum()
        assert found[:, [0, 2]].sum() == parts[1].size
        if masks:
            predicted = evaluator.predict(variables, caches, row)
            assert predicted.shape == truth.shape
            np.testing.assert_array_equal(predicted[clear], prediction[clear])
    assert unsure <= 3 * len(episodes)  # so that there is something to compare
    expected = np.stack(expected)
    assert (expected[:, 1:, 0].sum(axis=0) > 0).all()
    names = source.class_names
    result, wanted = (run_metrics(x, episodes.classes, names) for x in (counts, expected))
    for name in ("mean_iou", "mean_iou_star", "binary_iou"):
        assert result[name] == pytest.approx(wanted[name], abs=0.01)
    return counts


# ------------------------------------------------------------------------- own size


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("ways", [1, 2])
def test_masks_are_compared_at_the_size_of_each_image(source, ways, align_corners):
    model, variables = make_panet(align_corners)
    episodes = draw(source, 7, ways)
    sizes = {source.images[query][1].shape for query in episodes.query}
    assert len(sizes) > 3
    evaluator = make_evaluator(model, source, episodes)
    counts = check_counts(model, variables, source, episodes, evaluator)
    for row, query in enumerate(episodes.query):
        label = source.images[query][1]
        assert counts[row, :, [0, 2]].sum() == (label != 255).sum()


class Traced(METHODS["panet"]):
    """PANet that notes how often it is compiled."""

    times = 0

    def segment(self, *arguments, **options):
        Traced.times += 1
        return super().segment(*arguments, **options)


def test_one_compiled_function_serves_all_sizes(source):
    model, variables = make_panet(kind=Traced)
    compiled = []
    for number in (2, 12):
        episodes = draw(source, number, ways=1)
        evaluator = make_evaluator(model, source, episodes)
        caches = evaluator.encode(variables)
        Traced.times = 0
        evaluator.score(variables, caches)
        compiled.append(Traced.times)
    assert len({source.images[query][1].shape for query in episodes.query}) > 5
    assert compiled[1] == compiled[0]


# ------------------------------------------------------------------------- the longer side fitted


@pytest.mark.parametrize(("height", "width"), [(30, 60), (60, 30), (45, 45), (200, 10)])
def test_a_letterboxed_image_keeps_its_proportions(height, width):
    """But for what is cut to multiples of 8. The upper left quarter is white, and of class 1."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = 255
    label = image[..., 0] // 255
    for side in (SIZE, 2 * SIZE):
        exact = np.array([height, width]) * side / max(height, width)
        picture, classes = square(LabelledImage(image, label), side, "letterbox")
        assert picture.shape == (side, side, 3)
        assert classes.shape == (side, side)
        covered = classes != 255
        rows, columns = covered.any(axis=1).sum(), covered.any(axis=0).sum()
        assert covered[:rows, :columns].all()  # at the top and left, the rest below or right
        assert rows % 8 == columns % 8 == 0
        for whole, part in zip((rows, columns), exact, strict=True):
            assert whole == 8 if part < 8 else part - 8 < whole <= part
        assert not picture[~covered].any()
        if min(rows, columns) > 4:
            assert (picture[0, 0] == 255).all()
            shown = classes == 1
            quarter = shown.any(axis=1).sum() * 2, shown.any(axis=0).sum() * 2
            assert quarter == pytest.approx((rows, columns), abs=2)
            stretched = square(LabelledImage(image, label), side).label
            assert (stretched != 255).all()
            assert (stretched == 1).any(axis=0).sum() * 2 == pytest.approx(side, abs=2)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("scored_at", ["network", "photograph"])
def test_logits_of_letterboxed_images_are_cut(source, scored_at, align_corners):
    """Resized to the longer side squared, where they are compared with the image's label."""
    model, variables = make_panet(align_corners)
    episodes = draw(source)
    evaluator = make_evaluator(model, source, episodes, fit="letterbox", scored_at=scored_at)
    network = scored_at == "network"
    check_counts(model, variables, source, episodes, evaluator, letterbox=True, network=network)


def test_the_report_shows_letterboxed_images_with_what_was_predicted(source):
    model, variables = make_panet()
    episodes = draw(source)
    evaluator = make_evaluator(model, source, episodes, fit="letterbox")
    caches = evaluator.encode(variables)
    for row, ids in enumerate(map(episodes.take, range(len(episodes)))):
        example = evaluator.example(variables, caches, row, "", 50.0)
        image, label, _ = source.images[ids.query]
        image, label = fit(image, label, SIZE, True)
        np.testing.assert_array_equal(example.query_image, image)
        truth = in_episode_numbering(label, ids.classes)
        np.testing.assert_array_equal(example.query_label, truth)
        prediction = evaluator.predict(variables, caches, row)
        _, expected = fit(np.zeros((*prediction.shape, 3), np.uint8), prediction, SIZE, True)
        np.testing.assert_array_equal(example.prediction, expected)


# ------------------------------------------------------------------------- several scales


def test_scaled_sides_put_corners_of_features_on_pixels():
    """At stride 8 and aligned corners: 8 n + 1, as near the wanted multiple as can be."""
    assert [scaled_side(321, scale) for scale in SCALES] == [225, 321, 417]
    assert [scaled_side(473, scale) for scale in SCALES] == [329, 473, 617]
    for size in (321, 400, 473):
        assert scaled_side(size, 1.0) == size
        for scale in (0.5, 0.7, 0.9, 1.1, 1.3, 2.0):
            side = scaled_side(size, scale)
            assert side % 8 == 1
            assert abs(side - size * scale) <= 4


@pytest.mark.parametrize(
    ("scored_at", "fitting"),
    [("network", "stretch"), ("photograph", "stretch"), ("photograph", "letterbox")],
)
def test_probabilities_are_averaged_over_the_scales_of_the_query(source, scored_at, fitting):
    # So sharp that the mean of probabilities is another one than that of logits.
    model, variables = make_panet(similarity_scale=100.0)
    episodes = draw(source)
    sides = [scaled_side(MULTI, scale) for scale in SCALES]
    assert len({MULTI, *sides}) == 3
    options = {"scales": SCALES, "scored_at": scored_at, "fit": fitting}
    evaluator = make_evaluator(model, source, episodes, MULTI, **options)
    options = {"network": scored_at == "network", "letterbox": fitting == "letterbox"}
    check_counts(model, variables, source, episodes, evaluator, size=MULTI, sides=sides, **options)


class TwoStages(nn.Module):
    """Stages of stride 4 and 8."""

    @nn.compact
    def __call__(self, image, stages=(), train=False):
        fine = nn.relu(Conv(8, (5, 5), 4, 2)(image))
        return fine, Conv(8, (3, 3), 2, 1)(fine)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_a_query_of_another_size_than_the_supports(source, name):
    """With all else at once: own size, and the longer side fitted."""
    model = METHODS[name](backbone=TwoStages(), **TINY[name])
    variables = draw_variables(model, ways=1, shots=2)
    episodes = draw(source, 10, ways=1, shots=2)
    options = {"fit": "letterbox", "scales": (1.3,)}
    evaluator = make_evaluator(model, source, episodes, **options)
    options = {"sides": [scaled_side(SIZE, 1.3)], "letterbox": True}
    check_counts(model, variables, source, episodes, evaluator, False, **options)


# ------------------------------------------------------------------------- as large as they are


def draw_few(source, ways):
    """Two episodes of each of two queries: by hand, each size is compiled on its own."""
    episodes = draw(source, 60, ways)
    few = np.unique(episodes.query)[[0, 5]]
    return episodes.take(np.concatenate([np.flatnonzero(episodes.query == q)[:2] for q in few]))


@pytest.mark.parametrize(
    ("name", "ways", "scales", "buckets"),
    [("panet", 2, (1.0,), 2), ("panet", 1, (0.7, 1.3), 1), ("canet", 1, (1.0,), 1)],
)
def test_queries_as_large_as_they_are_are_segmented_as_each_would_be_alone(
    source, name, ways, scales, buckets
):
    """By the model itself, at the size of each: without a canvas."""
    if name == "panet":
        model, variables = make_panet()
    else:
        model = METHODS[name](backbone=TwoStages(), **TINY[name])
        variables = draw_variables(model, ways, shots=1)
    episodes = draw_few(source, ways)
    sizes = {source.images[query][1].shape for query in episodes.query}
    assert len(sizes) == 2
    options = {"fit": "own", "scales": scales, "buckets": buckets}
    evaluator = make_evaluator(model, source, episodes, **options)
    assert len(evaluator.buckets) == buckets
    masks = name == "panet"
    check_counts(model, variables, source, episodes, evaluator, masks, own=scales)


# ------------------------------------------------------------------------- thresholds


@pytest.mark.parametrize(("ways", "border"), [(1, "background"), (2, "ignored")])
def test_counts_at_thresholds(source, ways, border):
    """An object is where its probability against the background's is above the threshold, and of
    several the most probable one; at 0.5 that is the plain prediction of one way."""
    model, variables = make_panet()
    episodes = draw(source, ways=ways)
    evaluator = make_evaluator(model, source, episodes, threshold="base", border=border)
    counts = evaluator.score(variables, evaluator.encode(variables))
    assert counts.thresholds.shape == (len(episodes), len(THRESHOLDS), ways + 1, 3)
    assert 0.5 in THRESHOLDS
    if ways == 1:
        half = counts.thresholds[:, THRESHOLDS.index(0.5)]
        assert np.abs(half - counts.borders[border]).max() <= 1  # a tie
    for row in range(len(episodes)):
        ids = episodes.take(row)
        probabilities, truth = probabilities_by_hand(model, variables, source, ids)
        background, objects = probabilities[..., 0], probabilities[..., 1:]
        sure = objects.max(axis=-1) / (objects.max(axis=-1) + background)
        for number, threshold in enumerate(THRESHOLDS):
            prediction = np.where(sure > threshold, 1 + objects.argmax(axis=-1), 0)
            expected = count(prediction, truth, ways + 1, border)
            unsure = (np.abs(sure - threshold) < UNSURE).sum()
            assert unsure < 6
            assert np.abs(counts.thresholds[row, number] - expected).max() <= unsure
    found = counts.thresholds[:, :, 1:, :2].sum(axis=(0, 2, 3))
    assert (np.diff(found) <= 0).all()  # fewer objects the surer they must be
    assert len(set(found.tolist())) > 5
