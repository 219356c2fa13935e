"""What the benchmarks time: compiled training steps and predictions, and data for them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict

from fsseg_jax.data import Pipeline, training_items, training_pipeline
from fsseg_jax.data.source import Source
from fsseg_jax.data.sources.shapes import KINDS, Shapes
from fsseg_jax.devices import make_mesh, replicated, split
from fsseg_jax.episode import Episode
from fsseg_jax.models import Method, create_model
from fsseg_jax.models.resize import resize
from fsseg_jax.training.state import initial_state, make_dispatch, make_optimizer, make_step


def made_episodes(config: ConfigDict, size: int) -> Episode:
    """A batch of `size` episodes of synthetic images, as NumPy arrays.

    A few episodes are repeated: speed does not depend on what images show.
    """
    config = config.copy_and_resolve_references()
    config.data.pipeline, config.data.fold, config.data.train_min_pixels = "device", 0, 1
    config.data.device.sharded = False
    config.train.batch_size = min(size, 8)
    source = Shapes("train", len(KINDS) * (config.shots + 1), config.image_size)
    pipeline = training_pipeline(config, source, training_items(config.data, source), make_mesh(1))
    batch = jax.device_get(jax.jit(pipeline.draw)(pipeline.feed(1), 0, 0))
    return jax.tree.map(lambda x: np.resize(x, (size, *x.shape[1:])), batch)


def open_pipeline(config: ConfigDict, name: str, source: Source, mesh: Mesh) -> Pipeline:
    """The pipeline called `name`; all pipelines make the same episodes."""
    config = config.copy_and_resolve_references()
    config.data.pipeline = name
    return training_pipeline(config, source, training_items(config.data, source), mesh)


def constant(batch: Episode, mesh: Mesh) -> Pipeline:
    """A pipeline that gives the same batch, which is on the devices already, in each step."""
    batch = jax.device_put(batch, split(mesh))

    def draw(batch: Episode, done: Int[Array, ""], step: Int[Array, ""]) -> Episode:
        # The compiler would move work on a constant batch out of the loop over steps.
        return jax.lax.optimization_barrier((batch, step))[0]

    return Pipeline(lambda count: batch, draw)


class Program(NamedTuple):
    """A compiled function with its arguments."""

    run: Callable[[], Any]  # waits for its result
    compiled: Any


def training(config: ConfigDict, pipeline: Pipeline, items: int, mesh: Mesh) -> Program:
    """`train.steps_per_dispatch` training steps; each run continues from the state of the last."""
    model, count = create_model(config), config.train.steps_per_dispatch
    step = make_step(model, make_optimizer(config.train), **step_options(config, items))
    state = jax.device_put(initial_state(model, config, config.init, items), replicated(mesh))
    dispatch = make_dispatch(step, pipeline.draw, mesh, rematerialise=config.rematerialise)
    compiled = dispatch.lower(state, pipeline.feed(count), count).compile()

    def run() -> Any:
        nonlocal state
        state, results = jax.block_until_ready(compiled(state, pipeline.feed(count)))
        return results

    return Program(run, compiled)


def step_options(config: ConfigDict, items: int) -> dict[str, int]:
    """Arguments of `make_step`."""
    return {"seed": config.seed, "items": items, "batch_size": config.train.batch_size}


def compile(function: Callable[..., Any], *arguments: Any) -> Program:
    """Compiles a function for these arguments, which are put on the device."""
    arguments = jax.device_put(arguments)
    compiled = jax.jit(function).lower(*arguments).compile()
    return Program(lambda: jax.block_until_ready(compiled(*arguments)), compiled)


def prediction(model: Method) -> Callable[[Any, Episode], UInt8[Array, "episode height width"]]:
    """A function of variables and a batch of episodes that predicts classes at the labels' size."""

    def one(variables: Any, episode: Episode) -> UInt8[Array, "height width"]:
        output: Any = model.apply(variables, episode.normalised())
        return winners(model, output.logits, episode.query_label.shape)

    return jax.vmap(one, in_axes=(None, 0))


def winners(
    model: Method, logits: Float[Array, "h w class"], shape: tuple[int, ...]
) -> UInt8[Array, "height width"]:
    """The class of each pixel."""
    return resize(logits, shape, model.align_corners).argmax(axis=-1).astype(jnp.uint8)


def out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether an error reports a lack of memory."""
    return "RESOURCE_EXHAUSTED" in str(error)
