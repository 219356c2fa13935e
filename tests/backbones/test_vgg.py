"""The Flax VGG-16 is PyTorch's, with PANet's strides and dilation."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, random

from fsseg_jax.backbones.pretrained import load_pretrained
from fsseg_jax.backbones.vgg import VGG16

# Torchvision's VGG-16 as a safetensors file, if there is one beside the repository.
WEIGHTS = pathlib.Path(__file__).parents[3] / "shared/weights/vgg16.safetensors"
HEIGHT, WIDTH = 64, 65  # where stride 2 meets an even size, padding must be on the right side


def shapes():
    return jax.eval_shape(VGG16().init, jax.random.key(0), jnp.zeros((1, 9, 9, 3)))


@jax.jit
def encode(params, image):
    (features,) = VGG16().apply({"params": params}, image)
    return features


def assert_features_match_pytorch(torch, params):
    import pytorch_vgg

    image = random(1, HEIGHT, WIDTH, 3)
    planes = torch.tensor(image).permute(0, 3, 1, 2)
    expected = pytorch_vgg.features(pytorch_vgg.to_pytorch(params), planes).permute(0, 2, 3, 1)
    result = np.asarray(encode(params, image))
    assert result.shape == (1, 8, 9, 512)
    assert_close(result, expected, 1e-4)
    assert result.min() < 0 < result.max()  # no ReLU at the end


def test_features_match_pytorch(torch):
    import pytorch_vgg

    assert_features_match_pytorch(torch, pytorch_vgg.random_params())


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="no pretrained weights here")
def test_features_of_the_real_weights_match_pytorch(torch):
    assert_features_match_pytorch(torch, load_pretrained(str(WEIGHTS), shapes())["params"])


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="no pretrained weights here")
def test_real_weights_fill_every_parameter():
    loaded = load_pretrained(str(WEIGHTS), shapes())
    jax.tree.map(
        lambda array, shape: np.testing.assert_equal(array.shape, shape.shape), loaded, shapes()
    )
    assert all(np.std(array) > 0 for array in jax.tree.leaves(loaded))


@pytest.mark.parametrize(("size", "expected"), [(417, 53), (321, 41), (473, 60), (32, 4), (33, 5)])
def test_stride_is_eight(size, expected):
    image = jax.ShapeDtypeStruct((2, size, size + 8, 3), jnp.float32)
    (features,) = jax.eval_shape(VGG16().apply, shapes(), image)
    assert features.shape == (2, expected, expected + 1, 512)


def test_stages_are_what_comes_before_the_next_one():
    """Stage by stage, the features that the whole network passes on; unused ones do not exist."""
    image = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
    initialise = functools.partial(VGG16().init_with_output, stages=(2, 3, 4))
    features, variables = jax.eval_shape(initialise, jax.random.key(0), image)
    assert [x.shape for x in features] == [(1, 17, 17, 128), (1, 9, 9, 256), (1, 9, 9, 512)]
    assert set(variables["params"]) == {
        f"features_{n}" for n in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21)
    }


def test_parameters_are_those_of_the_convolutions():
    """PANet's table 1 has 14.7 M; torchvision's names count ReLUs and pools."""
    params = shapes()["params"]
    assert sum(array.size for array in jax.tree.leaves(params)) == 14_714_688
    numbers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    assert set(params) == {f"features_{number}" for number in numbers}


def test_bfloat16_computes_in_bfloat16_on_float32_parameters():
    model = VGG16(dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    assert {array.dtype for array in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    (features,) = jax.eval_shape(model.apply, variables, image)
    assert features.dtype == jnp.bfloat16
