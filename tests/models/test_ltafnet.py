"""LTAF-Net is what its equations say; its batch-norm sees the batch, on any number of devices."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    assert_close,
    assert_trees_close,
    draw_values,
    holds_in_a_draw,
    is_close,
    random,
)
from tiny_models import TwoStages, draw_episode

from fsseg_jax.config import default_config
from fsseg_jax.devices import make_mesh
from fsseg_jax.episode import IGNORE, Episode
from fsseg_jax.models.ltafnet import Aux, LTAFNet, RefinementUNet
from fsseg_jax.models.output import Output
from fsseg_jax.training.state import TrainState, make_dispatch, make_optimizer, make_step

# Compiling takes most of the time here, and the shapes are tiny.


MODEL = LTAFNet(backbone=TwoStages(), width=8, dropout=0.0, refinement_width=2)


# ----------------------------------------------------------------------------- what is computed


@functools.cache
def variables(model=MODEL):
    """Weights and stored statistics with which every layer matters."""
    initialise = functools.partial(model.init, train=True)
    shapes = jax.eval_shape(initialise, jax.random.key(0), draw_episode(1, 1))
    return draw_values(shapes, deviation=0.2)


@functools.partial(jax.jit, static_argnums=0)
def run_compiled(model, variables, episode):
    output = model.apply(variables, episode)
    return {"logits": output.logits, **output.aux._asdict()}


def run(model, episode, changed=None, drawn_for=MODEL):
    """The logits of one episode at inference, with some parameters replaced."""
    given = variables(drawn_for)
    params = {**given["params"], **(changed or {})}
    return jax.device_get(run_compiled(model, {**given, "params": params}, episode))


def run_pytorch(pytorch, episodes, drawn_for=MODEL, **options):
    """Results of a batch, weights and results as tensors."""
    import pytorch_ltafnet

    weights = pytorch.tensors(variables(drawn_for)["params"])
    stored = pytorch.tensors(variables(drawn_for).get("batch_stats", {}))
    return weights, pytorch_ltafnet.run(weights, stored, episodes, **options)


# ----------------------------------------------------------------------------- forward


@pytest.mark.parametrize(
    ("ways", "shots", "options"),
    [
        (2, 3, {}),
        (1, 1, {"adaption": "correlation", "before_aspp": "canet"}),
        (1, 1, {"adaption": "none", "before_aspp": "plain", "refinement_style": "constant"}),
        (1, 3, {"adaption": "correlation", "refinement": False}),
    ],
)
def test_logits_match_pytorch(pytorch, ways, shots, options):
    """At inference, of images with odd sides."""
    model = MODEL.clone(**options)
    episode = draw_episode(ways, shots)
    result = run(model, episode, drawn_for=model)
    _, expected = run_pytorch(pytorch, [episode], model, **options)
    logits, binary_logits, coarse_logits = (
        pytorch.channels_last(x[0])
        for x in (expected.logits, expected.binary_logits, expected.coarse)
    )
    assert_close(result["binary_logits"], binary_logits, 1e-4)
    assert_close(result["logits"], logits, 1e-4)
    if model.refinement:
        assert_close(result["coarse_logits"], coarse_logits, 1e-4)
        residual = result["binary_logits"] - result["coarse_logits"]
        assert_close(residual, binary_logits - coarse_logits, 1e-4)
        assert np.ptp(residual, axis=(1, 2)).min() > 0.1
        assert result["logits"].shape == (33, 37, ways + 1)
    else:
        assert result["coarse_logits"] is None
        assert result["logits"].shape == (9, 10, ways + 1)


# ----------------------------------------------------------------------------- adaption


def draw_features(shots=3, seed=0):
    rng = np.random.default_rng(seed)
    supports = rng.standard_normal((1, shots, 5, 7, 8)).astype(np.float32)
    masks = rng.uniform(0, 1, (1, shots, 5, 7)).astype(np.float32)
    return supports, masks, rng.standard_normal((5, 7, 8)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def adapt_compiled(kind, params, features):
    model = MODEL.clone(adaption=kind)
    return model.apply({"params": params}, *features, method="adapt")


def adapt(features, kind="concatenation", **changed):
    """Adapted support and query features of each pair, with some parameters replaced."""
    params = {**variables()["params"], **changed}
    return jax.device_get(adapt_compiled(kind, params, features))


@pytest.mark.parametrize("kind", ["concatenation", "correlation"])
def test_task_vector_is_added_to_support_and_query_alike(kind):
    """Eq. 2 in NumPy, standardisation over channels (eq. 1) spelled out."""
    features = supports, masks, query = draw_features()
    params = variables()["params"]
    for shot in range(3):
        support, mask = supports[0, shot].astype(np.float64), masks[0, shot]
        category = (support * mask[..., None]).sum((0, 1)) / (mask.sum() + 5e-4)
        maps = [support, query]
        if kind == "correlation":
            cosines = [
                x @ category / np.linalg.norm(x, axis=-1) / np.linalg.norm(category) for x in maps
            ]
            maps = [x * cosine[..., None] for x, cosine in zip(maps, cosines, strict=True)]
        average = np.concatenate([*(x.mean((0, 1)) for x in maps), category])
        x = average @ params["pair"]["kernel"][0, 0] + params["pair"]["bias"]
        x = (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)
        x = np.maximum(x @ params["gate_0"]["kernel"] + params["gate_0"]["bias"], 0)
        x = 1 / (1 + np.exp(-(x @ params["gate_1"]["kernel"] + params["gate_1"]["bias"])))
        assert np.ptp(x) > 0.1
        for new, old in zip(adapt(features, kind), (support, query), strict=True):
            shift = np.broadcast_to(params["alpha"] * x, old.shape)
            assert_close(new[0, shot] - old, shift, 1e-5)


def test_query_may_have_another_size_than_the_supports():
    """Adaption needs its average alone: with every position four times, nothing else changes."""
    supports, masks, query = draw_features()
    larger = query.repeat(2, axis=0).repeat(2, axis=1)
    support, adapted = adapt((supports, masks, query))
    again, enlarged = adapt((supports, masks, larger))
    assert enlarged.shape == (1, 3, 10, 14, 8)
    assert_close(again, support, 1e-5)
    assert_close(enlarged, adapted.repeat(2, axis=2).repeat(2, axis=3), 1e-5)


def test_adaption_does_nothing_at_first():
    """Alpha is 0 in a fresh model."""
    features = draw_features()
    fresh = jax.jit(functools.partial(MODEL.init, method="adapt"))(jax.random.key(0), *features)[
        "params"
    ]["alpha"]
    assert fresh == 0
    support, query = adapt(features, alpha=np.float32(fresh))
    np.testing.assert_array_equal(support, features[0])
    np.testing.assert_array_equal(query, np.broadcast_to(features[2], features[0].shape))

    episode = draw_episode(1, 1)
    at_first = run(MODEL, episode, {"alpha": np.float32(fresh)})["logits"]
    without = run(MODEL.ablations()["alpha = 0"], episode)["logits"]
    assert_close(at_first, without, 1e-6)
    assert not is_close(run(MODEL, episode)["logits"], without, 0.01)


def test_there_is_nothing_to_switch_off_without_adaption():
    assert MODEL.clone(adaption="none").ablations() == {}


# ----------------------------------------------------------------------------- the loss


def test_auxiliary_loss_is_of_support_and_query_and_of_both_classes():
    ways, shots = 2, 3
    episode = draw_episode(ways, shots)
    pair, way = (ways, shots, 33, 37, 2), (ways, 33, 37, 2)
    shapes = dict(support_logits=pair, query_logits=pair, coarse_logits=way, binary_logits=way)
    aux = {name: random(*shapes[name], seed=seed) for seed, name in enumerate(shapes)}

    @jax.jit
    def loss(aux):
        model = MODEL.clone(auxiliary_weight=0.3, coarse_weight=0.7)
        return model.loss(Output(None, Aux(**aux)), episode, jax.random.key(0), jnp.zeros(()))

    total, parts = jax.device_get(loss(aux))

    def cross_entropy(logits, label, way):
        """Mean over labelled pixels, in NumPy."""
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        chosen = np.where(label == way, log_p[..., 1], log_p[..., 0])
        return -chosen[label != IGNORE].mean()

    pairs = [(way, shot) for way in range(ways) for shot in range(shots)]
    query = episode.query_label
    losses = []
    for way, shot in pairs:
        label = episode.support_label[way, shot]
        of_support = cross_entropy(aux["support_logits"][way, shot], label, way + 1)
        losses.append(of_support + cross_entropy(aux["query_logits"][way, shot], query, way + 1))
    expected = np.mean(losses)
    assert parts["auxiliary"] == pytest.approx(expected, rel=1e-5)
    for part, name in (("segmentation", "binary_logits"), ("coarse", "coarse_logits")):
        losses = [cross_entropy(aux[name][way], query, way + 1) for way in range(ways)]
        assert parts[part] == pytest.approx(np.mean(losses), rel=1e-5)
    weighted = parts["segmentation"] + 0.7 * parts["coarse"] + 0.3 * parts["auxiliary"]
    assert total == pytest.approx(weighted, rel=1e-6)


# ----------------------------------------------------------------------------- training


def draw_batch(seed=0):
    """Eight episodes as the pipeline gives them, images as bytes."""
    episodes = [draw_episode(2, 1, 8 * seed + number, as_bytes=True) for number in range(8)]
    return episodes, jax.tree.map(lambda *x: np.stack(x), *episodes)


@functools.cache
def optimizer():
    train = default_config("ltafnet").train
    train.learning_rate, train.momentum, train.weight_decay = 1.0, 0.0, 0.0
    train.schedule, train.warmup, train.new_layers_rate = "constant", 0, 1
    return make_optimizer(train)


@functools.cache
def dispatch(devices):
    step = make_step(MODEL, optimizer(), seed=0, items=100, batch_size=8)
    return make_dispatch(step, lambda fed, *_: fed, make_mesh(devices))


def train(devices, batch):
    """One step of plain gradient descent with rate 1: variables, the step's results, gradients."""
    trained = {k: v for k, v in variables()["params"].items() if k != "backbone"}
    state = TrainState(jnp.zeros((), jnp.int32), variables(), jax.jit(optimizer().init)(trained))
    state = jax.tree.map(np.array, state)  # it is consumed
    state, results = dispatch(devices)(state, batch, 1)
    assert len(state.step.devices()) == devices
    state, results = jax.device_get((state, results))
    new = {k: v for k, v in state.variables["params"].items() if k != "backbone"}
    gradient = jax.tree.map(lambda old, new: old - new, trained, new)
    return state.variables, {k: v[0] for k, v in results.items()}, gradient


