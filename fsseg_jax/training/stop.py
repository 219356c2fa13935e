"""Stops training on SIGTERM, after the same step in all processes."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
    """SIGTERM was received while nothing needs to be finished."""


class StopRequest:
    """Notices SIGTERM while the context is open; a second one ends the process.

    While `at_once` is set, the signal raises Stopped immediately; otherwise it sets `received`.
    Several processes agree on the step after which all of them stop, whichever gets the signal.
    """

    def __init__(self) -> None:
        self.received = self.at_once = False

    def __enter__(self) -> "StopRequest":
        self._previous = None
        if jax.process_count() > 1:
            self._previous = signal.SIG_DFL  # JAX receives it until the context closes
        elif threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def agree(self, step: int) -> None:
        """With several processes: sets `received` if all of them stop after this step."""
        if jax.process_count() > 1:
            self.received = multihost_utils.reached_preemption_sync_point(step)

    def _receive(self, *_: object) -> None:
        self.received = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.at_once:
            raise Stopped
