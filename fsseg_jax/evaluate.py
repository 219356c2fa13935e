"""Evaluates a run on its held-out classes: python -m fsseg_jax.evaluate --workdir=runs/panet

With --config=FILE and a folder without checkpoints, the freshly initialised model is evaluated.
Writes results.json, episodes.csv and report.html into the folder `evaluation` of the run.
"""

import logging

from fsseg_jax import command_line
from fsseg_jax.config import expand, from_saved, load_config, override
from fsseg_jax.data import open_source
from fsseg_jax.devices import choose_platform, describe, make_mesh
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.evaluator import evaluate, summary
from fsseg_jax.models import create_model
from fsseg_jax.training.checkpoints import LAST, Checkpoints
from fsseg_jax.training.loop import load_variables

logger = logging.getLogger(__name__)


def main() -> None:
    """The program."""
    path, workdir, overrides = command_line.parse(__doc__)
    workdir = expand(workdir)
    checkpoints = Checkpoints(workdir)
    if path is not None:
        config = load_config(path)
    elif checkpoints.step(LAST) is not None:
        config = from_saved(checkpoints.describe(LAST)[0])
    else:
        raise UserError(
            f"--workdir = {workdir} holds no checkpoint: train there first, or give --config to "
            "evaluate a freshly initialised model."
        )
    config = override(config, overrides)
    choose_platform(config.platform)
    # Any number of devices can share the episodes of an evaluation.
    mesh = make_mesh(batch_size=0, devices=config.devices)
    logger.info(describe(mesh))
    source = open_source(config.data, config.data.split)
    model = create_model(config)
    variables, words = load_variables(config, model, workdir, mesh)
    logger.info("evaluating %s: %s", config.method, words)
    folder = workdir / "evaluation"
    results = evaluate(config, model, variables, source, mesh, folder, words)
    for name, value in results["per_class"].items():
        print(f"{name:>16} {'-' if value is None else format(value, '5.1f')}")
    print(summary(results))
    print(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    command_line.run(main)
