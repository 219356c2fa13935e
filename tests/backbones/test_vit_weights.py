"""Weights of timm's, transformers' and Meta's layouts are the same parameters."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict
from helpers import message_of, random

from fsseg_jax.backbones import create_backbone
from fsseg_jax.backbones.pretrained import load_pretrained, torch_name
from fsseg_jax.backbones.vit import VITS, ViT
from fsseg_jax.backbones.vit_weights import as_parameters

WIDTH, SIDE, HIDDEN = 8, 3, 16
SMALL = functools.partial(ViT, width=WIDTH, depth=1, heads=2, hidden=HIDDEN, grid=SIDE)


def shapes_of(module, stages=()):
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(functools.partial(module.init, stages=stages), jax.random.key(0), image)


def meta_weights(hidden=HIDDEN):
    """DINOv2 of one block in Meta's layout."""
    sizes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + SIDE * SIDE, WIDTH),
        "mask_token": (1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, 14, 14),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
        "blocks.0.attn.qkv.weight": (3 * WIDTH, WIDTH),
        "blocks.0.attn.qkv.bias": (3 * WIDTH,),
        "blocks.0.attn.proj.weight": (WIDTH, WIDTH),
        "blocks.0.attn.proj.bias": (WIDTH,),
        "blocks.0.mlp.fc1.weight": (hidden, WIDTH),
        "blocks.0.mlp.fc1.bias": (hidden,),
        "blocks.0.mlp.fc2.weight": (WIDTH, HIDDEN),
        "blocks.0.mlp.fc2.bias": (WIDTH,),
        "blocks.0.ls1.gamma": (WIDTH,),
        "blocks.0.ls2.gamma": (WIDTH,),
    }
    for number in (1, 2):
        for leaf in ("weight", "bias"):
            sizes[f"blocks.0.norm{number}.{leaf}"] = (WIDTH,)
    return {name: random(*shape, seed=i) for i, (name, shape) in enumerate(sizes.items())}


def renamed(weights, *pairs):
    result = {}
    for name, array in weights.items():
        for old, new in pairs:
            name = name.replace(old, new)
        result[name] = array
    return result


def assert_same(weights, expected):
    names = [torch_name(path) for path in flatten_dict(shapes_of(SMALL()))]
    assert "blocks.0.qkv.weight" in names
    for name in names:
        np.testing.assert_allclose(weights[name], expected[name], atol=1e-7, err_msg=name)


def test_embedding_of_the_class_token_is_added_to_it():
    weights = meta_weights()
    parameters = as_parameters(weights)
    both = weights["cls_token"][0, 0] + weights["pos_embed"][0, 0]
    np.testing.assert_allclose(parameters["cls_token"], both)
    grid = weights["pos_embed"][0, 1:].reshape(SIDE, SIDE, WIDTH)
    np.testing.assert_array_equal(parameters["positions"], grid)


def test_layouts_of_timm_and_of_transformers_are_the_same_parameters():
    weights = meta_weights()
    expected = as_parameters(weights)
    timm = dict(weights)  # its models with registers
    timm["cls_token"] = weights["cls_token"] + weights["pos_embed"][:, :1]
    timm["pos_embed"] = weights["pos_embed"][:, 1:]
    assert_same(as_parameters(timm), expected)
    old = renamed(
        weights,
        ("blocks.", "encoder.layer."),
        ("attn.proj", "attention.output.dense"),
        ("ls1.gamma", "layer_scale1.lambda1"),
        ("ls2.gamma", "layer_scale2.lambda1"),
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        ("pos_embed", "embeddings.position_embeddings"),
        ("cls_token", "embeddings.cls_token"),
    )
    old = {
        name.replace("norm.", "layernorm.") if name.startswith("norm.") else name: array
        for name, array in old.items()
    }
    new = {name.replace("attention.output.dense", "attention.o_proj"): x for name, x in old.items()}
    for layout, parts in (
        (old, ("attention.query", "attention.key", "attention.value")),
        (new, ("q_proj", "k_proj", "v_proj")),
    ):
        for leaf in ("weight", "bias"):
            fused = layout.pop(f"encoder.layer.0.attn.qkv.{leaf}")
            for part, array in zip(parts, np.split(fused, 3), strict=True):
                layout[f"encoder.layer.0.attention.{part}.{leaf}"] = array
        assert_same(as_parameters(layout), expected)
        prefixed = {f"dinov2.{name}": array for name, array in layout.items()}  # with a head
        assert_same(as_parameters(prefixed), expected)


@pytest.mark.parametrize(
    "parts",
    [
        ("mlp.w1", "mlp.w2", "mlp.w3"),
        ("mlp.fc1_g", "mlp.fc1_x", "mlp.fc2"),
        ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    ],
)
def test_the_gate_comes_first(parts):
    weights = meta_weights(2 * HIDDEN)
    expected = as_parameters(weights)
    for leaf in ("weight", "bias"):
        for part, array in zip(
            parts[:2], np.split(weights.pop(f"blocks.0.mlp.fc1.{leaf}"), 2), strict=True
        ):
            weights[f"blocks.0.{part}.{leaf}"] = array
        weights[f"blocks.0.{parts[2]}.{leaf}"] = weights.pop(f"blocks.0.mlp.fc2.{leaf}")
    assert_same(as_parameters(weights), expected)


