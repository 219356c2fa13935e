"""Convolutions and matrix products are counted exactly, and bounded by compute and memory."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from fsseg_jax.benchmarks.measure import Peak, work
from fsseg_jax.benchmarks.roofline import roofline
from fsseg_jax.benchmarks.workloads import prediction
from fsseg_jax.config import default_config
from fsseg_jax.devices import make_mesh
from fsseg_jax.episode import empty_episode
from fsseg_jax.models import create_model, init_variables

PEAK = Peak({"float32": 1e9, "bfloat16": 2e9}, 1e8, "made up")
count = functools.partial(roofline, peak=PEAK)
CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")


def shape(*sizes, dtype="float32"):
    return jax.ShapeDtypeStruct(sizes, dtype)


def convolution(**options):
    settings = {"window_strides": (1, 1), "padding": ((0, 0), (0, 0)), **options}
    return functools.partial(
        jax.lax.conv_general_dilated, dimension_numbers=CHANNELS_LAST, **settings
    )


CASES = {
    "valid": {},
    "padded": {"padding": ((1, 1), (2, 0))},
    "strided": {"padding": ((1, 1), (1, 1)), "window_strides": (2, 2)},
    "dilated": {"padding": ((4, 4), (4, 4)), "rhs_dilation": (4, 4)},
    "transposed": {"padding": ((2, 1), (1, 2)), "lhs_dilation": (2, 3)},
    "cropped": {"padding": ((-1, 0), (0, -2)), "rhs_dilation": (2, 1)},
    "grouped": {"padding": ((1, 1), (1, 1)), "feature_group_count": 2},
}


def convolved(case):
    """The convolution of a case, and the shapes of images and of a kernel."""
    options = CASES[case]
    kernel = shape(3, 3, 4 // options.get("feature_group_count", 1), 6)
    return convolution(**options), shape(2, 9, 11, 4), kernel


@pytest.mark.parametrize("case", CASES)
def test_multiplications_of_a_convolution_are_those_of_ones_with_ones(case):
    function, *shapes = convolved(case)
    images, kernel = (jnp.ones(array.shape) for array in shapes)
    # Each product of one and one adds one to the result; padding and holes add nothing.
    expected = 2 * function(images, kernel).sum()
    found = count(function, images, kernel)
    assert found.flops == expected
    assert len(found.operations) == 1
    # XLA counts the same, and one for each sum of two products less.
    assert work(function, images, kernel).flops == expected


def test_a_convolution_counted_by_hand():
    function = convolution(padding=((1, 1), (1, 1)))
    found = count(function, shape(2, 9, 9, 4), shape(3, 3, 4, 8))
    # Along each axis 9 positions see 3 values, but for the first and the last.
    assert found.flops == 2 * (9 * 3 - 2) ** 2 * 4 * 8 * 2
    [operation] = found.operations
    assert operation.name == "conv 2x9x9x4 * 3x3x4x8 -> 2x9x9x8"
    assert operation.bytes == 4 * (2 * 81 * 4 + 9 * 32 + 2 * 81 * 8)


@pytest.mark.parametrize("case", ["valid", "padded", "strided", "dilated", "grouped"])
def test_both_gradients_of_a_convolution_count_as_much_as_it_does(case):
    function, *shapes = convolved(case)

    def loss(images, kernel):
        return (function(images, kernel) ** 2).sum()

    both = count(jax.value_and_grad(loss, argnums=(0, 1)), *shapes)
    assert both.flops == 3 * count(function, *shapes).flops
    assert sum(x.count for x in both.operations) == 3


def test_matrix_products_of_a_batch():
    found = count(lambda x, y: jnp.einsum("bik,bkj->bij", x, y), shape(5, 2, 3), shape(5, 3, 7))
    assert found.flops == 2 * 5 * 2 * 3 * 7
    assert found.operations[0].bytes == 4 * 5 * (2 * 3 + 3 * 7 + 2 * 7)


def product(x):
    return x @ x


def custom(x):
    function = jax.custom_vjp(product)
    function.defvjp(lambda x: (product(x), x), lambda x, y: (y,))
    return function(x)


def sharded(x):
    places = PartitionSpec("data")
    call = jax.shard_map(
        lambda rows: jax.lax.map(product, rows), mesh=make_mesh(), in_specs=places, out_specs=places
    )
    return call(jnp.stack([x] * 2 * jax.device_count()))


TIMES = {
    "jit": (1, jax.jit(product)),
    "remat": (1, jax.checkpoint(product)),
    "custom gradient": (1, custom),
    "scan": (7, lambda x: jax.lax.scan(lambda c, _: (product(c), None), x, length=7)[0]),
    "nested scans": (
        6,
        lambda x: jax.lax.fori_loop(
            0, 2, lambda _, x: jax.lax.fori_loop(0, 3, lambda _, x: product(x), x), x
        ),
    ),
    "the larger branch": (
        2,
        lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: product(product(x)), product, x),
    ),
    "all devices": (2 * jax.device_count(), sharded),
    "what is used": (1, lambda x: (product(x), product(x + 1))[0]),
}


@pytest.mark.parametrize("case", TIMES)
def test_products_inside_other_operations_count_as_often_as_they_run(case):
    times, function = TIMES[case]
    found = count(function, shape(4, 4))
    assert found.flops == times * 2 * 4**3
    assert sum(x.count for x in found.operations) == times
    assert found.unknown_loops == 0


def test_loops_of_unknown_length_are_told():
    def function(x):
        return jax.lax.while_loop(lambda x: x[0, 0] < 100, product, x)

    found = count(function, shape(4, 4))
    assert (found.flops, found.unknown_loops) == (2 * 4**3, 1)


def test_time_is_bound_by_what_takes_longer():
    def function(x, y):
        return x @ x, x @ x.T, y @ y

    found = count(function, shape(1000, 1000), shape(4, 4))
    large, small = found.operations
    assert (large.count, small.count) == (2, 1)  # of equal shapes
    assert large.limit == "compute"
    assert large.seconds == pytest.approx(2 * 2e9 / 1e9)
    assert small.limit == "memory"
    assert small.seconds == pytest.approx(3 * 16 * 4 / 1e8)
    assert found.seconds == large.seconds + small.seconds
    assert found.memory_limited == small.seconds / found.seconds

    half = count(function, shape(1000, 1000), shape(4, 4), devices=2)
    assert half.seconds == pytest.approx(found.seconds / 2)
    faster = count(function, *(shape(n, n, dtype="bfloat16") for n in (1000, 4)))
    assert faster.seconds == pytest.approx(found.seconds / 2)


def test_nothing_to_multiply_takes_no_time():
    found = count(lambda x: x + 1, shape(4, 4))
    assert (found.flops, found.seconds, found.memory_limited) == (0, 0, 0)


def test_a_whole_method_agrees_with_the_count_of_xla():
    config = default_config("panet")
    config.backbone = "small"
    model = create_model(config)
    variables = init_variables(model, jax.random.key(0), 1, 1)
    batch = jax.tree.map(lambda x: x[None], empty_episode(1, 1, 48))
    arguments = prediction(model), variables, batch
    ours, theirs = count(*arguments).flops, work(*arguments).flops
    assert 0.85 * theirs < ours < theirs  # what is left out is element-wise
