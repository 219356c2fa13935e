"""What all programs share: `--config`, `--workdir`, overrides, and errors in one sentence."""

import argparse
import functools
import logging
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from fsseg_jax import devices
from fsseg_jax.errors import UserError

# Seconds between an error and the end of the first of several processes: its end is theirs, and
# usually they have found the same thing wrong and are about to end by themselves.
LAST_WORDS = 2


def parse(
    description: str, argv: Sequence[str] | None = None, workdir: bool = True, **options: str
) -> tuple[argparse.Namespace, list[str]]:
    """Reads a command line.

    Args:
        description: of the program, for --help.
        argv: the arguments; the process's own by default.
        workdir: whether the program has a working folder, which is then required.
        **options: further options of the program, and what they mean.

    Returns:
        `config` (a file), `workdir` and the options, and the overrides (`--config.field=value`).
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="Any field of the config may be overridden: --config.train.steps=500. "
        "fsseg_jax/config.py lists them all with their defaults and reasons.",
    )
    parser.add_argument("--config", metavar="FILE", help="a Python file with get_config()")
    if workdir:
        parser.add_argument(
            "--workdir", type=_path, metavar="DIR", required=True, help="the folder of the run"
        )
    for name, meaning in options.items():
        parser.add_argument(f"--{name}", metavar="NAME", help=meaning)
    return parser.parse_known_args(argv)


class _ProgressHandler(logging.Handler):
    """Prints messages above a progress bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one message."""
        tqdm.write(self.format(record), file=sys.stderr)


def _path(argument: str) -> pathlib.Path:
    return pathlib.Path(argument).expanduser()


def start(config: ConfigDict, stoppable: bool = False) -> None:
    """`devices.start`; of several processes, the first one speaks for all."""
    devices.start(config, stoppable)
    if not devices.is_first_process():
        logging.getLogger("fsseg_jax").setLevel(logging.WARNING)
        tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)


def run(main: Callable[[], int | None]) -> None:
    """Runs a program and exits: with its status, or with 2 and one sentence for wrong input."""
    logger = logging.getLogger("fsseg_jax")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(_ProgressHandler())
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        _exit(2)
    except jax.errors.JaxRuntimeError as error:
        if not jax.distributed.is_initialized():
            raise
        print(
            f"error: computing together with the other processes failed, perhaps because one of "
            f"them has ended ({str(error).splitlines()[0]}): start all of them again; the same "
            "command continues from the last checkpoint.",
            file=sys.stderr,
        )
        _exit(1)
    except KeyboardInterrupt:
        _exit(130)


def _exit(status: int) -> None:
    """Exits, without waiting for other processes, which may be waiting for this one."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        if devices.is_first_process():
            time.sleep(LAST_WORDS)
        os._exit(status)
    sys.exit(status)
