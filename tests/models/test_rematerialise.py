"""Rematerialisation changes the memory of a training step, and nothing else."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import draw_values
from test_method import TINY, draw_batch

from fsseg_jax.backbones import create_backbone
from fsseg_jax.backbones.resnet import ResNet
from fsseg_jax.config import default_config
from fsseg_jax.cpu.versions import REMATERIALISING
from fsseg_jax.episode import BATCH_AXIS, empty_episode
from fsseg_jax.models import METHODS, create_model

# What takes long to compile and has no blocks of its own.
LESS = {"ltafnet": {"refinement": False}, "mfnet": {"scales": 2}}


def config_of(method, backbone="small"):
    config = default_config(method)
    config.backbone, config.shots = backbone, 2
    if backbone == "small":
        config.model.update(TINY[method] | LESS.get(method, {}), stages=(2,))
    return config


def both_models(config):
    """Without rematerialisation, and with it."""
    models = []
    for config.rematerialise in (False, True):
        models.append(create_model(config))
    return models


def initialise(model, key):
    episode = empty_episode(1, 2, size=32).normalised()
    return model.init({"params": key, "dropout": key}, episode, train=True)


def shapes(model):
    return jax.eval_shape(functools.partial(initialise, model), jax.random.key(0))


def over_batch(function, *batch):
    """The mean of a loss, and the new statistics."""
    values, updated = jax.vmap(function, out_axes=(0, None), axis_name=BATCH_AXIS)(*batch)
    return values.mean(), updated


def lower_gradients(loss, params, models):
    """The program of a loss and its gradients of each model."""

    @functools.partial(jax.jit, compiler_options=REMATERIALISING)
    def run(params):
        return [jax.value_and_grad(loss, has_aux=True)(params, model) for model in models]

    return run.lower(params)


def assert_equal(result, expected):
    """But for rounding, which is relative to the largest of an array's numbers."""

    def compare(path, one, other):
        one, other = np.asarray(one), np.asarray(other)
        error, scale = np.abs(one - other).max(), np.abs(other).max()
        assert error <= 1e-5 * scale + 1e-7, jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(compare, result, expected)


@pytest.mark.parametrize(
    ("method", "backbone"),
    [*((name, "small") for name in METHODS), ("panet", "vgg16"), ("panet", "resnet50")],
)
def test_random_variables_and_inference_are_the_same_program(method, backbone):
    """So a checkpoint of the one is one of the other, and gives the same figures."""
    config = config_of(method, backbone)
    if method == "sst":
        config.model.tuning = False  # a gradient, which is not the same program
    models = both_models(config)
    names, also = (shapes(model) for model in models)
    assert names == also
    episode = jax.tree.map(lambda x: x[0], draw_batch()).normalised()
    for function, *arguments in (
        (initialise, jax.random.key(0)),
        (lambda model, *inputs: model.apply(*inputs), names, episode),
    ):
        plain, blocks = (
            jax.jit(functools.partial(function, model)).lower(*arguments).as_text()
            for model in models
        )
        # In jax 0.10.0 the numbers in inner functions' names depend on what was traced before.
        assert re.sub(r"_\d+\(", "(", plain) == re.sub(r"_\d+\(", "(", blocks)


@pytest.mark.parametrize(
    ("method", "dtype"), [*((name, "float32") for name in METHODS), ("panet", "bfloat16")]
)
def test_loss_and_gradient_are_the_same_dropout_included(method, dtype):
    config = config_of(method)
    config.dtype = dtype
    models, batch = both_models(config), draw_batch()
    assert models[1].backbone.rematerialise == (method in ("panet", "sst"))  # frozen ones are not
    variables = draw_values(shapes(models[0]))
    keys = jax.random.split(jax.random.key(1, impl="unsafe_rbg"), 2)  # quickly compiled

    def loss(params, model):
        def one(episode, key):
            output, updated = model.apply(
                {**variables, "params": params},
                episode.normalised(),
                train=True,
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )
            value, _ = model.loss(output, episode, key, epoch=jnp.float32(9))
            return value, updated

        return over_batch(one, batch, keys)

    lowered = lower_gradients(loss, variables["params"], models)
    assert "optimization_barrier" in lowered.as_text()
    plain, blocks = lowered.compile()(variables["params"])
    if dtype == "float32":
        assert_equal(blocks, plain)
    else:
        assert float(blocks[0][0]) == pytest.approx(float(plain[0][0]), rel=1e-2)
        sizes = [float(optax.tree.norm(gradient)) for _, gradient in (plain, blocks)]
        assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


def test_statistics_of_a_batch_are_stored_and_differentiated_as_ever():
    image = np.random.default_rng(0).standard_normal((2, 33, 33, 3), np.float32)
    models = [ResNet(batch_statistics=True, rematerialise=on) for on in (False, True)]
    init = functools.partial(models[0].init, stages=(1,))
    variables = draw_values(jax.eval_shape(init, jax.random.key(0), image))

    def loss(params, model):
        def one(image):
            (features,), updated = model.apply(
                {**variables, "params": params},
                image[None],
                stages=(1,),
                train=True,
                mutable=["batch_stats"],
            )
            return jnp.mean(features**2), updated

        return over_batch(one, image)

    lowered = lower_gradients(loss, variables["params"], models)
    plain, blocks = lowered.compile()(variables["params"])
    assert_equal(blocks, plain)
    (_, updated), _ = plain
    before = variables["batch_stats"]["layer1_0"]["bn1"]["mean"]
    assert np.abs(updated["batch_stats"]["layer1_0"]["bn1"]["mean"] - before).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "stage", "share"), [("vgg16", 5, 0.7), ("resnet50", 2, 0.6), ("small", 4, 0.9)]
)
def test_gradient_needs_less_memory(name, stage, share):
    image, needed = jnp.zeros((2, 97, 97, 3)), []
    for on in (False, True):
        backbone = create_backbone(name, "float32", rematerialise=on)

        def total(variables, backbone=backbone):
            (features,) = backbone.apply(variables, image, stages=(stage,))
            return features.sum()

        init = functools.partial(backbone.init, stages=(stage,))
        variables = jax.eval_shape(init, jax.random.key(0), image)
        compiled = (
            jax.jit(jax.grad(total), compiler_options=REMATERIALISING).lower(variables).compile()
        )
        needed.append(compiled.memory_analysis().temp_size_in_bytes)
    assert needed[1] < share * needed[0], needed
