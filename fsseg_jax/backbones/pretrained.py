"""Pretrained weights of torchvision, timm, transformers and Meta as Flax variables."""

import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Sequence
from typing import Any

import huggingface_hub
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from fsseg_jax import hub
from fsseg_jax.backbones.vit_weights import as_parameters, name_licence
from fsseg_jax.errors import UserError

# PyTorch's names of a layer's arrays, by Flax's collection and name.
_TORCH_NAMES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}

NAMED = 3  # arrays that an error names; a wrong file may lack hundreds

# What safetensors, NumPy and PyTorch raise for files that are truncated or of another format.
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    RuntimeError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    safetensors.SafetensorError,
)


def load_pretrained(init: str, variables: dict[str, Any]) -> dict[str, Any]:
    """A backbone's variables with pretrained values.

    Flax's `features_0/kernel` (height, width, in, out) is PyTorch's `features.0.weight` (out, in,
    height, width). Names of Vision Transformers are those of `vit_weights`. Arrays of the file that
    the backbone does not have, such as a classifier's, are ignored; float16 becomes float32.

    Args:
        init: a `.safetensors`, `.npz` or `.pth` file, or a repository of the Hugging Face hub
            (`timm/vgg16.tv_in1k`) that holds a `model.safetensors`.
        variables: the backbone's variables, for their names and shapes.

    Raises:
        UserError: the weights cannot be loaded or do not fit; it then tells how many arrays are
            missing or have another shape, and names the first ones.

    Examples:
        >>> import tempfile
        >>> variables = {"params": {"features_0": {"kernel": np.zeros((3, 3, 8, 16))}}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/weights.npz"  # or timm/vgg16.tv_in1k
        ...     np.savez(path, **{"features.0.weight": np.ones((16, 8, 3, 3))})
        ...     loaded = load_pretrained(path, variables)
        >>> loaded["params"]["features_0"]["kernel"].shape
        (3, 3, 8, 16)
    """
    weights = read_weights(init)
    params = variables.get("params", {})
    transformer = "cls_token" in params
    if transformer:
        try:
            weights = as_parameters(weights)
        except ValueError as error:  # arrays that belong together do not have fitting shapes
            raise UserError(
                f"init = {init} does not fit the backbone ({first_sentence(error)}): choose "
                "weights of this architecture or another backbone."
            ) from None
    loaded, missing, misshapen = {}, [], []
    flat = flatten_dict(variables)
    for path, value in flat.items():
        name = torch_name(path)
        if name not in weights:
            missing.append(name)
            continue
        array = np.asarray(weights[name], np.float32)
        if path[-1] == "kernel":  # of a convolution, or a dense layer
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        if array.shape != value.shape:
            misshapen.append(f"{name} {array.shape} instead of {value.shape}")
        loaded[path] = array
    _check_fit(init, missing, misshapen, len(flat))
    if transformer:
        name_licence(init, "DINOv2" if "positions" in params else "DINOv3")
    return unflatten_dict(loaded)


def _check_fit(init: str, missing: list[str], misshapen: list[str], of: int) -> None:
    """Raises UserError if arrays are missing or have another shape."""
    stages = {name.split(".")[0] for name in missing}
    if len(stages) == 1 and not misshapen and re.match(r"layer\d", min(stages)):
        raise UserError(
            f"init = {init} has no {stages.pop()}: set model.stages to earlier stages, or choose "
            "weights that have it."
        )
    if missing or misshapen:
        reasons = [f"it lacks {_first(missing, of)}"] if missing else []
        reasons += [f"it has {_first(misshapen, of)}"] if misshapen else []
        raise UserError(
            f"init = {init} does not fit the backbone ({'; '.join(reasons)}): choose weights of "
            "this architecture or another backbone."
        )


def torch_name(path: Sequence[str]) -> str:
    """PyTorch's name of a variable, given by its collection, layers and name in Flax."""
    collection, *layer, leaf = path
    layers = [re.sub(r"_(?=\d)", ".", part) for part in layer]
    return ".".join([*layers, _TORCH_NAMES.get((collection, leaf), leaf)])


def _first(names: Sequence[str], of: int) -> str:
    """The names if they are few, or else the first of them and how many there are."""
    if len(names) <= NAMED:
        return ", ".join(names)
    return f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more of {of} arrays"


def read_weights(init: str) -> dict[str, np.ndarray]:
    """The arrays of a weights file or a repository of the hub by name; see `load_pretrained`."""
    path = pathlib.Path(os.path.expanduser(init))
    if not path.is_file():
        if path.suffix in (".safetensors", ".npz", ".pth", ".pt") or init.count("/") != 1:
            raise UserError(f"init = {init}: there is no such file.")
        path = _download(init)
    try:
        match path.suffix:
            case ".safetensors":
                return safetensors.numpy.load_file(path)
            case ".npz":
                with np.load(path) as file:
                    return dict(file)
            case ".pth" | ".pt":
                return _read_pytorch(path)
    except UserError:
        raise
    except _UNREADABLE as error:
        raise UserError(
            f"init = {init} cannot be read ({first_sentence(error)}): replace the file."
        ) from None
    raise UserError(f"init = {init}: give a .safetensors, .npz or .pth file.")


def _download(repository: str) -> pathlib.Path:
    offline = hub.is_unreachable()
    try:
        return pathlib.Path(
            huggingface_hub.hf_hub_download(
                repository, "model.safetensors", local_files_only=offline
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        if offline:
            raise UserError(
                f"init = {repository} is neither a file nor in the cache of downloads, and the "
                "Hugging Face hub cannot be reached: connect to the network, or give a local "
                "weights file (init=FILE, or --config.init=FILE)."
            ) from None
        raise UserError(
            f"init = {repository} is not a file, and cannot be downloaded from the Hugging Face "
            f"hub ({first_sentence(error)}): check the name and the network, or give a local "
            "weights file."
        ) from None


def first_sentence(error: Exception) -> str:
    """The first sentence of another library's error."""
    return re.split(r"\n|\. |\.$", str(error))[0] or type(error).__name__


def _read_pytorch(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"init = {path}: PyTorch's format needs PyTorch: pip install torch, or give a "
            ".safetensors or .npz file."
        ) from None
    weights = torch.load(path, map_location="cpu", weights_only=True)
    weights = weights.get("state_dict", weights)
    tensors = {name: value for name, value in weights.items() if isinstance(value, torch.Tensor)}
    return {name: value.float().numpy() for name, value in tensors.items()}
