"""Draws augmentations: the flip, resize, crop and rotation of each image, as an affine map.

Both pipelines draw them here, so that they augment alike for the same seed; each samples pixels in
its own way.
"""

from types import ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer
from ml_collections import ConfigDict

from fsseg_jax.data.sampling import random_bits
from fsseg_jax.episode import IMAGENET_MEAN, AnyArray

# Grey level of pixels outside an image: ImageNet's mean brightness. (A single level, because
# separate levels for the three channels slow tf.data down by a tenth.)
OUTSIDE = round(255 * float(IMAGENET_MEAN.mean()))


class Geometry(NamedTuple):
    """An affine map from the network's square window to the resized image, in pixels.

    The image is resized to a square of `side` pixels. The window's point (x, y), measured from
    its upper left corner, shows the square's point `matrix @ (x, y) + shift`. Without rotation,
    pixels of the window coincide with pixels of the square.
    """

    side: Float[AnyArray, "*batch"]
    matrix: Float[AnyArray, "*batch 2 2"]
    shift: Float[AnyArray, "*batch 2"]


def draw_geometry(
    seed: int,
    number: Integer[AnyArray, "*batch"],
    size: int,
    options: ConfigDict,
    xp: ModuleType = np,
) -> Geometry:
    """Draws the augmentation of the images number `number` of `seed`.

    An image is resized to s x `size` pixels, with s uniform in `options.scale`, rotated about the
    centre of a random window of `size` pixels by an angle uniform in +-`options.rotation` degrees,
    cropped to the window and, if `options.flip`, mirrored half the time.

    Args:
        seed: any integer.
        number: any integers, one per image.
        size: side of the window.
        options: `config.data.augment`.
        xp: `numpy`, or `jax.numpy` inside a compiled function; results are the same.
    """
    # Draw numbers from 1000 on; lower ones choose the episodes.
    bits = [random_bits(seed, number, 1000 + draw, xp) for draw in range(5)]
    scale, right, down, turn, coin = ((b >> 8).astype(np.float32) / 2**24 for b in bits)
    low, high = options.scale
    side = xp.round(size * (low + (high - low) * scale))
    offset = xp.round((side - size)[..., None] * xp.stack([right, down], axis=-1))
    angle = (2 * turn - 1) * (options.rotation * np.pi / 180)
    mirror = xp.where((coin < 0.5) & options.flip, -1.0, 1.0)
    cosine, sine = xp.cos(angle), xp.sin(angle)
    rows = [[cosine * mirror, -sine], [sine * mirror, cosine]]
    matrix = xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2).astype(np.float32)
    half = size / 2
    shift = half + offset - matrix.sum(axis=-1) * half  # the centre stays in place
    return Geometry(side.astype(np.float32), matrix, shift.astype(np.float32))


def episode_geometry(
    seed: int,
    index: Integer[AnyArray, " batch"],
    slots: int,
    size: int,
    options: ConfigDict,
    xp: ModuleType = np,
) -> Geometry:
    """Draws the augmentation of all images of the episodes number `index`: (batch, slots).

    Args:
        seed, size, options, xp: see `draw_geometry`.
        index: numbers of the episodes.
        slots: images per episode, the query last. Queries are augmented only if `options.query`,
            and scaled and cropped only if `options.crop_query` too.
    """
    number = xp.asarray(index)[:, None] * slots + xp.arange(slots)
    drawn = draw_geometry(seed, number, size, options, xp)
    if options.query and options.crop_query:
        return drawn
    if options.query:  # with the same rotation and flip
        of_query = draw_geometry(
            seed, number, size, ConfigDict({**options, "scale": (1.0, 1.0)}), xp
        )
    else:
        side, corner = np.array(size, np.float32), np.zeros(2, np.float32)
        of_query = Geometry(side, np.eye(2, dtype=np.float32), corner)
    is_query = xp.arange(slots) == slots - 1
    masks = (is_query, is_query[:, None, None], is_query[:, None])
    return Geometry(*map(xp.where, masks, of_query, drawn))
