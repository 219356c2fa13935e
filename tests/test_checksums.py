"""Checksums change with every bit, and arrays that are not finite are refused without any."""

import jax.numpy as jnp
import numpy as np
import pytest

from fsseg_jax.checksums import checksums, verify
from fsseg_jax.errors import UserError


def tree():
    rng = np.random.default_rng(0)
    return {
        "params": {"kernel": rng.standard_normal((3, 5), np.float32), "bias": np.zeros(2)},
        "half": [jnp.asarray(rng.standard_normal(7), jnp.bfloat16)],
        "step": jnp.asarray(3, jnp.int32),
    }


def names_of_damage(known):
    with pytest.raises(UserError) as raised:
        verify(known[0], known[1], "place", "mend it")
    return str(raised.value)


def test_what_was_saved_is_what_was_saved():
    known = checksums(tree())
    assert known.keys() == {"params/kernel", "params/bias", "half/0", "step"}
    assert verify(tree(), known, "place", "mend it") is None
    assert verify(tree(), None, "place", "mend it") is None


def test_any_flipped_bit_is_found_and_named():
    known = checksums(tree())
    rng = np.random.default_rng(1)
    for _ in range(200):
        damaged = tree()
        array = np.array(damaged["params"]["kernel"])
        seen = array.view(np.uint8).reshape(-1)
        seen[rng.integers(seen.size)] ^= np.uint8(1 << rng.integers(8))
        damaged["params"]["kernel"] = array
        told = names_of_damage((damaged, known))
        assert told.startswith("place is damaged")
        assert "the checksum of params/kernel is not the saved one" in told
        assert told.endswith("mend it.")


def test_another_dtype_order_or_step_is_found():
    known = checksums(tree())
    for name, change in [
        ("params/bias", {"params": {**tree()["params"], "bias": np.zeros(2, np.float32)}}),
        ("params/kernel", {"params": {**tree()["params"], "kernel": tree()["params"]["kernel"].T}}),
        ("step", {"step": jnp.asarray(4, jnp.int32)}),
    ]:
        assert f"checksum of {name} " in names_of_damage(({**tree(), **change}, known))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_weights_are_finite(value, dtype):
    broken = {"a": jnp.ones(3), "b": jnp.asarray([1.0, value], dtype), "rows": np.full(3, 255)}
    assert "b is not finite" in names_of_damage((broken, None))
    assert "b is not finite" in names_of_damage((broken, checksums(broken)))
