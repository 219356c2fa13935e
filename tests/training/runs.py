"""Short runs of training on tiny images, and what they leave."""

import jax
import numpy as np

from fsseg_jax import train as program
from fsseg_jax.config import default_config
from fsseg_jax.models import create_model
from fsseg_jax.training.checkpoints import LAST, Checkpoints
from fsseg_jax.training.state import abstract_state, initial_state


def tiny_config(**train):
    config = default_config("panet")
    config.backbone = "small"
    config.image_size = 32
    config.devices = 1
    config.data.name = "shapes"
    config.data.min_pixels = config.data.train_min_pixels = 1
    config.data.shapes.update(train=60, val=80, pixels=32)
    config.eval.update(runs=1, episodes=6, gallery=1)
    config.train.update(
        steps=6,
        batch_size=8,
        learning_rate=0.01,
        log_every=2,
        save_every=2,
        eval_every=3,
        eval_episodes=6,
    )
    config.train.update(train)
    return config


def saved_state(config, workdir, which=LAST):
    """The state in a checkpoint, as NumPy arrays."""
    model = create_model(config)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = Checkpoints(workdir).restore(which, abstract_state(model, config, 1), one)
    return jax.tree.map(np.asarray, state)


def initial_state_of(config):
    """The state that a run begins with."""
    return jax.device_get(initial_state(create_model(config), config, "", 1))


def assert_identical(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def flat(state):
    """All parameters of a state in one vector."""
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(state.variables)])


def interrupt(monkeypatch, before_step, action):
    """Calls `action` when what step `before_step` needs is asked for."""
    original = program.training_pipeline

    def training_pipeline(config, source, items, mesh, start):
        pipeline = original(config, source, items, mesh, start)
        done = start

        def feed(count):
            nonlocal done
            if done < before_step <= done + count:
                action()
            done += count
            return pipeline.feed(count)

        return pipeline._replace(feed=feed)

    monkeypatch.setattr(program, "training_pipeline", training_pipeline)
