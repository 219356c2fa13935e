"""Stops training on SIGTERM or Ctrl-C, after the same step in all processes."""

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class Stopped(Exception):
    """A signal was received while nothing needs to be finished."""


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
        self._previous = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            if jax.process_count() > 1:
                self._previous[signal.SIGTERM] = signal.SIG_DFL  # JAX receives it until the end
                self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._pass_on)
            else:
                for number in NAMES:
                    if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
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
        self.received, self.signal = True, signal.Signals(number)
        for each in NAMES:
            signal.signal(each, signal.SIG_DFL)
        if self.at_once:
            raise Stopped

    def _pass_on(self, number: int, _: object) -> None:
        """Tells all processes, by the signal that JAX shares between them."""
        self.signal = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
