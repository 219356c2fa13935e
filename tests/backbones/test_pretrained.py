"""Weights are read from every format alike, and what does not fit is named."""

import re
import sys
import zipfile

import flax.linen as nn
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub.errors import LocalEntryNotFoundError

from fsseg_jax import hub
from fsseg_jax.backbones.pretrained import load_pretrained
from fsseg_jax.errors import UserError


class Tiny(nn.Module):
    """Two convolutions under torchvision's names, not square, so that no axes can be swapped."""

    @nn.compact
    def __call__(self, image):
        x = nn.relu(nn.Conv(5, (3, 2), padding=0, name="features_0")(image))
        return nn.Conv(4, (1, 3), padding=0, name="features_2")(x)


IMAGE = np.random.default_rng(1).standard_normal((2, 6, 7, 3)).astype(np.float32)


def shapes():
    return jax.eval_shape(Tiny().init, jax.random.key(0), jnp.asarray(IMAGE))


def torch_weights(dtype=np.float16):
    """In PyTorch's layout (out, in, height, width), with a classifier that no backbone has."""
    rng = np.random.default_rng(0)
    sizes = {
        "features.0.weight": (5, 3, 3, 2),
        "features.0.bias": (5,),
        "features.2.weight": (4, 5, 1, 3),
        "features.2.bias": (4,),
        "classifier.0.weight": (7, 16),
        "classifier.0.bias": (7,),
    }
    return {name: rng.standard_normal(size).astype(dtype) for name, size in sizes.items()}


def naive_features(weights):
    """A convolution is a sum over the kernel's offsets; nothing of Flax."""
    weights = {name: array.astype(np.float64) for name, array in weights.items()}

    def convolve(x, name):
        kernel = weights[f"{name}.weight"]
        height, width = kernel.shape[2:]
        rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
        return weights[f"{name}.bias"] + sum(
            x[:, i : i + rows, j : j + columns] @ kernel[:, :, i, j].T
            for i in range(height)
            for j in range(width)
        )

    return convolve(np.maximum(convolve(IMAGE, "features.0"), 0), "features.2")


def write(path, weights):
    match path.suffix:
        case ".safetensors":
            safetensors.numpy.save_file(weights, path)
        case ".npz":
            np.savez(path, **weights)
        case _:
            torch = pytest.importorskip("torch")
            torch.save({name: torch.tensor(array) for name, array in weights.items()}, path)
    return str(path)


FORMATS = pytest.mark.parametrize("name", ["w.safetensors", "w.npz", "w.pth", "w.pt"])


def failure(init):
    """The message about weights that cannot be used: one line, and one sentence."""
    with pytest.raises(UserError) as error:
        load_pretrained(str(init), shapes())
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("init = ")
    assert message.endswith(".")
    assert not re.search(r"[a-z]\. [A-Z]", message), "one sentence"
    assert error.value.__context__ is None or error.value.__suppress_context__  # nothing in front
    return message


# ----------------------------------------------------------------------------- what fits


@FORMATS
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_every_format_gives_the_same_features(tmp_path, name, dtype):
    weights = torch_weights(dtype)
    variables = load_pretrained(write(tmp_path / name, weights), shapes())
    for array, shape in zip(jax.tree.leaves(variables), jax.tree.leaves(shapes()), strict=True):
        assert (array.shape, array.dtype) == (shape.shape, np.float32)
    features = jax.jit(Tiny().apply)(variables, IMAGE)
    np.testing.assert_allclose(features, naive_features(weights), atol=1e-4)


def test_state_dict_may_be_wrapped(torch, tmp_path):
    weights = torch_weights()
    state = {name: torch.tensor(array) for name, array in weights.items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "w.pth")
    variables = load_pretrained(str(tmp_path / "w.pth"), shapes())
    expected = weights["features.2.bias"].astype(np.float32)
    np.testing.assert_array_equal(variables["params"]["features_2"]["bias"], expected)


def test_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "w.npz", torch_weights())
    load_pretrained("~/w.npz", shapes())


def test_hub_repository_is_downloaded(tmp_path, monkeypatch):
    weights = torch_weights()
    path = write(tmp_path / "model.safetensors", weights)
    asked = []

    def download(*arguments, **options):
        asked.append((arguments, options))
        return path

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    for offline in (True, False):
        monkeypatch.setattr(hub, "is_unreachable", lambda offline=offline: offline)
        variables = load_pretrained("timm/vgg16.tv_in1k", shapes())
        wanted = ("timm/vgg16.tv_in1k", "model.safetensors")
        assert asked.pop() == (wanted, {"local_files_only": offline})
    expected = weights["features.0.bias"].astype(np.float32)
    np.testing.assert_array_equal(variables["params"]["features_0"]["bias"], expected)


