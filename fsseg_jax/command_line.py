"""Shared by all programs: `--config`, `--workdir`, overrides, and errors in one sentence."""

import argparse
import difflib
import errno
import functools
import io
import logging
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from fsseg_jax import devices, interrupts, progress
from fsseg_jax.checksums import checksum_of_code
from fsseg_jax.config import (
    FIELDS,
    default_config,
    flatten,
    joined,
    load_config,
    override,
    reference,
)
from fsseg_jax.data.remote import is_url
from fsseg_jax.errors import UserError, brief

# Seconds that the first of several processes waits after an error: its exit ends the others, which
# usually have the same error and are about to report it themselves.
LAST_WORDS = 2
LEVELS = ("debug", "info", "warning", "error")  # of messages
# Fields that determine the devices.
MACHINE = ("platform", "devices", "distributed", "compilation_cache")


class Parser(argparse.ArgumentParser):
    """One whose errors are UserErrors, in one sentence like all others."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{message}; --help lists all options.")


class PathAction(argparse.Action):
    """Stores a path; an empty one, which would mean the current folder, is a UserError, and so is
    one that no file can have."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Stores one."""
        if not values:
            raise UserError(f"{option_string} is empty (is a shell variable unset?): name a path.")
        path = pathlib.Path(os.path.expanduser(values))
        try:
            os.stat(path)
        except (OSError, ValueError) as error:  # others are told where the path is used
            if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:
                why = getattr(error, "strerror", error)
                raise UserError(
                    f"{option_string} = {brief(values)}: it cannot be a path ({why})."
                ) from None
        setattr(namespace, self.dest, path)


class PlaceAction(PathAction):
    """Stores a path, as `PathAction` does, or a URL, which is a string."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Stores one."""
        if is_url(values):
            setattr(namespace, self.dest, values)
        else:
            super().__call__(parser, namespace, values, option_string)


class LevelAction(argparse.Action):
    """Sets how much of the library's messages is printed; progress is one of level `info`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Sets the level."""
        if values not in LEVELS:
            known = ", ".join(LEVELS)
            raise UserError(f"{option_string} = {brief(values)}: choose one of {known}.")
        logging.getLogger("fsseg_jax").setLevel(values.upper())
        progress.shown = values in LEVELS[:2]


class PathsAction(PathAction):
    """Adds a path to those that the option was given before."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Adds one."""
        before = getattr(namespace, self.dest) or []
        super().__call__(parser, namespace, values, option_string)
        setattr(namespace, self.dest, [*before, getattr(namespace, self.dest)])


_STATUS = re.compile("[A-Z_]+: ")  # that errors of JAX's compiled code begin with

# Options of argparse for a folder, and for one that may be elsewhere.
FOLDER = {"action": PathAction, "metavar": "DIR"}
PLACE = {"action": PlaceAction, "metavar": "PLACE"}
# Options that choose a part of a table; see `evaluation.tables.cells.choose`.
PART = {
    "rows": "rows of the table by their labels, as in PANet,CANet; all by default",
    "folds": "folds, as in 0,1; all by default",
    "shots": "numbers of shots, as in 1,5; all by default",
}


def parse(
    description: str | None,
    argv: Sequence[str] | None = None,
    workdir: bool | str = True,
    config: bool = True,
    optional_workdir: bool = False,
    **options: str | Mapping[str, Any],
) -> tuple[argparse.Namespace, list[str]]:
    """Parses a command line.

    Args:
        argv: the arguments; those of the process by default.
        workdir: whether the program has the option --workdir; or its help text, if it is not just
            the folder of a run.
        optional_workdir: whether --workdir may be left out; it is None then.
        **options: further options: their help text, or arguments of `add_argument`.

    Returns:
        the options, and the overrides (`--config.field=value`).

    Raises:
        UserError: a path is empty, or there is no such option.
    """
    parser = Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="Any field of the configuration can be overridden, as in --config.train.steps=500.\n"
        + reference.as_text(),
    )
    if config:
        meaning = "a Python file with get_config(), or one of configs/ by its name"
        parser.add_argument("--config", metavar="FILE", help=meaning)
    if workdir:
        meaning = "the folder of the run" if workdir is True else workdir
        parser.add_argument("--workdir", **FOLDER, required=not optional_workdir, help=meaning)
    meaning = f"messages to print: {', '.join(LEVELS)}; info by default"
    parser.add_argument("--log_level", action=LevelAction, metavar="LEVEL", help=meaning)
    for name, option in options.items():
        given = {"help": option} if isinstance(option, str) else option
        default = {} if {"action", "metavar"} & given.keys() else {"metavar": "NAME"}
        parser.add_argument(f"--{name}", **{**default, **given})
    known, rest = parser.parse_known_args(argv)
    # argparse would take what follows an unknown option, or none, for another one's value.
    for argument in rest:
        if argument.startswith("--") and not argument.startswith("--config."):
            raise UserError(_unknown(argument.split("=")[0], vars(known)))
    return known, rest


