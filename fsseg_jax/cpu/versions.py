"""Faults of some versions of XLA on CPUs, and how they are avoided."""

import os

import jaxlib.version

# See `avoid_corruption`. Tried: 0.10.0, 0.10.1, 0.11.1, 0.11.2, 0.12.0 and 0.12.0.1 are sound.
CORRUPTING = ("0.10.2", "0.11.0")
# XLA took the barriers that keep a rematerialised block apart out first, merged equal computations
# next, and nothing was gained (jaxlib 0.10.0 to 0.11.0; not so in 0.11.1 to 0.12.0.1). Functions
# compiled with these options keep them.
REMATERIALISING = (
    {"xla_disable_hlo_passes": "cse_barrier_expander"}
    if jaxlib.version.__version_info__ < (0, 11, 1)
    else {}
)


def avoid_corruption() -> None:
    """Keeps some versions of jaxlib from corrupting memory on CPUs; call before JAX has a backend.

    Where they fuse a sum with what has seven axes or more (`vmap` of `vmap` comes to that), they
    write beyond arrays or crash (https://github.com/jax-ml/jax/issues/39257); and 0.10.2 computes
    some long sums wrongly (https://github.com/jax-ml/jax/issues/39103). Products and convolutions,
    which take the time, stay with the library that these versions hand them to.
    """
    name, flags = "--xla_cpu_experimental_ynn_fusion_type", os.environ.get("XLA_FLAGS", "")
    if jaxlib.version.__version__ in CORRUPTING and name not in flags:
        fused = f"{name}=individual_dot,individual_convolution"
        os.environ["XLA_FLAGS"] = f"{flags} {fused}".strip()
