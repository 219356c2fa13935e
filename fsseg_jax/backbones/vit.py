"""Vision Transformers: DINOv2 (Oquab et al., TMLR 2024), its models with registers (Darcet et al.,
ICLR 2024), and DINOv3 (Siméoni et al., 2025).

Positions are known in one of two ways: DINOv2 adds an embedding that was learnt on a grid and is
interpolated, DINOv3 rotates queries and keys (RoPE).
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, DTypeLike, Float

from fsseg_jax.backbones.attention import attention
from fsseg_jax.backbones.extent import inside, masked, positions
from fsseg_jax.backbones.rematerialise import rematerialisable
from fsseg_jax.episode import AnyArray

# Queries and keys of DINOv3 turn by 2 pi x / 100^(4 k / head), k = 0, 1, ...
ROPE_BASE = 100.0
INIT = nn.initializers.truncated_normal(0.02)


class ViT(nn.Module):
    """Features of patches after some of the blocks, at the resolution of the patches.

    Every output passes through the final normalisation, also that of a block in the middle, as in
    Meta's `get_intermediate_layers`: the sum of residuals grows from block to block and has a few
    channels a hundred times as large as the others, on which alone a cosine would depend.

    Blocks after the requested ones are not computed and have no parameters.
    """

    width: int
    depth: int
    heads: int
    hidden: int  # channels inside a block's MLP
    patch: int = 14  # side in pixels
    gated: bool = False  # SwiGLU instead of GELU
    registers: int = 0  # tokens beside the class token that no patch belongs to
    grid: int = 37  # side of the learnt embedding of positions (518 px); 0 for RoPE
    # How that embedding is interpolated, as in Meta's published models: those with registers by
    # size, with antialiasing; the plain ones by a scale that is (size + 0.1) / grid, without.
    antialias: bool = False
    offset: float = 0.1
    epsilon: float = 1e-6  # of the normalisations
    dtype: DTypeLike = jnp.float32  # of the computation; parameters are float32
    rematerialise: bool = False  # each block; see `rematerialisable`

    @property
    def stage_numbers(self) -> tuple[int, ...]:
        """The numbers of the blocks."""
        return tuple(range(1, self.depth + 1))

    @nn.compact
    def __call__(
        self,
        image: Float[AnyArray, "*batch height width 3"],
        stages: tuple[int, ...] = (),
        train: bool = False,
    ) -> tuple[Float[Array, "*batch h w channel"], ...]:
        """Features of normalised RGB images after each of `stages`, blocks from 1 on, or after the
        last.

        A side of n pixels has ceil(n / patch) positions. If that is more than the image, it is
        padded with zeros, the mean colour, and the result cut to the image again.
        """
        stages = stages or (self.depth,)
        batch, shape = image.shape[:-3], inside(image)
        x = PatchEmbedding(self.width, self.patch, self.dtype, name="patch_embed")(image)
        rows, columns = x.shape[-3:-1]
        seen, rotation, own = positions(x), None, inside(x)
        cls_token = self.param("cls_token", INIT, (self.width,))  # with its position's embedding
        prefix = [cls_token[None]]
        if self.grid:
            learnt = self.param("positions", INIT, (self.grid, self.grid, self.width))
            x += interpolate(learnt, own, (rows, columns), self.antialias, self.offset)
        else:
            before = 1 + self.registers
            rotation = rotations(own, (rows, columns), self.width // self.heads, before)
        if self.registers:  # which have no position
            prefix.append(self.param("register_tokens", INIT, (self.registers, self.width)))
        tokens = jnp.concatenate(prefix)
        x = x.reshape(-1, rows * columns, self.width)
        x = jnp.concatenate([jnp.broadcast_to(tokens, (len(x), *tokens.shape)), x], axis=1)
        if seen is not None:  # nobody attends to what is not the image's
            seen = jnp.pad(seen.reshape(-1), (len(tokens), 0), constant_values=True)
        norm = normalisation(self, "norm")
        outputs = {}
        for number in range(1, max(stages) + 1):
            x = Block(
                self.heads,
                self.hidden,
                self.gated,
                self.epsilon,
                self.dtype,
                self.rematerialise,
                name=f"blocks_{number - 1}",
            )(x, rotation, seen)
            if number in stages:
                y = norm(x)[:, len(tokens) :].reshape(*batch, rows, columns, self.width)
                outputs[number] = cut(y, shape, own, self.patch)
        return tuple(outputs[stage] for stage in stages)


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel's size: a matrix product of the patches' pixels."""

    width: int
    patch: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, image: Float[AnyArray, "*batch height width 3"]
    ) -> Float[Array, "*batch h w channel"]:
        """One vector for each patch, in float32; images are padded to whole patches."""
        side = self.patch
        kernel = self.param("kernel", INIT, (side, side, 3, self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        rows, columns = (-(-n // side) for n in image.shape[-3:-1])
        x = masked(jnp.asarray(image, self.dtype)).reshape(-1, *image.shape[-3:])
        missing = (0, rows * side - x.shape[1]), (0, columns * side - x.shape[2])
        x = jnp.pad(x, ((0, 0), *missing, (0, 0)))
        x = x.reshape(-1, rows, side, columns, side, 3).swapaxes(2, 3)
        x = x.reshape(*image.shape[:-3], rows, columns, -1)
        x = x @ kernel.reshape(-1, self.width).astype(self.dtype)
        return x.astype(jnp.float32) + bias


class Block(nn.Module):
    """Attention and an MLP, each normalised before and scaled after (LayerScale).

    The sum of residuals is float32 whatever the dtype, as under Meta's mixed precision.
    """

    heads: int
    hidden: int
    gated: bool
    epsilon: float
    dtype: DTypeLike
    rematerialise: bool

    @rematerialisable
    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch token channel"],
        rotation: tuple[Float[AnyArray, "token head"], Float[AnyArray, "token head"]] | None,
        seen: Bool[Array, " token"] | None,
    ) -> Float[Array, "batch token channel"]:
        """One block.

        Args:
            x: the tokens.
            rotation: cosine and sine by token, if queries and keys are rotated.
            seen: tokens that are attended to; None for all.
        """
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=INIT)
        width, ones = x.shape[-1], nn.initializers.ones
        y = dense(3 * width, name="qkv")(normalisation(self, "norm1")(x))
        q, k, v = jnp.moveaxis(y.reshape(*y.shape[:-1], 3, self.heads, -1), -3, 0)
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        y = attention(q, k, v, seen).reshape(x.shape)
        x = x + self.param("ls1", ones, (width,)) * dense(width, name="proj")(y)

        y = normalisation(self, "norm2")(x)
        y = dense(2 * self.hidden if self.gated else self.hidden, name="fc1")(y)
        if self.gated:
            gate, y = jnp.split(y, 2, axis=-1)
            y = nn.silu(gate) * y
        else:
            y = y * ((1 + jax.lax.erf(y / math.sqrt(2))) / 2)  # JAX's by erfc takes longer on CPUs
        return x + self.param("ls2", ones, (width,)) * dense(width, name="fc2")(y)


def normalisation(module: ViT | Block, name: str) -> nn.LayerNorm:
    """Layer normalisation; the mean of squares minus the square of the mean would not be exact
    enough for the large channels."""
    return nn.LayerNorm(
        epsilon=module.epsilon, dtype=module.dtype, use_fast_variance=False, name=name
    )


# ----------------------------------------------------------------------------- positions


def rotations(
    shape: Any, size: tuple[int, int], head: int, before: int
) -> tuple[Float[AnyArray, "token head"], Float[AnyArray, "token head"]]:
    """Cosines and sines of DINOv3's RoPE for `before` tokens without a position, and patches.

    The angle of a quarter of a head's channels depends on the row, (i + 0.5) / height in [-1, 1],
    that of the second on the column; the other half has the same angles.

    Args:
        shape: height and width of the image in patches.
        size: those of the map, at least as large.
        head: channels of a head.
    """
    numpy = np if isinstance(shape, tuple) else jnp
    frequencies = 2 * math.pi / ROPE_BASE ** (np.arange(head // 4) * 4 / head)
    rows, columns = (
        (2 * (numpy.arange(n) + 0.5) / own - 1)[:, None] * frequencies
        for n, own in zip(size, shape, strict=True)
    )
    both = [
        numpy.broadcast_to(rows[:, None], (*size, head // 4)),
        numpy.broadcast_to(columns[None], (*size, head // 4)),
    ]
    angles = numpy.tile(numpy.concatenate(both, axis=-1).reshape(-1, head // 2), (1, 2))
    angles = numpy.pad(angles, ((before, 0), (0, 0)))  # those without a position do not turn
    return numpy.cos(angles).astype(np.float32), numpy.sin(angles).astype(np.float32)


def rotate(
    x: Float[Array, "batch token heads head"],
    cosine: Float[AnyArray, "token head"],
    sine: Float[AnyArray, "token head"],
) -> Float[Array, "batch token heads head"]:
    """Turns channel c and c + head / 2 by the angle of the token."""
    one, other = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([-other, one], axis=-1)
    return (x * cosine[:, None] + turned * sine[:, None]).astype(x.dtype)


def interpolate(
    learnt: Float[AnyArray, "grid grid channel"],
    shape: Any,
    size: tuple[int, int],
    antialias: bool,
    offset: float,
) -> Float[AnyArray, "h w channel"]:
    """Embeddings of positions for an image of another shape than the grid's, see `ViT`.

    Args:
        learnt: embeddings on the grid.
        shape: height and width of the image in patches.
        size: those of the result, at least as large.
    """
    grid = learnt.shape[0]
    numpy = np if isinstance(shape, tuple) else jnp
    if isinstance(shape, tuple) and shape == (grid, grid):
        return learnt
    rows, columns = (
        cubic_matrix(grid, own, n, antialias, offset) for n, own in zip(size, shape, strict=True)
    )
    if numpy is jnp:  # the grid's own shape is not interpolated: the offset would move it
        same = (shape[0] == grid) & (shape[1] == grid)
        rows, columns = (
            jnp.where(same, jnp.eye(x.shape[0], x.shape[1]), x) for x in (rows, columns)
        )
    precision = jax.lax.Precision.HIGHEST
    return jnp.einsum("hr,rsc,ws->hwc", rows, learnt, columns, precision=precision)


def cubic_matrix(
    n_in: int, n_out: Any, count: int, antialias: bool, offset: float = 0.0
) -> Float[AnyArray, "count n_in"]:
    """The matrix of bicubic interpolation along one axis, as PyTorch's `F.interpolate` has it
    without aligned corners; its rows sum to 1.

    Without antialiasing the cubic's parameter is -0.75 and values outside are those of the border;
    with it, the parameter is -0.5, as in PIL, and values outside do not count.

    Args:
        n_in: length before.
        n_out: length after, an integer or an array of one.
        count: rows of the matrix; those from `n_out` on have no meaning.
        antialias: whether the cubic is as wide as an output where that is wider than an input.
        offset: added to `n_out` for the scale.
    """
    numpy = np if isinstance(n_out, int) else jnp
    scale = n_in / (n_out + offset)
    centre = ((numpy.arange(count) + 0.5) * scale - 0.5)[:, None]
    if antialias:
        weights = _cubic((np.arange(n_in) - centre) / numpy.maximum(scale, 1), -0.5, numpy)
        total = weights.sum(axis=1, keepdims=True)
        matrix = weights / numpy.where(total == 0, 1, total)  # 0 beyond the image, if at all
    else:
        taps = _cubic(np.arange(-2, n_in + 2) - centre, -0.75, numpy)
        left, right = taps[:, :3].sum(1), taps[:, -3:].sum(1)
        matrix = numpy.concatenate([left[:, None], taps[:, 3:-3], right[:, None]], axis=1)
    return matrix.astype(np.float32)


def _cubic(x: Any, a: float, numpy: Any) -> Any:
    """Keys's cubic of parameter a."""
    x = abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return numpy.where(x <= 1, near, numpy.where(x < 2, far, 0.0))


def cut(
    x: Float[Array, "*batch h w channel"], pixels: Any, shape: Any, patch: int
) -> Float[Array, "*batch h w channel"]:
    """The part of a map of patches that is the image's, as a map of the same size.

    Patches that reach beyond the image would be taken for smaller ones by whoever resizes the map
    to the image. It is resized here, bilinearly, so that positions are spread over the image.

    Args:
        pixels: height and width of the image.
        shape: those in patches.
    """
    numpy = np if isinstance(pixels, tuple) else jnp

    def matrix(count: int, length: Any, own: Any) -> Float[AnyArray, "count count"]:
        centre = (numpy.arange(count) + 0.5) * (length / (own * patch)) - 0.5
        centre = numpy.clip(centre, 0, None)[:, None]
        return numpy.maximum(1 - abs(np.arange(count) - centre), 0.0).astype(np.float32)

    if isinstance(pixels, tuple) and not any(n % patch for n in pixels):
        return x
    rows, columns = (
        matrix(*lengths) for lengths in zip(x.shape[-3:-1], pixels, shape, strict=True)
    )
    precision = jax.lax.Precision.HIGHEST
    resized = jnp.einsum("Hh,...hwc,Ww->...HWc", rows, x, columns, precision=precision)
    return resized.astype(x.dtype)


# ----------------------------------------------------------------------------- the published ones

# Width, depth, heads and hidden channels by size. Those of a gated MLP are two thirds of what the
# factor of the others (4, or 6 of DINOv3's "plus") gives.
_SIZES = {
    "s": {"width": 384, "depth": 12, "heads": 6, "hidden": 1536},
    "s_plus": {"width": 384, "depth": 12, "heads": 6, "hidden": 1536, "gated": True},
    "b": {"width": 768, "depth": 12, "heads": 12, "hidden": 3072},
    "l": {"width": 1024, "depth": 24, "heads": 16, "hidden": 4096},
    "h_plus": {"width": 1280, "depth": 32, "heads": 20, "hidden": 5120, "gated": True},
    "g": {"width": 1536, "depth": 40, "heads": 24, "hidden": 4096, "gated": True},
}
_DINOV2_REG = {"registers": 4, "antialias": True, "offset": 0.0}
_DINOV3 = {"patch": 16, "registers": 4, "grid": 0, "epsilon": 1e-5}

VITS = {
    **{f"dinov2_{size}": functools.partial(ViT, **_SIZES[size]) for size in "sblg"},
    **{
        f"dinov2_{size}_reg": functools.partial(ViT, **_SIZES[size], **_DINOV2_REG)
        for size in "sblg"
    },
    **{
        f"dinov3_{size}": functools.partial(ViT, **_SIZES[size], **_DINOV3)
        for size in ("s", "s_plus", "b", "l", "h_plus")
    },
}
