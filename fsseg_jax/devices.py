"""Devices, processes, and the mesh over which batches are split."""

import functools
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import platformdirs
from jax.experimental import multihost_utils
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from ml_collections import ConfigDict

from fsseg_jax import interrupts
from fsseg_jax.cpu.memory import keep_memory
from fsseg_jax.errors import UserError

AXIS = "data"
# Seconds without a heartbeat after which a process counts as dead and the others end.
HEARTBEAT = 30
# Seconds to wait for the other processes: nodes start minutes apart, processes on one machine do
# not.
CONNECTING, CONNECTING_HERE = 300, 50
COMPILED = 4 * 2**30  # bytes of compiled programs to keep; the oldest are deleted first

logger = logging.getLogger(__name__)


def start(config: ConfigDict) -> None:
    """Initialises JAX as `config` says; call before any other use of JAX.

    Raises:
        UserError: the platform or the other processes are not available.
    """
    prepare(config)
    if config.distributed:
        # It would take SIGTERM for itself; see `training.stop`.
        jax.config.update("jax_enable_preemption_service", False)
        join_processes()
    choose_platform(config.platform)


def prepare(config: ConfigDict) -> None:
    """Keeps compiled programs for the next process, and memory for the next call, if `config` says
    so and nobody has chosen another folder; may be called again."""
    if config.compilation_cache and not jax.config.values["jax_compilation_cache_dir"]:
        folder = platformdirs.user_cache_path("fsseg_jax") / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", COMPILED)
        compilation_cache.reset_cache()  # JAX may have compiled something without it already
    if config.platform in ("", "cpu"):
        keep_memory()