def test_training_step_matches_pytorch_and_stores_the_statistics_of_the_whole_batch(pytorch):
    """Eight episodes of two ways: batch-norm is F.batch_norm over all sixteen."""

    def check(seed):
        episodes, batch = draw_batch(seed)
        new, results, gradient = train(1, batch)
        normalised = jax.device_get([jax.jit(Episode.normalised)(episode) for episode in episodes])
        weights, expected = run_pytorch(pytorch, normalised, training=True)
        expected.total.backward()
        for ours, theirs in (
            ("loss", expected.total),
            ("segmentation", expected.segmentation),
            ("coarse", expected.coarse_loss),
            ("auxiliary", expected.auxiliary),
        ):
            assert results[ours] == pytest.approx(theirs.item(), rel=1e-4)
        assert_trees_close(new["batch_stats"]["unet"], expected.stored, 1e-4)

        expected_gradient = pytorch.gradients_of(weights)
        del expected_gradient["backbone"]
        leaves = jax.tree.leaves(expected_gradient)
        assert all(np.abs(leaf).max() > 0 for leaf in leaves)
        norm = np.sqrt(sum((leaf**2).sum() for leaf in leaves))
        assert results["gradient_norm"] == pytest.approx(norm, rel=1e-3)
        assert_trees_close(gradient, expected_gradient, 1e-3)

    holds_in_a_draw(check)


