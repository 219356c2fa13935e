"""Measures features of Vision Transformers: python -m fsseg_jax.benchmarks.features

Encodes images one after another by each backbone of `--backbones`, from random weights, on one
device, and, if transformers and PyTorch are installed, by turns with transformers' model of the
same weights, which is called as its documentation shows. The greatest difference of the features
is printed, too.
"""

import importlib.util
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fsseg_jax import command_line
from fsseg_jax.backbones.pretrained import load_pretrained
from fsseg_jax.backbones.vit import VITS, ViT
from fsseg_jax.benchmarks import comparison, programs, workloads
from fsseg_jax.benchmarks.measure import by_turns
from fsseg_jax.devices import make_mesh
from fsseg_jax.errors import UserError

REPEATS, WARM_UP = 11, 2
SIZES = {14: 518, 16: 448}  # of images, by the side of a patch, as in the configurations


def transformers_model(backbone: ViT) -> Any:
    """transformers' model of a backbone's sizes, with random weights."""
    transformers = importlib.import_module("transformers")
    sizes = {
        "hidden_size": backbone.width,
        "num_hidden_layers": backbone.depth,
        "num_attention_heads": backbone.heads,
        "patch_size": backbone.patch,
        "layer_norm_eps": backbone.epsilon,
    }
    if backbone.grid:
        kind = "Dinov2WithRegisters" if backbone.registers else "Dinov2"
        sizes |= {"image_size": backbone.grid * backbone.patch, "use_swiglu_ffn": backbone.gated}
    else:
        kind = "DINOv3ViT"
        sizes |= {"intermediate_size": backbone.hidden, "use_gated_mlp": backbone.gated}
        sizes |= {"num_register_tokens": backbone.registers}
        sizes |= {"hidden_act": "silu" if backbone.gated else "gelu"}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    return getattr(transformers, f"{kind}Model")(config).eval()


def by_transformers(
    model: Any, backbone: ViT, images: Float[np.ndarray, "batch height width 3"]
) -> Callable[[], Float[np.ndarray, "batch h w channel"]]:
    """A function that encodes the images by transformers' model."""
    torch = importlib.import_module("torch")
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    rows, columns = (side // backbone.patch for side in images.shape[1:3])

    def run() -> Float[np.ndarray, "batch h w channel"]:
        with torch.inference_mode():
            tokens = model(pixels).last_hidden_state
        return (
            tokens[:, 1 + backbone.registers :].numpy().reshape(-1, rows, columns, tokens.shape[-1])
        )

    return run


def measured(name: str, size: int | None, repeats: int) -> dict[str, Any]:
    """Measures a backbone; returns a row of the table.

    Args:
        size: side of the images in pixels; None for the configurations' size.
    """
    # transformers interpolates positions to a size, as Meta's rule does without its offset.
    backbone = VITS[name](offset=0.0)
    size = size or SIZES[backbone.patch]
    if size % backbone.patch:
        raise UserError(f"--size = {size}: choose a multiple of {name}'s patch, {backbone.patch}.")
    images = np.random.default_rng(0).standard_normal((1, size, size, 3), np.float32)
    variables = jax.eval_shape(backbone.init, jax.random.key(0), images)
    with tempfile.TemporaryDirectory() as folder:
        model = None
        if all(map(importlib.util.find_spec, ("torch", "transformers"))):
            model = transformers_model(backbone)
            model.save_pretrained(folder)
            weights = str(pathlib.Path(folder, "model.safetensors"))
            variables = load_pretrained(weights, variables)
        else:
            variables = jax.jit(backbone.init)(jax.random.key(0), images)
    program = workloads.compile(lambda v, x: backbone.apply(v, x)[0], variables, images)
    forms: list[Callable[[], Any]] = [program.run]
    row: dict[str, Any] = {"backbone": name, "size": size}
    if model is not None:
        forms.append(by_transformers(model, backbone, images))
        row["difference"] = float(jnp.abs(program.run() - forms[1]()).max())
    seconds = by_turns(forms, repeats, WARM_UP, name)
    row |= programs.timing(seconds[:, 0])
    if model is not None:
        row["transformers"] = programs.timing(seconds[:, 1])
        row["ratio"] = float(seconds[:, 1].sum() / seconds[:, 0].sum())
    return row


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    start = [row["backbone"], str(row["size"]), programs.milliseconds(row)]
    if "transformers" not in row:
        return [*start, "not installed", "-", "-"]
    theirs = programs.milliseconds(row["transformers"])
    return [*start, theirs, f"{row['ratio']:.2f}", f"{row['difference']:.1e}"]


HEADINGS = ["", "px", "ms an image", "transformers", "x", "difference"]
LEGEND = """\
ms: median (least to greatest). x: the sum of transformers' times divided by ours, which is faster
where it is above 1. difference: the greatest one of the features, whose spread is about 1."""


def main() -> None:
    """Runs the program."""
    arguments, overrides = command_line.parse(
        __doc__,
        workdir=False,
        config=False,
        optional_workdir=False,
        backbones="some of them, separated by commas; dinov2_s by default",
        size="side of the images in pixels; by default that of the configurations",
        repeats=f"how many images are encoded, by turns; {REPEATS} by default",
        json=programs.OPTIONS["json"],
    )
    names = (arguments.backbones or "dinov2_s").split(",")
    if unknown := [name for name in names if name not in VITS]:
        raise UserError(f"--backbones = {unknown[0]}: choose among {', '.join(VITS)}.")
    repeats = programs.numbers(arguments.repeats, "repeats", [REPEATS])[0]
    size = programs.numbers(arguments.size, "size", [0])[0]
    comparison.share_with_torch()
    command_line.start(command_line.first_config(None, overrides))
    mesh = make_mesh(1)
    print(programs.hardware(mesh, ["float32"]))
    rows = [measured(name, size or None, repeats) for name in names]
    print(programs.table(HEADINGS, [cells(row) for row in rows]))
    print(LEGEND)
    programs.finish(arguments.json, "features", mesh, (), features=rows)


if __name__ == "__main__":
    command_line.run(main)
