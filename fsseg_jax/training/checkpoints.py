"""Checkpoints of a run, written with Orbax: the last two, and the best ones.

Each holds the state, the configuration and information about it: the step, the score and the
classes that gave it. Writing is atomic: a run that is killed while writing keeps the previous
checkpoint.
"""

import contextlib
import functools
import logging
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Mesh, Sharding
from ml_collections import ConfigDict

from fsseg_jax import extensions
from fsseg_jax.checksums import checksum_of, examine, verify
from fsseg_jax.config import differences, from_saved
from fsseg_jax.data import class_ids, test_split
from fsseg_jax.data.source import Source
from fsseg_jax.devices import put, replicated
from fsseg_jax.errors import UserError
from fsseg_jax.files import writing
from fsseg_jax.models import Method, init_variables
from fsseg_jax.training.checkpoint_folder import BEST, LAST, check_room, clean, is_ours, most
from fsseg_jax.training.state import TrainState

# What to do about a damaged checkpoint.
REMEDY = "take it from a backup, use another checkpoint, or train again"
# Fields that choose other images or labels.
CHOOSE_DATA = ("data.name", "data.split", "data.train_split", "data.shapes.", "data.coco.")
CHOOSE_DATA += ("data.tfds.name", "data.tfds.image", "data.tfds.label", "data.folds")
INFO_CHECKSUM = "checksum"  # of the information in a checkpoint, which it is a part of
# Names in the information of checkpoints that were saved without it.
EARLIER_INFO = {
    *("step", "arrays", "checksums", "config_checksum", "modules", "trained_on", "data"),
    *("epoch", "batch_size", "devices", "seconds"),
    *("mean_iou", "selected_on", "classes", "episodes_hash"),
}
SET_ASIDE = "set_aside"  # folder of best checkpoints that are not the run's any more

logger = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """Variables to evaluate, and their origin."""

    variables: Any
    words: str  # the origin, for messages
    config: ConfigDict | None = None  # of training; None for a freshly initialised model
    checkpoint: str | None = None  # "best", "last", "best_novel" ...


