"""Summaries of a run, for TensorBoard."""

import logging
import pathlib
import time
from collections.abc import Mapping

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

logger = logging.getLogger(__name__)


class Summaries:
    """A file of curves, which is written at once.

    tensorboardX's own `SummaryWriter` writes in a thread, and waits for that forever once it has
    failed, as it does when the disk is full. Here a failure is a warning, and training goes on
    without curves.

    Args:
        folder: its folder; None for a process that writes nothing.
        start: the first step; TensorBoard ignores what earlier files have from there on.
    """

    def __init__(self, folder: pathlib.Path | None, start: int) -> None:
        self._folder, self._writer = folder, None
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(folder / "events"))
        except OSError as error:
            self._give_up(error)
        session = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=time.time(), step=start, session_log=session))

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Writes values by name; a run that is killed keeps them."""
        for name, value in values.items():
            self._write(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))

    def _write(self, event: Event) -> None:
        if self._writer is None:
            return
        try:
            self._writer.write_event(event)
            self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        logger.warning("%s cannot be written: no more curves (%s)", self._folder, error)
