"""Trains a model: python -m fsseg_jax.train --config=configs/panet_vgg16.py --workdir=runs/panet

The same command continues a run that was stopped. Exit status: 0 when training is complete, 143
after SIGTERM (with a checkpoint), 2 for wrong input.
"""

import contextlib

from fsseg_jax import command_line
from fsseg_jax.config import load_config, override
from fsseg_jax.devices import is_first_process
from fsseg_jax.errors import UserError
from fsseg_jax.files import lock
from fsseg_jax.training.loop import train


def main() -> int:
    """The program; returns its exit status."""
    arguments, overrides = command_line.parse(__doc__)
    if arguments.config is None:
        raise UserError("--config is missing: name a file, as in --config=configs/panet_vgg16.py.")
    config = override(load_config(arguments.config), overrides)
    command_line.start(config, stoppable=True)
    with contextlib.ExitStack() as stack:
        if is_first_process():
            arguments.workdir.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((arguments.workdir / ".lock").open("w"))
            lock(file.fileno(), arguments.workdir, option="--workdir")
        return 0 if train(config, arguments.workdir) else 143


if __name__ == "__main__":
    command_line.run(main)
