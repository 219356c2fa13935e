"""MFNet is what its equations say: the network in PyTorch, both losses in NumPy."""

import functools
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

from fsseg_jax.backbones.resnet import ResNet50
from fsseg_jax.episode import IGNORE, Episode, empty_episode
from fsseg_jax.models.losses import focal_loss, metric_loss
from fsseg_jax.models.mfnet import Aux, MFNet
from fsseg_jax.models.output import Output
from fsseg_jax.models.resize import adaptive_pool

MANY = 4000  # keys, for statistics


class Strided(nn.Module):
    """Every fourth pixel, in the place of a network's features."""

    def __call__(self, image, stages=(), train=False):
        return (image[..., ::4, ::4, :],)


def tiny(**fields):
    return MFNet(backbone=Strided(), **{"width": 12, "dropout": 0.0, **fields})


def draw_episode(ways, shots, seed=0, height=33, width=41):
    """Photographs of noise; labels of squares of 5 pixels, in which every way and 255 occur."""
    rng = np.random.default_rng(seed)
    choices = np.array([*range(ways + 1), IGNORE], np.uint8)

    def label(*shape):
        squares = rng.choice(choices, (*shape, -(-height // 5), -(-width // 5)))
        return squares.repeat(5, -2).repeat(5, -1)[..., :height, :width]

    def image(*shape):
        return rng.standard_normal((*shape, height, width, 3)).astype(np.float32)

    return Episode(
        support_image=image(ways, shots),
        support_label=label(ways, shots),
        query_image=image(),
        query_label=label(),
        class_id=np.arange(1, ways + 1),
        query_index=np.array(0),
    )


def param_shapes(model, episode):
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    return jax.eval_shape(functools.partial(model.init, train=True), keys, episode)["params"]


def draw_params(model, episode):
    """Parameters whose values depend on their own name and shape only."""

    def draw(path, shape):
        rng = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
        fan_in = np.prod(shape.shape[:-1]) if len(shape.shape) > 1 else 10
        return (rng.standard_normal(shape.shape) / np.sqrt(fan_in)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, param_shapes(model, episode))


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, episode):
    """The network in training mode: logits and the embedding."""
    output = model.apply({"params": params}, episode, train=True)
    return output.logits, output.aux.embedding


def run_pytorch(params, episode, **options):
    """Ditto in PyTorch, as tensors with the channels first."""
    torch = pytest.importorskip("torch")
    import pytorch_mfnet

    def features(image):
        return torch.as_tensor(image[::4, ::4]).double().permute(2, 0, 1)

    return pytorch_mfnet.MFNet(params, **options)(
        [[features(image) for image in way] for way in episode.support_image],
        episode.support_label,
        features(episode.query_image),
    )


# ----------------------------------------------------------------------------- the network

VARIANTS = [
    {"query_fusion": "concat"},
    {"way_fusion": "add"},
    {"scale_attention": False},
    {"support_attention": False},
    {"binary_branches": True},
    {"separate_embeddings": False},
    {"compare_supports": True, "support_attention": False},
    {"compare_supports": True, "query_fusion": "concat", "scale_attention": False},
    {"hierarchy": True},
    {"aspp": True},
]


def assert_matches_pytorch(episode, options):
    pytest.importorskip("torch")
    import pytorch_mfnet

    model = tiny(**options)
    params = draw_params(model, episode)
    logits, embedding = run(model, params, episode)
    expected, embeddings = run_pytorch(pytorch_mfnet.as_tensors(params), episode, **options)
    assert_close(logits, expected.detach().permute(1, 2, 0), 1e-4)
    assert len(embedding) == len(embeddings)
    for ours, theirs in zip(embedding, embeddings, strict=True):
        assert_close(ours, theirs.detach().permute(1, 2, 0), 1e-4)


@pytest.mark.parametrize(("ways", "shots"), [(1, 1), (2, 3)])
def test_forward_pass_matches_pytorch(ways, shots):
    assert_matches_pytorch(draw_episode(ways, shots), {})


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: next(iter(options)))
def test_every_ablation_changes_what_it_changes_in_pytorch(options):
    episode = draw_episode(2, 3)
    assert_matches_pytorch(episode, options)
    default, _ = run(tiny(), draw_params(tiny(), episode), episode)
    ablated, _ = run(tiny(**options), draw_params(tiny(**options), episode), episode)
    assert np.abs(ablated - default).max() > 0.01 * np.abs(default).max()


@pytest.mark.parametrize("options", [{"heads": 2}, {"scales": 2}], ids=str)
def test_numbers_of_heads_and_scales_match_pytorch(options):
    assert_matches_pytorch(draw_episode(2, 3), options)


def test_gradients_of_all_parameters_match_pytorch():
    torch = pytest.importorskip("torch")
    import pytorch_mfnet

    model, episode = tiny(), draw_episode(2, 3)
    params = draw_params(model, episode)
    weight = np.random.default_rng(1).standard_normal((9, 11, 3)).astype(np.float32)
    tensors = pytorch_mfnet.as_tensors(params)
    logits, _ = run_pytorch(tensors, episode)
    (logits * torch.as_tensor(weight).permute(2, 0, 1)).sum().backward()
    expected = pytorch_mfnet.gradients(tensors)

    def weighted(params):
        output = model.apply({"params": params}, episode, train=True)
        return jnp.sum(output.logits * weight)

    result = jax.jit(jax.grad(weighted))(params)
    for leaf in jax.tree.leaves(expected):
        assert np.abs(leaf).max() > 0
    jax.tree.map(functools.partial(assert_close, relative=1e-3), result, expected)


def test_order_of_shots_does_not_matter():
    episode = draw_episode(2, 3)
    params = draw_params(tiny(), episode)
    order = np.array([[2, 0, 1], [1, 0, 2]])  # another one for each way
    shuffled = episode.replace(
        support_image=np.stack([episode.support_image[n, order[n]] for n in range(2)]),
        support_label=np.stack([episode.support_label[n, order[n]] for n in range(2)]),
    )
    expected, _ = run(tiny(), params, episode)
    assert_close(run(tiny(), params, shuffled)[0], expected, 1e-5)


def test_order_of_ways_matters_only_where_they_are_decoded_together():
    episode = draw_episode(2, 3)
    renumber = np.arange(256, dtype=np.uint8)
    renumber[[1, 2]] = [2, 1]
    swapped = episode.replace(
        support_image=episode.support_image[::-1],
        support_label=renumber[episode.support_label[::-1]],
    )
    for model, equal in [(tiny(binary_branches=True), True), (tiny(), False)]:
        params = draw_params(model, episode)
        before, _ = run(model, params, episode)
        after, _ = run(model, params, swapped)
        assert np.allclose(after[..., [0, 2, 1]], before, atol=1e-5) == equal


def test_dropout_drops_whole_channels_of_each_embedding_and_image():
    model, episode = tiny(dropout=0.5, width=40), draw_episode(1, 3)
    variables = {"params": draw_params(model, episode)}
    images = episode.support_image[0]
    plain = model.apply(variables, images, method="encode")
    keys = {"dropout": jax.random.key(0)}
    dropped = model.apply(variables, images, True, rngs=keys, method="encode")
    kept = {}
    for name in ("support", "query"):
        assert plain[name].shape == (3, 9, 11, 40)
        kept[name] = np.asarray(dropped[name]).any(axis=(1, 2))
        np.testing.assert_allclose(
            dropped[name], plain[name] * 2 * kept[name][:, None, None], rtol=1e-5
        )
        assert 0.3 < kept[name].mean() < 0.7
    masks = {tuple(mask) for name in kept for mask in kept[name].tolist()}
    assert len(masks) == 6


# ----------------------------------------------------------------------------- parameters


def conv_size(size, before, after, bias=True):
    return size * size * before * after + bias * after


def count_by_hand(ways, shots, channels, width=256, scales=4):
    """Learnable parameters, part by part."""
    block = 2 * conv_size(3, width, width)
    attention = 2 * conv_size(3, width, width) + conv_size(1, width, 1)
    transform = conv_size(1, width, width) + block
    decoder = conv_size(1, ways * width, width) + block + conv_size(1, width, ways + 1)
    embeddings = 2 * conv_size(1, channels, width, bias=False)
    relations = 3 * width * width if shots > 1 else 0
    return embeddings + relations + scales * (attention + transform) + decoder


# The paper says 9.4 M. It does not say which layers the scales share: with weights of their own,
# as here, four scales have 9.7 M before anything else, and 2.4 M if they share everything (three
# scales of their own would give 9.6 M in all). Support attention is 0.2 M and the second embedding
# 0.4 M of the total.
@pytest.mark.parametrize(
    ("ways", "shots", "expected"),
    [(1, 1, 11_738_374), (2, 1, 11_804_167), (2, 5, 12_000_775)],
)
def test_number_of_learnable_parameters_on_resnet50(ways, shots, expected):
    model = MFNet(backbone=ResNet50())
    shapes = param_shapes(model, empty_episode(ways, shots, 32))
    assert set(model.frozen) == {"backbone"}
    learnable = {name: tree for name, tree in shapes.items() if name not in model.frozen}
    count = sum(leaf.size for leaf in jax.tree.leaves(learnable))
    assert count == count_by_hand(ways, shots, channels=512 + 1024) == expected


@pytest.mark.parametrize(
    ("options", "dependent"),
    [
        ({}, {"decoder/Conv_0/kernel", "decoder/Conv_1/kernel", "decoder/Conv_1/bias"}),
        ({"way_fusion": "add"}, {"decoder/Conv_1/kernel", "decoder/Conv_1/bias"}),
        ({"binary_branches": True}, set()),
    ],
)
def test_parameters_that_depend_on_the_ways_are_the_decoders(options, dependent):
    one, two = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(
                param_shapes(tiny(**options), empty_episode(ways, 1, 16))
            )
        }
        for ways in (1, 2)
    )
    assert one.keys() == two.keys()
    assert {name for name in one if one[name] != two[name]} == dependent


