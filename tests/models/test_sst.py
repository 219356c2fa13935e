"""SST is what its equations say: in its forward pass, and in gradients that pass through one."""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, assert_trees_close, draw_values, holds_in_a_draw, is_close
from tiny_models import TwoStages, block_labels

from fsseg_jax.config import default_config
from fsseg_jax.data.sources.voc import VOC
from fsseg_jax.data.squares import square
from fsseg_jax.episode import IGNORE, Episode, episode_label, normalise
from fsseg_jax.models import create_model, init_variables
from fsseg_jax.models.method import support_labels
from fsseg_jax.models.sst import SST, self_iou

SHARED = pathlib.Path(__file__).parents[3] / "shared"
WIDTH = 8
MODEL = SST(backbone=None, width=WIDTH)
# An inner rate with which features move by about their own length, so that an outer gradient that
# does not pass through the inner loop is far off.
RATE = 10.0
# Compiling takes most of the time here, and the shapes are tiny.


# ----------------------------------------------------------------------------- what is computed


def draw_episode(ways=2, shots=2, seed=0):
    """Features of 7 x 20 positions, which the widest dilation reaches across, and labels of 23 x
    37 pixels, among them every way and 255."""
    rng = np.random.default_rng(seed)
    return {
        "support_features": rng.standard_normal((ways, shots, 7, 20, WIDTH)).astype(np.float32),
        "query_features": rng.standard_normal((7, 20, WIDTH)).astype(np.float32),
        "support_label": block_labels(rng, ways, (ways, shots, 23, 37), (6, 7)),
        "query_label": block_labels(rng, ways, (23, 37), (6, 7)),
    }


def inputs_of(drawn):
    """The arguments of `segment`; the query's image matters by its size alone."""
    names = ("support_features", "support_label", "query_features")
    return *(drawn[name] for name in names), jnp.zeros((23, 37, 3))


@functools.cache
def weights():
    init = functools.partial(MODEL.init, method="segment")
    shapes = jax.eval_shape(init, jax.random.key(0), *inputs_of(draw_episode()))
    return draw_values(shapes["params"], seed=3, deviation=0.2)


def forward(model, params, drawn, rate, auxiliary_weight):
    """The loss of an episode that is given as features, and all that led to it."""
    model = model.clone(inner_rate=rate, auxiliary_weight=auxiliary_weight)
    output, changed = model.apply(
        {"params": params}, *inputs_of(drawn), method="segment", mutable=True
    )
    way = jnp.arange(1, len(drawn["support_label"]) + 1)
    episode = Episode(None, drawn["support_label"], None, drawn["query_label"], way, jnp.array(0))
    total, parts = model.loss(output, episode, jax.random.key(0), jnp.zeros(()))
    own = support_labels(drawn["support_label"])
    tuned = model.apply({"params": params}, drawn["support_features"], own, method="tune")
    return total, {
        **parts,
        "total": total,
        "logits": output.logits,
        "binary_logits": output.aux.binary_logits,
        "tuned": tuned.features,
        "measured": output.measured,
        "params": changed["params"],
    }


def make_run(gradients):
    """`forward`, compiled, and if asked for with gradients for parameters and features."""

    @functools.partial(jax.jit, static_argnums=0)
    def run(model, params, drawn, rate, auxiliary_weight):
        if not gradients:
            return forward(model, params, drawn, rate, auxiliary_weight)[1]

        def loss(params, support_features, query_features):
            episode = {
                **drawn,
                "support_features": support_features,
                "query_features": query_features,
            }
            return forward(model, params, episode, rate, auxiliary_weight)

        arguments = params, drawn["support_features"], drawn["query_features"]
        differentiate = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        (_, results), gradient = differentiate(*arguments)
        return {**results, "gradient": gradient}

    def call(drawn, rate=RATE, auxiliary_weight=1.0, params=None, **fields):
        params = weights() if params is None else params
        return jax.device_get(run(MODEL.clone(**fields), params, drawn, rate, auxiliary_weight))

    return call


run = make_run(gradients=False)
run_with_gradient = make_run(gradients=True)


