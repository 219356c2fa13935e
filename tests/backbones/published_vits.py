"""Tiny models of transformers in the place of our `ViT`, with random weights of every kind."""

import functools

import numpy as np

from fsseg_jax.backbones.vit import ViT

# A head's channels must divide by 4, and no two sizes are the same.
WIDTH, HEADS, DEPTH, SIDE = 24, 2, 2, 5  # the side of the grid of positions, in patches
OURS = functools.partial(ViT, width=WIDTH, heads=HEADS, depth=DEPTH, hidden=4 * WIDTH)
REGISTERS = {"registers": 4, "antialias": True, "offset": 0.0, "grid": SIDE}
DINOV3 = {"patch": 16, "registers": 4, "grid": 0, "epsilon": 1e-5}
MODELS = {
    "dinov2": functools.partial(OURS, grid=SIDE),
    "dinov2, gated": functools.partial(OURS, grid=SIDE, gated=True, hidden=64),
    "dinov2, registers": functools.partial(OURS, **REGISTERS),
    "dinov3": functools.partial(OURS, **DINOV3),
    "dinov3, gated": functools.partial(OURS, **DINOV3, gated=True, hidden=40),
}


def transformers_model(torch, name):
    """A model of `MODELS` by transformers; nothing in it is 0, 1 or the same twice."""
    import transformers

    gated = name.endswith("gated")
    sizes = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": DEPTH}
    if name.startswith("dinov3"):
        config = transformers.DINOv3ViTConfig(
            **sizes,
            intermediate_size=40 if gated else 4 * WIDTH,
            use_gated_mlp=gated,
            hidden_act="silu" if gated else "gelu",  # as in the published configurations
            num_register_tokens=4,
        )
        model = transformers.DINOv3ViTModel(config)
    else:
        kind = "Dinov2WithRegisters" if name.endswith("registers") else "Dinov2"
        config = getattr(transformers, f"{kind}Config")(
            **sizes, patch_size=14, image_size=14 * SIDE, use_swiglu_ffn=gated, layer_norm_eps=1e-6
        )
        model = getattr(transformers, f"{kind}Model")(config)
    generator = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            mean = float("lambda" in key or ("norm" in key and key.endswith("weight")))
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(mean + 0.3 * drawn)
    return model.eval()


def as_meta_does(torch, model):
    """Replaces the interpolation of a plain DINOv2 by that of Meta's published models.

    transformers interpolates to a size; Meta gives a scale of (size + 0.1) / grid.
    """
    embeddings = model.embeddings

    def interpolated(tokens, height, width):
        learnt = embeddings.position_embeddings
        rows, columns = height // 14, width // 14
        if (rows, columns) == (SIDE, SIDE):
            return learnt
        grid = learnt[:, 1:].reshape(1, SIDE, SIDE, WIDTH).permute(0, 3, 1, 2)
        scale = ((rows + 0.1) / SIDE, (columns + 0.1) / SIDE)
        grid = torch.nn.functional.interpolate(grid, scale_factor=scale, mode="bicubic")
        assert grid.shape[-2:] == (rows, columns)
        return torch.cat([learnt[:, :1], grid.permute(0, 2, 3, 1).reshape(1, -1, WIDTH)], 1)

    embeddings.interpolate_pos_encoding = interpolated
    return model


def features(torch, model, image, block):
    """Patch tokens of a transformers model after a block, with the final norm, as our maps."""
    planes = torch.tensor(image).permute(0, 3, 1, 2)
    patch = 16 if "DINOv3" in type(model).__name__ else 14
    with torch.no_grad():
        states = model(planes, output_hidden_states=True).hidden_states
        norm = model.norm if hasattr(model, "norm") else model.layernorm
        tokens = norm(states[block]).numpy()
    rows, columns = (side // patch for side in image.shape[1:3])
    return tokens[:, -rows * columns :].reshape(len(image), rows, columns, WIDTH)


def drawn_image(height, width, count=2, seed=0):
    return np.random.default_rng(seed).standard_normal((count, height, width, 3), np.float32)
