"""The machine that programs run on, and how its devices are distributed among them."""

import json
import os
import pathlib
import sys
from typing import NamedTuple

from fsseg_jax.errors import UserError
from fsseg_jax.reproduction.processes import Children, Failure

SURVEY = """
import json, sys, jax, psutil
from fsseg_jax.devices import choose_platform
choose_platform(sys.argv[1])
device, *others = jax.devices()
memory = (device.memory_stats() or {}).get("bytes_limit") or psutil.virtual_memory().total
print(json.dumps([device.platform, device.device_kind, 1 + len(others), memory]))
"""


class Machine(NamedTuple):
    """The platform, devices and memory that programs run on."""

    platform: str  # cpu, gpu or tpu
    kind: str
    count: int  # of devices
    memory: int  # bytes of one device

    @property
    def words(self) -> str:
        """Such as "8 x gpu (NVIDIA H100)"."""
        return f"{self.count} x {self.platform} ({self.kind})"


def survey(children: Children, log: pathlib.Path, platform: str = "") -> Machine:
    """Describes the machine, from a child process, because JAX reserves the accelerator's memory in
    the process that asks.

    Raises:
        UserError: the platform is not available.
    """
    log.unlink(missing_ok=True)
    try:
        children.run([sys.executable, "-c", SURVEY, platform], log, echo=False)
    except Failure as failure:
        raise UserError(str(failure).rpartition("UserError: ")[2]) from None
    lines = [line for line in log.read_text().splitlines() if line.startswith("[")]
    return Machine(*json.loads(lines[-1]))


def share(
    machine: Machine, at_once: int | None, devices: int = 0
) -> tuple[list[dict[str, str]], Machine]:
    """Distributes a machine among simultaneous programs.

    Each program gets its own GPUs, one by default. On other platforms, every program uses all
    devices.

    Args:
        at_once: number of simultaneous programs; None for as many as there are GPUs for.
        devices: number of devices of each program; 0 for one, or for an equal share of them if
            `at_once` is given.

    Returns:
        environment variables for each program, and the part of the machine that it has.

    Raises:
        UserError: there are fewer devices.
    """
    if machine.platform != "gpu":
        count = at_once or 1
        return [{}] * count, machine._replace(memory=machine.memory // count)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(n) for n in range(machine.count)]
    if devices > len(names):
        raise UserError(f"devices = {devices}: there are {len(names)}; choose at most as many.")
    count = at_once or max(1, len(names) // max(1, devices))
    each = max(1, devices or len(names) // count)
    dealt = [[names[(n * each + i) % len(names)] for i in range(each)] for n in range(count)]
    sharers = -(-count * each // len(names))  # programs that have the same GPU
    # JAX takes three quarters of a GPU's memory for itself.
    memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / sharers:.2f}"} if sharers > 1 else {}
    slots = [{"CUDA_VISIBLE_DEVICES": ",".join(own), **memory} for own in dealt]
    return slots, machine._replace(count=each, memory=machine.memory // sharers)
