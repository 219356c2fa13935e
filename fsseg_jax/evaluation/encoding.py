"""Encodes the images of an evaluation, each of them once."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int, UInt8

from fsseg_jax.devices import put, replicated, split
from fsseg_jax.episode import AnyArray
from fsseg_jax.evaluation.parts import Store
from fsseg_jax.evaluation.scorer import Scorer
from fsseg_jax.progress import progress


class Images(NamedTuple):
    """Images of one size, at one scale."""

    pixels: UInt8[AnyArray, "row height width 3"]  # may have more rows than there are images
    numbers: Int[np.ndarray, " image"]
    scale: float = 1.0
    shapes: Int[AnyArray, "row 2"] | None = None  # of images that are on canvases


def encode_images(
    scorer: Scorer, variables: Any, images: Images, store: Store | None, description: str
) -> Any:
    """Features of images on the mesh of the scorer, in the same rows.

    Args:
        store: supplies images that are encoded already, and keeps those that are encoded here.
    """
    numbers, mesh = images.numbers, scorer.mesh
    step, size = mesh.size * scorer.together, images.pixels.shape[1:3]
    key = (size, images.scale)
    known = np.zeros(len(numbers), bool) if store is None else store.has(key, numbers)
    encoded = scorer.room(variables, len(images.pixels), size)
    with progress(description, len(numbers), nested=True) as encoded_images:
        for kept in (True, False):
            rows = np.flatnonzero(known == kept)
            for start in range(0, len(rows), step):
                chunk = rows[start : start + step]
                padded = np.resize(chunk, step)
                if kept and store is not None:
                    part = put(store.get(key, numbers[padded]), replicated(mesh))
                else:
                    shapes = None if images.shapes is None else images.shapes[padded]
                    given = put((images.pixels[padded], shapes), split(mesh))
                    part = scorer.encode(variables, *given)
                    if store is not None:
                        store.put(key, numbers[chunk], part)
                encoded = scorer.insert(encoded, put(padded, replicated(mesh)), part)
                jax.block_until_ready(encoded)  # keeps the progress honest
                encoded_images.update(len(chunk))
    return encoded
