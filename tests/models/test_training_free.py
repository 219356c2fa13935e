"""Banks of positions are what NumPy computes, and more supports help them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close
from scipy.special import logsumexp
from tiny_models import EveryFourth, draw_episode

from fsseg_jax.backbones import create_backbone
from fsseg_jax.episode import UNLABELLED
from fsseg_jax.models import training_free
from fsseg_jax.models.panet import PANet

CHANNELS = 5
MEAN = PANet(backbone=None)
POSITIONS = PANet(backbone=None, prototypes="positions", discriminant_from=1)
fit = jax.jit(training_free.fit)


def draw(images=3, classes=3, side=6, seed=0):
    """Features of several images, and areas of classes, many of them 0."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((images, side, side, CHANNELS)) + 0.5
    areas = np.maximum(rng.uniform(-1, 64, (images, side, side, classes)), 0)
    return features.astype(np.float32), areas.astype(np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def blocks_of(features, areas):
    """Unit features averaged over 2 x 2 positions, one block at a time, and areas summed."""
    positions, weights = [], []
    for image, area in zip(unit(features.astype(float)), areas.astype(float), strict=True):
        for i in range(0, image.shape[0], 2):
            for j in range(0, image.shape[1], 2):
                part = area[i : i + 2, j : j + 2].reshape(-1, area.shape[-1])
                vectors = image[i : i + 2, j : j + 2].reshape(-1, CHANNELS)
                if not part.any():
                    continue  # it is of nothing
                positions.append(np.average(vectors, axis=0, weights=part.sum(axis=1)))
                weights.append(part.sum(axis=0))
    weights = np.array(weights)
    return np.array(positions), weights / weights.sum(axis=0)


def matched_prototypes(x, w, y):
    """Means in which positions that match a query's both ways are replaced by them."""
    centre, own = w.T.dot(x).mean(axis=0), w.argmax(axis=1)
    similarity = unit(x - centre) @ unit(y).T
    prototypes = w.T @ x - centre
    means = prototypes.copy()
    for i in range(len(x)):
        j = similarity[i].argmax()
        if own[similarity[:, j].argmax()] == own[i]:
            prototypes[own[i]] += w[i, own[i]] * (y[j] - means[own[i]])
    return prototypes


def expected_logits(features, areas, query, sharpness, ridge, weights):
    """Class by class, from the definitions."""
    x, w = blocks_of(features, areas)
    means = w.T @ x
    centre = means.mean(axis=0)
    within = np.mean([np.cov(x.T, aweights=w[:, k], ddof=0) for k in range(w.shape[1])], axis=0)
    inverse = np.linalg.inv(within + ridge * np.diag(within).mean() * np.eye(CHANNELS))
    y = unit(query.astype(float)) - centre
    prototypes = matched_prototypes(x, w, y.reshape(-1, CHANNELS))
    between = prototypes.mean(axis=0)
    logits = []
    for k, mean in enumerate(means - centre):
        kernel = np.exp(sharpness * (unit(y) @ unit(x - centre).T - 1))
        linear = y @ inverse @ mean - mean @ inverse @ mean / 2
        matched = unit(y - between) @ unit(prototypes[k] - between)
        logits.append(np.log(kernel @ w[:, k]) + weights[0] * matched + weights[1] * linear)
    return np.stack(logits, axis=-1)


@pytest.mark.parametrize(("side", "unmarked"), [(6, 0), (7, 4)])
def test_logits_are_a_kernel_density_matched_prototypes_and_a_linear_discriminant(side, unmarked):
    features, areas = draw(side=side)
    areas[1, :unmarked] = 0  # whole blocks of nothing, which match nothing
    query = draw(seed=1)[0][0]
    result = training_free.logits(fit(features, areas, 0.3), query, 4.0, 2.0, 0.7)
    assert_close(result, expected_logits(features, areas, query, 4.0, 0.3, (2.0, 0.7)), 1e-4)


def test_matching_finds_what_resembles_the_query_itself_more_than_the_supports():
    """One half of the thing looks like the support's; the other half only like the first one."""
    features = np.zeros((1, 8, 8, 4), np.float32)
    features[..., 0] = 1
    features[0, 2:6, 2:6] = (0, 1, 0, 0)
    areas = np.zeros((1, 8, 8, 2), np.float32)
    areas[..., 0] = 1
    areas[0, 2:6, 2:6] = (0, 1)
    query = np.tile(np.float32([1, 0, 0, 0]), (8, 8, 1))
    query[2:6, :4], query[2:6, 4:] = (0, 1, 0, 1), (0.5, 0.35, 0, 0.8)
    bank, truth = fit(features, areas, 1.0), np.zeros((8, 8), bool)
    truth[2:6] = True
    alone, both = (training_free.logits(bank, query, 10.0, x, 0.0) for x in (0.0, 20.0))
    np.testing.assert_array_equal(np.asarray(alone)[2:6].argmax(axis=-1), [[1] * 4 + [0] * 4] * 4)
    np.testing.assert_array_equal(np.asarray(both).argmax(axis=-1), truth)


def test_density_of_one_position_a_class_is_cosine_similarity():
    """PANet's logits, up to a constant: each class at one place of one image."""
    features = np.random.default_rng(0).standard_normal((1, 2, 4, CHANNELS)).astype(np.float32)
    areas = np.zeros((1, 2, 4, 2), np.float32)
    areas[0, 0, 0, 0] = areas[0, 1, 3, 1] = 9
    bank = fit(features, areas, 1.0)
    query = draw(seed=1)[0][0]
    logits = np.asarray(training_free.logits(bank, query, 3.0, 0.0, 0.0))
    prototypes = unit(features[0, [0, 1], [0, 3]])
    centre = prototypes.mean(axis=0)
    cosines = unit(unit(query) - centre) @ unit(prototypes - centre).T
    assert_close(logits[..., 1] - logits[..., 0], 3 * (cosines[..., 1] - cosines[..., 0]), 1e-4)


def test_class_without_positions_is_finite_and_never_predicted():
    features, areas = draw()
    areas[..., 2] = 0
    logits = np.asarray(training_free.logits(fit(features, areas, 1.0), features[0], 5.0, 2.0, 1.0))
    assert np.isfinite(logits).all()
    assert not (logits.argmax(axis=-1) == 2).any()


def test_the_narrowest_kernel_has_no_floor_and_has_gradients():
    """Also where a class is far, on the other side of the centre."""
    features, areas = draw(classes=2)
    features[..., :2] += np.where(areas[..., :1] > areas[..., 1:], 9, -9) * [1, -1]
    areas *= areas == areas.max(axis=-1, keepdims=True)
    bank, query = fit(features, areas, 1.0), features[0]
    most = 40.0
    sharp = jax.jit(lambda x: training_free.compare(bank, x, most).density)
    cosines = unit(query) @ np.asarray(bank.positions).reshape(-1, CHANNELS).T
    exponents = most * (cosines - 1.0)
    assert exponents.min() < -70
    expected = logsumexp(exponents[..., None], axis=-2, b=np.asarray(bank.weights).reshape(-1, 2))
    assert_close(sharp(query), expected, 1e-4)
    gradient = jax.grad(lambda x: sharp(x).sum())(jnp.asarray(query))
    assert np.isfinite(gradient).all()


def test_positions_that_are_all_alike_have_finite_logits_of_the_right_sign():
    features = np.zeros((1, 2, 4, CHANNELS), np.float32)
    features[0, :, :2, 0] = features[0, :, 2:, 1] = 1
    areas = np.zeros((1, 2, 4, 2), np.float32)
    areas[0, :, :2, 0] = areas[0, :, 2:, 1] = 1
    logits = np.asarray(
        training_free.logits(fit(features, areas, 3.0), features[0], 10.0, 10.0, 0.5)
    )
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(logits.argmax(axis=-1), [[0, 0, 1, 1]] * 2)


@functools.partial(jax.jit, static_argnums=0)
def segment(model, support_features, support_label, query):
    """A query's logits, from the features of all images."""
    summary = model.apply({}, support_features, support_label, method="summarise")
    blank = jnp.zeros((1, 1, 3))
    return model.apply({}, summary, support_label, query, blank, method="segment").logits


def test_support_that_is_nowhere_marked_is_left_out():
    """Of means and of banks alike, so that leaving one out needs no other shapes."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((2, 3, 6, 6, CHANNELS)).astype(np.float32)
    label = rng.integers(0, 3, (2, 3, 6, 6)).repeat(4, -2).repeat(4, -1).astype(np.uint8)
    query = features[0, 0] + 0.3
    without = np.array(label)
    without[:, 1] = UNLABELLED
    for model in (MEAN, POSITIONS):
        expected = segment(model, features[:, [0, 2]], label[:, [0, 2]], query)
        assert_close(segment(model, features, without, query), expected, 1e-4)


def accuracy(model, shots, tasks=6):
    """The mean over tasks whose things have several appearances, each image one of them."""
    right = []
    for seed in range(tasks):
        rng = np.random.default_rng(seed)
        looks = 2.0 * rng.standard_normal((2, 6, CHANNELS))  # of the background and the thing

        def picture(rng=rng, looks=looks):
            label = np.zeros((8, 8), np.uint8)
            label[2:6, 2:6] = 1
            features = looks[label, rng.integers(6, size=2)[label]]
            return features + 0.5 * rng.standard_normal((8, 8, CHANNELS)), label

        supports = [picture() for _ in range(shots)]
        features, label = (np.stack(part)[None] for part in zip(*supports, strict=True))
        for _ in range(12):
            query, truth = picture()
            given = features.astype(np.float32), label.repeat(4, -2).repeat(4, -1)
            logits = segment(model, *given, query.astype(np.float32))
            right.append((np.asarray(logits).argmax(axis=-1) == truth).mean())
    return np.mean(right)


def test_more_shots_help_and_positions_more_than_means():
    positions = [accuracy(POSITIONS, shots) for shots in (1, 4, 12)]
    assert positions[0] + 0.05 < positions[1] < positions[2] - 0.02
    assert positions[2] > accuracy(MEAN, 12) + 0.1


def test_discriminant_counts_from_some_shots_on():
    model = POSITIONS.clone(discriminant_from=3)
    features = np.random.default_rng(0).standard_normal((1, 3, 6, 6, CHANNELS)).astype(np.float32)
    label = np.zeros((1, 3, 24, 24), np.uint8)
    label[..., 6:18, 6:18] = 1
    query = features[0, 0] + 0.3
    for shots, expected in ((2, POSITIONS.clone(discriminant_weight=0.0)), (3, POSITIONS)):
        given = features[:, :shots], label[:, :shots], query
        np.testing.assert_array_equal(segment(model, *given), segment(expected, *given))
    given = features[:, :2], label[:, :2], query
    assert np.abs(segment(model, *given) - segment(POSITIONS, *given)).max() > 0.01


def test_training_uses_means_whatever_stands_for_a_class():
    episode = draw_episode(2, 2)
    mean, positions = (
        PANet(backbone=EveryFourth(), prototypes=kind).apply({}, episode, train=True)
        for kind in ("mean", "positions")
    )
    jax.tree.map(np.testing.assert_array_equal, positions, mean)


def test_episodes_compose_with_jit_vmap_and_grad():
    model = PANet(backbone=EveryFourth(), prototypes="positions")
    episodes = [draw_episode(2, 2, seed=seed) for seed in range(2)]
    apply = jax.jit(lambda episode: model.apply({}, episode).logits)
    batch = jax.tree.map(lambda *x: np.stack(x), *episodes)
    for episode, logits in zip(episodes, jax.vmap(apply)(batch), strict=True):
        assert_close(logits, apply(episode), 1e-4)

    def loss(image):
        return jnp.mean(jnp.square(apply(episodes[0].replace(support_image=image))))

    image, direction = episodes[0].support_image, np.zeros_like(episodes[0].support_image)
    direction[0, 0, ::4, ::4] = np.random.default_rng(1).standard_normal(
        direction[0, 0, ::4, ::4].shape
    )
    slope = float(jnp.vdot(jax.grad(loss)(image), direction))
    step = 1e-2
    moved = (loss(image + step * direction) - loss(image - step * direction)) / (2 * step)
    assert slope == pytest.approx(float(moved), rel=0.02)
    assert slope != 0


def test_likeness_is_the_cosine_of_what_was_found_to_the_supports():
    features, areas = draw()
    query = draw(1, seed=1)[0][0]
    logits = np.random.default_rng(2).normal(size=(6, 6, 3)).astype(np.float32)
    logits[..., 2] -= 50  # nothing is found of the last class but where it is the nearest
    logits[4, 1, 2] += 10
    among = np.ones((6, 6), bool)
    among[:, 5] = False
    bank = training_free.fit(features, areas, 3.0, jax.nn.relu)
    found = training_free.likeness(bank, query, logits, among, jax.nn.relu)
    positive = np.maximum(features, 0), np.maximum(query, 0)
    for number in (1, 2):
        supports = sum(
            unit(np.tensordot(area[..., number], image, 2))
            for image, area in zip(positive[0], areas, strict=True)
        )
        places = (logits.argmax(axis=-1) == number) & among
        if number == 2:
            assert not places.any()
            places[4, 1] = True
        expected = unit(supports) @ unit(positive[1][places].sum(axis=0))
        np.testing.assert_allclose(found[number - 1], expected, atol=1e-5)
    everywhere = training_free.likeness(bank, query, logits, None, jax.nn.relu)
    assert abs(everywhere[0] - found[0]) > 1e-3
    for_all = training_free.likeness(bank, query, logits, np.ones((6, 6), bool), jax.nn.relu)
    np.testing.assert_array_equal(everywhere, for_all)


def test_a_backbone_without_its_last_relu_gets_it_for_the_likeness_alone():
    features = np.random.default_rng(3).normal(size=(1, 2, 6, 6, CHANNELS)).astype(np.float32)
    label = np.zeros((1, 2, 6, 6), np.uint8)
    label[..., 2:5, 1:4] = 1
    query = np.random.default_rng(4).normal(size=(6, 6, CHANNELS)).astype(np.float32)
    logits = np.random.default_rng(5).normal(size=(6, 6, 2)).astype(np.float32)

    def likeness(backbone, features, query):
        model = PANet(backbone=backbone, prototypes="positions")
        bank = model.apply({}, features, label, method="summarise")
        return model.apply({}, bank, query, logits, method="likeness")

    vgg = create_backbone("vgg16", "float32")
    rectified = np.maximum(features, 0), np.maximum(query, 0)
    expected = likeness(None, *rectified)
    np.testing.assert_allclose(likeness(vgg, features, query), expected, atol=1e-6)
    assert abs(likeness(None, features, query) - expected) > 1e-3
    assert MEAN.apply({}, features, query, logits, method="likeness") is None
