"""Names of Vision Transformers' weights: timm's, transformers' and Meta's layouts as one.

The names here are those of the parameters of `ViT`, in PyTorch's form: `blocks.0.qkv.weight`.
"""

import logging
import math
import re

import numpy as np
from jaxtyping import Float

logger = logging.getLogger(__name__)

# Every layout has some of these names; the patterns apply in order.
_RENAMED = (
    (r"^((module|model|backbone|encoder|dinov2|dinov2_with_registers|embeddings)\.)+", ""),
    (r"^layer\.", "blocks."),
    (r"^patch_embed(dings)?(\.proj(ection)?)?\.", "patch_embed."),
    (r"^(pos_embed|position_embeddings)$", "positions"),
    (r"^(reg_token|storage_tokens)$", "register_tokens"),
    (r"^layernorm\.", "norm."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".proj."),
    (r"\.(attention|attn)\.", "."),
    (r"\.attention\.", "."),  # a second one, of earlier versions of transformers
    (r"\.(query|q_proj)\.|\.q_(?=bias$)", ".q."),
    (r"\.(key|k_proj)\.|\.k_(?=bias$)", ".k."),
    (r"\.(value|v_proj)\.|\.v_(?=bias$)", ".v."),
    (r"\.(ls|layer_scale|gamma_)([12])(\.gamma|\.lambda1)?$", r".ls\2"),
    (r"\.mlp\.(gate_proj|w1|fc1_g)\.", ".gate."),
    (r"\.mlp\.(up_proj|w2|fc1_x)\.", ".up."),
    (r"\.mlp\.(fc1|w12|weights_in)\.", ".fc1."),
    (r"\.mlp\.(fc2|w3|weights_out|down_proj)\.", ".fc2."),
)
LICENCES = {
    "DINOv2": "Apache-2.0",
    "DINOv3": "the DINOv3 License, whose terms are its own "
    "(https://ai.meta.com/resources/models-and-libraries/dinov3-license)",
}


def name_licence(init: str, version: str) -> None:
    """Logs under which licence published weights of DINOv2 or DINOv3 are."""
    level = logging.WARNING if version == "DINOv3" else logging.INFO
    logger.log(level, "%s: weights of %s are under %s", init, version, LICENCES[version])


def as_parameters(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights of any of the layouts, with the names and shapes of the parameters of `ViT`.

    Queries, keys and values become one array, and so do the gate and the other half of SwiGLU; a
    bias that is left out, or masked as that of DINOv3's keys, is zero. The embedding of the class
    token's position is added to the token, since it is always the same. Arrays of other kinds keep
    their names.
    """
    renamed = {}
    for name, array in weights.items():
        for pattern, new in _RENAMED:
            name = re.sub(pattern, new, name)
        renamed[name] = array
    for prefix in {
        match[1] for match in (re.match(r"(blocks\.\d+)\.", n) for n in renamed) if match
    }:
        _join_block(renamed, prefix)
    for name in ("cls_token", "register_tokens"):
        if name in renamed:
            renamed[name] = np.asarray(renamed[name], np.float32).squeeze(0)
    if "cls_token" in renamed:
        renamed["cls_token"] = renamed["cls_token"].reshape(-1)
    if "positions" in renamed:
        _split_positions(renamed)
    return renamed


def _join_block(weights: dict[str, np.ndarray], prefix: str) -> None:
    """Joins the arrays of a block that are one array in `ViT`."""
    parts = [f"{prefix}.{part}.weight" for part in "qkv"]
    if all(part in weights for part in parts):
        weights[f"{prefix}.qkv.weight"] = np.concatenate([weights.pop(part) for part in parts])
    fused = weights.get(f"{prefix}.qkv.weight")
    if fused is not None and f"{prefix}.qkv.bias" not in weights:
        width = len(fused) // 3
        biases = [weights.pop(f"{prefix}.{part}.bias", np.zeros(width)) for part in "qkv"]
        weights[f"{prefix}.qkv.bias"] = np.concatenate(biases)
    if f"{prefix}.qkv.bias_mask" in weights:  # it may be NaN in the file
        bias = np.array(weights[f"{prefix}.qkv.bias"], np.float32)
        bias[len(bias) // 3 : 2 * len(bias) // 3] = 0
        weights[f"{prefix}.qkv.bias"] = bias
    for leaf in ("weight", "bias"):
        halves = [weights.pop(f"{prefix}.{half}.{leaf}", None) for half in ("gate", "up")]
        halves = [half for half in halves if half is not None]  # without a gate there is one
        if halves:
            weights[f"{prefix}.fc1.{leaf}"] = np.concatenate(halves)


def _split_positions(weights: dict[str, Float[np.ndarray, "..."]]) -> None:
    """Makes the embedding of positions a square grid of patches alone."""
    positions = np.asarray(weights["positions"], np.float32)
    positions = positions.reshape(-1, positions.shape[-1])
    side = math.isqrt(len(positions))
    if side * side != len(positions) and "cls_token" in weights:
        side = math.isqrt(len(positions) - 1)
        if side * side == len(positions) - 1 and weights["cls_token"].shape == positions[0].shape:
            weights["cls_token"] = weights["cls_token"] + positions[0]
            positions = positions[1:]
    if side * side == len(positions):
        weights["positions"] = positions.reshape(side, side, -1)
