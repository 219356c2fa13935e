"""CANet is what its parts say, in training and at inference, and has their symmetries."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers import assert_close, is_close
from tiny_models import block_labels

from fsseg_jax.config import default_config
from fsseg_jax.episode import Episode, empty_episode
from fsseg_jax.models import create_model
from fsseg_jax.models.canet import CANet

FUSIONS = ("attention", "feature_average", "mask_average", "mask_or")
WIDTH = 6
IMAGE = (53, 157)
FEATURES = (7, 20)  # long enough for every dilation


# ----------------------------------------------------------------------------- what is compared


def look(image):
    """Features of two stages, the first at twice the resolution of the second."""
    return {2: image[..., ::4, ::4, :], 3: jnp.sin(3 * image[..., ::8, ::8, :])}


class Looking(nn.Module):
    """A backbone that takes no time to compile, with one parameter."""

    @nn.compact
    def __call__(self, image, stages=(), train=False):
        gain = self.param("gain", nn.initializers.ones, ())
        return tuple(gain * look(image)[stage] for stage in stages)


def make(fusion="attention", refinements=4, **options):
    options = {"width": WIDTH, "dropout": 0.0, **options}
    return CANet(backbone=Looking(), fusion=fusion, refinements=refinements, **options)


def shapes_of(model, ways=1, shots=1, size=16):
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    initialise = functools.partial(model.init, train=True)
    return jax.eval_shape(initialise, keys, empty_episode(ways, shots, size))["params"]


@functools.cache
def draw_params(shots):
    """Kernels and biases large enough for every layer to show in the logits."""
    rng = np.random.default_rng(0)

    def draw(path, shape):
        if path[-1].key == "gain":
            return np.ones((), np.float32)
        deviation = np.sqrt(2 / np.prod(shape.shape[:-1])) if len(shape.shape) == 4 else 0.3
        if path[0].key == "attention_1":
            deviation *= 5  # so that shots differ in weight
        return rng.normal(0, deviation, shape.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes_of(make(), shots=shots))


def draw_episode(ways, shots, seed=0):
    """Noise, labelled with every way, background, and pixels that are ignored."""
    rng = np.random.default_rng(seed)
    # Supports differ in brightness, so that it matters which of them is used.
    brightness = np.linspace(-1, 1, ways * shots).reshape(ways, shots, 1, 1, 1)
    images = rng.standard_normal((ways, shots, *IMAGE, 3)) + brightness
    return Episode(
        support_image=images.astype(np.float32),
        support_label=block_labels(rng, ways, (ways, shots, *IMAGE), (1, 1)),
        query_image=rng.standard_normal((*IMAGE, 3)).astype(np.float32),
        query_label=block_labels(rng, ways, IMAGE, (1, 1)),
        class_id=np.arange(ways),
        query_index=np.array(0),
    )


def draw_previous(seed=0):
    """A stored prediction: two channels of 0..255."""
    object_ = np.random.default_rng(seed).integers(0, 256, FEATURES)
    return np.stack([255 - object_, object_], axis=-1).astype(np.uint8)


@functools.partial(jax.jit, static_argnums=0)
def predict(model, params, episode):
    """At inference."""
    return model.apply({"params": params}, episode)


def run_pytorch(pytorch, weights, episode, first=None, **options):
    """The binary logits of all ways."""
    from pytorch_canet import CANet

    model = CANet(weights, **options)

    def encode(image):
        return model.embed([pytorch.planes(features[None]) for features in look(image).values()])

    first = None if first is None else pytorch.planes(first[None])
    query = encode(episode.query_image)
    logits = []
    for way, (images, labels) in enumerate(
        zip(episode.support_image, episode.support_label, strict=True), start=1
    ):
        supports = [encode(image) for image in images]
        logits.append(model.binary_logits(supports, labels == way, query, first))
    return pytorch.torch.cat(logits)


def joined(pytorch, binary_logits):
    return pytorch.channels_last(pytorch.join(binary_logits))


# ----------------------------------------------------------------------------- inference


@pytest.mark.parametrize("refinements", [0, 4])
@pytest.mark.parametrize(
    ("ways", "shots", "fusion"),
    [(1, 1, "attention"), *((1, 3, fusion) for fusion in FUSIONS), (2, 3, "attention")],
)
def test_logits_match_pytorch(pytorch, ways, shots, fusion, refinements):
    params, episode = draw_params(shots), draw_episode(ways, shots)
    weights = pytorch.tensors(params)

    def expect(refinements, fusion):
        logits = run_pytorch(pytorch, weights, episode, refinements=refinements, fusion=fusion)
        return joined(pytorch, logits)

    expected = expect(refinements, fusion)
    output = predict(make(fusion, refinements), params, episode)
    assert output.logits.shape == (*FEATURES, ways + 1)
    assert_close(output.logits, expected)
    assert output.aux.binary_logits.shape == (ways, *FEATURES, 2)

    # It would show if any of these were different.
    if refinements:
        assert not is_close(expect(refinements - 1, fusion), expected, 1e-3)
    for other in FUSIONS if shots > 1 else ():
        if other != fusion:
            assert not is_close(expect(refinements, other), expected, 1e-2)


def test_small_masks_count_less_and_empty_ones_nothing(pytorch):
    """A pixel far from any feature's centre has so little area that the epsilon shows."""
    params, episode = draw_params(1), draw_episode(1, 1)
    weights = pytorch.tensors(params)
    empty = np.zeros_like(episode.support_label)
    one_pixel = empty.copy()
    one_pixel[..., 8, 32] = 1
    for label in (empty, one_pixel):
        few = episode.replace(support_label=label)
        expected, other = (
            joined(pytorch, run_pytorch(pytorch, weights, few, refinements=0, epsilon=epsilon))
            for epsilon in (5e-4, 1e-6)
        )
        assert_close(predict(make(refinements=0), params, few).logits, expected)
    assert not is_close(other, expected, 5e-4)


