"""Every method is trained and evaluated on a Vision Transformer as on other backbones."""

import functools

import jax
import numpy as np
import pytest
from helpers import draw_values, message_of

from fsseg_jax import backbones
from fsseg_jax.backbones.vit import ViT
from fsseg_jax.benchmarks.evaluate import read
from fsseg_jax.config import default_config
from fsseg_jax.data.sampling import sample
from fsseg_jax.data.sources.shapes import Shapes
from fsseg_jax.devices import make_mesh
from fsseg_jax.evaluation.evaluator import Evaluator
from fsseg_jax.models import METHODS, create_model
from fsseg_jax.training.state import abstract_state, make_optimizer, make_step

TINY = functools.partial(ViT, width=16, depth=1, heads=2, hidden=24, grid=3)
SIZE = 42  # three patches of 14


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(backbones.BACKBONES, "tiny", TINY)


def config_of(method):
    config = default_config(method)
    config.backbone, config.image_size = "tiny", SIZE
    for field, value in (("width", 8), ("scales", 2)):
        if field in config.model:
            config.model[field] = value
    if method == "ltafnet":
        config.model.refinement = False  # sees the image, not the features
    config.model.update(stages=(1,), align_corners=False, freeze_backbone=False)
    return config


@pytest.mark.parametrize("method", METHODS)
def test_a_training_step_and_an_evaluation(method):
    """The step moves the transformer; every pixel of the queries is counted."""
    config = config_of(method)
    config.train.update(learning_rate=0.01, schedule="constant")
    if method == "panet":
        config.eval.scales = (1.0, 1.3)
    model = create_model(config)
    assert model.patch == 14
    state = abstract_state(model, config, items=9)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state)
    state = zeros.replace(variables=draw_values(state.variables))
    before = state.variables["params"]["backbone"]
    step = make_step(model, make_optimizer(config.train), seed=0, items=9, batch_size=1)
    source = Shapes("train", 60, SIZE)
    ids = sample(source.table.items(range(1, 25), 1), 0, np.arange(2), 1, 1)
    batch = jax.tree.map(lambda x: x[:1], read(source, ids, SIZE))
    state, metrics = jax.jit(step)(state, batch.replace(query_index=batch.query_index % 9))
    assert np.isfinite(metrics["loss"])
    after = jax.device_get(state.variables["params"]["backbone"])
    moved = after["blocks_0"]["qkv"]["kernel"] - before["blocks_0"]["qkv"]["kernel"]
    assert abs(moved).max() > 0
    evaluator = Evaluator(model, source, ids, make_mesh(1), config)
    counts = evaluator.score(state.variables, evaluator.encode(state.variables))
    _, predicted, truth = np.moveaxis(counts.borders["ignored"], -1, 0)
    assert truth.sum() > 0
    assert predicted.sum() > 0


@pytest.mark.parametrize("method", [name for name in METHODS if name != "panet"])
def test_layers_of_a_resnet_are_no_blocks(method):
    config = default_config(method)
    config.backbone = "dinov2_s"
    message = message_of(create_model, config)
    assert "model.stages = (2, 3)" in message
    assert "--config.model.stages=8,12" in message
    config.model.stages = (8, 12)
    create_model(config)