# ----------------------------------------------------------------------------- adaptive pooling


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((60, 60), (8, 8)),  # the paper's smallest scale
        ((9, 11), (5, 6)),
        ((13, 7), (2, 3)),
        ((5, 17), (5, 1)),
        ((3, 2), (5, 7)),  # up: windows of one or two positions
        ((1, 1), (1, 1)),
    ],
)
def test_adaptive_pooling_matches_pytorch(before, after):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((2, *before, 3)).astype(np.float32)
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(x).permute(0, 3, 1, 2), after)
    result = adaptive_pool(x, after)
    assert result.shape == (2, *after, 3)
    np.testing.assert_allclose(result, expected.permute(0, 2, 3, 1), atol=1e-5)


# ----------------------------------------------------------------------------- focal loss


def focal_by_hand(logits, label, gamma):
    """Eq. 1 pixel by pixel, the mean over pixels that are not ignored."""
    logits = np.asarray(logits, np.float64)
    pixels = [(i, j) for i, j in np.ndindex(label.shape) if label[i, j] != IGNORE]
    total = 0.0
    for i, j in pixels:
        truth = label[i, j]
        probability = np.exp(logits[i, j, truth]) / np.exp(logits[i, j]).sum()
        share = sum(label[pixel] == truth for pixel in pixels) / len(pixels)
        weight = 1 / np.log(1.1 + share)
        total -= weight * (1 - probability) ** gamma * np.log(probability)
    return total / len(pixels)