def test_biases_that_are_left_out_or_masked_are_zero():
    weights = meta_weights()
    bias = weights["blocks.0.attn.qkv.bias"].copy()
    none = {n: x for n, x in weights.items() if n != "blocks.0.attn.qkv.bias"}  # timm's DINOv3
    np.testing.assert_array_equal(as_parameters(none)["blocks.0.qkv.bias"], np.zeros(3 * WIDTH))
    expected = bias.copy()
    expected[WIDTH : 2 * WIDTH] = 0
    masked = weights | {"blocks.0.attn.qkv.bias_mask": np.full(3 * WIDTH, np.nan)}  # Meta's
    np.testing.assert_array_equal(as_parameters(masked)["blocks.0.qkv.bias"], expected)
    without_keys = (
        none
        | {  # timm's with biases, of the others alone
            "blocks.0.attn.q_bias": bias[:WIDTH],
            "blocks.0.attn.v_bias": bias[2 * WIDTH :],
        }
    )
    np.testing.assert_array_equal(as_parameters(without_keys)["blocks.0.qkv.bias"], expected)


@pytest.mark.parametrize("version", ["DINOv2", "DINOv3"])
def test_licence_is_named_in_one_line(tmp_path, log, version):
    module = SMALL() if version == "DINOv2" else SMALL(grid=0)
    safetensors.numpy.save_file(meta_weights(), tmp_path / "w.safetensors")
    load_pretrained(str(tmp_path / "w.safetensors"), shapes_of(module))
    (record,) = [
        record
        for record in log.records
        if "licen" in record.getMessage().lower() or "Apache" in record.getMessage()
    ]
    assert f"weights of {version} are under" in record.getMessage()
    assert (record.levelno == logging.WARNING) == (version == "DINOv3")


def test_weights_of_another_size_or_network_are_summarised(tmp_path):
    path = str(tmp_path / "w.safetensors")
    safetensors.numpy.save_file(meta_weights(), path)
    message = message_of(load_pretrained, path, shapes_of(create_backbone("dinov2_b", "float32")))
    assert "arrays" in message
    assert len(message) < 700
    safetensors.numpy.save_file({"features.0.weight": np.zeros((4, 3, 3, 3), np.float32)}, path)
    message = message_of(load_pretrained, path, shapes_of(SMALL()))
    assert "and 17 more of 20 arrays" in message
    wrong = meta_weights()
    wrong["blocks.0.attn.q_bias"] = np.zeros((2, 2), np.float32)
    wrong.pop("blocks.0.attn.qkv.bias")
    safetensors.numpy.save_file(wrong, path)
    assert "does not fit the backbone" in message_of(load_pretrained, path, shapes_of(SMALL()))


TIMM = {
    **{
        f"dinov2_{s}": f"vit_{name}_patch14_dinov2"
        for s, name in (("s", "small"), ("b", "base"), ("l", "large"), ("g", "giant"))
    },
    **{
        f"dinov2_{s}_reg": f"vit_{name}_patch14_reg4_dinov2"
        for s, name in (("s", "small"), ("b", "base"), ("l", "large"), ("g", "giant"))
    },
    **{
        f"dinov3_{s}": f"vit_{name}_patch16_dinov3"
        for s, name in (
            ("s", "small"),
            ("s_plus", "small_plus"),
            ("b", "base"),
            ("l", "large"),
            ("h_plus", "huge_plus"),
        )
    },
}


def test_all_published_models_are_there():
    assert set(TIMM) == set(VITS)


@pytest.mark.parametrize("name", TIMM)
def test_every_size_has_timms_parameters(torch, name):
    """Names and shapes of two blocks, and the number of blocks."""
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model(TIMM[name], pretrained=False, num_classes=0)
    module = create_backbone(name, "float32")
    assert len(model.blocks) == module.depth
    assert next(m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)).eps == (
        module.epsilon
    )
    assert model.blocks[0].attn.num_heads == module.heads
    kept = {
        key: np.empty(value.shape, np.int8)
        for key, value in model.state_dict().items()
        if not key.startswith("blocks.") or key.split(".")[1] in "01"
    }
    parameters = as_parameters(kept)
    shapes = flatten_dict(shapes_of(module, (2,)))
    assert set(parameters) == {torch_name(path) for path in shapes}
    for path, shape in shapes.items():
        array = parameters[torch_name(path)]
        if path[-1] == "kernel":
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        assert array.shape == shape.shape


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_small_plus_patch16_dinov3"])
def test_features_are_those_of_timm(torch, tmp_path, name):
    timm = pytest.importorskip("timm")
    sizes = {"embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 0}
    model = timm.create_model(name, pretrained=False, **sizes, img_size=14 * 5).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    arrays = {key: value.numpy() for key, value in model.state_dict().items()}
    safetensors.numpy.save_file(arrays, tmp_path / "w.safetensors")
    small = {"width": 24, "depth": 1, "heads": 2}
    if name.endswith("dinov3"):
        module = VITS["dinov3_s_plus"](**small | {"hidden": 96})
    else:
        module = VITS["dinov2_s_reg"](**small | {"hidden": 96, "grid": 5})
    variables = load_pretrained(str(tmp_path / "w.safetensors"), shapes_of(module))
    side = 5 * module.patch
    image = random(1, side, side, 3)
    with torch.no_grad():
        tokens = model.forward_features(torch.tensor(image).permute(0, 3, 1, 2))
    (result,) = jax.jit(module.apply)(variables, image)
    expected = tokens[:, model.num_prefix_tokens :].numpy().reshape(1, 5, 5, 24)
    np.testing.assert_allclose(result, expected, atol=1e-4 * abs(expected).max())
