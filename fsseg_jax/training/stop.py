"""Stops training on SIGTERM or Ctrl-C, after the same step in all processes."""

import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool

from fsseg_jax.devices import replicated, split
from fsseg_jax.interrupts import TWICE

NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class Stopped(BaseException):
    """A signal was received while nothing needs to be finished.

    Like KeyboardInterrupt, it is not an Exception, which those take for a fault who write files.
    """


class StopRequest:
    """Notices SIGTERM and Ctrl-C while the context is open; a second one ends the process.

    While `at_once` is set, the signal raises Stopped immediately; otherwise it sets `received`.
    Several processes stop after the same step, whichever gets the signal: after each step they
    combine on their devices whether any of them has received one (`ask`), and read the result a
    little later (`agree`). JAX's own service for this,
    `multihost_utils.reached_preemption_sync_point`, makes processes wait for each other at their
    end if a signal is received after the last step.

    Attributes:
        received: whether to stop.
        signal: the signal that was received, SIGTERM if another process received it.
    """

    def __init__(self) -> None:
        self.received = self.at_once = False
        self.signal = signal.SIGTERM
        self._previous, self._asked = {}, 0.0
        self._any = None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in NAMES:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as SIGINT is under nohup
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def ask(self, mesh: Mesh) -> Bool[Array, ""] | bool:
        """Whether any process has received a signal; all of them have to call this after the same
        step. With several, the devices are still computing the result when this returns."""
        if jax.process_count() == 1:
            return self.received
        own = np.full(len(mesh.local_devices), self._asked > 0)
        asked = jax.make_array_from_process_local_data(split(mesh), own, (mesh.size,))
        self._any = self._any or jax.jit(jnp.any, out_shardings=replicated(mesh))
        return self._any(asked)

    def agree(self, asked: Bool[Array, ""] | bool) -> None:
        """Sets `received` if the result of an `ask` says so; waits for it."""
        self.received = self.received or bool(asked)

    def _receive(self, number: int, _: object) -> None:
        now = time.monotonic()
        if self._asked:
            if now > self._asked + TWICE:
                os._exit(128 + number)
            return
        self._asked, self.signal = now, signal.Signals(number)
        if jax.process_count() == 1:  # several stop when all of them know
            self.received = True
            if self.at_once:
                raise Stopped
