"""Trains a model: python -m fsseg_jax.train --config=configs/panet_vgg16.py --workdir=runs/panet

The same command continues a run that was stopped. Exit status: 0 when training is complete, 143
after SIGTERM (with a checkpoint), 2 for wrong input.
"""

from fsseg_jax import command_line
from fsseg_jax.config import load_config, override
from fsseg_jax.errors import UserError
from fsseg_jax.training.loop import train


def main() -> int:
    """The program; returns its exit status."""
    arguments, overrides = command_line.parse(__doc__)
    if arguments.config is None:
        raise UserError("--config is missing: name a file, as in --config=configs/panet_vgg16.py.")
    config = override(load_config(arguments.config), overrides)
    command_line.start(config, stoppable=True)
    return 0 if train(config, arguments.workdir) else 143


if __name__ == "__main__":
    command_line.run(main)
