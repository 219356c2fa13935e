"""DenseCRF refinement (Kraehenbuehl and Koltun, NeurIPS 2011), as in CANet's table 4."""

import importlib.util

import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from fsseg_jax.errors import UserError


def check_installed() -> None:
    """Raises UserError if the library is missing."""
    if not importlib.util.find_spec("pydensecrf"):
        raise UserError(
            "eval.crf.iterations needs pydensecrf, which is not installed: pip install "
            "'fsseg_jax[crf]' (with Python 3.12 or older, for which it compiles), or set it to 0."
        )


def refine(
    probabilities: Float[np.ndarray, "height width class"],
    image: UInt8[np.ndarray, "height width 3"],
    options: ConfigDict,
) -> UInt8[np.ndarray, "height width"]:
    """Refines a prediction by mean-field inference; returns its label. See `refined`."""
    return refined(probabilities, image, options).argmax(axis=-1).astype(np.uint8)


def refined(
    probabilities: Float[np.ndarray, "height width class"],
    image: UInt8[np.ndarray, "height width 3"],
    options: ConfigDict,
) -> Float[np.ndarray, "height width class"]:
    """Probabilities after mean-field inference.

    Args:
        image: the image at the same size.
        options: `config.eval.crf`.
    """
    # An optional dependency, imported only where it is needed.
    DenseCRF2D = importlib.import_module("pydensecrf.densecrf").DenseCRF2D
    height, width, classes = probabilities.shape
    field = DenseCRF2D(width, height, classes)
    energy = -np.log(np.clip(probabilities, 1e-7, 1)).transpose(2, 0, 1).reshape(classes, -1)
    field.setUnaryEnergy(np.ascontiguousarray(energy, np.float32))
    distance, strength = options.smooth
    field.addPairwiseGaussian(sxy=distance, compat=strength)
    distance, colour, strength = options.colour
    # The library rejects read-only arrays, although it does not write to this one.
    field.addPairwiseBilateral(sxy=distance, srgb=colour, rgbim=np.array(image), compat=strength)
    result = np.array(field.inference(options.iterations))
    return np.moveaxis(result.reshape(classes, height, width), 0, -1)