def draw_logits(*shape, seed=0):
    return 2 * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


focal = jax.jit(jax.value_and_grad(focal_loss), static_argnames="gamma")


@pytest.mark.parametrize("gamma", [2.0, 0.0, 1.5])
def test_focal_loss_is_its_equation(gamma):
    rng = np.random.default_rng(1)
    # Class 1 covers most of it, class 3 nothing, and some pixels are ignored.
    choices = np.array([0, 1, 1, 1, 2, IGNORE], np.uint8)
    logits, label = draw_logits(7, 9, 4), rng.choice(choices, (7, 9))
    value, _ = focal(logits, label, gamma=gamma)
    assert float(value) == pytest.approx(focal_by_hand(logits, label, gamma), rel=1e-5)


def test_focal_loss_ignores_pixels_as_if_they_were_cut_away():
    logits, label = draw_logits(7, 9, 3), np.random.default_rng(2).integers(0, 3, (7, 9))
    label = label.astype(np.uint8)
    label[:, 6:] = IGNORE
    logits[:, 6:] = 50 * draw_logits(7, 3, 3, seed=3)
    value, gradient = focal(logits, label, gamma=2.0)
    alone, gradient_alone = focal(logits[:, :6], label[:, :6], gamma=2.0)
    assert float(value) == pytest.approx(float(alone), rel=1e-6)
    assert not gradient[:, 6:].any()
    np.testing.assert_allclose(gradient[:, :6], gradient_alone, atol=1e-7)


