"""Devices, and the mesh over which batches are split."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fsseg_jax.errors import UserError

AXIS = "data"


def choose_platform(platform: str) -> None:
    """Makes JAX run on `config.platform` and nothing else; call before anything else of JAX.

    Raises:
        UserError: the platform is unknown, or the machine has none of it.
    """
    names = {"": "", "cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}
    if platform not in names:
        raise UserError(f"platform = {platform!r}: choose cpu, gpu, tpu, or leave it empty.")
    if platform:
        jax.config.update("jax_platforms", names[platform])
    try:
        found = jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # JAX asserts where it has no plugin
        wanted = f"platform = {platform}" if platform else "the platform in JAX_PLATFORMS"
        reason = (str(error).splitlines() or ["JAX finds none"])[0].rstrip(".")
        raise UserError(
            f"{wanted} is not available on this machine ({reason}): install JAX for it (as "
            "pip install 'fsseg_jax[cuda12]' does), or ask for another one."
        ) from None
    if platform and found != platform:
        raise UserError(f"platform = {platform}, but JAX was already started on {found}.")


def make_mesh(devices: int = 0) -> Mesh:
    """A mesh of one axis over the first `devices` devices of all processes, 0 for all.

    Raises:
        UserError: there are fewer devices.
    """
    available = jax.devices()
    if devices > len(available):
        raise UserError(
            f"devices = {devices}, but there are {len(available)}: lower it, or 0 for all."
        )
    return Mesh(np.array(available[: devices or None]), (AXIS,))


def check_divides(batch_size: int, mesh: Mesh) -> None:
    """Raises UserError unless a training batch divides into the devices of the mesh."""
    if batch_size % mesh.size:
        raise UserError(
            f"train.batch_size = {batch_size} does not divide into {mesh.size} devices: make it "
            f"a multiple of {mesh.size}, or use fewer (--config.devices)."
        )


def describe(mesh: Mesh) -> str:
    """One line that says what a run computes on."""
    devices = mesh.devices.ravel()
    kinds = sorted({f"{device.platform} ({device.device_kind})" for device in devices})
    processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"devices: {len(devices)} x {', '.join(kinds)}{processes}; jax {jax.__version__}"


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """One axis of an array over the devices, the leading one by default."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def put_batches(batches: Sequence[Any], mesh: Mesh) -> Any:
    """Puts batches on the mesh, stacked; each process gives its own slice of each of them."""
    place = functools.partial(jax.make_array_from_process_local_data, split(mesh, axis=1))
    return jax.tree.map(lambda *arrays: place(np.stack(arrays)), *batches)


def map_over_devices(function: Callable[..., Any], mesh: Mesh, batched: int) -> Callable[..., Any]:
    """`function` of each row of its last `batched` arguments, the rows split over the mesh.

    The other arguments are replicated. Rows are computed one by one on each device, so that no
    result depends on which rows are computed together.
    """

    def per_device(*arguments: Any) -> Any:
        shared, rows = arguments[:-batched], arguments[-batched:]
        return jax.lax.map(lambda row: function(*shared, *row), rows)

    def call(*arguments: Any) -> Any:
        shared = len(arguments) - batched
        return jax.shard_map(
            per_device,
            mesh=mesh,
            in_specs=(PartitionSpec(),) * shared + (PartitionSpec(AXIS),) * batched,
            out_specs=PartitionSpec(AXIS),
            check_vma=False,
        )(*arguments)

    return jax.jit(call)
