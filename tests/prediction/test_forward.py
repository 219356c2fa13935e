"""`forward` is the method itself, whatever it is composed with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from segmenters import SIZE, draw_episode, make_segmenter, softmax

from fsseg_jax import forward
from fsseg_jax.episode import IGNORE, Episode, normalise
from fsseg_jax.errors import UserError
from fsseg_jax.models import METHODS


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
    """Bilinear interpolation, rows before columns."""
    logits = np.asarray(logits, np.float64)

    def neighbours(n_in, n_out):
        if align_corners:
            position = np.arange(n_out) * (n_in - 1) / (n_out - 1)
        else:
            position = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
        low = np.minimum(np.floor(position).astype(int), n_in - 2)
        return low, position - low

    (top, down), (left, right) = map(neighbours, logits.shape, shape)
    down, right = down[:, None, None], right[:, None]
    rows = (1 - down) * logits[top] + down * logits[top + 1]
    return (1 - right) * rows[:, left] + right * rows[:, left + 1]


def by_hand(segmenter, images, labels, queries):
    call, align_corners = applied(segmenter.model), segmenter.model.align_corners
    logits = (call(segmenter.variables, images, labels, query) for query in queries)
    return np.stack([enlarge(x, (SIZE, SIZE), align_corners) for x in logits])


def assert_close(result, expected, tolerance=1e-4):
    assert np.isfinite(expected).all()
    assert np.ptp(expected) > 0.05  # there is something to compare
    np.testing.assert_allclose(result, expected, atol=tolerance * np.abs(expected).max())


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
    # SST's weights of shots (eq. 14) are steps: 0 for a support whose self-segmentation is empty.
    fields = {"fusion": "average"} if method == "sst" else {}
    segmenter = make_segmenter(method, ways=2, shots=2, freeze_backbone=True, **fields)
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
    arguments = segmenter.variables, features, labels, of_query, query
    output = segmenter.model.apply(*arguments, method="segment")
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


EPISODE = [array.astype(np.uint8) for array in draw_episode(1, 2)]


def changed(**arrays):
    names = "support_images", "support_labels", "query_images"
    return [arrays.get(name, array) for name, array in zip(names, EPISODE, strict=True)]


def with_value(value, dtype=np.float32):
    array = EPISODE[2].astype(dtype)
    array[0, 3, 4, 0] = value
    return array


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (changed(support_images=EPISODE[0].tolist()), "support_images is of type list: give an"),
        (changed(query_images=None), "query_images is of type NoneType: give an array"),
        (changed(support_images=EPISODE[0][:, :0], support_labels=EPISODE[1][:, :0]), "shapes of"),
        (changed(query_images=EPISODE[2][..., :1]), "shapes of"),
        (changed(query_images=EPISODE[2] > 3), "query_images is an array of bool: give RGB"),
        (changed(query_images=EPISODE[2] * 1j), "query_images is an array of complex128"),
        (changed(query_images=EPISODE[2].astype(str)), "query_images is an array of <U"),
        (changed(query_images=EPISODE[2] / np.float32(255)), r"query_images has values in .*\.\.1"),
        (changed(support_images=EPISODE[0] / 127.5 - 1), "support_images has values in -"),
        (changed(query_images=normalise(EPISODE[2])), "query_images has .* nor normalised"),
        (changed(query_images=jnp.asarray(EPISODE[2]) / 255), "query_images has values in"),
        (changed(query_images=with_value(np.nan)), r"query_images has values in nan\.\.nan"),
        (changed(query_images=with_value(-np.inf)), r"query_images has values in -inf\.\."),
        (changed(query_images=with_value(65535.0)), "query_images has values in"),
        (changed(query_images=with_value(256, np.uint16)), "query_images has values in"),
        (changed(query_images=with_value(-1, np.int32)), "query_images has values in"),
        (changed(support_labels=EPISODE[1] * 2), "support_labels has the value 2, but .* 1 way:"),
        (changed(support_labels=EPISODE[1] - 1.0), "support_labels is an array of float64"),
        (changed(support_labels=EPISODE[1].astype(int) - 1), "support_labels has the value -1"),
        (changed(support_labels=jnp.asarray(EPISODE[1]) * 2), "support_labels has the value 2"),
    ],
)
def test_wrong_arrays_are_told(arguments, sentence):
    with pytest.raises(UserError, match=f"^{sentence}"):
        make_segmenter().forward(*arguments)


@pytest.mark.parametrize("variables", [None, 3, {"params": {}}, {"params": {"a": "b"}}])
def test_what_are_no_variables_is_told(variables):
    with pytest.raises(UserError, match=r"^variables"):
        forward(make_segmenter().model, variables, *EPISODE)
    with pytest.raises(UserError, match=r"^model is of type dict: give a method"):
        forward({}, variables, *EPISODE)


def test_types_within_jit_are_told_and_values_are_not_asked_for():
    segmenter = make_segmenter()
    scaled = EPISODE[2] / np.float32(255)
    logits = jax.jit(segmenter.forward)(*changed(query_images=scaled))
    assert np.isfinite(logits).all()
    with pytest.raises(UserError, match="support_labels is an array of float32"):
        jax.jit(segmenter.forward)(*changed(support_labels=EPISODE[1].astype(np.float32)))


def test_black_images_and_whole_numbers_of_any_type_are_images():
    segmenter = make_segmenter()
    expected = segmenter.forward(*EPISODE)
    for dtype in (np.int32, np.float32, np.float16, jnp.bfloat16):
        images, labels, queries = (array.astype(dtype) for array in EPISODE)
        labels = EPISODE[1].astype(np.int32) if dtype is np.int32 else EPISODE[1]
        np.testing.assert_allclose(segmenter.forward(images, labels, queries), expected, atol=1e-5)
    black = np.zeros_like(EPISODE[2], np.float32)
    assert np.isfinite(segmenter.forward(*changed(query_images=black))).all()
    assert segmenter.forward(*changed(query_images=EPISODE[2][:0])).shape == (0, SIZE, SIZE, 2)


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
