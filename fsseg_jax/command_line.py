"""What all programs share: `--config`, `--workdir`, overrides, and errors in one sentence."""

import argparse
import logging
import pathlib
import sys
from collections.abc import Callable, Sequence

from tqdm import tqdm

from fsseg_jax.errors import UserError


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
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
