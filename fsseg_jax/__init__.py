"""Few-shot segmentation in JAX: `load` a model, `fit` it to supports, and segment images."""

import importlib
from typing import TYPE_CHECKING, Any

from fsseg_jax.cpu.versions import avoid_corruption
from fsseg_jax.interrupts import end_imports_quietly

if TYPE_CHECKING:
    from fsseg_jax.episode import Episode
    from fsseg_jax.prediction.forward import forward
    from fsseg_jax.prediction.loading import load
    from fsseg_jax.prediction.segmenter import Segmenter

    __version__: str

__all__ = ["Episode", "Segmenter", "forward", "load"]

# Imported when they are used, since JAX, Flax and all else take seconds, and `fsseg --help` and
# programs of one's own that only sometimes segment should not wait for them.
_HOMES = {
    "Episode": "fsseg_jax.episode",
    "Segmenter": "fsseg_jax.prediction.segmenter",
    "forward": "fsseg_jax.prediction.forward",
    "load": "fsseg_jax.prediction.loading",
}

end_imports_quietly()
avoid_corruption()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _version() -> str:
    """What was installed: the tag in git, or 0.0.0 where there is none and nothing is installed."""
    from importlib import metadata  # takes as long as all else here

    try:
        return metadata.version(__name__)
    except metadata.PackageNotFoundError:
        return "0.0.0"
