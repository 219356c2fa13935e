"""Small segmenters with random weights, and what they are compared by."""

import functools

import flax.linen as nn
import numpy as np
from small_models import draw_variables

from fsseg_jax import Segmenter
from fsseg_jax.config import default_config
from fsseg_jax.devices import make_mesh
from fsseg_jax.episode import IGNORE
from fsseg_jax.models import METHODS

SIZE = 32
UNSURE = 1e-4  # two classes whose probabilities differ by less may change places by rounding
# Narrow heads, and few passes of them: what is compiled for a few calls had better be little.
TINY = {
    "panet": {},
    "canet": {"width": 8, "refinements": 1},
    "sst": {"width": 8, "inner_rate": 0.1},  # its gradient jumps where an activation begins
    "ltafnet": {"width": 8, "refinement_width": 4},
    "mfnet": {"width": 8, "scales": 2},
}


class Stem(nn.Module):
    """A backbone of one layer, at stride 4."""

    @nn.compact
    def __call__(self, image, stages=(), train=False):
        return (nn.Conv(16, (5, 5), 4, 2)(image),)


@functools.cache
def make_segmenter(method="panet", ways=1, shots=1, devices=1, fit="stretch", **fields):
    config = default_config(method)
    config.image_size, config.eval.fit = SIZE, fit
    config.predict.threshold = 0.5  # masks are of the most probable class
    model = METHODS[method](backbone=Stem(), **TINY[method], **fields)
    return Segmenter(config, model, draw_variables(model, ways, shots), make_mesh(devices))


def draw_episode(ways, shots, queries=2, size=SIZE, seed=0):
    """Images with a gradient and noise, and labels of blocks: float32 in 0..255, uint8."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 120, size, dtype=np.float32)[:, None]

    def images(*shape):
        coarse = rng.integers(0, 120, (*shape, size // 8, size // 8, 3))
        fine = coarse.repeat(8, -3).repeat(8, -2).astype(np.float32)
        return fine + ramp + rng.random(fine.shape, np.float32) * 15

    choices = np.array([0, 0, *range(1, ways + 1), IGNORE], np.uint8)
    labels = rng.choice(choices, (ways, shots, size // 8, size // 8)).repeat(8, -2).repeat(8, -1)
    labels[..., :8, :8] = np.arange(1, ways + 1)[:, None, None, None]  # each shows its way
    return images(ways, shots), labels, images(queries)


def softmax(logits):
    powers = np.exp(np.asarray(logits, np.float64))
    return powers / powers.sum(axis=-1, keepdims=True)


def clear(probabilities):
    """Where the first class is surely ahead of the second."""
    first, second = np.sort(probabilities, axis=-1)[..., -1:-3:-1].transpose(2, 0, 1)
    return first - second > UNSURE


def assert_same(results, expected):
    """Pairs of masks and probabilities are equal, but for rounding."""
    assert len(results) == len(expected)
    for (mask, probabilities), (other, others) in zip(results, expected, strict=True):
        np.testing.assert_allclose(probabilities, others, atol=1e-4)
        np.testing.assert_array_equal(mask[clear(others)], other[clear(others)])


def mask_of(source, index, class_id):
    label = source.read(index).label
    return np.where(label == 255, 255, label == class_id).astype(np.uint8)
