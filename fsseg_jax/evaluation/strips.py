"""Episodes as single pictures: supports, the query with its label, and the prediction."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fsseg_jax.evaluation.report import Example, overlay

SIDE = 160  # pixels of each part
GAP = 4
MOST = 5  # supports of a class that are shown


def strip(example: Example) -> UInt8[np.ndarray, "height width 3"]:
    """An episode from left to right: the supports of each way, with their labels drawn over them,
    the query with the true label, and the query with the prediction."""
    supports = zip(example.support_image, example.support_label, strict=True)
    pairs = [pair for way in supports for pair in zip(way[0][:MOST], way[1][:MOST], strict=True)]
    pairs += [(example.query_image, example.query_label), (example.query_image, example.prediction)]
    parts = []
    for image, label in pairs:
        part = Image.fromarray(overlay(image, label)).resize((SIDE, SIDE))
        parts += [np.asarray(part), np.full((SIDE, GAP, 3), 255, np.uint8)]
    return np.concatenate(parts[:-1], axis=1)
