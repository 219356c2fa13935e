"""Which images to label next: unsure ones, unlike each other and unlike what is labelled already.

Among the least confident predictions, images are chosen greedily, as in Gonzalez's algorithm for
k-center (core-sets: Sener and Savarese, ICLR 2018): the next one has the largest product of its
doubt and its distance from the nearest image that is chosen or labelled.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from fsseg_jax.data.source import LabelledImage
from fsseg_jax.data.squares import square
from fsseg_jax.prediction.forward import encode_supports

CANDIDATES = 200  # least confident images that are encoded: a minute on a CPU


def choose(
    candidates: Float[np.ndarray, "candidate feature"],
    doubts: Float[np.ndarray, " candidate"],
    labelled: Float[np.ndarray, "labelled feature"],
    count: int,
) -> list[int]:
    """Positions of the candidates to label next, best first.

    Args:
        candidates, labelled: embeddings of images, of length 1.
        doubts: of the predictions, in 0..1: 1 less their confidence.
        count: how many to choose; all, if there are fewer.
    """
    nearest = np.full(len(candidates), 2.0)  # the largest distance of 1 - cosine
    for known in labelled:
        nearest = np.minimum(nearest, 1 - candidates @ known)
    chosen: list[int] = []
    left = np.ones(len(candidates), bool)
    while left.any() and len(chosen) < count:
        gain = np.where(left, np.maximum(doubts, 1e-6) * np.maximum(nearest, 1e-6), -1)
        chosen.append(best := int(gain.argmax()))
        left[best] = False
        nearest = np.minimum(nearest, 1 - candidates @ candidates[best])
    return chosen


def embedding(features: Any) -> Float[np.ndarray, " feature"]:
    """The mean of each map of features over its positions, in a vector of length 1."""
    maps = [np.asarray(x, np.float32) for x in jax.tree.leaves(features) if np.ndim(x) >= 3]
    means = [x.reshape(-1, x.shape[-1]).mean(axis=0) for x in maps]
    parts = [mean / max(float(np.linalg.norm(mean)), 1e-9) for mean in means]
    return np.concatenate(parts) / np.sqrt(len(parts))


def embeddings(
    segmenter: Any, images: Iterable[UInt8[np.ndarray, "_ _ 3"]]
) -> list[Float[np.ndarray, " feature"]]:
    """Embeddings of images, by the encoder of a `Segmenter`."""

    encode = jax.jit(functools.partial(encode_supports, segmenter.model))

    def of(image: UInt8[np.ndarray, "_ _ 3"]) -> Float[np.ndarray, " feature"]:
        blank = LabelledImage(image, np.zeros(image.shape[:2], np.uint8))
        pixels = square(blank, segmenter.config.image_size, segmenter.config.eval.fit).image
        features = encode(segmenter.variables, pixels[None, None])
        return embedding(jax.tree.map(lambda x: x[0, 0], features))

    return [of(image) for image in images]


def least_confident(confidences: Sequence[float], count: int = CANDIDATES) -> list[int]:
    """Positions of the least confident predictions."""
    return np.argsort(confidences, kind="stable")[:count].tolist()
