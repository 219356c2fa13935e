"""MFNet is what its equations say: the network in PyTorch, both losses in NumPy."""

import functools
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, up_sampled
from test_losses import ONE_OF_EACH, draw_logits, focal_by_hand, squared

from fsseg_jax.backbones.resnet import ResNet50
from fsseg_jax.episode import IGNORE, Episode, empty_episode
from fsseg_jax.models.mfnet import Aux, MFNet
from fsseg_jax.models.output import Output


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


@pytest.mark.parametrize(
    ("ways", "shots", "options"),
    [(1, 1, {}), (2, 3, {}), (2, 3, {"heads": 2}), (2, 3, {"scales": 2})],
)
def test_forward_pass_matches_pytorch(ways, shots, options):
    assert_matches_pytorch(draw_episode(ways, shots), options)


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: next(iter(options)))
def test_every_ablation_changes_what_it_changes_in_pytorch(options):
    episode = draw_episode(2, 3)
    assert_matches_pytorch(episode, options)
    default, _ = run(tiny(), draw_params(tiny(), episode), episode)
    ablated, _ = run(tiny(**options), draw_params(tiny(**options), episode), episode)
    assert np.abs(ablated - default).max() > 0.01 * np.abs(default).max()


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
    model = MFNet(backbone=ResNet50())
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
    large = up_sampled(torch, logits[None].astype(np.float64), label.shape, align_corners=True)
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
