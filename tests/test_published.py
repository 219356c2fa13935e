"""Published settings at their own size: shapes of a training step and of an evaluation."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from fsseg_jax.config import load_config
from fsseg_jax.episode import Episode, empty_episode
from fsseg_jax.evaluation.published.__main__ import PARAMETERS
from fsseg_jax.models import create_model, init_variables
from fsseg_jax.training.state import abstract_state, make_optimizer, make_step, split_frozen

FOLDER = pathlib.Path(__file__).parent.parent / "configs"
# Those of other data are of the same models.
CONFIGS = [path for path in sorted(FOLDER.glob("*_*.py")) if path.stem.endswith(("vgg16", "res50"))]


def published(path, **fields):
    config = load_config(str(path))
    config.update(fields)
    if path.stem == "panet_res50":
        config.model.stages = (4,)  # where the weights have it
    return config, create_model(config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_models_have_as_many_parameters_as_is_told(path):
    _, model = published(path)
    *learnable, frozen, _ = PARAMETERS[path.stem]
    ways = 2 if path.stem.startswith("mfnet") else 1
    for shots, expected in zip((1, 5), learnable, strict=True):
        variables = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), ways, shots))  # noqa: B023
        parts = split_frozen(model, variables["params"])
        numbers = [sum(x.size for x in jax.tree.leaves(part)) / 1e6 for part in parts]
        assert numbers == pytest.approx([expected, frozen], abs=0.005)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_step_and_an_evaluation_have_the_right_shapes(path):
    """Of one way and shot with VGG-16, and of several in half precision with ResNet-50."""
    large = path.stem.endswith("res50")
    ways, shots, dtype = (2, 5, "bfloat16") if large else (1, 1, "float32")
    config, model = published(path, ways=ways, shots=shots, dtype=dtype)
    state = abstract_state(model, config, items=10)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.variables)} == {jnp.dtype("float32")}
    episode = empty_episode(ways, shots, config.image_size)
    episode = episode.replace(
        support_image=episode.support_image.astype(jnp.uint8),
        query_image=episode.query_image.astype(jnp.uint8),
    )
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), episode)
    step = make_step(model, make_optimizer(config.train), seed=0, items=10, batch_size=1)
    after, metrics = jax.eval_shape(step, state, batch)
    # Nothing of the state changes its shape or type from step to step: it is compiled once.
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert {(value.shape, value.dtype) for value in metrics.values()} == {
        ((), jnp.dtype("float32"))
    }

    output = jax.eval_shape(
        model.apply, state.variables, jax.eval_shape(Episode.normalised, episode)
    )
    positions = {417: 53, 321: 41, 473: 60}[config.image_size]
    side = config.image_size if config.method == "ltafnet" else positions
    assert output.logits.shape == (side, side, ways + 1)
    assert output.logits.dtype == jnp.float32
