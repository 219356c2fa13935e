"""Published settings at their own size: shapes of a training step and of an evaluation."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from fsseg_jax.config import load_config
from fsseg_jax.episode import Episode, empty_episode
from fsseg_jax.evaluation.published.__main__ import PARAMETERS
from fsseg_jax.models import create_model
from fsseg_jax.training.state import abstract_state, make_optimizer, make_step, split_frozen

FOLDER = pathlib.Path(__file__).parent.parent / "configs"
# Those of other data are of the same models.
CONFIGS = [path for path in sorted(FOLDER.glob("*_*.py")) if path.stem.endswith(("vgg16", "res50"))]


@pytest.mark.parametrize(
    ("ways", "shots", "dtype"), [(1, 1, "float32"), (2, 5, "bfloat16")], ids=["1w1s", "2w5s"]
)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_step_and_an_evaluation_have_the_right_shapes(path, ways, shots, dtype):
    config = load_config(str(path))
    config.update(ways=ways, shots=shots, dtype=dtype)
    if path.stem == "panet_res50":
        config.model.stages = (4,)  # where the weights have it
    model = create_model(config)
    state = abstract_state(model, config, items=10)
    if config.method != "mfnet" or ways == 2:  # that of two ways is told
        parts = split_frozen(model, state.variables["params"])
        numbers = [sum(x.size for x in jax.tree.leaves(part)) / 1e6 for part in parts]
        learnable, more, frozen, _ = PARAMETERS[path.stem]
        assert numbers == pytest.approx([learnable if shots == 1 else more, frozen], abs=0.005)
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
