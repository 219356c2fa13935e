"""An image in the corner of a canvas is seen as if it were alone, whatever else is there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, draw_values, random
from tiny_models import TwoStages

from fsseg_jax.backbones.convolution import Conv, max_pool
from fsseg_jax.backbones.extent import average, extent, fits, inside, is_open, true_shape
from fsseg_jax.backbones.resnet import ResNet
from fsseg_jax.backbones.small import Small
from fsseg_jax.backbones.vgg import VGG16
from fsseg_jax.episode import empty_episode
from fsseg_jax.models import METHODS
from fsseg_jax.models.layers import ASPP, JoinedConvolution, halve
from fsseg_jax.models.resize import adaptive_pool, resize, resize_into

CANVAS = (64, 160)
SHAPES = np.array([(53, 38), (40, 77)], np.int32)  # odd and even ones, far from the canvas


def on_canvas(x, canvas=CANVAS):
    """A map in the corner of a canvas that holds something else."""
    whole = np.full((*canvas, x.shape[-1]), 7, np.float32)
    whole[: x.shape[0], : x.shape[1]] = x
    return whole


def variables_of(module, *arguments, **options):
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    init = functools.partial(module.init, **options)
    return draw_values(jax.eval_shape(init, keys, *arguments))


# ----------------------------------------------------------------------------- networks


@pytest.mark.parametrize(
    ("method", "ways", "shots", "options"),
    [
        ("panet", 2, 1, {"backbone": Small(width=16), "stages": ()}),
        ("canet", 1, 2, {"width": 8, "refinements": 1, "rematerialise": True}),  # with attention
        ("sst", 2, 1, {"width": 8, "inner_rate": 10.0, "rematerialise": True}),
        ("mfnet", 1, 2, {"width": 8, "compare_supports": True, "hierarchy": True, "aspp": True}),
        ("ltafnet", 1, 2, {"width": 8, "refinement_width": 2, "adaption": "correlation"}),
        ("mfnet", 2, 1, {"width": 8, "scales": 3, "query_fusion": "concat"}),
    ],
)
def test_logits_are_those_of_the_image_alone(method, ways, shots, options):
    """Images of two sizes in one batch; the supports have another one."""
    model = METHODS[method](**{"backbone": TwoStages(), **options})
    variables = variables_of(model, empty_episode(ways, shots, 32).normalised(), train=True)
    supports, rng = random(ways, shots, 36, 36, 3, seed=1), np.random.default_rng(2)
    label = rng.integers(0, ways + 1, (ways, shots, 9, 9), np.uint8).repeat(4, -2).repeat(4, -1)
    encode = functools.partial(model.apply, variables, method="encode")
    features = jax.jit(jax.vmap(jax.vmap(encode)))(supports)

    def segment(variables, image):
        query = model.apply(variables, image, method="encode")
        return model.apply(variables, features, label, query, image, method="segment").logits

    @jax.jit
    def padded(variables, images, shapes):
        def one(image, shape):
            with extent(CANVAS, shape):
                logits = segment(variables, image)
                return logits, inside(logits)

        return jax.vmap(one)(images, shapes)

    assert fits(CANVAS, 36)
    images = [random(*shape, 3, seed=number) for number, shape in enumerate(SHAPES)]
    canvases = np.stack([on_canvas(image) for image in images])
    for image, logits, size in zip(images, *padded(variables, canvases, SHAPES), strict=True):
        expected = jax.jit(segment)(variables, image)
        assert tuple(size) == expected.shape[:2]
        assert_close(logits[: size[0], : size[1]], expected, 2e-5)


@pytest.mark.parametrize(
    ("backbone", "stages"),
    [(VGG16(), (1, 3, 5)), (ResNet(), (1, 2))],
)
def test_features_are_those_of_the_image_alone(backbone, stages):
    """Of two sizes in one compiled function."""
    images = [random(*shape, 3, seed=number) for number, shape in enumerate(SHAPES)]
    variables = variables_of(backbone, images[0], stages=stages)
    alone = jax.jit(functools.partial(backbone.apply, stages=stages))
    traces = []

    @jax.jit
    def padded(variables, image, shape):
        traces.append(shape)
        with extent(CANVAS, shape):
            features = backbone.apply(variables, image, stages=stages)
            return features, [inside(x) for x in features]

    for image, shape in zip(images, SHAPES, strict=True):
        results = padded(variables, on_canvas(image), shape)
        for result, size, expected in zip(*results, alone(variables, image), strict=True):
            assert tuple(size) == expected.shape[:2]
            assert_close(result[: size[0], : size[1]], expected, 2e-5)
    assert len(traces) == 1


# ----------------------------------------------------------------------------- layers


def of(module, *arguments):
    """A module with fixed parameters as a function of one map."""

    def layer(x):
        variables = variables_of(module, jnp.zeros((1, 8, 8, x.shape[-1])), *arguments)
        return module.apply(variables, x, *arguments)

    return layer


def half(x):
    return tuple(-(-side // 2) for side in x.shape[:2])


LAYERS = {
    "strided convolution": of(Conv(4, (5, 5), 2, 2)),
    "dilated convolution": of(Conv(4, (3, 3), 1, 6, kernel_dilation=6)),
    "vector beside": of(JoinedConvolution(4, dilation=6), None, random(2, 5)),
    "pyramid": of(ASPP({}, 4, dilations=(2, 6))),
    "max-pool": functools.partial(max_pool, stride=2),
    "max-pool without stride": functools.partial(max_pool, stride=1),
    "max-pool of 2 x 2": halve,
    "average": functools.partial(average, keepdims=True),
    "adaptive pooling": lambda x: adaptive_pool(x, half(x)),
    "smaller, aligned": lambda x: resize(x, half(x), True),
    "smaller, half-pixel": lambda x: resize(x, half(x), False),
    "larger, aligned": lambda x: resize(x[::2, ::2], x.shape[:2], True),
    "larger, half-pixel": lambda x: resize(x[::2, ::2], x.shape[:2], False),
}
SMALL_CANVAS = (64, 40)
# Odd, even, shorter than a dilated window reaches, a single row, and nothing but the image.
SMALL_SHAPES = ((17, 22), (40, 9), (3, 11), (1, 40), (64, 40))


@functools.cache
def results_of_layers():
    """Of each shape: alone, in the corner of a canvas, and there without an extent."""

    @jax.jit
    def alone(x):
        return {name: layer(x) for name, layer in LAYERS.items()}

    @jax.jit
    def padded(x, shape):
        with extent(SMALL_CANVAS, shape):
            results = alone.__wrapped__(x)
            return results, jax.tree.map(lambda x: jnp.asarray(inside(x)), results)

    results = []
    for shape in SMALL_SHAPES:
        x = random(*shape, 3)
        canvas = on_canvas(x, SMALL_CANVAS)
        results.append((alone(x), *padded(canvas, np.array(shape, np.int32)), alone(canvas)))
    assert padded._cache_size() == 1
    return jax.device_get(results)


@pytest.mark.parametrize("name", LAYERS)
def test_layer_sees_the_image_alone(name):
    differences = []
    for by_name in results_of_layers():
        expected, result, size, naive = (results[name] for results in by_name)
        assert tuple(size) == expected.shape[-3:-1]
        result, naive = (x[..., : size[0], : size[1], :] for x in (result, naive))
        assert_close(result, expected, 2e-5)
        differences.append(abs(naive - expected).max() / abs(expected).max())
    assert max(differences) > 0.05  # the canvas does matter


@pytest.mark.parametrize("align_corners", [False, True])
def test_part_of_a_map_is_resized_to_a_shape_known_at_run_time(align_corners):
    compiled = jax.jit(
        lambda x, shape, source: resize_into(x, shape, (50, 60), align_corners, source)
    )
    for source, shape in [((13, 20), (50, 47)), ((20, 7), (9, 60)), ((1, 2), (1, 5))]:
        x = random(*source, 3)
        expected = resize(x, shape, align_corners)
        result = compiled(on_canvas(x, (20, 20)), np.int32(shape), np.int32(source))
        assert_close(result[: shape[0], : shape[1]], expected, 1e-6)
    assert compiled._cache_size() == 1


# ----------------------------------------------------------------------------- what belongs to it


def test_maps_are_known_by_their_size():
    with extent((96, 64), np.array([41, 64], np.int32)):
        for size, expected in [((96, 64), (41, 64)), ((48, 32), (21, 32)), ((3, 2), (2, 2))]:
            np.testing.assert_array_equal(true_shape(size), expected)
        assert true_shape((95, 64)) == (95, 64)
        assert true_shape((64, 96)) == (64, 96)


def test_extent_ends_where_it_is_closed():
    """Also one in another, and after an error."""
    outer, inner = np.array([[3, 5], [2, 2]], np.int32)

    def fail():
        with extent((8, 8), outer):
            with extent((8, 8), inner):
                np.testing.assert_array_equal(true_shape((8, 8)), inner)
            np.testing.assert_array_equal(true_shape((8, 8)), outer)
            raise ValueError("an error")

    with pytest.raises(ValueError, match="an error"):
        fail()
    assert not is_open()
    assert true_shape((8, 8)) == (8, 8)


def test_canvas_fits_beside_supports_of_other_sizes_alone():
    assert not fits((321, 321), 321)
    assert not fits((480, 480), 473)  # both 60 at stride 8
    assert fits((480, 512), 473)
    assert fits((512, 512), 473)
    assert not fits((192, 192), 384)  # the one's images are as large as the other's maps
