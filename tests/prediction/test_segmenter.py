"""`forward` is the method itself, whatever is composed with it; the Segmenter is `forward` on
photographs as they are."""

import functools
import itertools
import math
import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fsseg_jax import Segmenter, forward
from fsseg_jax.config import default_config
from fsseg_jax.data.sampling import sample
from fsseg_jax.data.source import LabelledImage
from fsseg_jax.data.squares import square
from fsseg_jax.devices import make_mesh
from fsseg_jax.episode import IGNORE, Episode, normalise
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.evaluator import Evaluator
from fsseg_jax.models import METHODS, init_variables
from fsseg_jax.models.panet import PANet

SIZE = 32
UNSURE = 1e-4  # two classes whose probabilities differ by less may change places by rounding


# Narrow heads, and few passes of them: what is compiled for a few calls had better be little.
TINY = {
    "panet": {},
    "canet": {"width": 8, "refinements": 1},
    "sst": {"width": 8, "inner_rate": 0.1},  # its gradient jumps where an activation begins
    "ltafnet": {"width": 8, "refinement_width": 4},
    "mfnet": {"width": 8, "scales": 2},
}


class Stem(nn.Module):
    """A backbone of one layer, at stride 4."""

    @nn.compact
    def __call__(self, image, stages=(), train=False):
        return (nn.Conv(16, (5, 5), 4, 2)(image),)