class Checkpoints:
    """The checkpoints of a run.

    Args:
        trained_on: the names of its training classes, which are saved with each checkpoint.
        contents: the checksum of its data, likewise.
    """

    def __init__(
        self, workdir: pathlib.Path, trained_on: Sequence[str] = (), contents: str = ""
    ) -> None:
        self.trained_on, self.contents = list(trained_on), contents
        self.folder = workdir.absolute() / "checkpoints"
        self._managers = {}

    def _manager(self, which: str) -> ocp.CheckpointManager:
        if which not in self._managers:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=most(which), enable_async_checkpointing=False
            )
            self._managers[which] = ocp.CheckpointManager(self.folder / which, options=options)
        return self._managers[which]

    def step(self, which: str) -> int | None:
        """The step of a checkpoint, or None if there is none."""
        return max(self._steps(which), default=None)

    def _steps(self, which: str) -> list[int]:
        there = (self.folder / which).is_dir()
        return sorted(self._manager(which).all_steps()) if there else []

    def kept(self) -> str:
        """What is kept of the run, and how to go on from it, in words."""
        *earlier, last = self._steps(LAST) or [None]
        if last is None:
            return "nothing was saved"
        others = f" (from step {earlier[-1]} without {self._place(LAST)})" if earlier else ""
        return f"the same command goes on from the checkpoint of step {last}{others}"

    def _place(self, which: str) -> pathlib.Path:
        return self.folder / which / str(self.step(which))

    def clean(self) -> None:
        """See `checkpoint_folder.clean`."""
        clean(self.folder)

    def save(self, which: str, state: TrainState, config: ConfigDict, **info: Any) -> None:
        """Writes a checkpoint, which replaces the previous one, and waits until it is complete.

        `which` is LAST, BEST or another name of `selected`; `info` is further information, as JSON.

        Raises:
            UserError: the state is not finite, or it cannot be written.
        """
        step, parts = int(state.step), {"variables": state.variables, "training": _rest(state)}
        examined = {name: examine(part) for name, part in parts.items()}
        if bad := next((bad for _, bad in examined.values() if bad), None):
            raise UserError(
                f"{bad} is not finite after step {step}, which is not saved: lower "
                f"train.learning_rate ({config.train.learning_rate}) or train in float32; "
                f"{self.kept()}."
            )
        sums = {name: sums for name, (sums, _) in examined.items()}
        known = {"step": step, "arrays": _shapes(state.variables), "checksums": sums}
        known["config_checksum"] = checksum_of(config.to_dict())
        known["modules"] = extensions.places((config.method, config.backbone, config.data.name))
        if self.trained_on:
            known |= {"trained_on": self.trained_on, "data": self.contents}
        known |= info
        args = ocp.args.Composite(
            **{name: ocp.args.StandardSave(part) for name, part in parts.items()},
            config=ocp.args.JsonSave(config.to_dict()),
            info=ocp.args.JsonSave({**known, INFO_CHECKSUM: checksum_of(known)}),
        )
        try:
            check_room(self.folder, state)
            with _errors_told_once():
                self._manager(which).save(step, args=args, force=True)
        except jax.errors.JaxRuntimeError:
            raise
        except Exception as error:  # each of the libraries involved raises its own
            raise UserError(
                f"the checkpoint of step {step} cannot be written to {self.folder / which} "
                f"({_reason(error)}): make room there, or check its permissions; {self.kept()}."
            ) from None

    def set_aside(self, which: str, why: str) -> None:
        """Moves a best checkpoint away, to where the run does not take it for its own."""
        place, step = self._place(which), self.step(which)
        self._managers.pop(which).close()
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"{which} has been found")
        free = (self.folder / SET_ASIDE / f"{which}{n}" / str(step) for n in ("", *range(2, 10**6)))
        target = next(path for path in free if not path.exists())
        logger.info("%s: its checkpoint of step %s is kept in %s", why, step, target.parent)
        if jax.process_index() == 0:
            with writing(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                place.rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"{which} is set aside")

    def names(self) -> list[str]:
        """The names of the existing checkpoints."""
        names = sorted(path.name for path in self.folder.glob("*") if is_ours(path.name))
        return [name for name in names if self.step(name) is not None]

    def describe(self, which: str) -> tuple[ConfigDict, dict[str, Any]]:
        """The configuration and the information of a checkpoint, without its arrays.

        Raises:
            UserError: they are damaged.
        """
        args = ocp.args.Composite(config=ocp.args.JsonRestore(), info=ocp.args.JsonRestore())
        try:
            restored = self._manager(which).restore(self.step(which), args=args)
            config, info = restored["config"], dict(restored["info"])
            saved = info.pop(INFO_CHECKSUM, None)
            # Earlier versions saved without; then all the names are theirs.
            if checksum_of(info) != saved if saved else info.keys() - EARLIER_INFO:
                raise ValueError("the checksum of its information is not the saved one")
            if info.get("config_checksum", checksum_of(config)) != checksum_of(config):
                raise ValueError("the checksum of its configuration is not the saved one")
            extensions.note(info.get("modules"))
            return from_saved(config), info
        except jax.errors.JaxRuntimeError:  # of another process, for example
            raise
        except UserError as error:
            raise UserError(f"{self._place(which)}: {error}") from None
        except Exception as error:  # Orbax has none of its own for damaged files
            raise self._unreadable(which, error) from None

    def _unreadable(self, which: str, error: Exception) -> UserError:
        return UserError(
            f"{self._place(which)} is damaged or of another model ({_reason(error)}): "
            f"{self._remedy(which)}."
        )

    def _remedy(self, which: str) -> str:
        *earlier, _ = self._steps(which)
        return f"{REMEDY}, or remove it to use that of step {earlier[-1]}" if earlier else REMEDY

    def restore(self, which: str, like: TrainState, sharding: Sharding) -> TrainState:
        """The state of a checkpoint on the devices of `sharding`, however many devices saved it.

        `like` is a state of the same structure, of arrays or shapes.

        Raises:
            UserError: the arrays do not match `like`, or are not those that were saved.
        """
        variables = self.restore_variables(which, like.variables, sharding)
        return TrainState(
            variables=variables, **self._restore(which, "training", _rest(like), sharding)
        )

    def restore_variables(self, which: str, like: Any, sharding: Sharding) -> Any:
        """Like `restore`, but only the variables."""
        config, info = self.describe(which)
        ours = _shapes(like)
        saved = info.get("arrays", ours)
        reasons = [f"it lacks {name}" for name in ours if name not in saved]
        reasons += [f"it also has {name}" for name in saved if name not in ours]
        reasons += [
            f"its {name} is {tuple(saved[name])} instead of {tuple(shape)}"
            for name, shape in ours.items()
            if saved.get(name, shape) != shape
        ]
        if reasons:
            more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
            raise UserError(
                f"the checkpoint in {self.folder / which} does not fit the model of the config "
                f"({reasons[0]}{more}): it was trained for ways = {config.ways}, shots = "
                f"{config.shots}; use its own config or another --workdir."
            )
        return self._restore(which, "variables", like, sharding)

    def _restore(self, which: str, part: str, like: Any, sharding: Sharding) -> Any:
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like
        )
        try:
            args = ocp.args.Composite(**{part: ocp.args.StandardRestore(abstract)})
            restored = self._manager(which).restore(self.step(which), args=args)[part]
        except jax.errors.JaxRuntimeError:
            raise
        except Exception as error:
            raise self._unreadable(which, error) from None
        known = self.describe(which)[1].get("checksums", {}).get(part)
        verify(restored, known, str(self._place(which)), self._remedy(which))
        return restored

    def check_classes(self, which: str, config: ConfigDict, source: Source) -> None:
        """Raises UserError if a checkpoint was trained on classes that `config` tests.

        It only warns if the data sets differ: the same name may mean different things in them.
        """
        saved, info = self.describe(which)
        held_back = source.nothing_held_out and saved.data.folds == 0
        if held_back and test_split(config.data) != (saved.data.train_split or "train"):
            return  # the test is on other images
        names = source.class_names
        tested = [names[c] for c in class_ids(source, config.data.fold, "novel")]
        seen = sorted({*tested} & {*info.get("trained_on", ())})
        if not seen:
            return
        fold = "" if source.nothing_held_out else f"fold {config.data.fold} of "
        where = f"{fold}{source.name}"
        sentence = f"{self.folder.parent} was trained on {', '.join(seen)}, which {where} tests"
        if saved.data.name == config.data.name:
            other = "data.split" if held_back else "data.folds" if not fold else "data.fold"
            raise UserError(f"{sentence}: choose another {other} or --workdir.")
        logger.warning("%s: it has seen these classes.", sentence)

    def check_data(self, config: ConfigDict) -> None:
        """Raises UserError if the data have changed since the last checkpoint, but nothing in the
        configuration says so."""
        saved, info = self.describe(LAST)
        told = any(name.startswith(CHOOSE_DATA) for name in differences(saved, config))
        if info.get("data", self.contents) == self.contents or told:
            return
        sentence = f"the images or masks have changed since step {info['step']} of {self.folder}"
        if config.train.if_data_changed == "continue":
            logger.warning("%s", sentence)
            return
        raise UserError(
            f"{sentence}: bring the old ones back, choose another --workdir, or accept the new "
            "ones with --config.train.if_data_changed=continue."
        )

    def check_same(self, which: str, config: ConfigDict, *fields: str) -> None:
        """Raises UserError if `fields` differ between a checkpoint's configuration and `config`."""
        changed = differences(self.describe(which)[0], config)
        for field in ("method", "backbone", *fields):
            if field in changed:
                old, new = changed[field]
                raise UserError(
                    f"{self.folder.parent} holds a checkpoint of {field} = {old!r}, but the "
                    f"config asks for {new!r}: choose another --workdir."
                )


