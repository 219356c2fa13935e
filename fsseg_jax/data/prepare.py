"""Makes PASCAL-5i from its archives: python -m fsseg_jax.data.prepare pascal5i --root=data

An alias of the program `fsseg_jax.prepare`, for commands that use this name.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("fsseg_jax.prepare", run_name="__main__")
