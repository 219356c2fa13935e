"""Makes PASCAL-5i from its archives: python -m fsseg_jax.data.prepare pascal5i --root=data

The program is `fsseg_jax.prepare`; here it is for commands that name it so.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("fsseg_jax.prepare", run_name="__main__")
