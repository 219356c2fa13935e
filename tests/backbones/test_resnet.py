"""The Flax ResNet-50 is PyTorch's, with stride 8 by dilation and either placement of strides."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict
from helpers import assert_close, is_close, random

from fsseg_jax.backbones import create_backbone
from fsseg_jax.backbones.pretrained import load_pretrained, read_weights
from fsseg_jax.backbones.resnet import ResNet
from fsseg_jax.episode import BATCH_AXIS
from fsseg_jax.errors import UserError

# ResNet-50's stem to layer3 in the original Caffe model's stride placement, as a safetensors file
# of torchvision's names, if there is one beside the repository.
WEIGHTS = pathlib.Path(__file__).parents[3] / "shared/weights/resnet50.safetensors"
NEED_WEIGHTS = pytest.mark.skipif(not WEIGHTS.is_file(), reason="no pretrained weights here")
HEIGHT, WIDTH = 64, 65  # where stride 2 meets an even size, padding must be on the right side
IMAGE = random(1, HEIGHT, WIDTH, 3)


@pytest.fixture(scope="module")
def pytorch(torch):
    import pytorch_resnet

    return pytorch_resnet


@pytest.fixture(scope="module")
def variables(pytorch):
    """Random arrays of all four layers."""
    return pytorch.random_variables()


def shapes(stages=(4,), **options):
    image = jnp.zeros((1, 9, 9, 3))
    return jax.eval_shape(
        functools.partial(ResNet(**options).init, stages=stages), jax.random.key(0), image
    )


@functools.partial(jax.jit, static_argnums=0)
def encode(stride_in_1x1, variables, image):
    """Features of layers 4, 2 and 3, in this order."""
    return ResNet(stride_in_1x1=stride_in_1x1).apply(variables, image, stages=(4, 2, 3))


# ----------------------------------------------------------------------------- features


@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_features_match_pytorch(pytorch, variables, stride_in_1x1):
    weights = pytorch.to_pytorch(variables)
    expected = pytorch.features(weights, IMAGE, 4, stride_in_1x1)
    last, second, third = encode(stride_in_1x1, variables, IMAGE)
    assert (second.shape, third.shape) == ((1, 8, 9, 512), (1, 8, 9, 1024))
    assert last.shape == (1, 8, 9, 2048)
    for number, result in ((2, second), (3, third), (4, last)):
        assert_close(result, expected[number])
        assert expected[number].std() > 0.1  # and they vary

    other = pytorch.features(weights, IMAGE, 4, not stride_in_1x1)
    for number in (2, 3, 4):
        assert not is_close(other[number], expected[number], 0.02), "placement does not matter"


@NEED_WEIGHTS
def test_features_of_the_real_weights_match_pytorch(pytorch, variables):
    """Layers 2 and 3; the file has no layer4, so that it stays random."""
    real = load_pretrained(str(WEIGHTS), shapes(stages=(2, 3)))
    weights = pytorch.to_pytorch(real)
    expected = pytorch.features(weights, IMAGE, 3, stride_in_1x1=True)
    both = {name: {**variables[name], **tree} for name, tree in real.items()}
    _, second, third = encode(True, both, IMAGE)
    assert_close(second, expected[2])
    assert_close(third, expected[3])


@pytest.mark.parametrize(("size", "expected"), [(417, 53), (321, 41), (473, 60), (32, 4), (33, 5)])
def test_stride_is_eight(size, expected):
    model = ResNet(stride_in_1x1=size == 417)
    image = jax.ShapeDtypeStruct((2, size, size + 8, 3), jnp.float32)
    apply = functools.partial(model.apply, stages=(2, 3, 4))
    features = jax.eval_shape(apply, shapes(), image)
    assert [x.shape for x in features] == [
        (2, expected, expected + 1, channels) for channels in (512, 1024, 2048)
    ]


def test_last_layer_is_the_default():
    model = ResNet()
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 9, 9, 3)))
    (features,) = jax.eval_shape(model.apply, variables, jnp.zeros((1, 33, 33, 3)))
    assert features.shape == (1, 5, 5, 2048)


# ----------------------------------------------------------------------------- names, weights


def test_parameters_are_those_of_resnet_50():
    """Torchvision's 25,557,032 less those of the classifier, under its names."""
    tree = shapes()
    count = sum(array.size for array in jax.tree.leaves(tree["params"]))
    assert count == 25_557_032 - (2048 * 1000 + 1000)
    names = set(flatten_dict(tree["params"], sep="/"))
    assert len(names) == 53 * 3  # kernel, scale and bias
    assert {"conv1/kernel", "bn1/scale", "bn1/bias"} < names
    assert {"layer3_5/conv3/kernel", "layer1_0/downsample_0/kernel"} < names
    assert {"layer4_0/downsample_1/scale", "layer4_2/bn3/bias"} < names
    assert {name for name in names if "conv" in name and "bias" in name} == set()
    statistics = set(flatten_dict(tree["batch_stats"], sep="/"))
    assert len(statistics) == 53 * 2
    assert {"bn1/mean", "bn1/var", "layer2_0/downsample_1/mean", "layer4_2/bn3/var"} < statistics


