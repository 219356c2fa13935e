"""Checkpoints of a run, by Orbax: the last one, and the best one.

Each holds the state, the configuration and what is known of it (the step, the score and the
classes that gave it). Writing is atomic: a run that is killed meanwhile keeps the one before.
"""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from ml_collections import ConfigDict

from fsseg_jax.errors import UserError

LAST, BEST = "last", "best"


class Checkpoints:
    """The checkpoints of the run in `workdir`."""

    def __init__(self, workdir: pathlib.Path) -> None:
        self.folder = workdir.absolute() / "checkpoints"
        self._managers = {}

    def _manager(self, which: str) -> ocp.CheckpointManager:
        if which not in self._managers:
            options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
            self._managers[which] = ocp.CheckpointManager(self.folder / which, options=options)
        return self._managers[which]

    def step(self, which: str) -> int | None:
        """The step of a checkpoint, or None where there is none."""
        return self._manager(which).latest_step() if (self.folder / which).is_dir() else None

    def save(self, which: str, state: Any, config: ConfigDict, **info: Any) -> None:
        """Writes a checkpoint in place of the one before; waits until it is complete.

        Args:
            which: LAST or BEST.
            state: a pytree with a `step`.
            config: of the run.
            **info: what else is known of it; JSON.
        """
        step = int(state.step)
        self._manager(which).save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                config=ocp.args.JsonSave(config.to_dict()),
                info=ocp.args.JsonSave({"step": step, **info}),
            ),
            force=True,
        )

    def describe(self, which: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The configuration and the info of a checkpoint, without its arrays."""
        restored = self._manager(which).restore(
            self.step(which),
            args=ocp.args.Composite(config=ocp.args.JsonRestore(), info=ocp.args.JsonRestore()),
        )
        return restored["config"], restored["info"]

    def restore(self, which: str, like: Any, sharding: Sharding) -> Any:
        """The state of a checkpoint, on the devices of `sharding`, however many saved it.

        Args:
            which: LAST or BEST.
            like: a state of the same structure, of arrays or shapes.
            sharding: of every array.

        Raises:
            UserError: the arrays are not those of `like`.
        """
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like
        )
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            return self._manager(which).restore(self.step(which), args=args)["state"]
        except (ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"the checkpoint in {self.folder / which} does not fit the model that the config "
                f"describes ({reason}): use its own config or another --workdir."
            ) from None

    def check_same_model(self, which: str, config: ConfigDict) -> None:
        """Raises UserError unless a checkpoint is of the method and backbone that `config` has."""
        saved, _ = self.describe(which)
        for name in ("method", "backbone"):
            if saved[name] != config[name]:
                raise UserError(
                    f"{self.folder.parent} holds a checkpoint of {name} {saved[name]!r}, but the "
                    f"config asks for {config[name]!r}: choose another --workdir."
                )