# ----------------------------------------------------------------------------- training


@functools.partial(jax.jit, static_argnums=0)
def train(model, params, episode, previous, keys):
    """Logits, stored rows and losses in training, one for each key."""

    def one(key):
        output = model.apply(
            {"params": params}, episode, previous, train=True, rngs={"dropout": key}
        )
        loss, parts = model.loss(output, episode, key, jnp.zeros(()))
        return output.logits, output.row, loss, parts

    return jax.vmap(one)(keys)


def test_training_passes_once_from_the_stored_prediction_unless_it_is_reset(pytorch):
    """Among many draws, three of ten continue from the stored prediction, the others from 0."""
    params, episode, previous = draw_params(1), draw_episode(1, 1), draw_previous()
    model = make(refinements=4)
    assert model.reset_probability == 0.7
    keys = jax.random.split(jax.random.key(5), 400)
    results = train(model, params, episode, previous, keys)
    logits, rows, losses, parts = jax.tree.map(np.asarray, results)
    assert rows.dtype == np.uint8
    assert rows.shape == (400, *FEATURES, 2)
    np.testing.assert_array_equal(parts["segmentation"], losses)

    weights = pytorch.tensors(params)
    candidates = {
        name: run_pytorch(pytorch, weights, episode, first, refinements=0)
        for name, first in (("kept", previous / 255), ("reset", None))
    }
    expected = {name: joined(pytorch, one) for name, one in candidates.items()}
    assert not is_close(expected["kept"], expected["reset"], 1e-2)
    is_kept = np.array([is_close(one, expected["kept"], 1e-3) for one in logits])
    assert 0.22 < is_kept.mean() < 0.38  # 0.3; its deviation is 0.023
    for name, chosen in (("kept", is_kept), ("reset", ~is_kept)):
        for result, row in zip(logits[chosen], rows[chosen], strict=True):
            assert_close(result, expected[name])
            probability = np.exp(expected[name])  # of one way, both are log-probabilities
            np.testing.assert_allclose(row, 255 * probability, rtol=0, atol=0.52)
        assert probability.std() > 0.1
        loss = pytorch.binary_loss(candidates[name], episode.query_label).item()
        np.testing.assert_allclose(losses[chosen], loss, rtol=1e-5)


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, episode):
    """Training without a stored prediction: the output, the loss and its gradients."""

    def loss(params):
        output = model.apply(
            {"params": params}, episode, train=True, rngs={"dropout": jax.random.key(0)}
        )
        return model.loss(output, episode, jax.random.key(0), jnp.zeros(()))[0], output

    return jax.value_and_grad(loss, has_aux=True)(params)


def test_loss_and_gradients_match_pytorch(pytorch):
    """Of two ways with three shots each: the mean of two binary losses, and no stored row."""
    params, episode = draw_params(3), draw_episode(2, 3)
    (loss, output), gradients = run(make(), params, episode)
    assert output.row is None

    weights = pytorch.tensors(params)
    expected = run_pytorch(pytorch, weights, episode, refinements=0)
    expected_loss = pytorch.binary_loss(expected, episode.query_label)
    expected_loss.backward()
    for ours, theirs in zip(output.aux.binary_logits, expected, strict=True):
        assert_close(ours, pytorch.channels_last(theirs))
    assert float(loss) == pytest.approx(expected_loss.item(), rel=1e-5)
    gradients = flatten_dict(gradients, sep=".")
    expected = flatten_dict(pytorch.gradients_of(weights), sep=".")
    assert gradients.keys() == expected.keys()
    assert gradients.pop("backbone.gain") == 0  # frozen
    expected.pop("backbone.gain")
    largest = max(abs(gradient).max() for gradient in expected.values())
    for name, gradient in expected.items():
        difference = abs(gradients[name] - gradient).max()
        if name == "attention_1.bias":  # the softmax over shots takes no notice of it
            assert difference < 1e-6 * largest
            continue
        assert abs(gradient).max() > 3e-4 * largest, f"{name} does not matter"
        assert difference < 1e-3 * abs(gradient).max(), name