@pytest.mark.parametrize("stages", [(1,), (2,), (2, 3), (3, 1)])
def test_layers_beyond_those_asked_for_have_no_parameters(stages):
    tree = shapes(stages=stages)
    layers = {int(name[5]) for name in tree["params"] if name.startswith("layer")}
    assert layers == set(range(1, max(stages) + 1))
    assert {*tree["batch_stats"]} <= {*tree["params"]}
    apply = functools.partial(ResNet().apply, stages=stages)
    features = jax.eval_shape(apply, tree, jnp.zeros((1, 33, 33, 3)))
    assert [x.shape[-1] for x in features] == [2 ** (stage + 7) for stage in stages]


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_torchvisions_names_are_loaded(pytorch, tmp_path, suffix):
    expected = pytorch.random_variables(layers=2, seed=1)
    arrays = {name: tensor.numpy() for name, tensor in pytorch.to_pytorch(expected).items()}
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.downsample.0.weight"} < set(arrays)
    assert {"layer2.0.downsample.1.running_var", "layer2.3.bn3.bias"} < set(arrays)
    # What torchvision's file has as well.
    arrays["fc.weight"] = np.zeros((10, 20), np.float32)
    arrays["layer2.0.bn1.num_batches_tracked"] = np.array(7)
    path = tmp_path / f"resnet50.{suffix}"
    if suffix == "npz":
        np.savez(path, **arrays)
    else:
        safetensors.numpy.save_file(arrays, path)

    loaded = load_pretrained(str(path), shapes(stages=(2,)))
    assert jax.tree.structure(loaded) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)

    with pytest.raises(UserError, match=r"has no layer3: set model\.stages to earlier stages"):
        load_pretrained(str(path), shapes(stages=(2, 3)))


@NEED_WEIGHTS
def test_real_weights_fill_every_parameter():
    model = create_backbone("resnet50_caffe", "float32")
    assert model.stride_in_1x1
    assert not create_backbone("resnet50", "float32").stride_in_1x1
    init = functools.partial(model.init, stages=(2, 3))
    expected = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 9, 9, 3)))
    loaded = load_pretrained(str(WEIGHTS), expected)
    jax.tree.map(
        lambda array, shape: np.testing.assert_equal(array.shape, shape.shape), loaded, expected
    )
    assert all(np.std(array) > 0 for array in jax.tree.leaves(loaded))
    assert len(jax.tree.leaves(loaded)) == len(read_weights(str(WEIGHTS)))  # nothing is left over
    with pytest.raises(UserError, match="has no layer4: set model"):
        load_pretrained(str(WEIGHTS), shapes(stages=(4,)))


# ----------------------------------------------------------------------------- normalisation


