"""Bugs of some versions of XLA on CPUs, and their workarounds."""

import os

import jaxlib.version

# See `avoid_corruption`. Versions 0.10.0, 0.10.1, 0.11.1, 0.11.2, 0.12.0 and 0.12.0.1 were tested
# and are not affected.
CORRUPTING = ("0.10.2", "0.11.0")
# In jaxlib 0.10.0 to 0.11.0 (but not in 0.11.1 to 0.12.0.1), XLA removes the barriers around a
# rematerialised block before it merges equal computations, which undoes rematerialisation.
# Functions compiled with these options keep the barriers.
REMATERIALISING = (
    {"xla_disable_hlo_passes": "cse_barrier_expander"}
    if jaxlib.version.__version_info__ < (0, 11, 1)
    else {}
)


def avoid_corruption() -> None:
    """Keeps some versions of jaxlib from corrupting memory on CPUs; call before JAX has a backend.

    Where they fuse a sum with an array of seven or more axes (as `vmap` of `vmap` makes), they
    write out of bounds or crash (https://github.com/jax-ml/jax/issues/39257); and 0.10.2 computes
    some long sums wrongly (https://github.com/jax-ml/jax/issues/39103). Products and convolutions,
    which take most of the time, still use the library that these versions delegate to.
    """
    name, flags = "--xla_cpu_experimental_ynn_fusion_type", os.environ.get("XLA_FLAGS", "")
    if jaxlib.version.__version__ in CORRUPTING and name not in flags:
        fused = f"{name}=individual_dot,individual_convolution"
        os.environ["XLA_FLAGS"] = f"{flags} {fused}".strip()
