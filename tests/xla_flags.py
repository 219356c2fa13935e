"""How tests compile, set before anything imports JAX."""

import os
import pathlib
import subprocess
import sys


def known_flags(flags: str) -> str:
    """Those of XLA's flags that the installed version knows: with others it ends the process."""
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    environment = os.environ | {"XLA_FLAGS": flags}
    tried = subprocess.run(command, env=environment, capture_output=True, text=True)
    return " ".join(flag for flag in flags.split() if flag not in tried.stderr)


# Before anything imports JAX: tests of sharding need several devices, and what is compiled for a
# few small steps is not worth optimising; without XLA's newer way of emitting fusions it takes a
# quarter of the time (from jaxlib 0.11.1 on there is no other way).
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "XLA_FLAGS" not in os.environ:  # pytest-xdist's processes have it from the first one
    os.environ["XLA_FLAGS"] = known_flags(
        "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
# Programs that tests start keep all that they compile, for those that are started later.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# And they find the backbone of `tiny`.
_folder = str(pathlib.Path(__file__).parent)
_path = os.environ.get("PYTHONPATH", "")
if _folder not in _path.split(os.pathsep):
    os.environ["PYTHONPATH"] = os.pathsep.join([_folder, _path]).rstrip(os.pathsep)