def run_pytorch(pytorch, drawn, **options):
    """The same results in PyTorch, as arrays."""
    import pytorch_sst

    params = pytorch.tensors(weights())
    supports = pytorch.planes(drawn["support_features"]).requires_grad_()
    query = pytorch.planes(drawn["query_features"]).requires_grad_()
    labels = drawn["support_label"], drawn["query_label"]
    result = pytorch_sst.run(params, supports, query, *labels, **{"rate": RATE, **options})
    result.total.backward()
    return {
        **{
            name: getattr(result, name).detach().numpy()
            for name in ("segmentation", "self_segmentation", "total")
        },
        **{
            name: pytorch.channels_last(getattr(result, name))
            for name in ("logits", "binary_logits", "tuned")
        },
        "measured": {
            "prototype shift": result.shift,
            "self-segmentation loss before": result.before,
            "self-segmentation loss after": result.after,
        },
        "scores": result.scores,
        "gradient": (
            pytorch.gradients_of(params),
            pytorch.channels_last(supports.grad),
            pytorch.channels_last(query.grad),
        ),
    }


# ----------------------------------------------------------------------------- the inner loop


def moved(drawn, result):
    """How far each support's features moved, relative to them."""
    before = drawn["support_features"]
    axes = (-3, -2, -1)
    return np.sqrt(((result["tuned"] - before) ** 2).sum(axes) / (before**2).sum(axes))


@pytest.mark.parametrize(("ways", "shots"), [(2, 2), (1, 3)])
def test_tuned_features_match_pytorch(pytorch, ways, shots):
    call = run if (ways, shots) == (1, 3) else run_with_gradient  # compiled for others as well

    def check(seed):
        drawn = draw_episode(ways, shots, seed)
        result = call(drawn)
        expected = run_pytorch(pytorch, drawn)
        assert moved(drawn, result).min() > 0.1
        assert moved(drawn, result).max() < 2
        step = expected["tuned"] - drawn["support_features"]
        assert_close(result["tuned"] - drawn["support_features"], step, 1e-4)
        for name in ("tuned", "binary_logits", "logits"):
            assert_close(result[name], expected[name], 1e-4)

    holds_in_a_draw(check)


def test_without_a_rate_or_without_tuning_features_stay():
    drawn = draw_episode()
    without_rate = run_with_gradient(drawn, 0.0)
    without_tuning = run(drawn, tuning=False)
    for result in (without_rate, without_tuning):
        np.testing.assert_array_equal(result["tuned"], drawn["support_features"])
        assert result["measured"]["prototype shift"] == 0
        assert result["measured"]["self-segmentation loss after"] == pytest.approx(
            result["measured"]["self-segmentation loss before"], rel=1e-6
        )
    for name in ("logits", "self_segmentation", "total"):
        assert_close(without_tuning[name], without_rate[name], 1e-6)
    assert not is_close(run_with_gradient(drawn)["logits"], without_rate["logits"], 0.01)


def test_training_measures_nothing():
    segment = functools.partial(MODEL.apply, train=True, method="segment")
    output = jax.eval_shape(segment, {"params": weights()}, *inputs_of(draw_episode()))
    assert output.measured == {}


@pytest.mark.parametrize(("backbone", "stages"), [("resnet50_caffe", (2, 3)), ("vgg16", (2, 3, 4))])
def test_default_moves_the_prototypes_of_real_features_by_a_tenth_or_so(backbone, stages):
    """Before training, at full width, whatever the scale of the backbone's features."""
    weights = SHARED / f"weights/{backbone.removesuffix('_caffe')}.safetensors"
    if not (weights.is_file() and (SHARED / "data/VOC2012").is_dir()):
        pytest.skip("no weights or images")
    config = default_config("sst")
    config.backbone, config.init, config.model.stages = backbone, str(weights), stages
    model = create_model(config)
    variables = init_variables(model, jax.random.key(0), 1, 1, config.init)
    source = VOC(SHARED / "data/VOC2012", "val")
    items = source.table.items(range(1, 6), 2048)
    squares = [square(source.read(items.image[row]), 161) for row in items.start]
    images = np.stack([image.image for image in squares])
    labels = [
        episode_label(image.label, items.class_id[[way]]) for way, image in enumerate(squares)
    ]

    @jax.jit
    def shift(variables, images, labels):
        def once(name, *inputs):
            return model.apply(variables, *inputs, method=name)

        features = once("encode", normalise(images))[:, None]
        labels = labels[:, None]
        before = once("pool", features, labels)
        after = once("pool", once("tune", features, labels).features, labels)
        return jnp.linalg.norm(after - before, axis=-1) / jnp.linalg.norm(before, axis=-1)

    assert 0.05 < shift(variables, images, jnp.stack(labels)).mean() < 0.3


# ----------------------------------------------------------------------------- several shots


