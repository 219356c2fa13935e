"""Choosing devices, and computing row by row on several of them."""

import os
import platform
import signal
import socket
import subprocess
import sys
import time

import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest
from commands import run

from fsseg_jax.cpu.versions import CORRUPTING
from fsseg_jax.devices import check_divides, choose_platform, describe, make_mesh, map_over_devices
from fsseg_jax.errors import UserError


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: make_mesh(9), "devices = 9, but there are 8"),
        (
            lambda: check_divides(6, make_mesh(8)),
            "6 is not divisible by 8 devices: make it a multiple of",
        ),
        (
            lambda: check_divides(16, make_mesh(8), accumulate=4),
            r"16 in train\.accumulate = 4 parts .* multiple of 32",
        ),
        (lambda: choose_platform("gpus"), "platform = 'gpus': choose cpu, gpu, tpu"),
    ],
)
def test_what_there_is_not_is_told(call, sentence):
    with pytest.raises(UserError, match=sentence):
        call()


def test_mesh_takes_all_devices_by_default_and_says_what_they_are():
    mesh = make_mesh()
    assert mesh.size == 8
    assert describe(mesh).startswith("devices: 8 x cpu")
    check_divides(16, mesh)
    check_divides(32, mesh, accumulate=4)
    assert choose_platform("cpu") is None


def test_rows_are_computed_one_by_one_whatever_the_devices():
    def function(matrix, row):
        return {"product": matrix @ row, "sum": row.sum()}

    rng = np.random.default_rng(0)
    matrix, rows = rng.normal(size=(3, 5)), rng.normal(size=(16, 5))
    for devices in (1, 8):
        mapped = map_over_devices(function, make_mesh(devices), batched=1)
        result = mapped(jnp.asarray(matrix), jnp.asarray(rows))
        np.testing.assert_allclose(result["product"], rows @ matrix.T, rtol=1e-5)
        np.testing.assert_allclose(result["sum"], rows.sum(1), rtol=1e-5, atol=1e-6)


FAULTS = """
import resource
import numpy as np
from fsseg_jax.cpu.memory import keep_memory

def faults():
    # Of filling 64 MiB, which is more than glibc keeps by itself, and freeing them again.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**26, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for prepare in (lambda: None, keep_memory):
    prepare()
    faults()
    print(min(faults() for _ in range(3)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_kept_memory_is_used_again_without_faults():
    anew, kept = map(int, run(sys.executable, "-c", FAULTS).stdout.split())
    assert anew >= 16  # of pages of 4 MiB at most
    assert kept < anew / 4


# What is corrupted or crashes, and what is wrong, without care for the versions that do it; first
# of https://github.com/jax-ml/jax/issues/39257, then of .../39103.
SUMS = """
import os
flags = os.environ.get("XLA_FLAGS")
import fsseg_jax
import jax
import numpy as np

rng = np.random.default_rng(0)
few, many = (rng.random((3, 1, 2, 2, *[side] * 3), np.float32) for side in (1, 9))
result = jax.jit(lambda a, b: (a * b).sum(3))(few, many)
np.testing.assert_allclose(result, (few * many).sum(3), rtol=1e-5)
rows, matrix = rng.random((32769, 3), np.float32), np.eye(3, dtype=np.float32)
result = jax.jit(jax.vmap(lambda row: ((matrix @ row) ** 2).sum()))(rows)
np.testing.assert_allclose(result, (rows**2).sum(1), rtol=1e-5)
print(os.environ.get("XLA_FLAGS") == flags)
"""


@pytest.mark.smoke
def test_sums_are_right_in_every_version_and_sound_ones_get_no_flag(users_environment):
    result = run(sys.executable, "-c", SUMS, env=users_environment)
    assert result.stdout.split() == [str(jaxlib.__version__ not in CORRUPTING)]


@pytest.fixture
def one_of_two():
    """A function that gives the environment of one of two processes, by its number."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"

    def environment(number):
        variables = {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(number)}
        return os.environ | variables | {"JAX_COORDINATOR_ADDRESS": address}

    return environment


JOIN = "from fsseg_jax import command_line, devices; devices.CONNECTING_HERE = {}\n"
JOIN += "command_line.run(devices.join_processes)"


@pytest.mark.parametrize("number", [0, 1])
def test_a_process_whose_others_do_not_start_ends_with_one_sentence(number, one_of_two):
    """The first one, which the others connect to, and another one: JAX would abort both."""
    done = run(sys.executable, "-c", JOIN.format(1), status=2, env=one_of_two(number))
    waiting, told = done.stderr.splitlines()
    assert waiting == "waiting for the other processes, for up to 1 s"
    assert told.startswith("error: the other processes have not started within 1 s: ")


@pytest.mark.parametrize("number", [0, 1])
def test_ctrl_c_ends_a_process_that_waits_for_others(number, one_of_two):
    pipe = {"stderr": subprocess.PIPE, "text": True, "env": one_of_two(number)}
    # A background job of a shell would inherit that Ctrl-C is ignored.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen([sys.executable, "-c", JOIN.format(60)], **pipe)
    signal.signal(signal.SIGINT, inherited)
    assert process.stderr.readline().startswith("waiting for the other processes")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert told == "stopped by Ctrl-C\n"


def test_two_processes_of_number_0_are_told(one_of_two):
    environment = one_of_two(0)
    address = environment["JAX_COORDINATOR_ADDRESS"]
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
        done = run(sys.executable, "-c", JOIN.format(60), status=2, env=environment)
    assert f"error: JAX_COORDINATOR_ADDRESS = {address}: this process, number 0" in done.stderr
    assert "give each process its own JAX_PROCESS_ID" in done.stderr
