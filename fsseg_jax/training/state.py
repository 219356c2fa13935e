"""The training state, and the step that updates it."""

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Integer, Shaped
from ml_collections import ConfigDict

from fsseg_jax.cpu.versions import REMATERIALISING
from fsseg_jax.devices import replicated, split
from fsseg_jax.episode import BATCH_AXIS, AnyArray, Episode, empty_episode
from fsseg_jax.models import Method, init_variables

# On GPUs XLA compiles dozens of Triton programs to find the fastest for each matrix product of the
# input pipeline: half a minute, on an H100's machine, for products that cuBLAS computes as fast.
CUBLAS = {"xla_gpu_enable_triton_gemm": False}

logger = logging.getLogger(__name__)


@struct.dataclass
class TrainState:
    """Everything that a run needs to continue, apart from its configuration."""

    step: Int[Array, ""]
    variables: Any
    optimizer: optax.OptState  # of the parameters that are not frozen
    # What the method stores for each (class, image) item (`Output.row`), one row per item.
    rows: Array | None = None


def with_steps(config: ConfigDict, items: int) -> ConfigDict:
    """A copy of the configuration with `train.steps`, computed from epochs of `items` if it was
    0."""
    config = config.copy_and_resolve_references()
    train = config.train
    if not train.steps:
        dispatches = train.epochs * items / (train.batch_size * train.steps_per_dispatch)
        train.steps = math.ceil(dispatches) * train.steps_per_dispatch
        of = "images" if config.data.sampling == "photographs" else "items"
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
    """SGD with momentum, and weight decay that is added to the gradient, as in PyTorch.

    Examples:
        >>> from fsseg_jax.config import load_config
        >>> optimizer = make_optimizer(load_config("quickstart").train)
        >>> params = {"backbone": jnp.ones(3)}
        >>> updates, _ = optimizer.update({"backbone": jnp.ones(3)}, optimizer.init(params), params)
        >>> updates["backbone"].shape
        (3,)
    """
    steps = [
        optax.add_decayed_weights(train.weight_decay),
        optax.sgd(learning_rate(train), momentum=train.momentum),
    ]
    if train.new_layers_rate != 1:

        def is_new(params: dict[str, Any]) -> dict[str, Any]:
            return {name: name != "backbone" for name in params}

        steps.append(optax.masked(optax.scale(train.new_layers_rate), is_new))
    return optax.chain(*steps)


def split_frozen(model: Method, params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trained parameters, and those that the method freezes."""
    frozen = {name: tree for name, tree in params.items() if name in model.frozen}
    return {name: tree for name, tree in params.items() if name not in frozen}, frozen


def initial_state(model: Method, config: ConfigDict, init: str, items: int) -> TrainState:
    """The state before the first step, with a row for each of `items` (class, image) items.

    Weights are those of `init`, which is as `config.init`.

    Examples:
        >>> from fsseg_jax.config import load_config
        >>> from fsseg_jax.models import create_model
        >>> config = load_config("quickstart")
        >>> state = initial_state(create_model(config), config, init="", items=100)
        >>> int(state.step), list(state.variables), state.rows
        (0, ['params'], None)
    """
    key = jax.random.key(config.seed)
    variables = init_variables(model, key, config.ways, config.shots, init)
    trained, _ = split_frozen(model, variables["params"])
    optimizer = make_optimizer(config.train).init(trained)
    shape = config.ways, config.shots, config.image_size
    episode = jax.eval_shape(lambda: empty_episode(*shape))
    initialise = functools.partial(model.init_with_output, train=True)
    output, _ = jax.eval_shape(initialise, {"params": key, "dropout": key}, episode)
    rows = None if output.row is None else jnp.zeros((items, *output.row.shape), output.row.dtype)
    return TrainState(jnp.zeros((), jnp.int32), variables, optimizer, rows)


def abstract_state(model: Method, config: ConfigDict, items: int) -> TrainState:
    """The shapes of a state, to restore a checkpoint into."""
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

    What the method stores for an item is given back to it when the item comes up again: in the next
    epoch if `data.sampling` is "items" (CANet sec. 4.2). Where the end of one epoch and the
    beginning of the next share a batch, it may contain an item twice: both occurrences read what
    was stored before, and the later one is stored.

    Args:
        seed: of the method's own randomness, if it has any.
        items: number of items in an epoch, see `Items.epoch`.
        batch_size: episodes per step.
        accumulate: number of parts of the batch whose gradients are accumulated.

    Returns:
        a function of the state and a batch, which returns the next state and the metrics: the loss
        and its named parts, averaged over the batch, and the norm of the gradient.

    Examples:
        >>> from fsseg_jax.config import load_config
        >>> from fsseg_jax.models import create_model
        >>> config = load_config("quickstart")
        >>> model, optimizer = create_model(config), make_optimizer(config.train)
        >>> state = initial_state(model, config, init="", items=100)
        >>> step = make_step(model, optimizer, seed=0, items=100, batch_size=2)
        >>> batch = jax.tree.map(lambda x: jnp.stack([x, x]), empty_episode(1, 1, size=32))
        >>> state, metrics = jax.jit(step)(state, batch)
        >>> int(state.step), sorted(metrics)
        (1, ['alignment', 'gradient_norm', 'loss', 'segmentation'])
    """

    def step(state: TrainState, batch: Episode) -> tuple[TrainState, dict[str, Array]]:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step), batch_size)
        epoch = state.step * batch_size / items
        trained, frozen = split_frozen(model, state.variables["params"])
        previous = None if state.rows is None else state.rows[batch.query_index]
        part = functools.partial(gradient_of_part, model, state.variables, epoch)
        run = part if accumulate == 1 else functools.partial(in_parts, part, parts=accumulate)
        statistics = {k: v for k, v in state.variables.items() if k == "batch_stats"}
        statistics, (gradient, metrics, rows) = run(statistics, (batch, previous, keys))
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


