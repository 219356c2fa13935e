"""Every method can learn: one fixed episode by heart."""

import jax
import numpy as np
import pytest
from training_runs import compilations

from fsseg_jax.benchmarks.evaluate import read
from fsseg_jax.config import default_config
from fsseg_jax.data.sampling import sample
from fsseg_jax.data.sources.shapes import Shapes
from fsseg_jax.devices import make_mesh
from fsseg_jax.evaluation.evaluator import Evaluator
from fsseg_jax.models import METHODS, create_model
from fsseg_jax.training.state import initial_state, make_optimizer, make_step

RATES = {"panet": 0.05, "canet": 0.01, "sst": 0.003, "ltafnet": 0.01, "mfnet": 0.01}


def evaluate_lists(model, config, variables):
    """Scores two lists of episodes, the second one with other images and classes."""
    source = Shapes("val", 80, 32)
    config.eval.batch_size = 2
    for classes, seed in ((range(1, 7), 0), (range(7, 13), 1)):
        ids = sample(source.table.items(classes, 1), seed, np.arange(5), 1, 1)
        evaluator = Evaluator(model, source, ids, make_mesh(1), config, room=(10, 5))
        evaluator.score(variables, evaluator.encode(variables))
        yield


@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns_one_episode_by_heart_and_compiles_nothing_twice(method, caplog):
    config = default_config(method)
    config.backbone = "small"
    config.image_size = 32
    config.model.freeze_backbone = False
    for field, value in (("width", 32), ("dropout", 0.0), ("refinement_width", 4)):
        if field in config.model:
            config.model[field] = value
    if method == "canet":
        config.model.init_deviation = 0.0
        config.model.reset_probability = 1.0  # else its input changes from step to step
    if method != "panet":
        config.model.stages = (5,)
    config.train.learning_rate = RATES[method]
    config.train.update(schedule="constant", warmup=20, weight_decay=0.0)
    model = create_model(config)
    state = initial_state(model, config, "", items=1000)
    step = make_step(model, make_optimizer(config.train), seed=0, items=1000, batch_size=1)
    step = jax.jit(step, donate_argnums=0)
    source = Shapes("train", 60, 32)
    ids = sample(source.table.items(range(1, 25), 100), 0, np.arange(1), 1, 1)
    batch = read(source, ids, 32)
    batch = batch.replace(query_index=batch.query_index % 1000)
    with jax.log_compiles(), caplog.at_level("WARNING", "jax"):
        state, metrics = step(state, batch)
        first = metrics["loss"].item()
        before = len(compilations(caplog))
        for number in range(400):
            state, metrics = step(state, batch)
            if number % 20 == 0 and metrics["loss"].item() < 0.1 * first:
                break
        assert metrics["loss"].item() < 0.1 * first
        assert len(compilations(caplog)) == before > 0

        lists = evaluate_lists(model, config, state.variables)
        next(lists)
        before = len(compilations(caplog))
        next(lists)
        assert len(compilations(caplog)) == before