def draw_variables(model, ways, shots, seed=0):
    """He-normal kernels, scales and variances near 1, small biases: nothing that is zero at first,
    so that every part of a model shows in its logits."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        if len(shape.shape) > 1:
            return rng.normal(0, np.sqrt(2 / np.prod(shape.shape[:-1])), shape.shape)
        return (path[-1].key in ("scale", "var", "alpha")) + 0.1 * rng.standard_normal(shape.shape)

    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), ways, shots))
    drawn = jax.tree_util.tree_map_with_path(draw, shapes)
    return jax.tree.map(
        lambda x: np.abs(x).astype(np.float32) if x.ndim < 2 else x.astype(np.float32), drawn
    )


@functools.cache
def make_segmenter(method="panet", ways=1, shots=1, devices=1, fit="stretch", **fields):
    config = default_config(method)
    config.image_size, config.eval.fit = SIZE, fit
    model = METHODS[method](backbone=Stem(), **TINY[method], **fields)
    return Segmenter(config, model, draw_variables(model, ways, shots), make_mesh(devices))


def draw_episode(ways, shots, queries=2, size=SIZE, seed=0):
    """Photographs with a gradient and noise, and labels of blocks: float32 in 0..255, uint8."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 120, size, dtype=np.float32)[:, None]

    def images(*shape):
        coarse = rng.integers(0, 120, (*shape, size // 8, size // 8, 3))
        fine = coarse.repeat(8, -3).repeat(8, -2).astype(np.float32)
        return fine + ramp + rng.random(fine.shape, np.float32) * 15

    choices = np.array([0, 0, *range(1, ways + 1), IGNORE], np.uint8)
    labels = rng.choice(choices, (ways, shots, size // 8, size // 8)).repeat(8, -2).repeat(8, -1)
    labels[..., :8, :8] = np.arange(1, ways + 1)[:, None, None, None]  # each shows its way
    return images(ways, shots), labels, images(queries)


# ----------------------------------------------------------------------------- by hand


@functools.cache
def applied(model):
    """The method of one episode, as training and evaluation define it: small logits."""

    @jax.jit
    def call(variables, images, labels, query):
        episode = Episode(
            support_image=images,
            support_label=labels,
            query_image=query,
            query_label=jnp.zeros(query.shape[:2], jnp.uint8),
            class_id=jnp.arange(1, len(images) + 1),
            query_index=jnp.zeros((), int),
        )
        return model.apply(variables, episode.normalised()).logits

    return call


def enlarge(logits, shape, align_corners):
    """Bilinear interpolation, one pixel after another."""
    logits = np.asarray(logits, np.float64)

    def neighbours(n_in, n_out):
        if align_corners:
            position = np.arange(n_out) * (n_in - 1) / (n_out - 1)
        else:
            position = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
        low = np.minimum(np.floor(position).astype(int), n_in - 2)
        return low, position - low

    (top, down), (left, right) = map(neighbours, logits.shape, shape)
    result = np.empty((*shape, logits.shape[-1]))
    for y, x in np.ndindex(*shape):
        i, j, b, a = top[y], left[x], down[y], right[x]
        upper = (1 - a) * logits[i, j] + a * logits[i, j + 1]
        lower = (1 - a) * logits[i + 1, j] + a * logits[i + 1, j + 1]
        result[y, x] = (1 - b) * upper + b * lower
    return result


def softmax(logits):
    powers = np.exp(np.asarray(logits, np.float64))
    return powers / powers.sum(axis=-1, keepdims=True)


def by_hand(segmenter, images, labels, queries):
    call = applied(segmenter.model)
    return np.stack(
        [
            enlarge(
                call(segmenter.variables, images, labels, query),
                query.shape[:2],
                segmenter.model.align_corners,
            )
            for query in queries
        ]
    )


def assert_close(result, expected, tolerance=1e-4):
    assert np.isfinite(expected).all()
    assert np.ptp(expected) > 0.05  # there is something to compare
    np.testing.assert_allclose(result, expected, atol=tolerance * np.abs(expected).max())


# ----------------------------------------------------------------------------- forward


@pytest.mark.parametrize("method", METHODS)
def test_forward_is_the_method_at_the_size_of_the_queries(method):
    segmenter = make_segmenter(method, ways=2, shots=2)
    images, labels, queries = draw_episode(2, 2)
    logits = forward(segmenter.model, segmenter.variables, images, labels, queries)
    assert logits.shape == (2, SIZE, SIZE, 3)
    assert logits.dtype == jnp.float32
    assert_close(logits, by_hand(segmenter, images, labels, queries))


@pytest.mark.parametrize("method", METHODS)
def test_forward_composes_with_jit_vmap_and_grad(method):
    """The gradient with respect to supports passes through backbones that training freezes."""
    segmenter = make_segmenter(method, ways=2, shots=2, freeze_backbone=True)
    images, labels, queries = draw_episode(2, 2)
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((2, SIZE, SIZE, 3)).astype(np.float32)
    weights = np.cumsum(np.cumsum(weights, axis=1), axis=2)  # smooth, so that sums do not vanish

    def loss(images):
        return jnp.mean(weights * segmenter.forward(images, labels, queries))

    gradient = np.asarray(jax.jit(jax.grad(loss))(images))
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient).max(axis=(-3, -2, -1)) > 0).all()  # by every support

    # Along the gradient the difference is largest; a random part makes other pixels count.
    direction = gradient / np.linalg.norm(gradient)
    noise = rng.standard_normal(images.shape).astype(np.float32)
    direction = direction + noise / np.linalg.norm(noise)
    steps = np.array([0, 1, -1], np.float32)[:, None, None, None, None, None]
    several = images + 0.2 * steps * direction / np.abs(direction).max()
    mapped = jax.jit(jax.vmap(segmenter.forward, in_axes=(0, None, None)))(several, labels, queries)
    for logits, episode in zip(mapped, several, strict=True):
        assert_close(logits, segmenter.forward(episode, labels, queries))
    _, above, below = np.mean(weights * np.asarray(mapped, np.float64), axis=(1, 2, 3, 4))
    slope = (above - below) / 0.4
    expected = np.sum(np.float64(gradient) * direction / np.abs(direction).max())
    assert slope == pytest.approx(expected, rel=0.05)


def test_bytes_and_floats_are_the_same_images():
    segmenter = make_segmenter()
    images, labels, queries = draw_episode(1, 1)
    images, queries = images.round(), queries.round()
    expected = segmenter.forward(images, labels, queries)
    small = segmenter.forward(images.astype(np.uint8), labels, queries.astype(np.uint8))
    np.testing.assert_allclose(small, expected, atol=1e-5)


def test_queries_may_have_another_size_than_supports():
    segmenter = make_segmenter()
    images, labels, _ = draw_episode(1, 1)
    query = draw_episode(1, 1, size=48)[2][0, :, :40]
    features, of_query = (
        segmenter.model.apply(segmenter.variables, normalise(x), method="encode")
        for x in (images, query)
    )
    output = segmenter.model.apply(
        segmenter.variables, features, labels, of_query, query, method="segment"
    )
    expected = enlarge(output.logits, (48, 40), segmenter.model.align_corners)
    assert_close(segmenter.forward(images, labels, query[None])[0], expected)


@pytest.mark.parametrize(
    ("images", "labels", "queries"),
    [
        ((2, 32, 32, 3), (2, 32, 32), (1, 32, 32, 3)),
        ((1, 2, 32, 32, 3), (1, 1, 32, 32), (1, 32, 32, 3)),
        ((1, 1, 32, 32, 3), (1, 1, 32, 32), (32, 32, 3)),
    ],
)
def test_shapes_that_do_not_fit_are_told(images, labels, queries):
    segmenter = make_segmenter()
    arrays = (np.zeros(shape, np.uint8) for shape in (images, labels, queries))
    with pytest.raises(UserError) as caught:
        segmenter.forward(*arrays)
    for part in (f"support_images {images}", f"support_labels {labels}", f"query_images {queries}"):
        assert part in str(caught.value)


# ----------------------------------------------------------------------------- other ways, shots


def log_mean(logits):
    return np.log(np.mean([softmax(x) for x in logits], axis=0))


def winner(binary):
    """MFNet sec. IV-C: log-probabilities of each foreground, and of the surest background."""
    probabilities = np.array([softmax(x) for x in binary])
    return np.log(np.stack([probabilities[..., 0].max(axis=0), *probabilities[..., 1]], axis=-1))


def seen_by(way, labels):
    return np.where(labels == IGNORE, IGNORE, labels == way).astype(np.uint8)


def single(segmenter, images, labels, query, way, shot):
    """Logits of one way, or of all of them (None), by one shot or by all of them."""
    if way is not None:
        images, labels = images[way : way + 1], seen_by(way + 1, labels[way : way + 1])
    if shot is not None:
        images, labels = images[:, shot : shot + 1], labels[:, shot : shot + 1]
    return applied(segmenter.model)(segmenter.variables, images, labels, query)


@pytest.mark.parametrize(
    ("method", "trained", "given", "by_ways", "by_shots"),
    [
        ("canet", (1, 1), (1, 3), False, True),  # it has learned no attention over shots
        ("canet", (1, 1), (2, 3), False, True),
        ("mfnet", (1, 1), (2, 1), True, False),  # its decoder is for one class
        ("mfnet", (1, 1), (2, 3), True, True),
        ("mfnet", (1, 3), (2, 3), True, False),
        ("mfnet", (2, 1), (2, 3), False, True),
        ("canet", (1, 3), (2, 2), False, False),
        ("panet", (1, 1), (2, 3), False, False),
    ],
)
def test_ways_and_shots_that_parameters_do_not_fit_are_taken_one_by_one(
    method, trained, given, by_ways, by_shots
):
    segmenter = make_segmenter(method, *trained)
    images, labels, queries = draw_episode(*given, queries=1)
    call = functools.partial(single, segmenter, images, labels, queries[0])
    shots = range(given[1]) if by_shots else [None]
    ways = range(given[0]) if by_ways else [None]
    each = [[call(way, shot) for shot in shots] for way in ways]
    each = [log_mean(logits) if by_shots else logits[0] for logits in each]
    expected = winner(each) if by_ways else each[0]
    logits = segmenter.forward(images, labels, queries)[0]
    assert logits.shape == (SIZE, SIZE, given[0] + 1)
    assert_close(logits, enlarge(expected, (SIZE, SIZE), segmenter.model.align_corners))


@pytest.mark.parametrize("shots", [1, 2])
def test_ways_that_cannot_be_split_are_told(shots):
    segmenter = make_segmenter("mfnet", ways=2)
    images, labels, queries = draw_episode(3, shots)
    sentence = f"3 ways with {shots} shots: the parameters of this MFNet are for another number"
    with pytest.raises(UserError, match=sentence):
        segmenter.forward(images, labels, queries)
    supports = [*images[:, 0].astype(np.uint8)]
    with pytest.raises(UserError, match="3 ways with 1 shots"):
        segmenter.fit(supports, [np.full((SIZE, SIZE), way) for way in (1, 2, 3)])


# ----------------------------------------------------------------------------- photographs


@pytest.fixture(scope="module")
def source(make_source):
    """Photographs of many sizes, one much wider than high and one much higher than wide."""
    source = make_source(images=9)
    source.images[0] = [part[::3] for part in source.images[0]]
    source.images[1] = [part[:, ::2] for part in source.images[1]]
    assert len({label.shape for _, label, _ in source.images}) == 9
    return source


def mask_of(source, index, class_id):
    label = source.read(index).label
    return np.where(label == 255, 255, label == class_id).astype(np.uint8)


@pytest.fixture(scope="module")
def images(source):
    return [source.read(index).image for index in range(len(source))]


@pytest.fixture(scope="module")
def shown(source):
    """Two photographs of class 1, with their masks."""
    rows = source.table.image[source.table.class_id == 1][:2].tolist()
    return [source.read(row).image for row in rows], [mask_of(source, row, 1) for row in rows]


@pytest.fixture
def fitted(shown):
    segmenter = make_segmenter()
    return segmenter.fit(*shown)


def clear(probabilities):
    """Where the first class is surely ahead of the second."""
    first, second = np.sort(probabilities, axis=-1)[..., -1:-3:-1].transpose(2, 0, 1)
    return first - second > UNSURE


def assert_same(results, expected):
    """Pairs of masks and probabilities are equal, but for rounding."""
    assert len(results) == len(expected)
    for (mask, probabilities), (other, others) in zip(results, expected, strict=True):
        np.testing.assert_allclose(probabilities, others, atol=1e-4)
        np.testing.assert_array_equal(mask[clear(others)], other[clear(others)])


@pytest.mark.parametrize(("height", "width"), [(40, 160), (150, 90), (64, 64), (121, 61)])
def test_a_letterboxed_mask_is_where_the_image_has_it(height, width):
    """Though the photograph's part of the square is rounded to multiples of 8."""
    segmenter = make_segmenter(fit="letterbox")
    label = np.zeros((height, width), np.uint8)
    label[-height // 4 :, -width // 3 :] = 1
    seen = square(LabelledImage(np.zeros((height, width, 3), np.uint8), label), SIZE, "letterbox")
    logits = np.eye(2, dtype=np.float32)[seen.label % 255]
    mask = segmenter._at_own_size(logits, (height, width), False)
    sides = [SIZE * n // max(height, width) // 8 * 8 for n in label.shape]
    reach = [math.ceil(n / side) for n, side in zip(label.shape, sides, strict=True)]
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    assert (rows[-1], columns[-1]) == (height - 1, width - 1)
    assert abs(rows[0] - (height - height // 4)) <= reach[0]
    assert abs(columns[0] - (width - width // 3)) <= reach[1]


@pytest.mark.parametrize("align_corners", [True, False])
def test_predictions_are_those_of_the_evaluation_at_image_size(source, align_corners):
    segmenter = make_segmenter(align_corners=align_corners)
    config = segmenter.config.copy_and_resolve_references()
    config.eval.scored_at, config.eval.feature_dtype = "photograph", "float32"
    episodes = sample(source.table.items(range(1, 7)), 0, range(8), ways=1, shots=2)
    evaluator = Evaluator(segmenter.model, source, episodes, make_mesh(1), config)
    cache = evaluator.encode(segmenter.variables)
    found = 0
    for row in range(len(episodes)):
        ids = episodes.take(row)
        supports = [source.read(int(i)).image for i in ids.supports[0]]
        masks = [mask_of(source, int(i), int(ids.classes[0])) for i in ids.supports[0]]
        query = source.read(int(ids.query)).image
        mask, probabilities = segmenter.fit(supports, masks).predict(query, True)
        expected = evaluator.predict(segmenter.variables, cache, row)
        assert mask.shape == expected.shape == query.shape[:2]
        sure = clear(probabilities)
        assert sure.mean() > 0.98
        np.testing.assert_array_equal(mask[sure], expected[sure])
        found += 0.02 < mask.mean() < 0.98
    assert found > 4


def test_probabilities_sum_to_one_and_the_mask_is_the_most_probable_class(fitted, images):
    for image, (mask, probabilities) in zip(
        images, fitted.predict(images, return_probabilities=True), strict=True
    ):
        assert mask.dtype == np.uint8
        assert mask.shape == image.shape[:2]
        assert probabilities.dtype == np.float32
        assert probabilities.shape == (*mask.shape, 2)
        assert probabilities.min() >= 0
        np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)
        chosen = np.take_along_axis(probabilities, mask[..., None].astype(int), axis=-1)[..., 0]
        np.testing.assert_array_equal(chosen, probabilities.max(axis=-1))
    assert {0, 1} == {*np.unique(mask).tolist()}


@pytest.mark.parametrize("method", ["panet", "canet"])
def test_results_depend_on_neither_batch_nor_order_nor_devices(method, shown, images):
    segmenter = make_segmenter(method).fit(*shown)
    expected = segmenter.predict(images, True, batch_size=1)
    for batch_size in (2, 5, 64):
        assert_same(segmenter.predict(images, True, batch_size), expected)
    order = np.random.default_rng(0).permutation(len(images))
    results = segmenter.predict([images[i] for i in order], True, batch_size=4)
    assert_same(results, [expected[i] for i in order])
    several = make_segmenter(method, devices=4).fit(*shown)
    assert_same(several.predict(images, True, batch_size=6), expected)


def test_one_or_several_images_in_any_form(fitted, images, tmp_path):
    few = [np.ascontiguousarray(image[:32, :13]) for image in images[2:5]]
    expected = fitted.predict(few)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, few, strict=True):
        Image.fromarray(image).save(path)
    texts = [str(path) for path in paths]
    pictures = [Image.open(path) for path in paths]
    for several in (paths, texts, pictures, np.array(texts), np.stack(few), jnp.stack(few)):
        for result, mask in zip(fitted.predict(several), expected, strict=True):
            np.testing.assert_array_equal(result, mask)
    for several in (iter(few), (x for x in few), tuple(few), dict(enumerate(few)).values()):
        for result, mask in zip(fitted.predict(several), expected, strict=True):
            np.testing.assert_array_equal(result, mask)
    for one in (paths[0], texts[0], pictures[0], few[0], jnp.asarray(few[0])):
        result = fitted.predict(one)
        assert isinstance(result, np.ndarray)
        np.testing.assert_array_equal(result, expected[0])
    assert fitted.predict([]) == []
    assert len(fitted.predict([few[0]])) == 1


# ----------------------------------------------------------------------------- stream


class Counted:
    """An endless iterator that counts what was taken of it, and remembers who took it."""

    def __init__(self, images):
        self.images, self.taken, self.threads = itertools.cycle(images), 0, set()

    def __iter__(self):
        return self

    def __next__(self):
        self.taken += 1
        self.threads.add(threading.current_thread())
        return next(self.images)


def test_a_stream_takes_no_more_than_three_batches_ahead(fitted, images):
    expected = fitted.predict(images)
    counted = Counted(images)
    stream = fitted.stream(counted, batch_size=2)
    assert counted.taken == 0
    for given, mask in enumerate(itertools.islice(stream, 20)):
        np.testing.assert_array_equal(mask, expected[given % len(expected)])
        assert counted.taken <= given + 3 * 2
    assert counted.threads == {threading.current_thread()}


def test_a_stream_that_is_closed_early_takes_no_more_and_leaves_no_threads(fitted, images):
    before, counted = threading.active_count(), Counted(images)
    stream = fitted.stream(counted, batch_size=2)
    next(stream)
    stream.close()
    assert threading.active_count() == before
    assert counted.taken <= 3 * 2
    assert list(stream) == []


def test_a_stream_keeps_the_supports_that_it_began_with(shown, images):
    segmenter = make_segmenter().fit(*shown)
    expected = segmenter.predict(images[:3], True)
    stream = segmenter.stream(images[:3], True)
    inverted = [np.where(mask == 255, 255, 1 - mask).astype(np.uint8) for mask in shown[1]]
    segmenter.fit(shown[0], inverted)
    others = segmenter.predict(images[:3])
    assert_same(list(stream), expected)
    assert any((mask != other).any() for (mask, _), other in zip(expected, others, strict=True))


def test_threads_may_share_a_segmenter_of_several_devices(shown, images):
    segmenter = make_segmenter(devices=4).fit(*shown)
    expected = segmenter.predict(images, True)
    results = {}

    def work(number):
        results[number] = [segmenter.predict(images, True, batch_size=4) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(results) == 4
    for several in results.values():
        for result in several:
            assert_same(result, expected)


def test_broken_images_stop_a_stream_in_their_turn_or_are_skipped(fitted, images, tmp_path):
    absent, broken = tmp_path / "absent.jpg", np.zeros((4, 5, 7), np.uint8)
    counted = [*images[:3], absent, images[3], broken, broken, images[4]]
    expected = fitted.predict([*images[:5]])
    for batch_size in (1, 2, 8):
        stream = fitted.stream(counted, batch_size=batch_size)
        for mask in expected[:3]:
            np.testing.assert_array_equal(next(stream), mask)
        with pytest.raises(UserError, match=r"absent\.jpg cannot be read"):
            next(stream)
        results = list(fitted.stream(counted, batch_size=batch_size, skip_errors=True))
        assert [isinstance(result, UserError) for result in results] == [
            *(False, False, False, True, False, True, True, False)
        ]
        assert str(results[5]).startswith("counted[5] is an array of uint8 and shape (4, 5, 7)")
        good = [result for result in results if not isinstance(result, UserError)]
        for result, mask in zip(good, expected, strict=True):
            np.testing.assert_array_equal(result, mask)
    with pytest.raises(UserError, match=r"absent\.jpg cannot be read"):
        fitted.predict(counted)


# ----------------------------------------------------------------------------- supports


def draw_supports(*classes, size=SIZE, seed=0):
    """Photographs of the network's own size, and masks with a block of each of their classes."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (len(classes), size, size, 3), np.uint8)
    masks = np.zeros((len(classes), size, size), np.uint8)
    for mask, numbers in zip(masks, classes, strict=True):
        for number in numbers:
            top, left = rng.integers(0, size - 12, 2)
            mask[top : top + 12, left : left + 12] = number
    return images, masks


@pytest.mark.parametrize("method", ["panet", "canet"])
def test_classes_with_fewer_images_use_theirs_again(method):
    """Photographs show class 1; 2; 1 and 2; 1; so that class 2 has one less."""
    segmenter = make_segmenter(method, devices=1)
    images, masks = draw_supports([1], [2], [2, 1], [1])
    assert [sorted({*np.unique(mask).tolist()} - {0}) for mask in masks] == [[1], [2], [1, 2], [1]]
    rows = [[0, 2, 3], [1, 2, 1]]
    query = draw_supports([1], seed=1)[0][0]
    expected = segmenter.forward(images[np.array(rows)], masks[np.array(rows)], query[None])[0]
    segmenter.fit(images, masks, classes=["cat", "dog"])
    assert segmenter.classes == ("cat", "dog")
    mask, probabilities = segmenter.predict(query, True)
    assert probabilities.shape == (SIZE, SIZE, 3)
    np.testing.assert_allclose(probabilities, softmax(expected), atol=1e-4)
    sure = clear(softmax(expected))
    np.testing.assert_array_equal(mask[sure], np.argmax(expected, axis=-1)[sure])
    assert segmenter.fit(images, masks).classes == ("1", "2")


def test_boxes_are_masks_of_what_is_inside_of_them(shown, images):
    segmenter, supports = make_segmenter(), shown[0]
    boxes = [(3, 2, 20, 13), [(0, 0, 9, 9), (12, 5, 22, 14)]]
    masks = [np.zeros(image.shape[:2], bool) for image in supports]
    masks[0][2:13, 3:20] = True
    masks[1][:9, :9] = masks[1][5:14, 12:22] = True
    expected = segmenter.fit(supports, masks=masks).predict(images, True)
    assert_same(segmenter.fit(supports, boxes=boxes).predict(images, True), expected)


def test_a_single_support_needs_no_list(shown, images, tmp_path):
    segmenter, image, mask = make_segmenter(), shown[0][0], shown[1][0]
    expected = segmenter.fit([image], [mask]).predict(images[:3], True)
    Image.fromarray(image).save(tmp_path / "photograph.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    forms = (
        (image, mask),
        (str(tmp_path / "photograph.png"), tmp_path / "mask.png"),
        (Image.open(tmp_path / "photograph.png"), Image.open(tmp_path / "mask.png")),
    )
    for form in forms:
        assert_same(segmenter.fit(*form).predict(images[:3], True), expected)
    boxed = segmenter.fit([image], boxes=[(3, 2, 20, 13)]).predict(images[:3], True)
    assert_same(segmenter.fit(image, boxes=(3, 2, 20, 13)).predict(images[:3], True), boxed)


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_an_object_too_small_for_the_square_is_not_lost(fit):
    """One pixel of a large photograph, anywhere, becomes one pixel of the square there."""
    rng = np.random.default_rng(0)
    segmenter = make_segmenter(fit=fit)
    for height, width in ((200, 300), (300, 150)):
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        for y, x in ((0, 0), (height - 1, width - 1), (67, 149), (101, 33)):
            mask = np.zeros((height, width), np.uint8)
            mask[y, x] = 1
            segmenter.fit([image], [mask])
            _, label = segmenter._supports
            sides = (SIZE, SIZE)
            if fit == "letterbox":
                # Multiples of 8, rounded down: see `squares.fitted`.
                sides = [SIZE * side // max(height, width) // 8 * 8 for side in (height, width)]
            where = [int((y + 0.5) * sides[0] / height), int((x + 0.5) * sides[1] / width)]
            assert np.argwhere(np.asarray(label[0, 0]) == 1).tolist() == [where]
            assert segmenter.predict(image).any()


encoded = []  # the sum of each photograph that the backbone was given


class Watched(nn.Module):
    """A backbone that notes what it encodes."""

    @nn.compact
    def __call__(self, image, stages=(), train=False):
        for one in image.reshape(-1, *image.shape[-3:]):
            jax.debug.callback(lambda total: encoded.append(round(float(total), 2)), one.sum())
        return Stem()(image)


def test_supports_are_encoded_once_and_queries_too(shown, images):
    config = make_segmenter().config
    model = PANet(backbone=Watched())
    segmenter = Segmenter(config, model, draw_variables(model, 1, 1), make_mesh(1))
    jax.effects_barrier()
    encoded.clear()
    segmenter.fit(*shown)
    jax.effects_barrier()
    supports = {*encoded}
    assert len(encoded) == len(supports) == 2
    encoded.clear()
    for _ in range(2):
        segmenter.predict(images[-4:], batch_size=2)
    jax.effects_barrier()
    assert not supports & {*encoded}
    assert [encoded.count(one) for one in {*encoded}] == [2] * 4


# ----------------------------------------------------------------------------- wrong input

IMAGE, MASK = np.zeros((8, 9, 3), np.uint8), np.eye(8, 9, dtype=np.uint8)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"images": [IMAGE]}, "masks and boxes: neither was given"),
        (
            {"images": [IMAGE], "masks": [MASK], "boxes": [(0, 0, 3, 3)]},
            "masks and boxes: both was given",
        ),
        ({"images": [], "masks": []}, r"images = \[\]: at least one photograph"),
        ({"images": 3, "masks": [MASK]}, "images = 3: give a list"),
        ({"images": [IMAGE], "masks": "mask.png"}, "masks = 'mask.png': give a list"),
        ({"images": [IMAGE] * 3, "masks": [MASK] * 2}, "masks has 2 entries, but images has 3"),
        ({"images": [IMAGE], "boxes": []}, "boxes has 0 entries, but images has 1"),
        ({"images": [IMAGE, None], "masks": [MASK] * 2}, r"images\[1\] is an array of object"),
        ({"images": [IMAGE / 255], "masks": [MASK]}, r"images\[0\] is an array of float64"),
        ({"images": ["absent.png"], "masks": [MASK]}, "absent.png cannot be read"),
        ({"images": [IMAGE], "masks": ["absent.png"]}, "absent.png cannot be read"),
        ({"images": [IMAGE], "masks": [MASK.T]}, r"masks\[0\] is 8 x 9 pixels, but images\[0\] is"),
        ({"images": [IMAGE] * 2, "masks": [MASK, MASK * 0]}, r"masks\[1\] is empty"),
        ({"images": [IMAGE], "masks": [MASK * 2]}, "masks: no photograph shows class 1, but one"),
        ({"images": [IMAGE], "boxes": [(5, 5, 2, 2)]}, r"boxes\[0\] has the box \(5, 5, 2, 2\)"),
        (
            {"images": [IMAGE], "masks": [MASK], "classes": ["cat", "dog"]},
            r"classes = \('cat', 'dog'\): 2 names, but masks number 1 class\.",
        ),
    ],
)
def test_wrong_supports_are_told(arguments, sentence):
    with pytest.raises(UserError, match=f"^{sentence}"):
        make_segmenter().fit(**arguments)


def test_classes_that_coincide_in_the_square_are_told():
    image, mask = np.zeros((300, 400, 3), np.uint8), np.zeros((300, 400), np.uint8)
    mask[100, 200:202] = 1, 2
    with pytest.raises(UserError, match=r"^masks\[0\] shows class 1 in so few pixels .* = 32: "):
        make_segmenter().fit([image], [mask])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"images": 3}, "images is of type int: give an iterable"),
        ({"images": None}, "images is of type NoneType"),
        ({"images": [IMAGE, 3]}, r"images\[1\] is an array of int64 and shape \(\)"),
        ({"images": [IMAGE], "batch_size": 0}, "batch_size = 0: it must be an integer of at least"),
        ({"images": [IMAGE], "batch_size": 2.5}, "batch_size = 2.5: it must be an integer"),
    ],
)
def test_wrong_queries_are_told(fitted, options, sentence):
    with pytest.raises(UserError, match=f"^{sentence}"):
        fitted.predict(**options)


def test_a_stream_of_one_image_is_told(fitted):
    with pytest.raises(UserError, match=r"^images is of type str: give an iterable"):
        fitted.stream("photograph.jpg")


def test_predicting_before_fit_is_told():
    segmenter = make_segmenter()
    new = Segmenter(segmenter.config, segmenter.model, segmenter.variables, make_mesh(1))
    for call in (new.predict, new.stream):
        with pytest.raises(UserError, match=r"^predict: call fit first"):
            call([IMAGE])
