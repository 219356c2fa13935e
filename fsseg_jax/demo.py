"""A page on this computer to try a model out: python -m fsseg_jax.demo --workdir=panet_vgg16

--workdir is whatever `fsseg_jax.load` takes: the folder of a run, a saved model, a configuration
or its name, or hf://owner/name of a model on the hub. On the page you mark objects in a few images
by strokes, boxes or outlines, see where they are in other images, correct what is wrong, and
download all masks.

The page can only be opened on this computer; to reach it from another one, use
`ssh -L 7860:localhost:7860 COMPUTER`. What is uploaded goes when the page ends. It needs Starlette
and Uvicorn: pip install -e '.[demo]'
"""

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from fsseg_jax import command_line, interrupts
from fsseg_jax.devices import describe
from fsseg_jax.errors import UserError
from fsseg_jax.page import folder
from fsseg_jax.prediction.loading import load

try:
    from fsseg_jax.page import app, server
except ImportError:  # Starlette and Uvicorn are optional dependencies
    if not TYPE_CHECKING:  # code that needs them runs only where they are installed
        app = None

PORT = 7860
# Signals that end the page: Ctrl-C, kill, and the end of the terminal, which Windows does not have.
ENDS = [getattr(signal, x) for x in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, x)]
logger = logging.getLogger("fsseg_jax.demo")  # as a program, the module has another name


def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    port_help = f"of the page; {PORT} by default, 0 for any that is free"
    arguments, overrides = command_line.parse(
        __doc__,
        argv,
        workdir="the folder of a run or of a saved model, a configuration, or a model on the hub",
        config=False,
        port={"type": int, "metavar": "N", "default": PORT, "help": port_help},
    )
    settings = command_line.settings(overrides)
    machine = command_line.first_config(None, overrides)
    if machine.distributed:
        raise UserError("--config.distributed: one process serves the page; leave it out.")
    if app is None:
        raise UserError(
            "the page needs Starlette and Uvicorn, one of which is not installed: pip install -e "
            "'.[demo]'"
        )
    with _listening(arguments.port) as listener:
        command_line.start(machine)
        segmenter = load(arguments.workdir, **settings)
        logger.info(describe(segmenter.mesh))
        for number in ENDS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                signal.signal(number, _end)
        interrupts.last_things.append(folder.remove)
        with server.Server(app.build(segmenter), listener) as page:
            print(f"The page is at {page.address} (Ctrl-C ends it)", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()


def _end(number: int, _: object) -> NoReturn:
    """Ends the page as after an error, so that its folder goes."""
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _listening(port: int) -> socket.socket:
    """A socket at the port, or at a free one for 0; before a model is loaded.

    Raises:
        UserError: another program has taken the port.
    """
    try:
        return socket.create_server((server.HOST, port))
    except (OverflowError, OSError) as error:
        raise UserError(
            f"--port = {port} cannot be used ({error}): choose another, as --port={PORT + 1}, or 0 "
            "for any that is free."
        ) from None


if __name__ == "__main__":
    command_line.run(main)
