"""Few-shot segmentation in JAX."""

from fsseg_jax.episode import Episode

__all__ = ["Episode"]
