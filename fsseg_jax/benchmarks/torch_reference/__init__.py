"""PANet and CANet in plain PyTorch: the baseline of the speed comparisons.

Each method comes in two forms that compute the same function as ours. The "straightforward" one
is organised like the published codes: one episode at a time, features enlarged to the mask before
they are pooled, loops over shots. The "tuned" one is what an experienced PyTorch user would write:
whole batches, `channels_last`, bfloat16, `torch.compile`, a frozen backbone with its normalisation
folded into the convolutions.

Only `build` imports PyTorch: the package does not depend on it, and its CUDA libraries and JAX's
need not be in one process. The published architectures and constants are written out here rather
than taken from `fsseg_jax.models` and `fsseg_jax.backbones`, because tests compare those with this.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from fsseg_jax.errors import UserError

if TYPE_CHECKING:
    from fsseg_jax.benchmarks.torch_reference.reference import Reference

METHODS = ("panet", "canet")


def available() -> bool:
    """Whether PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


def build(
    method: str,
    *,
    tuned: bool,
    image_size: int,
    shots: int = 1,
    device: str = "cpu",
    dtype: str = "float32",
    compile: bool = False,
) -> Reference:
    """A method in PyTorch with random weights; see `Reference.load`.

    On a GPU this lets cuDNN try its algorithms (`torch.backends.cudnn.benchmark`), for the whole
    process, as PANet's published code does.

    Args:
        method: one of `METHODS`.
        tuned: whether to build the tuned form.
        image_size: height and width of images and labels.
        shots: supports per episode; there is one way.
        device: PyTorch's name of the device.
        dtype: float32 or, for the convolutions of the tuned form, bfloat16.
        compile: whether to `torch.compile` the tuned form: prediction, and forward pass with loss.

    Raises:
        UserError: PyTorch is not installed, or the method, dtype or form does not exist.
    """
    if not available():
        raise UserError("the PyTorch reference needs PyTorch: pip install torch.")
    if method not in METHODS:
        raise UserError(f"method = {method!r}: choose {' or '.join(METHODS)}.")
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype = {dtype!r}: choose float32 or bfloat16.")
    if not tuned and (dtype != "float32" or compile):
        raise UserError("the straightforward form is float32 and not compiled: set tuned = True.")
    import torch  # pyright: ignore[reportMissingImports]

    from fsseg_jax.benchmarks.torch_reference import canet, panet

    torch.backends.cudnn.benchmark = True
    forms = {
        ("panet", False): panet.StraightforwardPANet,
        ("panet", True): panet.TunedPANet,
        ("canet", False): canet.StraightforwardCANet,
        ("canet", True): canet.TunedCANet,
    }
    form = forms[method, tuned]
    return form(image_size, shots, torch.device(device), getattr(torch, dtype), compile)
