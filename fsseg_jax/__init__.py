"""Few-shot segmentation in JAX: `load` a model, `fit` it to supports, and segment images."""

from fsseg_jax.interrupts import end_imports_quietly  # isort: split

end_imports_quietly()

from fsseg_jax.cpu.versions import avoid_corruption
from fsseg_jax.episode import Episode
from fsseg_jax.prediction.forward import forward
from fsseg_jax.prediction.loading import load
from fsseg_jax.prediction.segmenter import Segmenter

__version__ = "0.2.0"
__all__ = ["Episode", "Segmenter", "forward", "load"]

avoid_corruption()
