"""How a segmenter comes to know its supports: by fitting them, or from a pickle."""

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fsseg_jax.devices import make_mesh, put, replicated
from fsseg_jax.models import Method
from fsseg_jax.prediction.fitted import Fitted, Shown, check_shown, of_use
from fsseg_jax.prediction.forward import passes
from fsseg_jax.prediction.leaving_out import calibrate, leave_out, validation
from fsseg_jax.prediction.programs import Programs
from fsseg_jax.prediction.supports import episode_rows

logger = logging.getLogger(__name__)


def fitted_to(
    shown: Shown, model: Method, programs: Programs, variables: Any, mesh: Mesh, threshold: float
) -> Fitted:
    """Encodes and summarises supports, and calibrates predictions by leaving each of them out.

    Args:
        programs: those of the model.
        threshold: `config.predict.threshold`.

    Raises:
        UserError: a class is shown by none of them, or there are too many for the model.
    """
    check_shown(shown)
    shown = of_use(shown)
    rows = episode_rows([*shown.labels])
    passes(model, variables, *rows.shape)
    encoded = [programs.encode(variables, image[None, None]) for image in shown.images]
    features = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1)[0][rows], *encoded)
    features, labels = put((features, shown.labels[rows]), replicated(mesh))
    summary = programs.summarise(variables, features, labels)
    given = variables, shown, encoded, rows.shape[1], model.align_corners
    left_out = leave_out(programs, *given)
    calibration = calibrate(left_out, len(rows), threshold)
    validated = validation(left_out, calibration)
    if validated is not None:
        logger.info("cross-validation: %s", validated)
    return Fitted(shown, summary, labels, calibration, validated)


def again(
    kind: Callable[..., Any],
    config: dict[str, Any],
    model: Method,
    variables: Any,
    devices: int,
    trained: bool | None,
    fitted: Fitted | None,
) -> Any:
    """A segmenter from its pickle, on the devices that there are."""
    mesh = make_mesh(min(devices, jax.local_device_count()), local=True)
    segmenter = kind(ConfigDict(config).lock(), model, variables, mesh, trained)
    if fitted is not None:
        arrays = put((fitted.summary, fitted.labels), replicated(mesh))
        segmenter.fitted = fitted._replace(summary=arrays[0], labels=arrays[1])
    return segmenter
