"""Short runs of training on tiny images, and what they leave."""

import os
import signal

import jax
import numpy as np
import pytest
import tiny

from fsseg_jax import train as program
from fsseg_jax.models import create_model
from fsseg_jax.training.checkpoints import LAST, Checkpoints
from fsseg_jax.training.state import abstract_state, initial_state


def tiny_config(**train):
    config = tiny.get_config()
    config.train.update(train)
    return config


def saved_state(config, workdir, which=LAST, items=1):
    """The state in a checkpoint, as NumPy arrays."""
    like = abstract_state(create_model(config), config, items)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = Checkpoints(workdir).restore(which, like, one)
    return jax.tree.map(np.asarray, state)


def initial_state_of(config):
    """The state that a run begins with."""
    return jax.device_get(initial_state(create_model(config), config, "", 1))


def assert_identical(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def flat(state):
    """All parameters of a state in one vector."""
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(state.variables)])


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def train_until(before_step, config, workdir, action=terminate):
    """Trains, and calls `action` when what step `before_step` needs is asked for."""
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

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "training_pipeline", training_pipeline)
        assert not program.train(config, workdir)


def compilations(caplog):
    """What JAX has told of programs that it compiled."""
    messages = [record.getMessage() for record in caplog.records]
    return [message for message in messages if "Finished XLA compilation" in message]
