"""Few-shot segmentation in JAX: `load` a model, show it supports, segment photographs."""

from fsseg_jax.devices import avoid_corruption
from fsseg_jax.episode import Episode
from fsseg_jax.segmenter import Segmenter, forward, load

__all__ = ["Episode", "Segmenter", "forward", "load"]

avoid_corruption()
