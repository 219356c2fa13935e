"""What a training step changes, and the step."""

from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from fsseg_jax.devices import replicated, split
from fsseg_jax.episode import Episode
from fsseg_jax.models import init_variables


@flax.struct.dataclass
class TrainState:
    """All that a run needs to continue, beside its configuration."""

    step: Int[Array, ""]
    variables: Any
    optimizer: optax.OptState


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
    return optax.chain(
        optax.add_decayed_weights(train.weight_decay),
        optax.sgd(learning_rate(train), momentum=train.momentum),
    )


def initial_state(model: nn.Module, config: ConfigDict, init: str) -> TrainState:
    """The state before the first step; `init` as `config.init`, or empty for random weights."""
    key = jax.random.key(config.seed)
    variables = init_variables(model, key, config.ways, config.shots, init)
    optimizer = make_optimizer(config.train).init(variables["params"])
    return TrainState(step=jnp.zeros((), jnp.int32), variables=variables, optimizer=optimizer)


def abstract_state(model: nn.Module, config: ConfigDict) -> TrainState:
    """The shapes of a state, for restoring one."""
    return jax.eval_shape(lambda: initial_state(model, config, init=""))


def make_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    items: int,
    batch_size: int,
) -> Callable[[TrainState, Episode], tuple[TrainState, dict[str, Float[Array, ""]]]]:
    """One training step, a pure function.

    Args:
        model: a method.
        optimizer: see `make_optimizer`.
        seed: of the method's own randomness, if it has any.
        items: how many (class, photograph) items there are: one epoch.
        batch_size: episodes a step.

    Returns:
        a function of the state and a batch; it gives the next state and the loss with its named
        parts, means over the batch, and the norm of the gradient.
    """

    def step(state: TrainState, batch: Episode) -> tuple[TrainState, dict[str, Array]]:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step), batch_size)
        epoch = state.step * batch_size / items

        def loss(params: Any) -> tuple[Array, dict[str, Array]]:
            def one(episode: Episode, key: Array) -> tuple[Array, dict[str, Array]]:
                episode = episode.normalised()
                output = model.apply({**state.variables, "params": params}, episode, train=True)
                return model.loss(output, episode, key, epoch)

            losses, parts = jax.vmap(one)(batch, keys)
            return losses.mean(), jax.tree.map(jnp.mean, parts)

        params = state.variables["params"]
        (value, parts), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, params)
        params = optax.apply_updates(params, updates)
        state = TrainState(
            step=state.step + 1,
            variables={**state.variables, "params": params},
            optimizer=optimizer_state,
        )
        return state, {"loss": value, **parts, "gradient_norm": optax.tree.norm(gradient)}

    return step


def make_dispatch(
    step: Callable[[TrainState, Episode], tuple[TrainState, dict[str, Array]]],
    draw: Callable[[Any, Int[Array, ""], Int[Array, ""]], Episode],
    mesh: Mesh,
) -> Callable[[TrainState, Any, int], tuple[TrainState, dict[str, Float[Array, " step"]]]]:
    """Some training steps, compiled: episodes split over the mesh, the state on every device.

    Args:
        step: see `make_step`.
        draw: see `data.Pipeline`.
        mesh: see `devices.make_mesh`.

    Returns:
        a function of the state, which it consumes, of what the pipeline feeds, and of how many
        steps to do (each number is compiled once); it gives the new state, and the step's
        results with one row a step.
    """
    # On a CPU, XLA's gradients of convolutions are tens of times slower inside a loop than outside
    # (https://github.com/jax-ml/jax/issues/12868): there, steps follow one another without one.
    loop = mesh.local_devices[0].platform != "cpu"

    def dispatch(state: TrainState, fed: Any, count: int) -> tuple[TrainState, dict[str, Array]]:
        def one(state: TrainState, done: Int[Array, ""]) -> tuple[TrainState, dict[str, Array]]:
            batch = jax.lax.with_sharding_constraint(draw(fed, done, state.step), split(mesh))
            return step(state, batch)

        return jax.lax.scan(one, state, jnp.arange(count), unroll=1 if loop else count + 1)

    return jax.jit(
        dispatch, static_argnames="count", donate_argnums=0, out_shardings=replicated(mesh)
    )
