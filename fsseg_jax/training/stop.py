"""Stops training on SIGTERM or Ctrl-C, after the same step in all processes."""

import os
import signal
import threading
import time

import jax
from jax.experimental import multihost_utils

from fsseg_jax.interrupts import TWICE

NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class Stopped(BaseException):
    """A signal was received while nothing needs to be finished.

    Like KeyboardInterrupt, it is no Exception, which those take for a fault who write files.
    """


class StopRequest:
    """Notices SIGTERM and Ctrl-C while the context is open; a second one ends the process.

    While `at_once` is set, the signal raises Stopped immediately; otherwise it sets `received`.
    Several processes agree on the step after which all of them stop, whichever gets the signal.

    Attributes:
        received: whether to stop.
        signal: the signal that was received, SIGTERM if another process received it.
    """

    def __init__(self) -> None:
        self.received = self.at_once = False
        self.signal = signal.SIGTERM
        self._previous, self._asked = {}, 0.0

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in NAMES if signal.getsignal(number) is not signal.SIG_IGN]
            if jax.process_count() > 1:
                self._previous[signal.SIGTERM] = signal.SIG_DFL  # JAX receives it until the end
                heard = [number for number in heard if number == signal.SIGINT]
            for number in heard:  # SIGINT is ignored under nohup
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agree(self, step: int) -> None:
        """With several processes: sets `received` if all of them stop after this step."""
        if jax.process_count() > 1:
            self.received = multihost_utils.reached_preemption_sync_point(step)

    def _receive(self, number: int, _: object) -> None:
        now = time.monotonic()
        if self._asked:
            if now > self._asked + TWICE:
                os._exit(128 + number)
            return
        self._asked, self.signal = now, signal.Signals(number)
        if jax.process_count() > 1:  # which tells all of them, by the signal that JAX shares
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self.received = True
        if self.at_once:
            raise Stopped
