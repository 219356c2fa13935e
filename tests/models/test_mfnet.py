"""MFNet is what its equations say: the network in PyTorch, both losses in NumPy."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers import assert_close, assert_trees_close, random, up_sampled
from test_losses import ONE_OF_EACH, draw_logits, focal_by_hand, squared
from tiny_models import EveryFourth, draw_episode

from fsseg_jax.backbones.resnet import ResNet
from fsseg_jax.episode import IGNORE, empty_episode
from fsseg_jax.models.mfnet import Aux, MFNet
from fsseg_jax.models.output import Output


def make(**fields):
    return MFNet(backbone=EveryFourth(), **{"width": 12, "dropout": 0.0, **fields})


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


def run_pytorch(pytorch, weights, episode, **options):
    """Ditto in PyTorch, as tensors with the channels first."""
    from pytorch_mfnet import MFNet

    def features(image):
        return pytorch.planes(image[None, ::4, ::4])

    return MFNet(weights, **options)(
        [[features(image) for image in way] for way in episode.support_image],
        episode.support_label,
        features(episode.query_image),
    )


# ----------------------------------------------------------------------------- the network


def assert_matches_pytorch(pytorch, episode, options):
    model = make(**options)
    params = draw_params(model, episode)
    logits, embedding = run(model, params, episode)
    results = run_pytorch(pytorch, pytorch.tensors(params), episode, **options)
    expected, embeddings = map(pytorch.channels_last, results)
    assert_close(logits, expected, 1e-4)
    assert_close(embedding, embeddings, 1e-4)


@pytest.mark.parametrize(
    ("ways", "shots", "options"),
    [(1, 1, {}), (2, 3, {}), (2, 3, {"heads": 2}), (2, 3, {"scales": 2})],
)
def test_forward_pass_matches_pytorch(pytorch, ways, shots, options):
    assert_matches_pytorch(pytorch, draw_episode(ways, shots), options)


@pytest.mark.parametrize(
    "options",
    [
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
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_ablation_changes_what_it_changes_in_pytorch(pytorch, options):
    episode = draw_episode(2, 3)
    assert_matches_pytorch(pytorch, episode, options)
    default, _ = run(make(), draw_params(make(), episode), episode)
    ablated, _ = run(make(**options), draw_params(make(**options), episode), episode)
    assert np.abs(ablated - default).max() > 0.01 * np.abs(default).max()


def test_gradients_of_all_parameters_match_pytorch(pytorch):
    model, episode = make(), draw_episode(2, 3)
    params, weight = draw_params(model, episode), random(9, 10, 3, seed=1)
    tensors = pytorch.tensors(params)
    logits, _ = run_pytorch(pytorch, tensors, episode)
    (logits * pytorch.planes(weight)).sum().backward()
    expected = pytorch.gradients_of(tensors)

    def weighted(params):
        output = model.apply({"params": params}, episode, train=True)
        return jnp.sum(output.logits * weight)

    result = jax.jit(jax.grad(weighted))(params)
    for leaf in jax.tree.leaves(expected):
        assert np.abs(leaf).max() > 0
    assert_trees_close(result, expected, 1e-3)


# ----------------------------------------------------------------------------- parameters


# The paper says 9.4 M. It does not say which layers the scales share: with weights of their own,
# as here, four scales have 9.7 M before anything else, and 2.4 M if they share everything (three
# scales of their own would give 9.6 M in all). Support attention is 0.2 M and the second embedding
# 0.4 M of the total.
@pytest.mark.parametrize(
    ("ways", "shots", "expected"),
    [(1, 1, 11_738_374), (2, 1, 11_804_167), (2, 5, 12_000_775)],
)
def test_number_of_learnable_parameters_on_resnet50(ways, shots, expected):
    model = MFNet(backbone=ResNet())
    shapes = param_shapes(model, empty_episode(ways, shots, 32))
    assert set(model.frozen) == {"backbone"}
    learnable = {name: tree for name, tree in shapes.items() if name not in model.frozen}
    count = sum(leaf.size for leaf in jax.tree.leaves(learnable))
    assert count == expected


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
        flatten_dict(param_shapes(make(**options), empty_episode(ways, 1, 16)), sep="/")
        for ways in (1, 2)
    )
    assert one.keys() == two.keys()
    assert {name for name in one if one[name].shape != two[name].shape} == dependent


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
    embedding = random(9, 11, 4)
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


def focal_of(torch, logits, label):
    """Of logits up-sampled with aligned corners, by PyTorch."""
    large = up_sampled(torch, logits[None].astype(np.float64), label.shape, align_corners=True)
    return focal_by_hand(large[0].permute(1, 2, 0).numpy(), label, 2.0)


@pytest.mark.parametrize(
    ("options", "weight", "start"),
    [
        ({}, 0.4, 5.0),
        ({"metric_weight": 2.0, "metric_from_epoch": 1.0, "focal_over_ways": False}, 2.0, 1.0),
    ],
)
def test_loss_is_focal_and_from_its_epoch_on_weighted_metric_loss(torch, options, weight, start):
    logits, embedding, episode = centred_triplet()
    ways = 2 if options.get("focal_over_ways", True) else 1  # eq. 1's N
    expected_focal = focal_of(torch, logits, episode.query_label) / ways
    expected_metric = max(
        squared(embedding, (1, 1), (3, 4)) - squared(embedding, (1, 1), (0, 6)) + 1, 0
    )
    assert expected_metric > 0.1
    for epoch, factor in ((0.0, 0), (start - 0.01, 0), (start, weight), (start + 3, weight)):
        result, gradient = whole_loss(
            make(**options), logits[None], embedding[None], episode, jnp.float32(epoch)
        )
        assert float(result["focal"]) == pytest.approx(expected_focal, rel=1e-4)
        assert float(result["metric"]) == pytest.approx(expected_metric, rel=1e-4)
        total = expected_focal + factor * expected_metric
        assert float(result["total"]) == pytest.approx(total, rel=1e-4)
        assert np.asarray(gradient).any() == (factor > 0)


def test_loss_without_metric_learning_is_the_focal_loss():
    logits, embedding, episode = centred_triplet()
    model = make(metric_positives="none")
    result, gradient = whole_loss(model, logits[None], embedding[None], episode, jnp.float32(9))
    assert set(result) == {"total", "focal"}
    assert float(result["total"]) == float(result["focal"])
    assert not np.asarray(gradient).any()


def test_loss_of_binary_branches_is_the_mean_of_the_ways_losses(torch):
    _, embedding, episode = centred_triplet()
    label = np.where(np.arange(41) < 4, IGNORE, episode.query_label).astype(np.uint8)
    episode = episode.replace(query_label=label)
    logits = draw_logits(2, 9, 11, 2)
    ways = [np.where(label == IGNORE, IGNORE, label == way).astype(np.uint8) for way in (1, 2)]
    expected = np.mean([focal_of(torch, logits[n], ways[n]) for n in range(2)])
    model = make(binary_branches=True, metric_positives="none")
    result, _ = whole_loss(model, logits, np.stack([embedding] * 2), episode, jnp.float32(0))
    assert float(result["total"]) == pytest.approx(expected, rel=1e-4)