def join_processes() -> None:
    """Connects to the other processes that run the same command.

    JAX_NUM_PROCESSES, JAX_PROCESS_ID and JAX_COORDINATOR_ADDRESS configure them; without these
    variables JAX asks SLURM, Cloud TPU, Open MPI or Kubernetes.

    Raises:
        UserError: the processes are not configured, or fail to connect.
    """
    numbers = [os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
    address = os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    host = address.rpartition(":")[0]
    seconds = CONNECTING_HERE if host in ("localhost", "127.0.0.1", "[::1]") else CONNECTING
    giving_up = threading.Timer(seconds, _give_up, [seconds])
    giving_up.daemon = True
    if numbers[1] == "0":
        _check_free(address)
    try:
        interrupts.at_once = True
        count, number = (None if text is None else int(text) for text in numbers)
        logger.info("waiting for the other processes, for up to %d s", seconds)
        giving_up.start()
        jax.distributed.initialize(
            num_processes=count,
            process_id=number,
            initialization_timeout=2 * seconds,  # then JAX would abort this process
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except (ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0].rstrip(".")
        raise UserError(
            f"distributed = True, but the processes do not connect ({reason}): start them with "
            "launch/local.py, on SLURM or on Cloud TPU (launch/README.md)."
        ) from None
    finally:
        giving_up.cancel()
        interrupts.at_once = False


def _check_free(address: str) -> None:
    """Raises UserError if another process has the place where others are to find this one; JAX
    would abort."""
    port = address.rpartition(":")[2]
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        return  # JAX says so
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # only those that listen count
        try:
            place.bind(("", int(port)))
        except OSError as error:
            raise UserError(
                f"JAX_COORDINATOR_ADDRESS = {address}: this process, number 0, cannot wait for the "
                f"others there ({error.strerror}): choose another port, and give each process its "
                "own JAX_PROCESS_ID."
            ) from None


def _give_up(seconds: int) -> None:
    """Ends this process, whose main thread waits in compiled code."""
    print(
        f"error: the other processes have not started within {seconds} s: see what they say, and "
        "that all have the same JAX_NUM_PROCESSES and JAX_COORDINATOR_ADDRESS.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def is_first_process() -> bool:
    """Whether this is the process that writes files and messages."""
    return jax.process_index() == 0


def choose_platform(platform: str) -> None:
    """Makes JAX use only `config.platform`; call before any other use of JAX.

    Raises:
        UserError: the platform is unknown or not available.
    """
    names = {"": "", "cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}
    if platform not in names:
        raise UserError(f"platform = {platform!r}: choose cpu, gpu, tpu, or leave it empty.")
    if platform:
        jax.config.update("jax_platforms", names[platform])
    try:
        found = jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that it has a plugin
        wanted = f"platform = {platform}" if platform else "the platform in JAX_PLATFORMS"
        reason = (str(error).splitlines() or ["JAX finds none"])[0].rstrip(".")
        raise UserError(
            f"{wanted} is not available on this machine ({reason}): install JAX for it (such as "
            "pip install 'fsseg_jax[cuda12]'), or choose another one."
        ) from None
    if platform and found != platform:
        raise UserError(f"platform = {platform}, but JAX was already started on {found}.")


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Compares facts by name between all processes, which have to reach this place.

    Raises:
        UserError: a process has other facts than the first one.
    """
    if jax.process_count() == 1:
        return
    own = json.dumps({name: str(value) for name, value in facts.items()}).encode()
    lengths = multihost_utils.process_allgather(np.array([len(own)]))[:, 0]
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(own)] = np.frombuffer(own, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    first, *others = (json.loads(bytes(row[:n])) for row, n in zip(rows, lengths, strict=True))
    for number, other in enumerate(others, 1):
        names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if names:
            name, more = names[0], f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UserError(
                f"process {number} has {name} = {other.get(name)}, but process 0 has "
                f"{first.get(name)}{more}: start all processes with the same command, code and "
                "data."
            )


def make_mesh(devices: int = 0, local: bool = False) -> Mesh:
    """A mesh with one axis over the first `devices` devices of all processes, or of this one if
    `local`; 0 for all.

    Raises:
        UserError: there are fewer devices, or several processes would not use all of theirs.

    Examples:
        >>> mesh = make_mesh(devices=1)
        >>> mesh.size, mesh.axis_names == (AXIS,)
        (1, True)
    """
    available = jax.local_devices() if local else jax.devices()
    if devices and jax.process_count() > 1 and not local and devices != len(available):
        raise UserError(
            f"devices = {devices}: {jax.process_count()} processes use all of their "
            f"{len(available)} devices; leave it at 0."
        )
    if devices > len(available):
        raise UserError(
            f"devices = {devices}, but there are {len(available)}: lower it, or set 0 for all."
        )
    return Mesh(np.array(available[: devices or None]), (AXIS,))


def check_divides(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises UserError unless the devices of the mesh divide each part of a training batch."""
    if batch_size % (mesh.size * accumulate):
        parts = f" in train.accumulate = {accumulate} parts" if accumulate > 1 else ""
        raise UserError(
            f"train.batch_size = {batch_size}{parts} is not divisible by {mesh.size} devices: "
            f"make it a multiple of {mesh.size * accumulate}, or use fewer (--config.devices)."
        )


def describe(mesh: Mesh) -> str:
    """One line about the devices that a run uses."""
    devices = mesh.devices.ravel()
    kinds = sorted({f"{device.platform} ({device.device_kind})" for device in devices})
    processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"devices: {len(devices)} x {', '.join(kinds)}{processes}; jax {jax.__version__}"


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """One axis of an array split over the devices, the leading one by default."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def put(tree: Any, sharding: Sharding) -> Any:
    """Puts arrays, which are the same in all processes, on the devices of a sharding."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def place(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(place, tree)


def put_batches(batches: Sequence[Any], mesh: Mesh) -> Any:
    """Stacks batches and puts them on the mesh; each process passes its own slice of each."""
    place = functools.partial(jax.make_array_from_process_local_data, split(mesh, axis=1))
    return jax.tree.map(lambda *arrays: place(np.stack(arrays)), *batches)


def map_over_devices(
    function: Callable[..., Any],
    mesh: Mesh,
    batched: int,
    together: int = 1,
    gathered: bool = True,
) -> Callable[..., Any]:
    """Maps `function` over the rows of its last `batched` arguments, split over the mesh.

    The other arguments are replicated, and so is the result if it is `gathered`; otherwise it stays
    split, which saves the devices to exchange what only the host wants. Each device computes rows
    one by one, or `together` at a time, which is faster on accelerators; only one by one is a
    result independent of the other rows to the last digit.
    """

    def per_device(*arguments: Any) -> Any:
        shared, rows = arguments[:-batched], arguments[-batched:]
        size = together if together > 1 else None
        return jax.lax.map(lambda row: function(*shared, *row), rows, batch_size=size)

    def call(*arguments: Any) -> Any:
        shared = len(arguments) - batched
        return jax.shard_map(
            per_device,
            mesh=mesh,
            in_specs=(PartitionSpec(),) * shared + (PartitionSpec(AXIS),) * batched,
            out_specs=PartitionSpec(AXIS),
            check_vma=False,
        )(*arguments)

    return jax.jit(call, out_shardings=replicated(mesh) if gathered else split(mesh))