FUSIONS = ("weighted", "average", "maximum")


@pytest.mark.parametrize("fusion", FUSIONS)
def test_fusion_of_shots_matches_pytorch(pytorch, fusion):
    drawn = draw_episode(1, 3)
    result = run(drawn, fusion=fusion)
    expected = run_pytorch(pytorch, drawn, fusion=fusion)
    assert max(expected["scores"]) > 1.2 * min(expected["scores"])  # so that weights matter
    for name in ("binary_logits", "logits"):
        assert_close(result[name], expected[name], 1e-4)
    for other in set(FUSIONS) - {fusion}:
        logits = run_pytorch(pytorch, drawn, fusion=other)["binary_logits"]
        assert not is_close(logits, expected["binary_logits"], 1e-3)


def test_iou_of_self_segmentations_counts_labelled_pixels_alone():
    """The logits' signs, at the label's size, are the prediction."""
    predicted = np.array([[[1, 1, 0, 0, 1]], [[0, 0, 0, 0, 0]], [[0, 0, 0, 0, 1]]])
    label = np.array([[[1, 0, 1, 0, 255]], [[0, 0, 0, 0, 255]], [[0, 1, 1, 0, 255]]], np.uint8)
    logits = np.stack([-predicted, predicted], axis=-1).astype(np.float32)
    np.testing.assert_allclose(self_iou(logits, label, True), [1 / 3, 0, 0], rtol=1e-6)
    logits = np.stack([1.0 - label, label], axis=-1).astype(np.float32)
    np.testing.assert_allclose(self_iou(logits, label, True), [1, 0, 1], rtol=1e-6)


def test_shots_that_do_not_find_themselves_count_alike():
    """All weights would be 0: the mean of the responses is taken instead."""
    drawn = draw_episode(1, 3)
    params = {**weights(), "classifier": {**weights()["classifier"]}}
    params["classifier"]["bias"] = np.array([100, -100], np.float32)  # all is background

    def respond_and_decode(features, vectors):
        responses = MODEL.apply({"params": params}, features, vectors, method="respond")
        return MODEL.apply({"params": params}, responses.mean(axis=1), method="decode")

    result = run(drawn, params=params)
    masks = drawn["support_label"] == 1
    vectors = MODEL.apply(
        {"params": params}, result["tuned"], masks.astype(np.uint8), method="pool"
    )
    expected = jax.jit(respond_and_decode)(drawn["query_features"], vectors)
    assert_close(result["binary_logits"], expected, 1e-6)


# ----------------------------------------------------------------------------- the loss


def test_loss_is_the_main_one_plus_the_weighted_one_of_the_supports(pytorch):
    drawn = draw_episode()
    for weight in (0.0, 0.3, 1.0):
        result = run_with_gradient(drawn, auxiliary_weight=weight)
        expected = run_pytorch(pytorch, drawn, auxiliary_weight=weight)
        for name in ("segmentation", "self_segmentation", "total"):
            assert result[name] == pytest.approx(expected[name], rel=1e-4)
        assert result["measured"] == pytest.approx(expected["measured"], rel=1e-4)
        assert expected["measured"]["prototype shift"] > 0.01
        jax.tree.map(np.testing.assert_array_equal, result["params"], weights())  # do not move
        assert result["total"] == pytest.approx(
            result["segmentation"] + weight * result["self_segmentation"], rel=1e-6
        )


@pytest.mark.parametrize("second_order", [True, False])
def test_gradient_passes_through_the_inner_one_or_takes_it_for_a_constant(pytorch, second_order):
    def check(seed):
        drawn = draw_episode(seed=seed)
        result = run_with_gradient(drawn, second_order=second_order)["gradient"]
        expected, other = (
            run_pytorch(pytorch, drawn, second_order=order)["gradient"]
            for order in (second_order, not second_order)
        )
        assert_trees_close(result, expected, 1e-3)
        assert not is_close(expected[1], other[1], 0.05)  # of the supports' features

    holds_in_a_draw(check)


