"""Small models with random variables."""

import jax
import numpy as np
from flax.traverse_util import flatten_dict

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
    rng = np.random.default_rng(seed)
    model = create_model(config)
    shapes = jax.eval_shape(
        lambda: init_variables(model, jax.random.key(0), config.ways, config.shots)
    )
    return jax.tree.map(lambda x: rng.normal(0.5, 0.2, x.shape).astype(np.float32), shapes)


def assert_equal(tree, other):
    tree, other = flatten_dict(tree), flatten_dict(other)
    assert tree.keys() == other.keys()
    for name, array in tree.items():
        assert array.dtype == other[name].dtype
        np.testing.assert_array_equal(array, other[name])
