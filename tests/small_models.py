"""Small models with random variables."""

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from helpers import draw_values

from fsseg_jax.config import config_file, load_config
from fsseg_jax.models import create_model, init_variables


def make_config(method="panet", **fields):
    config = load_config(config_file(f"shapes:{method}"))
    config.image_size = 32
    if method != "panet":
        config.model.width = 8
    if method == "ltafnet":
        config.model.refinement_width = 4
    config.update_from_flattened_dict(fields)
    return config


def random_variables(config, seed=0):
    return draw_variables(create_model(config), config.ways, config.shots, seed)


def assert_equal(tree, other):
    tree, other = flatten_dict(tree), flatten_dict(other)
    assert tree.keys() == other.keys()
    for name, array in tree.items():
        assert array.dtype == other[name].dtype
        np.testing.assert_array_equal(array, other[name])


def draw_variables(model, ways, shots, seed=0):
    """Nothing that is zero at first, so that every part of a model shows in its logits."""
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), ways, shots))
    return draw_values(shapes, seed)