def test_focal_loss_of_nothing_is_zero():
    value, gradient = focal(draw_logits(7, 9, 3), np.full((7, 9), IGNORE, np.uint8), gamma=2.0)
    assert float(value) == 0
    np.testing.assert_array_equal(gradient, 0)


def test_focal_loss_has_finite_gradients_where_the_network_is_sure():
    label = np.random.default_rng(2).integers(0, 3, (7, 9)).astype(np.uint8)
    logits = 200 * draw_logits(7, 9, 3)
    value, gradient = focal(logits, label, gamma=2.0)
    assert np.isfinite(float(value))
    assert np.isfinite(gradient).all()


# ----------------------------------------------------------------------------- metric loss

ROWS, COLUMNS = 5, 7


def pixels(*classified):
    """Labels and predictions of (ROWS, COLUMNS): background, but for (row, column, label,
    prediction) as given."""
    label, predicted = np.zeros((2, ROWS, COLUMNS), np.uint8)
    for row, column, truth, prediction in classified:
        label[row, column], predicted[row, column] = truth, prediction
    return label, predicted


def draw_embedding(seed=0):
    return np.random.default_rng(seed).standard_normal((ROWS, COLUMNS, 2)).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("positives", "anchors", "keys"))
def metric(label, predicted, embedding, margin=1.0, positives="spatial", anchors=20, keys=50):
    """The losses for so many keys, and the gradient of the mean."""
    logits = 3 * jax.nn.one_hot(predicted, 3)

    def losses(embedding):
        def one(key):
            return metric_loss(
                logits,
                embedding,
                label,
                key,
                positives=positives,
                anchors=anchors,
                margin=margin,
            )

        values = jax.vmap(one)(jax.random.split(jax.random.key(7), keys))
        return values.mean(), values

    gradient, values = jax.grad(losses, has_aux=True)(embedding)
    return values, gradient


def squared(embedding, one, other):
    return np.sum((embedding[one].astype(float) - embedding[other]) ** 2)


POSITIVES = pytest.mark.parametrize("positives", ["spatial", "random", "feature"])
ONE_OF_EACH = ((1, 1, 1, 1), (3, 4, 1, 0), (0, 6, 0, 1))  # anchor, positive, negative