def selected(select_on: str) -> dict[str, str]:
    """The names of a run's best checkpoints, and the classes that select each.

    Args:
        select_on: `config.train.select_on`; the first classes select "best", others "best_novel" or
            the like.
    """
    first, *others = select_on.split("+")
    return {BEST: first, **{f"{BEST}_{other}": other for other in others}}


def available(checkpoints: Checkpoints, which: str) -> str | None:
    """The checkpoint that `config.eval.checkpoint` names, or the closest existing one, or None.

    "best_novel" is "best" in a run that selects on novel classes only.
    """
    for name in (which, BEST, LAST) if which != LAST else (LAST, BEST):
        if checkpoints.step(name) is not None:
            return name
    return None


def load_variables(
    config: ConfigDict, model: Method, workdir: pathlib.Path, mesh: Mesh, source: Source
) -> Loaded:
    """The variables that `config.eval.checkpoint` names, or initial ones if there is no checkpoint.

    Raises:
        UserError: the checkpoint is of another model, or was trained on classes that `config`
            tests.

    Examples:
        >>> from fsseg_jax.config import load_config
        >>> from fsseg_jax.data import open_source
        >>> from fsseg_jax.devices import make_mesh
        >>> from fsseg_jax.models import create_model
        >>> config, mesh, run = load_config("quickstart"), make_mesh(1), pathlib.Path("no_run")
        >>> config.data.shapes.val = 96
        >>> model, source = create_model(config), open_source(config.data, "test")
        >>> load_variables(config, model, run, mesh, source).words
        'freshly initialised, random weights'
    """
    checkpoints = Checkpoints(workdir)
    which = available(checkpoints, config.eval.checkpoint)
    key = jax.random.key(config.seed)
    initialise = functools.partial(init_variables, model, key, config.ways, config.shots)
    if which is None:
        variables = put(initialise(config.init), replicated(mesh))
        weights = pathlib.Path(config.init).name or "random"
        return Loaded(variables, f"freshly initialised, {weights} weights")
    saved, info = checkpoints.describe(which)
    wanted = config.eval.checkpoint
    if wanted not in (which, f"{which}_{info.get('selected_on')}"):
        kind = f"{which} (on {info['selected_on']} classes)" if which != LAST else which
        logger.info("%s holds no %s checkpoint: using the %s one", workdir, wanted, kind)
    checkpoints.check_same(which, config)
    checkpoints.check_classes(which, config, source)
    variables = checkpoints.restore_variables(which, jax.eval_shape(initialise), replicated(mesh))
    words = "the last" if which == LAST else f"best on {info['selected_on']} classes"
    return Loaded(variables, f"step {info['step']}, {words}", saved, which)


@contextlib.contextmanager
def _errors_told_once() -> Iterator[None]:
    """Silences what the threads of Orbax print of an error, besides the one that it raises."""
    loggers, hook = (logging.getLogger("absl"), logging.getLogger("asyncio")), sys.unraisablehook
    before = [each.disabled for each in loggers]
    sys.unraisablehook = lambda _: None
    for each in loggers:
        each.disabled = True
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for each, disabled in zip(loggers, before, strict=True):
            each.disabled = disabled


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def _rest(state: TrainState) -> dict[str, Any]:
    """The part of a state that only training needs."""
    rest = {"step": state.step, "optimizer": state.optimizer}
    return rest if state.rows is None else {**rest, "rows": state.rows}


def _shapes(variables: Any) -> dict[str, list[int]]:
    """The shapes of variables by name, for JSON."""
    return {name: list(x.shape) for name, x in flatten_dict(variables, sep="/").items()}