def test_dropout_follows_the_embedding_the_comparison_and_all_of_the_pyramid():
    rates = []

    def watch(call, arguments, options, context):
        if isinstance(context.module, nn.Dropout) and not options["deterministic"]:
            assert context.module.broadcast_dims == (-3, -2)
            rates.append(context.module.rate)
        return call(*arguments, **options)

    with nn.intercept_methods(watch):
        shapes_of(make(dropout=0.4))
    assert rates == [0.4] * (1 + 1 + 6)
    assert CANet(backbone=None).dropout == 0.5


# ----------------------------------------------------------------------------- parameters


def test_kernels_begin_small_and_biases_at_zero():
    initialise = jax.jit(functools.partial(make(width=16).init, train=True))
    key = jax.random.key(0, impl="rbg")  # compiles sooner
    keys = {"params": key, "dropout": key}
    params = initialise(keys, empty_episode(1, 2, 16))["params"]
    params = flatten_dict(jax.tree.map(np.asarray, params))
    params.pop(("backbone", "gain"))
    for path, array in params.items():
        if path[-1] == "bias":
            assert not array.any()
        elif array.size > 100:
            assert 0.008 < array.std() < 0.012, path
            assert abs(array.mean()) < 0.005, path
    everything = np.concatenate([x.ravel() for x in params.values() if x.ndim == 4])
    assert abs(everything).max() > 0.03  # normal, not uniform


def create(shots=1, **options):
    """As a config describes it, with the small backbone; and the shapes of its parameters."""
    config = default_config("canet")
    config.backbone = "small"
    config.dtype = options.pop("dtype", "float32")
    config.model.update(options)
    model = create_model(config)
    return model, shapes_of(model, shots=shots, size=32)


def test_parameters_are_those_of_the_paper():
    params = create(shots=5)[1]
    del params["backbone"]
    kernels = {
        "/".join(path[:-1]): array.shape
        for path, array in flatten_dict(params).items()
        if path[-1] == "kernel"
    }
    assert kernels == {
        "embedding": (3, 3, 2 * 64, 256),  # two stages of the small backbone
        "comparison": (3, 3, 512, 256),
        "attention_0": (3, 3, 512, 256),
        "attention_1": (3, 3, 256, 1),
        "blocks_0/Conv_0": (3, 3, 256 + 2, 256),
        "blocks_0/Conv_1": (3, 3, 256, 256),
        **{f"blocks_{i}/Conv_{j}": (3, 3, 256, 256) for i in (1, 2) for j in (0, 1)},
        **{f"aspp/Conv_{i}": (1, 1, 256, 256) for i in (0, 1)},
        **{f"aspp/Conv_{i}": (3, 3, 256, 256) for i in (2, 3, 4)},
        "aspp/Conv_5": (1, 1, 5 * 256, 256),
        "classifier": (1, 1, 256, 2),
    }


@pytest.mark.parametrize("fusion", FUSIONS)
def test_attention_has_parameters_only_where_it_is_used(fusion):
    def names(shots):
        return {name for name in create(shots, fusion=fusion)[1] if name.startswith("attention")}

    assert names(1) == set()
    assert names(2) == ({"attention_0", "attention_1"} if fusion == "attention" else set())


def test_bfloat16_keeps_parameters_logits_and_loss_in_float32(find_operations):
    model, params = create(dtype="bfloat16", shots=2)
    assert {array.dtype for array in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    episode = empty_episode(1, 2, 33)
    variables = {"params": params}
    apply = functools.partial(model.apply, train=False)
    output = jax.eval_shape(apply, variables, episode)
    assert output.logits.dtype == jnp.float32
    jaxpr = jax.make_jaxpr(apply)(variables, episode)
    inputs = {
        equation.invars[0].aval.dtype for equation in find_operations(jaxpr, "conv_general_dilated")
    }
    assert inputs == {jnp.dtype("bfloat16")}
    # What blocks add up stays in bfloat16, too: float32 would take twice the memory.
    sums = {equation.outvars[0].aval for equation in find_operations(jaxpr, "add")}
    kept = {x.dtype for x in sums if x.ndim >= 4 and x.shape[-1] == model.width}
    assert kept == {jnp.dtype("bfloat16")}