@POSITIVES
@pytest.mark.parametrize("margin", [0.0, 1.0, 5.0])
def test_triplet_is_equation_6_where_there_is_nothing_to_draw(positives, margin):
    active = []
    for seed in range(6):
        embedding = draw_embedding(seed)
        positive = squared(embedding, (1, 1), (3, 4))
        negative = squared(embedding, (1, 1), (0, 6))
        expected = max(positive - negative + margin, 0)
        active.append(expected > 0)
        values, _ = metric(*pixels(*ONE_OF_EACH), embedding, margin, positives=positives)
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
    assert any(active)
    assert margin > 0 or not all(active)


def test_gradient_is_of_the_three_pixels_of_the_triplet():
    """a pulls p and pushes n: with d = |a - p|^2 - |a - n|^2 + margin."""
    embedding = draw_embedding()
    a, p, n = embedding[1, 1], embedding[3, 4], embedding[0, 6]
    _, gradient = metric(*pixels(*ONE_OF_EACH), embedding, 50.0)
    expected = np.zeros_like(embedding)
    expected[1, 1], expected[3, 4], expected[0, 6] = 2 * (n - p), 2 * (p - a), 2 * (a - n)
    np.testing.assert_allclose(gradient, expected, atol=1e-4)


@POSITIVES
def test_mean_is_over_valid_triplets_only(positives):
    """Class 2 has twelve anchors but nothing was wrongly given to it: it does not count."""
    others = [(4, column, 2, 2) for column in range(7)] + [(2, c, 2, 2) for c in range(2, 7)]
    label, predicted = pixels(*ONE_OF_EACH, *others, (0, 0, 2, 0))
    embedding = draw_embedding()
    expected = squared(embedding, (1, 1), (3, 4)) - squared(embedding, (1, 1), (0, 6)) + 9
    values, _ = metric(label, predicted, embedding, 9.0, positives=positives)
    values = np.asarray(values)
    # Class 1's anchor is drawn with probability 1 - (12 / 13)^20 = 0.8.
    assert 0.5 < (values > 0).mean() < 1
    np.testing.assert_allclose(values[values > 0], expected, rtol=1e-4)


@pytest.mark.parametrize(
    "classified",
    [
        [],  # all is background, and found to be
        [(3, 4, 1, 0), (0, 6, 0, 1)],  # no anchor
        [(1, 1, 1, 1), (0, 6, 0, 1)],  # nothing missed
        [(1, 1, 1, 1), (3, 4, 1, 0)],  # nothing wrong
        [(1, 1, 1, 1), (3, 4, 2, 0), (0, 6, 0, 2)],  # another class's
        [(row, column, IGNORE, 1) for row in range(ROWS) for column in range(COLUMNS)],
    ],
)
def test_empty_pool_gives_no_loss_and_a_zero_gradient(classified):
    embedding = draw_embedding()
    for positives in ("spatial", "random", "feature"):
        values, gradient = metric(*pixels(*classified), embedding, 9.0, positives=positives)
        np.testing.assert_array_equal(values, 0)
        np.testing.assert_array_equal(gradient, 0)


@POSITIVES
def test_ignored_positions_are_never_drawn(positives):
    """Whatever is predicted there, and however tempting the embedding is."""
    free = [(2, column) for column in range(COLUMNS)] + [(4, column) for column in range(COLUMNS)]
    ignored = [(*where, IGNORE, number % 3) for number, where in enumerate(free)]
    label, predicted = pixels(*ONE_OF_EACH, *ignored)
    embedding = draw_embedding()
    embedding[2], embedding[4] = 100, embedding[1, 1]  # the farthest, and the nearest
    expected = squared(embedding, (1, 1), (3, 4)) - squared(embedding, (1, 1), (0, 6)) + 9
    values, gradient = metric(label, predicted, embedding, 9.0, positives=positives)
    np.testing.assert_allclose(values, expected, rtol=1e-4)
    drawn = np.asarray(gradient).any(axis=-1)
    assert drawn.sum() == 3
    assert not drawn[label == IGNORE].any()