# ----------------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("missing", "short", "reasons"),
    [
        (
            ["features.0.bias", "features.2.weight"],
            [],
            "it lacks features.0.bias, features.2.weight",
        ),
        (
            [],
            ["features.0.weight", "features.2.bias"],
            "it has features.0.weight (3, 2, 3, 4) instead of (3, 2, 3, 5), "
            "features.2.bias (3,) instead of (4,)",
        ),
        (
            ["features.0.bias"],
            ["features.2.bias"],
            "it lacks features.0.bias; it has features.2.bias (3,) instead of (4,)",
        ),
    ],
)
def test_what_is_missing_or_of_another_shape_is_all_named(tmp_path, missing, short, reasons):
    weights = torch_weights()
    for name in missing:
        del weights[name]
    for name in short:
        weights[name] = weights[name][:-1]
    path = write(tmp_path / "w.npz", weights)
    assert f"init = {path} does not fit the backbone ({reasons}):" in failure(path)


# ----------------------------------------------------------------------------- what cannot be read


@pytest.mark.parametrize(
    "init", ["a/w.safetensors", "a/w.npz", "a/w.pth", "a/w.pt", "vgg16", "a/b/c", ""]
)
def test_neither_file_nor_repository(init, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert failure(init) == f"init = {init}: there is no such file."


def test_unknown_suffix(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"weights")
    message = failure(tmp_path / "w.bin")
    for suffix in (".safetensors", ".npz", ".pth"):
        assert suffix in message


def test_hub_that_cannot_be_reached(monkeypatch, tmp_path):
    """As huggingface_hub words it without a network."""

    def download(*arguments, **options):
        raise LocalEntryNotFoundError(
            "An error happened while trying to locate the file on the Hub and we cannot find the "
            "requested files in the local cache. Please check your connection and try again or "
            "make sure your Internet connection is on."
        )

    monkeypatch.setattr(hub, "is_unreachable", lambda: False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    message = failure("timm/vgg16.tv_in1k")
    assert "timm/vgg16.tv_in1k" in message
    assert "Hugging Face hub" in message
    assert "network" in message


def test_name_that_the_hub_does_not_allow(monkeypatch, tmp_path):
    """The hub's client refuses it before it asks the network."""
    monkeypatch.chdir(tmp_path)
    assert "Hugging Face hub" in failure("timm/vgg 16")


@FORMATS
@pytest.mark.parametrize("kept", [0, 0.1, 0.6])
def test_truncated_file(tmp_path, name, kept):
    path = tmp_path / name
    write(path, torch_weights())
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    message = failure(path)
    assert name in message
    assert "cannot be read" in message


@pytest.mark.parametrize("name", ["w.safetensors", "w.npz", "w.pth"])
def test_file_that_is_something_else(tmp_path, name):
    """Say, the page that a server sent instead of the weights."""
    if name.endswith(".pth"):
        pytest.importorskip("torch")
    path = tmp_path / name
    path.write_text("<!doctype html><title>404</title>" * 10)
    assert "cannot be read" in failure(path)


def test_archive_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("readme.txt", "no arrays here")
    assert "lacks features.0.bias" in failure(tmp_path / "w.npz")


def test_array_that_is_no_archive(tmp_path):
    with (tmp_path / "w.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    assert "cannot be read" in failure(tmp_path / "w.npz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # A training checkpoint, say, that holds the weights under a name of its own.
        ({"epoch": 3, "model": {"features.0.bias": [0.0]}}, "lacks features.0.bias"),
        ([0.0], "cannot be read"),
        ({"features.0.weight": print}, "cannot be read"),  # nothing but tensors is unpickled
    ],
)
def test_pytorch_file_of_something_else(torch, tmp_path, content, message):
    torch.save(content, tmp_path / "w.pth")
    assert message in failure(tmp_path / "w.pth")


def test_pytorch_file_without_pytorch(tmp_path, monkeypatch):
    (tmp_path / "w.pth").write_bytes(b"weights")
    monkeypatch.setitem(sys.modules, "torch", None)
    message = failure(tmp_path / "w.pth")
    assert "pip install torch" in message
    assert ".safetensors" in message
    assert "replace the file" not in message  # there may be nothing wrong with it
