"""Backbones that take no time to compile, and episodes, for the tests of several methods."""

import flax.linen as nn
import numpy as np

from fsseg_jax.backbones.convolution import Conv
from fsseg_jax.episode import IGNORE, Episode


class TwoStages(nn.Module):
    """A backbone of two stages, the first at twice the resolution of the second."""

    @nn.compact
    def __call__(self, image, stages=(), train=False):
        fine = nn.relu(Conv(4, (3, 3), 2, 1, name="fine")(image))
        return fine, nn.relu(Conv(6, (3, 3), 2, 1, name="coarse")(fine))


class EveryFourth(nn.Module):
    """Every fourth pixel, in the place of a network's features."""

    def __call__(self, image, stages=(), train=False):
        return (image[..., ::4, ::4, :],)


def block_labels(rng, ways, shape, block):
    """Labels of (..., height, width) in blocks of some (rows, columns) of pixels, each of them of
    one of the ways, background or ignored."""
    *batch, height, width = shape
    choices = np.array([*range(ways + 1), IGNORE], np.uint8)
    label = rng.choice(choices, (*batch, -(-height // block[0]), -(-width // block[1])))
    return label.repeat(block[0], -2).repeat(block[1], -1)[..., :height, :width]


def draw_episode(ways, shots, seed=0, as_bytes=False):
    """Images of noise with odd sides, darker where way 1 is, and labels in which every way, the
    background and 255 occur."""
    rng = np.random.default_rng(seed)

    def draw(*batch):
        label = block_labels(rng, ways, (*batch, 33, 37), (9, 7))
        image = rng.standard_normal((*label.shape, 3)) - (label == 1)[..., None]
        if as_bytes:
            return np.clip(50 * image + 128, 0, 255).astype(np.uint8), label
        return image.astype(np.float32), label

    support_image, support_label = draw(ways, shots)
    query_image, query_label = draw()
    ids = np.arange(1, ways + 1, dtype=np.int32)
    index = np.zeros((), np.int32)
    return Episode(support_image, support_label, query_image, query_label, ids, index)