# Which one was drawn is written into the loss: the anchor's embedding is 0, and the squares of the
# candidates' are 1, 2, 3, ...
ANCHOR = (2, 3)
CANDIDATES = ((2, 4), (1, 4), (2, 1), (4, 3), (0, 0), (4, 6))
DISTANCES = np.sqrt([1, 2, 4, 4, 13, 13])


def count_drawn(values, candidates=6):
    numbers = np.rint(np.asarray(values)).astype(int)
    np.testing.assert_allclose(values, numbers, atol=1e-3)
    assert numbers.min() >= 1
    return np.bincount(numbers - 1, minlength=candidates)


def chi_square(counts, weights):
    """The statistic; where the weights are right it is about len(counts) - 1."""
    expected = counts.sum() * np.asarray(weights) / np.sum(weights)
    return np.sum((counts - expected) ** 2 / expected)


LIMIT = 25  # of 5 degrees of freedom: exceeded by 1 in 7,000


def draws_of_positives(positives):
    label, predicted = pixels((*ANCHOR, 1, 1), (0, 6, 0, 1), *((*at, 1, 0) for at in CANDIDATES))
    embedding = np.zeros((ROWS, COLUMNS, 2), np.float32)
    for number, at in enumerate(CANDIDATES, start=1):
        embedding[at] = [0, np.sqrt(number)]
    values, _ = metric(label, predicted, embedding, 0.0, positives=positives, anchors=1, keys=MANY)
    return count_drawn(values)


def test_positives_are_drawn_by_their_nearness():
    counts = draws_of_positives("spatial")
    assert chi_square(counts, 1 / (1 + DISTANCES)) < LIMIT
    for others in (np.ones(6), 1 / DISTANCES, 1 / (1 + DISTANCES**2), 1 / (1 + DISTANCES) ** 2):
        assert chi_square(counts, others) > LIMIT


def test_random_positives_are_drawn_evenly():
    counts = draws_of_positives("random")
    assert chi_square(counts, np.ones(6)) < LIMIT
    assert chi_square(counts, 1 / (1 + DISTANCES)) > LIMIT


@pytest.mark.parametrize("positives", ["spatial", "random"])
def test_negatives_are_drawn_evenly(positives):
    label, predicted = pixels((*ANCHOR, 1, 1), (0, 6, 1, 0), *((*at, 0, 1) for at in CANDIDATES))
    embedding = np.zeros((ROWS, COLUMNS, 2), np.float32)
    for number, at in enumerate(CANDIDATES, start=1):
        embedding[at] = [np.sqrt(number), 0]
    values, _ = metric(label, predicted, embedding, 10.0, positives=positives, anchors=1, keys=MANY)
    counts = count_drawn(10 - np.asarray(values))
    assert chi_square(counts, np.ones(6)) < LIMIT
    assert chi_square(counts, 1 / (1 + DISTANCES)) > LIMIT


def test_feature_distance_takes_the_farthest_positive_and_the_nearest_negative():
    positives, negatives = CANDIDATES[:3], CANDIDATES[3:]
    label, predicted = pixels(
        (*ANCHOR, 1, 1), *((*at, 1, 2) for at in positives), *((*at, 0, 1) for at in negatives)
    )
    embedding = draw_embedding()
    farthest = max(squared(embedding, ANCHOR, at) for at in positives)
    nearest = min(squared(embedding, ANCHOR, at) for at in negatives)
    values, _ = metric(label, predicted, embedding, 20.0, positives="feature")
    np.testing.assert_allclose(values, farthest - nearest + 20, rtol=1e-4)


