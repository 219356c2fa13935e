"""Summaries of a run, for TensorBoard."""

import contextlib
import logging
import pathlib
import socket
import time
from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import image, scalar

logger = logging.getLogger(__name__)


class Summaries:
    """A file of curves and pictures, which is written at once.

    tensorboardX's own `SummaryWriter` writes in a thread, and waits for that forever once it has
    failed, as it does when the disk is full. Here a failure is a warning, and training goes on
    without curves.

    Args:
        folder: its folder; None for a process that writes nothing.
        start: the first step; TensorBoard ignores what earlier files have from there on.
    """

    def __init__(self, folder: pathlib.Path | None, start: int) -> None:
        self._folder, self._file = folder, None
        if folder is None:
            return
        # TensorBoard reads files of this name, in the order of their time.
        path = folder / f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = RecordWriter(str(path))
        except OSError as error:
            self._give_up(error)
        session = SessionLog(status=SessionLog.START)
        self._write(Event(file_version="brain.Event:2"), Event(step=start, session_log=session))

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Writes values by name; a run that is killed keeps them."""
        self._write(
            *(Event(step=step, summary=scalar(name, value)) for name, value in values.items())
        )

    def add_pictures(
        self, pictures: Mapping[str, UInt8[np.ndarray, "height width 3"]], step: int
    ) -> None:
        """Writes pictures by name."""
        parts = (image(name, picture, dataformats="HWC") for name, picture in pictures.items())
        self._write(*(Event(step=step, summary=part) for part in parts))

    def _write(self, *events: Event) -> None:
        if self._file is None:
            return
        try:
            for event in events:
                event.wall_time = time.time()
                self._file.write(event.SerializeToString())
            self._file.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # once more, for what has not been written
                self._file.close()
        self._file = None
        logger.warning("%s cannot be written: no more curves (%s)", self._folder, error)
