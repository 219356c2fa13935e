"""The optimiser against PyTorch's rule, the schedules against their formulas."""

import jax.numpy as jnp
import numpy as np
import optax

from fsseg_jax.config import default_config
from fsseg_jax.training.state import learning_rate, make_optimizer


def train_config(**fields):
    train = default_config("panet").train
    train.update(fields)
    return train


def test_optimizer_is_pytorch_sgd_with_its_step_decay():
    """PyTorch's update, as its documentation has it: decay is added to the gradient, momentum
    gathers gradients without the rate, and the rate multiplies last. (Written out: importing
    torch.optim loads compilers that do not get on with TensorFlow's in one process.)"""
    train = train_config(learning_rate=0.1, decay_every=4, weight_decay=0.02)
    rng = np.random.default_rng(0)
    theirs, gradients, velocity = rng.normal(size=5), rng.normal(size=(10, 5)), np.zeros(5)
    ours = jnp.asarray(theirs)
    optimizer = make_optimizer(train)
    state = optimizer.init(ours)
    for step, gradient in enumerate(gradients):
        velocity = 0.9 * velocity + gradient + 0.02 * theirs
        theirs = theirs - 0.1 * 0.1 ** (step // 4) * velocity
        updates, state = optimizer.update(jnp.asarray(gradient), state, ours)
        ours = optax.apply_updates(ours, updates)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_poly_schedule_is_its_formula():
    schedule = learning_rate(train_config(learning_rate=0.3, schedule="poly", steps=50))
    steps = np.arange(51)
    expected = 0.3 * (1 - steps / 50) ** 0.9
    np.testing.assert_allclose([schedule(step) for step in steps], expected, atol=1e-7)


def test_warmup_rises_linearly_from_zero_and_then_leaves_the_schedule_alone():
    plain = learning_rate(train_config(schedule="poly", steps=50))
    warm = learning_rate(train_config(schedule="poly", steps=50, warmup=10))
    ratios = [float(warm(step) / plain(step)) for step in range(20)]
    np.testing.assert_allclose(ratios, np.minimum(np.arange(20) / 10, 1), rtol=1e-6)