def test_anchors_are_drawn_from_all_classes_together_but_the_background():
    """Three anchors of class 1 and one of class 2 are equally likely; the background has anchors,
    missed and wrong positions as well, and none is drawn."""
    label, predicted = pixels(
        *[(1, column, 1, 1) for column in range(3)],
        (1, 4, 2, 2),
        *[(3, 0, 1, 0), (3, 1, 0, 1)],  # the background's wrong one, and its missed one
        *[(3, 3, 2, 0), (3, 4, 0, 2)],
    )
    embedding = np.zeros((ROWS, COLUMNS, 2), np.float32)
    embedding[3, 0] = [1, 0]  # class 1's loss is 1,
    embedding[3, 3] = [1, 1]  # and class 2's 2
    embedding[0] = 1000
    values, gradient = metric(label, predicted, embedding, 0.0, anchors=1, keys=MANY)
    counts = count_drawn(values, 2)
    assert chi_square(counts, [3, 1]) < 15  # of 1 degree: exceeded by 1 in 9,000
    assert chi_square(counts, [1, 1]) > 15
    background = (label == 0) & (predicted == 0)
    assert not np.asarray(gradient)[background].any()


def test_loss_is_the_mean_over_the_anchors():
    """Twenty anchors, half of them of each of two classes on average, drawn independently."""
    label, predicted = pixels(
        *[(1, 0, 1, 1), (3, 0, 1, 0), (3, 1, 0, 1)], *[(1, 4, 2, 2), (3, 3, 2, 0), (3, 4, 0, 2)]
    )
    embedding = np.zeros((ROWS, COLUMNS, 2), np.float32)
    embedding[3, 0] = [1, 0]
    values, _ = metric(label, predicted, embedding, 0.0)
    counts = 20 * np.asarray(values)
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-3)
    assert counts.mean() == pytest.approx(10, abs=4 * np.sqrt(5 / 50))
    assert 1.5 < counts.var() < 12  # about 5


@POSITIVES
def test_expected_loss_is_what_all_triplets_give(positives):
    """One anchor, and every triplet of it with its probability, written out."""
    rng = np.random.default_rng(3)
    label = rng.choice(np.array([0, 0, 1, 2, IGNORE], np.uint8), (ROWS, COLUMNS))
    predicted = rng.integers(0, 3, (ROWS, COLUMNS)).astype(np.uint8)
    embedding, margin = draw_embedding(), 1.0
    places = list(np.ndindex(ROWS, COLUMNS))
    anchors = [at for at in places if label[at] in (1, 2) and label[at] == predicted[at]]
    first = second = 0.0
    for anchor in anchors:
        own = label[anchor]
        missed = [at for at in places if label[at] == own != predicted[at]]
        wrong = [at for at in places if predicted[at] == own != label[at] and label[at] != IGNORE]
        if positives == "spatial":
            weights = [1 / (1 + np.hypot(*np.subtract(at, anchor))) for at in missed]
        else:
            weights = [1.0] * len(missed)
        if positives == "feature":
            missed = [max(missed, key=lambda at: squared(embedding, anchor, at))]
            wrong = [min(wrong, key=lambda at: squared(embedding, anchor, at))]
            weights = [1.0]
        for positive, weight in zip(missed, weights, strict=True):
            for negative in wrong:
                distance = squared(embedding, anchor, positive)
                loss = max(distance - squared(embedding, anchor, negative) + margin, 0)
                probability = weight / sum(weights) / len(wrong) / len(anchors)
                first += probability * loss
                second += probability * loss**2
    assert len({label[anchor] for anchor in anchors}) == 2
    values, _ = metric(
        label, predicted, embedding, margin, positives=positives, anchors=1, keys=MANY
    )
    error = np.sqrt((second - first**2) / MANY)
    assert np.mean(values) == pytest.approx(first, abs=4 * error)
    assert np.mean(np.square(values)) == pytest.approx(second, rel=0.15)


# ----------------------------------------------------------------------------- the whole loss