def gradient_of_part(
    model: Method,
    variables: Any,
    epoch: Float[Array, ""],
    statistics: Any,
    drawn: tuple[Episode, Any, Array],
) -> tuple[Any, tuple[Any, dict[str, Array], Any]]:
    """The next statistics, and the gradient of `batch_loss` with respect to the trained parameters,
    with the loss and its parts, and the rows to store."""
    trained, frozen = split_frozen(model, variables["params"])

    def loss(trained: Any) -> tuple[Array, tuple[Any, ...]]:
        given = {**variables, **statistics, "params": {**frozen, **trained}}
        return batch_loss(model, given, epoch, *drawn)

    (value, (parts, rows, updated)), gradient = jax.value_and_grad(loss, has_aux=True)(trained)
    return {**statistics, **updated}, (gradient, {"loss": value, **parts}, rows)


def batch_loss(
    model: Method,
    variables: Any,
    epoch: Float[Array, ""],
    batch: Episode,
    previous: Any,
    keys: Array,
) -> tuple[Array, tuple[Any, ...]]:
    """The mean loss of a batch, with its named parts, the rows to store and the new statistics."""

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

    # Statistics are those of the whole batch: they have no batch axis.
    over_batch = jax.vmap(one, out_axes=(0, 0, 0, None), axis_name=BATCH_AXIS)
    values, parts, rows, updated = over_batch(batch, previous, keys)
    return values.mean(), (jax.tree.map(jnp.mean, parts), rows, updated)


def with_rows(
    stored: Shaped[Array, " item *shape"],
    items: Integer[AnyArray, " batch"],
    rows: Shaped[Array, " batch *shape"],
) -> Shaped[Array, " item *shape"]:
    """`stored` with new rows for some items. Of several rows for one item it takes the last, as a
    scatter may mix them."""
    again = jnp.triu(items[:, None] == items, k=1).any(axis=1)
    return stored.at[jnp.where(again, len(stored), items)].set(rows, mode="drop")


def in_parts(
    part: Callable[[Any, Any], tuple[Any, tuple[Any, Any, Any]]],
    carry: Any,
    batch: Any,
    parts: int,
) -> tuple[Any, tuple[Any, Any, Any]]:
    """Applies `part` to each part of a batch in turn: means of its first two results, and all rows
    of the third.

    A part takes every `parts`-th episode, so that each device has its share of each part.

    Args:
        part: a function of a carried value and some rows, which returns the next carried value, two
            trees of means and one of rows.
        batch: a tree of arrays, one row per episode.
        parts: number of parts, a divisor of the number of rows.
    """
    deal = functools.partial(rearrange, pattern="(row part) ... -> part row ...", part=parts)
    gather = functools.partial(rearrange, pattern="part row ... -> (row part) ...")

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
    """Compiles several training steps: episodes split over the mesh, the state replicated.

    Args:
        draw: see `data.Pipeline`.
        loop: whether the steps are a compiled loop or unrolled; by default they are a loop on all
            platforms but CPUs.
        rematerialise: whether the step's model rematerialises, for which CPUs need an option.

    Returns:
        a function of the state, which it donates, of what the pipeline feeds, and of the number of
        steps (compiled once for each number); it returns the new state, and the metrics with one
        row per step.
    """
    # On CPUs steps are unrolled, as XLA computes some of SST's operations several times slower
    # inside a loop than outside (https://github.com/jax-ml/jax/issues/12868; seen in 0.10.2 and
    # 0.12.0).
    platform = mesh.local_devices[0].platform
    if loop is None:
        loop = platform != "cpu"
    options = {"cpu": REMATERIALISING if rematerialise else None, "gpu": CUBLAS}.get(platform)

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
        compiler_options=options,
    )
