"""What a training step changes, and the step."""

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Integer, Shaped
from ml_collections import ConfigDict

from fsseg_jax.cpu.versions import REMATERIALISING
from fsseg_jax.devices import replicated, split
from fsseg_jax.episode import BATCH_AXIS, AnyArray, Episode, empty_episode
from fsseg_jax.models import Method, init_variables

logger = logging.getLogger(__name__)


@struct.dataclass
class TrainState:
    """All that a run needs to continue, beside its configuration."""

    step: Int[Array, ""]
    variables: Any
    optimizer: optax.OptState  # of what is not frozen
    # What the method stores for each (class, image) item (`Output.row`), one row an item.
    rows: Array | None = None


def with_steps(config: ConfigDict, items: int) -> ConfigDict:
    """A copy of a configuration with `train.steps`, of as many epochs if there were none.

    Args:
        config: of the run.
        items: of one epoch, see `Items.epoch`.
    """
    config = config.copy_and_resolve_references()
    train = config.train
    if not train.steps:
        dispatches = train.epochs * items / (train.batch_size * train.steps_per_dispatch)
        train.steps = math.ceil(dispatches) * train.steps_per_dispatch
        of = "photographs" if config.data.sampling == "photographs" else "items"
        logger.info("%d epochs of %d %s are %d steps", train.epochs, items, of, train.steps)
        train.epochs = 0
    return config


def learning_rate(train: ConfigDict) -> optax.Schedule:
    """The schedule that `config.train` describes: a function of the step."""
    match train.schedule:
        case "step":
            schedule = optax.exponential_decay(
                train.learning_rate, train.decay_every, train.decay_factor, staircase=True
            )
        case "poly":
            schedule = optax.polynomial_schedule(
                train.learning_rate, 0.0, train.poly_power, train.steps
            )
        case "constant":
            schedule = optax.constant_schedule(train.learning_rate)
    if not train.warmup:
        return schedule
    warmup = optax.linear_schedule(0.0, 1.0, train.warmup)
    return lambda step: warmup(step) * schedule(step)


def make_optimizer(train: ConfigDict) -> optax.GradientTransformation:
    """SGD with momentum and, as PyTorch has it, weight decay added to the gradient."""
    steps = [
        optax.add_decayed_weights(train.weight_decay),
        optax.sgd(learning_rate(train), momentum=train.momentum),
    ]
    if train.new_layers_rate != 1:

        def is_new(params: dict[str, Any]) -> dict[str, Any]:
            return {
                name: jax.tree.map(lambda _, new=name != "backbone": new, tree)
                for name, tree in params.items()
            }

        steps.append(optax.masked(optax.scale(train.new_layers_rate), is_new))
    return optax.chain(*steps)


