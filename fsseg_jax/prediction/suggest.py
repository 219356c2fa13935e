"""Which images to label next: those that stand for what is unsure, unlike what is labelled already.

Images are compared by the mean features of what was found in them. Among the least confident ones
they are chosen greedily: the next one brings the doubts of all others nearest to something that is
chosen or labelled (facility location; Nemhauser et al. 1978, within 1 - 1/e of the best choice).
docs/figures.md compares this with other rules: the least confident images alone are a bad choice.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fsseg_jax.data.source import LabelledImage
from fsseg_jax.data.squares import square
from fsseg_jax.episode import UNLABELLED
from fsseg_jax.prediction.forward import encode_supports

CANDIDATES = 200  # least confident images that are encoded: minutes on a CPU


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
    distances = 1 - candidates @ candidates.T
    nearest = (1 - candidates @ labelled.T).min(axis=1)
    chosen: list[int] = []
    while len(chosen) < min(count, len(candidates)):
        gains = (np.maximum(nearest[:, None] - distances, 0) * doubts[:, None]).sum(axis=0)
        gains[chosen] = -1
        chosen.append(best := int(gains.argmax()))
        nearest = np.minimum(nearest, distances[:, best])
    return chosen


def embedding(
    features: Any, label: UInt8[np.ndarray, "height width"]
) -> Float[np.ndarray, " feature"]:
    """The mean of each map of features over the classes in a label, or over all of the image if it
    shows none, in a vector of length 1."""
    shown = (label > 0) & (label < UNLABELLED)
    inside = Image.fromarray((shown if shown.any() else ~shown).astype(np.float32))
    parts = []
    for values in jax.tree.leaves(features):
        if np.ndim(values) != 3:
            continue
        height, width, _ = np.shape(values)
        weights = np.asarray(inside.resize((width, height), Image.Resampling.BOX))
        mean = np.tensordot(weights, np.asarray(values, np.float32), 2)
        parts.append(mean / max(float(np.linalg.norm(mean)), 1e-9))
    return np.concatenate(parts) / np.sqrt(len(parts))


def embeddings(
    segmenter: Any, images: Iterable[LabelledImage]
) -> Float[np.ndarray, "image feature"]:
    """Embeddings of images with what was found or marked in them, by a `Segmenter`'s encoder."""
    encode = jax.jit(functools.partial(encode_supports, segmenter.model))

    def of(image: LabelledImage) -> Float[np.ndarray, " feature"]:
        small = square(image, segmenter.config.image_size, segmenter.config.eval.fit)
        features = encode(segmenter.variables, small.image[None, None])
        return embedding(jax.tree.map(lambda x: x[0, 0], features), small.label)

    return np.stack([of(image) for image in images])


def least_confident(confidences: Sequence[float], count: int = CANDIDATES) -> list[int]:
    """Positions of the least confident predictions."""
    return np.argsort(confidences, kind="stable")[:count].tolist()