def _unknown(name: str, options: Iterable[str]) -> str:
    """What to say of an option that a program does not have: the one that is probably meant."""
    last = {f"--{field.rpartition('.')[2]}": f"--config.{field}" for field in reversed(FIELDS)}
    whole = {f"--{field}": f"--config.{field}" for field in FIELDS}
    own = {f"--{option}": f"--{option}" for option in options}
    meant = {**last, **whole, **own}
    near = functools.partial(difflib.get_close_matches, name, n=1, cutoff=0.7)
    close = [name] if name in meant else near(own) or near(meant)
    hint = f"did you mean {meant[close[0]]}?" if close else "--help lists all."
    return f"{name}: there is no such option; {hint}"


def first_config(path: str | None, overrides: Sequence[str]) -> ConfigDict:
    """The configuration that a program starts with, before it opens a run or a model.

    Args:
        path: see `load_config`; None if the run or model has one. That may come from
            another machine, so devices are the defaults, unless they are overridden.

    Raises:
        UserError: the file or an override is invalid.
    """
    if path is not None:
        return override(load_config(path), overrides)
    machine = tuple(f"--config.{field}" for field in MACHINE)
    return override(default_config(), [x for x in joined(overrides) if x.startswith(machine)])


def settings(overrides: Sequence[str]) -> dict[str, str]:
    """Overrides of the command line as arguments of `fsseg_jax.load`.

    Raises:
        UserError: an argument is not an override.
    """
    fields = {}
    for argument in joined(overrides):
        name, equals, value = argument.partition("=")
        if not (name.startswith("--config.") and equals):
            raise UserError(f"{argument}: expected --config.field=value.")
        fields[name.removeprefix("--config.")] = value
    return fields


def check_processes(config: ConfigDict, **folders: pathlib.Path | None) -> None:
    """Checks that several processes run the same command with the same code.

    Their data, weights and lists may be in different places; what is read there is compared later.

    Raises:
        UserError: they differ in `config`, in `folders` (by option), or in their code.
    """
    if jax.process_count() == 1:
        return
    places = ("data.root", "init", "eval.episodes_file")
    fields = {name: x for name, x in flatten(config).items() if name not in places}
    devices.check_agreement(
        {f"--{option}": os.path.abspath(folder) for option, folder in folders.items() if folder}
        | fields
        | {"JAX_NUM_PROCESSES": os.environ.get("JAX_NUM_PROCESSES")}
        | {"jax": jax.__version__, "the code of fsseg_jax": checksum_of_code()}
    )


class _ProgressHandler(logging.Handler):
    """Prints messages above the progress bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one message."""
        tqdm.write(self.format(record), file=sys.stderr)


def start(config: ConfigDict) -> None:
    """Calls `devices.start`; of several processes, only the first prints messages."""
    devices.start(config)
    if not devices.is_first_process():
        logger = logging.getLogger("fsseg_jax")
        logger.setLevel(max(logger.level, logging.WARNING))
        progress.shown = False


def run(main: Callable[[], int | None]) -> None:
    """Runs a program and exits with its status, or with 2 and one sentence for wrong input."""
    logger = logging.getLogger("fsseg_jax")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(_ProgressHandler())
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be in no encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        interrupts.prepare()
        sys.exit(main())
    except UserError as error:
        # One line, whatever the names of files in it.
        print("error:", *str(error).splitlines(), file=sys.stderr)
        _exit(2)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # JAX also raises ValueError, which begins with a status then, as in UNKNOWN: Gloo ...
        of_jax = isinstance(error, jax.errors.JaxRuntimeError) or _STATUS.match(str(error))
        if of_jax and str(error).startswith("RESOURCE_EXHAUSTED"):
            print(
                f"error: the devices have too little memory ({str(error).splitlines()[0]}): lower "
                "train.batch_size, eval.batch_size or image_size, or raise train.accumulate.",
                file=sys.stderr,
            )
            _exit(2)
        if not (of_jax and jax.distributed.is_initialized()):
            raise
        print(
            "error: computing with the other processes failed, perhaps because one of them has "
            f"ended ({str(error).splitlines()[0]}): start all of them again; the same command "
            "continues from the last checkpoint.",
            file=sys.stderr,
        )
        # A signal that all processes received is why they have ended.
        _exit(128 + interrupts.received if interrupts.received else 1)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        _exit(interrupts.STATUS)


def _exit(status: int) -> None:
    """Exits without waiting for other processes, which may be waiting for this one."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        if devices.is_first_process():
            time.sleep(LAST_WORDS)
        os._exit(status)
    sys.exit(status)
