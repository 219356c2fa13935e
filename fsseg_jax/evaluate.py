"""Evaluates a run on its held-out classes: python -m fsseg_jax.evaluate --workdir=runs/panet

With --config=FILE and a folder without checkpoints, the freshly initialised model is evaluated.
Writes results.json, episodes.csv and report.html into the folder `evaluation` of the run.
"""

import logging

from fsseg_jax import command_line
from fsseg_jax.config import default_config, load_config, override
from fsseg_jax.data import open_source
from fsseg_jax.devices import choose_platform, describe, make_mesh
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.evaluator import evaluate, summary
from fsseg_jax.models import choose_stages, create_model
from fsseg_jax.training.checkpoints import BEST, LAST, Checkpoints, load_variables

logger = logging.getLogger(__name__)


def main() -> None:
    """The program."""
    path, workdir, overrides = command_line.parse(__doc__)
    # A run may be evaluated on another machine than it was trained on: what to compute on is not
    # taken from a checkpoint. It must also be known before one is opened.
    machine = tuple(f"--config.{field}" for field in ("platform", "devices"))
    if path is None:
        own = [argument for argument in overrides if argument.startswith(machine)]
        config = override(default_config(), own)
    else:
        config = override(load_config(path), overrides)
    choose_platform(config.platform)
    mesh = make_mesh(config.devices)
    logger.info(describe(mesh))
    checkpoints = Checkpoints(workdir)
    which = next((w for w in (LAST, BEST) if checkpoints.step(w) is not None), None)
    if path is None:
        if which is None:
            raise UserError(
                f"--workdir = {workdir} holds no checkpoint: train there first, or give --config "
                "to evaluate a freshly initialised model."
            )
        config = override(checkpoints.describe(which)[0], overrides)
    elif which is None:
        choose_stages(config)
    else:
        saved, _ = checkpoints.describe(which)
        config.model.stages = config.model.stages or saved.model.stages
    source = open_source(config.data, "test")
    model = create_model(config)
    loaded = load_variables(config, model, workdir, mesh)
    logger.info("evaluating %s: %s", config.method, loaded.words)
    folder = workdir / "evaluation"
    results = evaluate(config, model, loaded, source, mesh, folder)
    for name, value in results["per_class"].items():
        print(f"{name:>16} {'-' if value is None else format(value, '5.1f')}")
    print(summary(results))
    print(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    command_line.run(main)