def centred_triplet():
    """Logits and an embedding of 9 x 11 positions, and an episode of 33 x 41 pixels.

    The label says at the positions' own pixels, which are every fourth one, what `ONE_OF_EACH`
    says, and something else in between.
    """
    predicted = np.zeros((9, 11), int)
    label = np.full((33, 41), 2, np.uint8)
    label[::4, ::4] = 0
    for row, column, truth, prediction in ONE_OF_EACH:
        label[4 * row, 4 * column], predicted[row, column] = truth, prediction
    logits = np.eye(3, dtype=np.float32)[predicted] + 0.1 * draw_logits(9, 11, 3)
    embedding = np.random.default_rng(0).standard_normal((9, 11, 4)).astype(np.float32)
    episode = empty_episode(2, 1, 4).replace(query_label=label)
    return logits, embedding, episode


@functools.partial(jax.jit, static_argnums=0)
def whole_loss(model, logits, embedding, episode, epoch):
    """The total, its parts and the gradient of the total with respect to the embedding."""

    def total(embedding):
        output = Output(logits[0], Aux(logits, embedding))
        return model.loss(output, episode, jax.random.key(0), epoch)

    (value, parts), gradient = jax.value_and_grad(total, has_aux=True)(embedding)
    return {"total": value, **parts}, gradient


def focal_of(logits, label):
    """Of logits up-sampled with aligned corners, by PyTorch."""
    torch = pytest.importorskip("torch")
    large = torch.nn.functional.interpolate(
        torch.tensor(logits).double().permute(2, 0, 1)[None],
        label.shape,
        mode="bilinear",
        align_corners=True,
    )
    return focal_by_hand(large[0].permute(1, 2, 0).numpy(), label, 2.0)


@pytest.mark.parametrize(
    ("options", "weight", "start"),
    [
        ({}, 0.4, 5.0),
        ({"metric_weight": 2.0, "metric_from_epoch": 1.0, "focal_over_ways": False}, 2.0, 1.0),
    ],
)
def test_loss_is_focal_and_from_its_epoch_on_weighted_metric_loss(options, weight, start):
    logits, embedding, episode = centred_triplet()
    ways = 2 if options.get("focal_over_ways", True) else 1  # eq. 1's N
    expected_focal = focal_of(logits, episode.query_label) / ways
    expected_metric = max(
        squared(embedding, (1, 1), (3, 4)) - squared(embedding, (1, 1), (0, 6)) + 1, 0
    )
    assert expected_metric > 0.1
    for epoch, factor in ((0.0, 0), (start - 0.01, 0), (start, weight), (start + 3, weight)):
        result, gradient = whole_loss(
            tiny(**options), logits[None], embedding[None], episode, jnp.float32(epoch)
        )
        assert float(result["focal"]) == pytest.approx(expected_focal, rel=1e-4)
        assert float(result["metric"]) == pytest.approx(expected_metric, rel=1e-4)
        total = expected_focal + factor * expected_metric
        assert float(result["total"]) == pytest.approx(total, rel=1e-4)
        assert np.asarray(gradient).any() == (factor > 0)


def test_loss_without_metric_learning_is_the_focal_loss():
    logits, embedding, episode = centred_triplet()
    model = tiny(metric_positives="none")
    result, gradient = whole_loss(model, logits[None], embedding[None], episode, jnp.float32(9))
    assert set(result) == {"total", "focal"}
    assert float(result["total"]) == float(result["focal"])
    assert not np.asarray(gradient).any()


def test_loss_of_binary_branches_is_the_mean_of_the_ways_losses():
    _, embedding, episode = centred_triplet()
    label = np.where(np.arange(41) < 4, IGNORE, episode.query_label).astype(np.uint8)
    episode = episode.replace(query_label=label)
    logits = draw_logits(2, 9, 11, 2)
    ways = [np.where(label == IGNORE, IGNORE, label == way).astype(np.uint8) for way in (1, 2)]
    expected = np.mean([focal_of(logits[n], ways[n]) for n in range(2)])
    model = tiny(binary_branches=True, metric_positives="none")
    result, _ = whole_loss(model, logits, np.stack([embedding] * 2), episode, jnp.float32(0))
    assert float(result["total"]) == pytest.approx(expected, rel=1e-4)