def test_eight_devices_train_as_one_does():
    def check(seed):
        _, batch = draw_batch(seed)
        one, eight = train(1, batch), train(8, batch)
        assert_trees_close(eight[0]["batch_stats"], one[0]["batch_stats"], 1e-5)
        assert_trees_close(eight[1], one[1], 1e-4)
        assert_trees_close(eight[2], one[2], 1e-3)

    holds_in_a_draw(check)


@pytest.mark.parametrize("label", [0, IGNORE, 2])
def test_supports_that_show_nothing_give_finite_gradients(label):
    _, batch = draw_batch()
    supports = batch.support_label.copy()
    supports[:, 0] = label  # nothing of way 1
    new, results, _ = train(1, batch.replace(support_label=supports))
    assert all(np.isfinite(value) for value in results.values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))


@pytest.mark.parametrize("strided", [True, False])
@pytest.mark.parametrize("size", [(33, 37), (32, 32), (64, 47)])
def test_refinement_reaches_a_32nd_of_the_resolution_and_comes_back(size, strided):
    """An image of any size, to its own size; at full resolution a 16th, in equal blocks."""
    unet = RefinementUNet(width=2, strided=strided)
    sizes, widths = [], []

    def record(next_, args, kwargs, context):
        result = next_(*args, **kwargs)
        sizes.append(result.shape[-3:-1])
        widths.append(result.shape[-1])
        return result

    def residual():
        with nn.intercept_methods(record):
            return unet.init_with_output(
                jax.random.key(0), jnp.zeros((1, *size, 2)), jnp.zeros((*size, 3))
            )[0]

    assert jax.eval_shape(residual).shape == (1, *size, 2)
    first = tuple(-(-length // 2) for length in size) if strided else size
    assert sizes[0] == first
    assert min(sizes) == tuple(-(-length // 16) for length in first)
    assert max(widths) == (32 if strided else 2)
