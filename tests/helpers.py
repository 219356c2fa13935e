"""What the tests of several modules need."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fsseg_jax.errors import UserError


def message_of(function, *arguments, **options):
    """The one sentence of the UserError that a call must raise."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message


def assert_close(result, expected, relative=1e-4):
    """Of one shape, finite, and equal up to `relative` of the largest absolute value."""
    result, expected = np.asarray(result), np.asarray(expected)
    assert result.shape == expected.shape
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(result, expected, rtol=0, atol=relative * abs(expected).max())


def is_close(result, expected, relative):
    """Whether two arrays are equal up to `relative` of the largest absolute value."""
    result, expected = np.asarray(result), np.asarray(expected)
    return abs(result - expected).max() <= relative * abs(expected).max()


def assert_trees_close(result, expected, relative):
    jax.tree.map(functools.partial(assert_close, relative=relative), result, expected)


def holds_in_a_draw(check):
    """Where a ReLU's input is 0 up to rounding, a rounding error decides where its gradient goes:
    `check(seed)` must hold in one of a few draws, and a wrong gradient would in none."""
    for seed in range(4):
        try:
            return check(seed)
        except AssertionError as error:
            failure = error
    raise failure


def calls_of(monkeypatch, owner, name):
    """The arguments of all calls of a function from now on."""
    calls, function = [], getattr(owner, name)

    def watched(*arguments, **options):
        calls.append(arguments)
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, watched)
    return calls


def pixels_of(file):
    """What Pillow reads, as an array that may be written to."""
    with Image.open(file) as picture:
        return np.array(picture)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def draw_values(shapes, seed=0, deviation=0.1):
    """Values for shapes, so that every layer matters: He-normal kernels, scales and variances near
    1, biases near 0."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        if len(shape.shape) > 1:
            values = rng.normal(0, np.sqrt(2 / np.prod(shape.shape[:-1])), shape.shape)
        else:
            mean = 1 if path[-1].key in ("scale", "var", "alpha") else 0
            values = rng.normal(mean, deviation, shape.shape)
        return np.asarray(values, shape.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def value_and_gradients(function, weight, *arguments):
    """What `function` gives, and the gradients of its sum weighted by `weight`."""

    @jax.jit
    def compiled(*arguments):
        value, pull = jax.vjp(function, *arguments)
        return value, pull(jnp.asarray(weight, jnp.float32))

    value, gradients = compiled(*arguments)
    return np.asarray(value), [np.asarray(gradient) for gradient in gradients]


def up_sampled(torch, x, shape, align_corners):
    """(n, h, w, c) features at `shape`, as (n, c, height, width)."""
    planes = torch.as_tensor(x).movedim(-1, 1)
    return torch.nn.functional.interpolate(
        planes, shape, mode="bilinear", align_corners=align_corners
    )


def in_episode_numbering(label, classes):
    result = np.where(label == 255, 255, 0).astype(np.uint8)
    for way, class_id in enumerate(classes, start=1):
        result[label == class_id] = way
    return result