def test_gradient_is_what_finite_differences_say(monkeypatch):
    """Where the loss is smooth: the gradient of a ReLU network jumps, and so does the loss after a
    step along it; weights that are an IoU jump too."""
    monkeypatch.setattr(nn, "relu", nn.silu)
    smooth = functools.partial(make_run(gradients=True), draw_episode(), fusion="average")
    gradient = smooth()["gradient"][0]
    rng = np.random.default_rng(0)
    step, differences, expected = 2e-3, [], []
    for _ in range(4):
        direction = jax.tree.map(lambda x: rng.standard_normal(x.shape), gradient)

        def difference(step, direction=direction):
            losses = []
            for sign in (1, -1):
                stepped = jax.tree.map(
                    lambda x, d, by=sign * step: x + by * d, weights(), direction
                )
                stepped = jax.tree.map(np.float32, stepped)
                losses.append(float(smooth(params=stepped)["total"]))
            return (losses[0] - losses[1]) / (2 * step)

        # Richardson's extrapolation of central differences.
        differences.append((4 * difference(step) - difference(2 * step)) / 3)
        products = jax.tree.map(lambda g, d: (g * d).sum(), gradient, direction)
        expected.append(sum(jax.tree.leaves(products)))
    assert_close(differences, expected, 2e-3)


# ----------------------------------------------------------------------------- labels


def test_query_of_ignored_pixels_alone_leaves_the_loss_of_the_supports():
    drawn = draw_episode()
    drawn["query_label"] = np.full_like(drawn["query_label"], IGNORE)
    result = run_with_gradient(drawn)
    assert result["segmentation"] == 0
    assert result["total"] == result["self_segmentation"] > 0
    np.testing.assert_array_equal(result["gradient"][2], 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result["gradient"]))


@pytest.mark.parametrize("empty", [0, IGNORE, 2])
@pytest.mark.parametrize("everywhere", [False, True])
def test_supports_that_do_not_show_their_way_give_finite_results(empty, everywhere):
    drawn = draw_episode()
    drawn["support_label"][0, slice(None) if everywhere else 1] = empty
    result = run_with_gradient(drawn)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))
    np.testing.assert_array_equal(result["tuned"][0, 1], drawn["support_features"][0, 1])  # A = 0
    assert np.abs(result["gradient"][2]).max() > 0


# ----------------------------------------------------------------------------- from images


def draw_images(seed):
    """A batch of two episodes of noise."""
    drawn = [draw_episode(1, 2, seed) for seed in (3, 5)]
    rng = np.random.default_rng(seed)
    return Episode(
        support_image=rng.standard_normal((2, 1, 2, 23, 37, 3)).astype(np.float32),
        support_label=np.stack([one["support_label"] for one in drawn]),
        query_image=rng.standard_normal((2, 23, 37, 3)).astype(np.float32),
        query_label=np.stack([one["query_label"] for one in drawn]),
        class_id=np.ones((2, 1), np.int32),
        query_index=np.zeros(2, np.int32),
    )


def test_batch_of_images_matches_pytorch_with_gradients_of_the_backbone(pytorch):
    """Stages are joined at the coarser resolution, and training is end to end."""
    import pytorch_sst

    model = SST(backbone=TwoStages(), width=WIDTH, inner_rate=RATE)
    one = jax.tree.map(lambda x: x[0], draw_images(0))
    shapes = jax.eval_shape(model.init, jax.random.key(0), one)
    params = draw_values(shapes["params"], seed=6, deviation=0.2)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def ours(params, batch):
        def loss(episode):
            output = model.apply({"params": params}, episode, train=True)
            value, _ = model.loss(output, episode, jax.random.key(0), jnp.zeros(()))
            return value, output.logits

        values, logits = jax.vmap(loss)(batch)
        return values.mean(), logits

    def theirs(batch):
        weights = pytorch.tensors(params)
        results = [
            pytorch_sst.run(
                weights,
                pytorch.embed(weights, batch.support_image[i, 0])[None],
                pytorch.embed(weights, batch.query_image[i][None])[0],
                batch.support_label[i],
                batch.query_label[i],
                rate=RATE,
            )
            for i in range(2)
        ]
        total = (results[0].total + results[1].total) / 2
        total.backward()
        logits = [pytorch.channels_last(result.logits) for result in results]
        return total.item(), np.stack(logits), pytorch.gradients_of(weights)

    def check(seed):
        batch = draw_images(seed)
        (value, logits), gradient = jax.device_get(ours(params, batch))
        expected_value, expected_logits, expected_gradient = theirs(batch)
        assert value == pytest.approx(expected_value, rel=1e-4)
        assert_close(logits, expected_logits, 1e-4)
        assert np.abs(expected_gradient["backbone"]["fine"]["kernel"]).max() > 1e-3
        assert_trees_close(gradient, expected_gradient, 1e-3)

    holds_in_a_draw(check)
