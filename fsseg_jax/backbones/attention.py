"""Attention of tokens."""

import jax
from jaxtyping import Array, Bool, Float

from fsseg_jax.cpu.attention import by_heads, suits_heads


def attention(
    q: Float[Array, "batch token heads head"],
    k: Float[Array, "batch token heads head"],
    v: Float[Array, "batch token heads head"],
    seen: Bool[Array, " token"] | None = None,
) -> Float[Array, "batch token heads head"]:
    """Softmax of the products of queries and keys, divided by the root of their length, as weights
    of the values. `seen` are the tokens that are attended to; None for all."""
    if jax.default_backend() == "cpu" and suits_heads(q):
        return by_heads(q, k, v, seen)
    mask = None if seen is None else seen[None, None, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask)
