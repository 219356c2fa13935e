"""The optimiser against PyTorch's, the schedules against their formulas."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fsseg_jax.config import default_config
from fsseg_jax.training.state import learning_rate, make_optimizer


def train_config(**fields):
    train = default_config("panet").train
    train.update(fields)
    return train


def test_optimizer_is_pytorch_sgd_with_its_step_decay():
    torch = pytest.importorskip("torch")
    train = train_config(learning_rate=0.1, decay_every=4, weight_decay=0.02)
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=5), rng.normal(size=(10, 5))

    theirs = torch.tensor(start, requires_grad=True)
    sgd = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=0.02)
    decay = torch.optim.lr_scheduler.StepLR(sgd, step_size=4, gamma=0.1)
    ours = jnp.asarray(start)
    optimizer = make_optimizer(train)
    state = optimizer.init(ours)
    for gradient in gradients:
        theirs.grad = torch.tensor(gradient)
        sgd.step()
        decay.step()
        updates, state = optimizer.update(jnp.asarray(gradient), state, ours)
        ours = optax.apply_updates(ours, updates)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5)


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
