"""Ctrl-C: it ends a program with status 130 and no traceback, and a second one ends it at once."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

STATUS = 128 + signal.SIGINT
PATIENCE = 1.0  # seconds after which a program that is still stopping says so
TWICE = 0.5  # seconds in which a signal that comes again is the same request

received = 0  # the number of the first signal that `_watch` was told of
# Whether the first one ends the process: there is nothing to finish, and the main thread may wait
# in compiled code for long.
at_once = False

# What has to be done before a second signal ends the process at once.
last_things: list[Callable[[], object]] = []


def end_imports_quietly() -> None:
    """Makes Ctrl-C end this process at once, if it is about to run a program of this package.

    Importing takes seconds, in which there is nothing to finish; and some libraries turn an
    interruption of their import into an error of another kind. `prepare` ends this.
    """
    # While `python -m` looks for the module, the first argument is this.
    asked = any(x.split(".")[0] == "fsseg_jax" for x in sys.orig_argv)
    ours = (sys.argv[:1] == ["-m"] and asked) or os.path.basename(sys.argv[0]) == "fsseg"
    if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def prepare() -> None:
    """Makes Ctrl-C raise KeyboardInterrupt, and a second signal end the process at once.

    Python's own handlers wait until the main thread is back from compiled code, such as XLA's
    compiler, for minutes. So a thread is told of signals as well.
    """
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    told, tell = socket.socketpair()
    tell.setblocking(False)
    signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(told, tell), daemon=True).start()
    # An interruption of a destructor or a callback cannot be raised; Python would only print it.
    ordinary = sys.unraisablehook

    def unraisable(about: Any) -> None:
        if about.exc_type is KeyboardInterrupt:
            os._exit(STATUS)
        ordinary(about)

    sys.unraisablehook = unraisable


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(STATUS)


def _watch(told: socket.socket, tell: socket.socket) -> None:
    """Reads the numbers of signals; `tell` is only kept open."""
    global received
    received = _next_signal(told)
    if at_once:
        print("stopped by Ctrl-C", file=sys.stderr, flush=True)
        os._exit(128 + received)
    time.sleep(TWICE)
    told.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        told.recv(2**16)
    told.settimeout(PATIENCE - TWICE)
    try:
        number = _next_signal(told)
    except TimeoutError:
        print("\nstopping; once more ends it at once", file=sys.stderr, flush=True)
        told.settimeout(None)
        number = _next_signal(told)
    for function in last_things:
        function()
    os._exit(128 + number)


def _next_signal(told: socket.socket) -> int:
    while (number := told.recv(1)[0]) not in (signal.SIGINT, signal.SIGTERM):
        pass
    return number
