"""Attention head by head is that of all heads at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

from fsseg_jax.backbones import attention as module
from fsseg_jax.cpu.attention import by_heads


def softmax_attention(q, k, v, seen):
    """By its definition, in NumPy, for one head of one image."""
    weights = np.exp(q @ k.T / np.sqrt(q.shape[-1])) * seen
    return weights / weights.sum(axis=-1, keepdims=True) @ v


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("function", [by_heads, module.attention])
def test_attention_is_its_definition_for_each_head(function, masked):
    rng = np.random.default_rng(0)
    q, k, v = jnp.asarray(rng.normal(size=(3, 2, 5, 3, 4)), jnp.float32)
    seen = jnp.arange(5) != 1 if masked else None
    found = function(q, k, v, seen)
    shown = np.ones(5) if seen is None else seen
    for image in range(2):
        for head in range(3):
            each = (np.asarray(x)[image, :, head] for x in (q, k, v))
            assert_close(found[image, :, head], softmax_attention(*each, shown), 1e-5)


def test_large_logits_neither_overflow_nor_change_gradients():
    rng = np.random.default_rng(1)
    q, k, v = jnp.asarray(rng.normal(size=(3, 1, 6, 2, 4)), jnp.float32)
    q *= 300

    def total(function):
        return jax.grad(lambda *x: (function(*x, None) ** 2).sum(), argnums=(0, 1, 2))(q, k, v)

    for ours, theirs in zip(total(by_heads), total(module.attention), strict=True):
        assert np.isfinite(ours).all()
        assert_close(ours, theirs, 1e-4)


def test_many_tokens_are_taken_head_by_head_on_cpus(monkeypatch):
    taken = []

    def noted(q, k, v, seen):
        taken.append(q.shape[1])
        return v

    monkeypatch.setattr(module, "by_heads", noted)
    for tokens in (100, 2000):
        x = jax.ShapeDtypeStruct((1, tokens, 6, 8), np.float32)
        jax.eval_shape(module.attention, x, x, x)
    assert taken == [2000]
