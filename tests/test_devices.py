"""Choosing devices, and computing row by row on several of them."""

import jax.numpy as jnp
import numpy as np
import pytest

from fsseg_jax.devices import choose_platform, describe, make_mesh, map_over_devices
from fsseg_jax.errors import UserError


@pytest.mark.parametrize(
    ("batch_size", "devices", "message"),
    [
        (6, 8, "train.batch_size = 6 does not divide into 8 devices: make it a multiple of 8"),
        (8, 9, "devices = 9, but there are 8"),
    ],
)
def test_mesh_that_cannot_be_is_told(batch_size, devices, message):
    with pytest.raises(UserError, match=message):
        make_mesh(batch_size, devices)


def test_mesh_takes_all_devices_by_default_and_says_what_they_are():
    mesh = make_mesh(16)
    assert mesh.size == 8
    assert describe(mesh).startswith("devices: 8 x cpu")


def test_unknown_and_absent_platforms_are_errors():
    with pytest.raises(UserError, match="platform = 'gpus': choose cpu, gpu, tpu"):
        choose_platform("gpus")
    assert choose_platform("cpu") is None


def test_rows_are_computed_one_by_one_whatever_the_devices():
    def function(matrix, row):
        return {"product": matrix @ row, "sum": row.sum()}

    rng = np.random.default_rng(0)
    matrix, rows = rng.normal(size=(3, 5)), rng.normal(size=(16, 5))
    for devices in (1, 8):
        mapped = map_over_devices(function, make_mesh(16, devices), batched=1)
        result = mapped(jnp.asarray(matrix), jnp.asarray(rows))
        np.testing.assert_allclose(result["product"], rows @ matrix.T, rtol=1e-5)
        np.testing.assert_allclose(result["sum"], rows.sum(1), rtol=1e-5, atol=1e-6)