EPISODES = random(3, 2, 20, 17, 3, seed=2)
EPISODES *= np.array([0.5, 1.0, 3.0], np.float32)[:, None, None, None, None]  # all different


@functools.partial(jax.jit, static_argnums=(0, 1))
def encode_episodes(batch_statistics, train, variables, episodes):
    """Features of layer1 and the statistics after it, of a batch of episodes' images."""
    model = ResNet(batch_statistics=batch_statistics)

    def encode_one(images):
        return model.apply(variables, images, stages=(1,), train=train, mutable=["batch_stats"])

    over_batch = jax.vmap(encode_one, out_axes=(0, None), axis_name=BATCH_AXIS)
    (features,), updated = over_batch(episodes)
    return features, updated["batch_stats"]


@pytest.fixture(scope="module")
def first_layer(pytorch):
    return pytorch.random_variables(layers=1, seed=3)


def test_batch_statistics_are_those_of_all_episodes_of_the_batch(pytorch, first_layer):
    """In training: as of one pile of images, and the stored ones follow them."""
    weights = pytorch.to_pytorch(first_layer)
    pile = EPISODES.reshape(-1, *EPISODES.shape[2:])
    expected = pytorch.features(weights, pile, 1, training=True)[1]
    features, updated = encode_episodes(True, True, first_layer, EPISODES)
    assert_close(features.reshape(-1, *features.shape[2:]), expected)

    # Means move as PyTorch's; variances too, but that PyTorch stores the unbiased estimate.
    means = {name: value for name, value in weights.items() if name.endswith("running_mean")}
    assert len(means) == 11
    for name, mean in means.items():
        norm = name.removesuffix(".running_mean")
        ours = pytorch.get(updated, norm)["mean"]
        assert_close(ours, mean, 1e-4)
        assert abs(ours - pytorch.get(first_layer["batch_stats"], norm)["mean"]).max() > 1e-3

    own = pytorch.features(pytorch.to_pytorch(first_layer), EPISODES[0], 1, False, True)
    assert not is_close(features[0], own[1], 0.1), "each episode is normalised on its own"


@pytest.mark.parametrize(
    ("batch_statistics", "train"), [(True, False), (False, True), (False, False)]
)
def test_otherwise_stored_statistics_are_used_and_stay(
    pytorch, first_layer, batch_statistics, train
):
    features, updated = encode_episodes(batch_statistics, train, first_layer, EPISODES)
    weights = pytorch.to_pytorch(first_layer)
    expected = pytorch.features(weights, EPISODES[1], 1)[1]
    assert_close(features[1], expected)
    jax.tree.map(np.testing.assert_array_equal, updated, first_layer["batch_stats"])


def test_config_chooses_the_statistics():
    assert create_backbone("resnet50", "float32", "batch").batch_statistics
    assert create_backbone("resnet50_caffe", "float32", "batch").stride_in_1x1
    assert not create_backbone("resnet50", "float32", "stored").batch_statistics


def test_bfloat16_computes_in_bfloat16_on_float32_parameters(find_operations):
    model = ResNet(dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    assert {array.dtype for array in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    jaxpr = jax.make_jaxpr(functools.partial(model.apply, stages=(2, 4)))(variables, image)
    assert {array.dtype for array in jaxpr.out_avals} == {jnp.dtype("bfloat16")}
    # On a CPU those of 1 x 1 are products.
    convolutions = find_operations(jaxpr, "conv_general_dilated")
    convolutions += find_operations(jaxpr, "dot_general")
    assert len(convolutions) == 53
    assert {e.invars[0].aval.dtype for e in convolutions} == {jnp.dtype("bfloat16")}


def test_resnet101_has_torchvisions_parameters():
    """42.5 M without the classifier, and 23 bottlenecks in layer3."""
    model = create_backbone("resnet101", "float32")
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 9, 9, 3)))["params"]
    assert sum(array.size for array in jax.tree.leaves(params)) == 42_500_160
    assert sorted(int(name[7:]) for name in params if name.startswith("layer3_")) == list(range(23))
