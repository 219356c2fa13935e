"""Progress of work that may take long: a bar on a terminal, a line every half minute elsewhere.

Lines suit logs of schedulers, `nohup` and continuous integration, where a bar would be thousands of
copies of itself.
"""

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm
from tqdm.utils import CallbackIOWrapper

logger = logging.getLogger(__name__)
T = TypeVar("T")

EVERY = 30.0  # seconds between lines
DELAY = 1.0  # seconds of work that has no bar
# `bar` or `lines`, for those who know better than `on_terminal` what the output is shown by.
VARIABLE = "FSSEG_JAX_PROGRESS"

shown = True  # whether this process shows any; of several, only the first does


class Lines:
    """Logs a line every `EVERY` seconds, and a last one if there were others.

    Args:
        description: what is being done.
        total: how many there are to do; None if nobody knows.
        unit: what is counted; bytes are shown in MB.
        initial: how many were done before.
    """

    def __init__(self, description: str, total: int | None, unit: str, initial: int = 0) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = self.told = initial  # now, and at the last line
        self.last = time.monotonic()
        self.lines, self.postfix = 0, ""

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.lines and kind is None:
            self.log()

    def update(self, n: int = 1) -> None:
        """Counts `n` more, and logs a line if it is time for one."""
        self.done += n
        if time.monotonic() - self.last >= EVERY:
            self.log()

    def set_postfix(self, **values: Any) -> None:
        """Sets what is shown behind the numbers."""
        self.postfix = "".join(f", {name} {value}" for name, value in values.items())

    def set_description(self, desc: str, refresh: bool = True) -> None:
        """Sets what is shown before them, and tells it now if `refresh`."""
        self.description = desc
        if refresh:
            logger.info("%s ...", desc)

    def log(self) -> None:
        """Logs a line: how many are done, how fast, and how long the others take."""
        now = time.monotonic()
        rate = (self.done - self.told) / max(now - self.last, 1e-9)
        self.last, self.told, self.lines = now, self.done, self.lines + 1
        left = ""
        if self.total is not None and self.done < self.total and rate:
            left = f", {tqdm.format_interval((self.total - self.done) / rate)} left"
        numbers = [self.done] if self.total is None else [self.done, self.total]
        unit = self.unit if self.total == 1 else f"{self.unit}s"
        counts = " of ".join(map(str, numbers))
        if self.unit == "B":
            counts, unit, rate = " of ".join(f"{n / 1e6:.1f}" for n in numbers), "MB", rate / 1e6
        words = (self.description, counts, unit, rate, left, self.postfix)
        logger.info("%s: %s %s, %.3g/s%s%s", *words)


def on_terminal() -> bool:
    """Whether a bar can be shown: on a terminal, or in a notebook."""
    asked = os.environ.get(VARIABLE, "")
    if asked in ("bar", "lines"):
        return asked == "bar"
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def progress(
    description: str,
    total: int | None = None,
    unit: str = "image",
    initial: int = 0,
    nested: bool = False,
    quiet: bool = False,
) -> "Lines | tqdm":
    """A context in which progress is reported by its `update`.

    Args:
        total: how many there are to do; None if nobody knows.
        unit: what is counted, in the singular; B for bytes.
        initial: how many were done before.
        nested: whether a bar is cleared at its end if it is below another one.
        quiet: whether nothing is reported after all.
    """
    quiet = quiet or not shown
    if not quiet and not on_terminal():
        return Lines(description, total, unit, initial)
    return tqdm(
        desc=description,
        total=total,
        unit=unit,
        unit_scale=unit == "B",
        initial=initial,
        delay=DELAY,
        mininterval=0.5,
        dynamic_ncols=True,
        leave=None if nested else True,
        disable=quiet,
    )


def tracked(
    items: Iterable[T], description: str, total: int, unit: str = "image", nested: bool = False
) -> Iterator[T]:
    """Yields the items, and reports how many of them were taken."""
    with progress(description, total, unit, nested=nested) as counted:
        for item in items:
            yield item
            counted.update()


def tracked_file(file: Any, method: str, counted: "Lines | tqdm") -> Any:
    """The file; what its method `read` or `write` handles is counted."""
    return CallbackIOWrapper(counted.update, file, method)