def split_frozen(model: Method, params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters that are trained, and those that the method leaves as they are."""
    frozen = {name: tree for name, tree in params.items() if name in model.frozen}
    return {name: tree for name, tree in params.items() if name not in frozen}, frozen


def initial_state(model: Method, config: ConfigDict, init: str, items: int) -> TrainState:
    """The state before the first step.

    Args:
        model: a method.
        config: of the run.
        init: as `config.init`, or empty for random weights.
        items: how many (class, image) items there are.
    """
    key = jax.random.key(config.seed)
    variables = init_variables(model, key, config.ways, config.shots, init)
    trained, _ = split_frozen(model, variables["params"])
    optimizer = make_optimizer(config.train).init(trained)
    episode = empty_episode(config.ways, config.shots, config.image_size)
    initialise = functools.partial(model.init_with_output, train=True)
    output, _ = jax.eval_shape(initialise, {"params": key, "dropout": key}, episode)
    rows = None if output.row is None else jnp.zeros((items, *output.row.shape), output.row.dtype)
    return TrainState(jnp.zeros((), jnp.int32), variables, optimizer, rows)


def abstract_state(model: Method, config: ConfigDict, items: int) -> TrainState:
    """The shapes of a state, for restoring one."""
    return jax.eval_shape(lambda: initial_state(model, config, "", items))


def make_step(
    model: Method,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    items: int,
    batch_size: int,
    accumulate: int = 1,
) -> Callable[[TrainState, Episode], tuple[TrainState, dict[str, Float[Array, ""]]]]:
    """One training step, a pure function.

    What the method stores for an item is given to it when the item comes up again: in the next
    epoch if `data.sampling` is "items" (CANet sec. 4.2). Where the end of one epoch and the
    beginning of the next share a batch, an item may be in it twice: both read what was stored
    before, and the later one is stored.

    Args:
        model: a method.
        optimizer: see `make_optimizer`.
        seed: of the method's own randomness, if it has any.
        items: how many there are in one epoch, see `Items.epoch`.
        batch_size: episodes a step.
        accumulate: in how many parts, one after another, their gradient is computed.

    Returns:
        a function of the state and a batch; it gives the next state and the loss with its named
        parts, means over the batch, and the norm of the gradient.
    """

    def step(state: TrainState, batch: Episode) -> tuple[TrainState, dict[str, Array]]:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step), batch_size)
        epoch = state.step * batch_size / items
        trained, frozen = split_frozen(model, state.variables["params"])
        previous = None if state.rows is None else state.rows[batch.query_index]

        def loss(
            trained: Any, statistics: Any, batch: Episode, previous: Any, keys: Array
        ) -> tuple[Array, tuple[Any, ...]]:
            variables = {**state.variables, **statistics, "params": {**frozen, **trained}}

            def one(episode: Episode, previous: Any, key: Array) -> tuple[Any, ...]:
                dropout_key, loss_key = jax.random.split(key)
                output, updated = model.apply(
                    variables,
                    episode.normalised(),
                    previous,
                    train=True,
                    rngs={"dropout": dropout_key},
                    mutable=["batch_stats"],
                )
                value, parts = model.loss(output, episode, loss_key, epoch)
                return value, parts, output.row, updated

            # Statistics are of the whole batch: they have no batch axis.
            over_batch = jax.vmap(one, out_axes=(0, 0, 0, None), axis_name=BATCH_AXIS)
            values, parts, rows, updated = over_batch(batch, previous, keys)
            return values.mean(), (jax.tree.map(jnp.mean, parts), rows, updated)

        def part(statistics: Any, drawn: tuple[Episode, Any, Array]) -> tuple[Any, Any]:
            differentiate = jax.value_and_grad(loss, has_aux=True)
            (value, (parts, rows, updated)), gradient = differentiate(trained, statistics, *drawn)
            return {**statistics, **updated}, (gradient, {"loss": value, **parts}, rows)

        drawn = (batch, previous, keys)
        statistics = {k: v for k, v in state.variables.items() if k == "batch_stats"}
        if accumulate == 1:
            statistics, (gradient, metrics, rows) = part(statistics, drawn)
        else:
            statistics, (gradient, metrics, rows) = in_parts(part, statistics, drawn, accumulate)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, trained)
        changed: Any = optax.apply_updates(trained, updates)
        rows = None if state.rows is None else with_rows(state.rows, batch.query_index, rows)
        state = TrainState(
            step=state.step + 1,
            variables={**state.variables, **statistics, "params": {**frozen, **changed}},
            optimizer=optimizer_state,
            rows=rows,
        )
        return state, {**metrics, "gradient_norm": optax.tree.norm(gradient)}

    return step


def with_rows(
    stored: Shaped[Array, " item *shape"],
    items: Integer[AnyArray, " batch"],
    rows: Shaped[Array, " batch *shape"],
) -> Shaped[Array, " item *shape"]:
    """`stored` with new rows for some items, and of several for one item with the last: a scatter
    may mix them."""
    again = jnp.triu(items[:, None] == items, k=1).any(axis=1)
    return stored.at[jnp.where(again, len(stored), items)].set(rows, mode="drop")


def in_parts(
    part: Callable[[Any, Any], tuple[Any, tuple[Any, Any, Any]]],
    carry: Any,
    batch: Any,
    parts: int,
) -> tuple[Any, tuple[Any, Any, Any]]:
    """`part` of each part of a batch in turn: means of its first two results, all of the third.

    A part takes every `parts`-th episode, so that each device has its share of each part.

    Args:
        part: a function of a carried value and some rows; it gives the next carried value and two
            trees of means and one of rows.
        carry: the first carried value.
        batch: a tree of arrays of rows.
        parts: how many; divides the number of rows.
    """

    def deal(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

    def gather(x: Array) -> Array:
        return jnp.moveaxis(x, 0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])

    def add(state: tuple[Any, Any], rows: Any) -> tuple[tuple[Any, Any], Any]:
        carry, total = state
        carry, (*means, rows) = part(carry, rows)
        return (carry, jax.tree.map(lambda a, b: a + b / parts, total, means)), rows

    dealt = jax.tree.map(deal, batch)
    _, (*means, _) = jax.eval_shape(part, carry, jax.tree.map(lambda x: x[0], dealt))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), means)
    (carry, means), rows = jax.lax.scan(add, (carry, zeros), dealt)
    return carry, (*means, jax.tree.map(gather, rows))


def make_dispatch(
    step: Callable[[TrainState, Episode], tuple[TrainState, dict[str, Array]]],
    draw: Callable[[Any, Int[Array, ""], Int[Array, ""]], Episode],
    mesh: Mesh,
    loop: bool | None = None,
    rematerialise: bool = False,
) -> Callable[[TrainState, Any, int], tuple[TrainState, dict[str, Float[Array, " step"]]]]:
    """Some training steps, compiled: episodes split over the mesh, the state on every device.

    Args:
        step: see `make_step`.
        draw: see `data.Pipeline`.
        mesh: see `devices.make_mesh`.
        loop: whether steps are a compiled loop or follow one another in the program; by default
            they are a loop on all but CPUs.
        rematerialise: whether the step's model rematerialises, which CPUs have to be told.

    Returns:
        a function of the state, which it consumes, of what the pipeline feeds, and of how many
        steps to do (each number is compiled once); it gives the new state, and the step's
        results with one row a step.
    """
    # On a CPU, XLA computes some of SST's operations several times slower inside a loop than
    # outside (https://github.com/jax-ml/jax/issues/12868; so in 0.10.2 and 0.12.0): there, steps
    # follow one another.
    on_cpu = mesh.local_devices[0].platform == "cpu"
    if loop is None:
        loop = not on_cpu

    def dispatch(state: TrainState, fed: Any, count: int) -> tuple[TrainState, dict[str, Array]]:
        def one(state: TrainState, done: Int[Array, ""]) -> tuple[TrainState, dict[str, Array]]:
            batch = jax.lax.with_sharding_constraint(draw(fed, done, state.step), split(mesh))
            return step(state, batch)

        return jax.lax.scan(one, state, jnp.arange(count), unroll=1 if loop else count + 1)

    return jax.jit(
        dispatch,
        static_argnames="count",
        donate_argnums=0,
        out_shardings=replicated(mesh),
        compiler_options=REMATERIALISING if on_cpu and rematerialise else None,
    )
