"""Learning curves: what a training wrote for TensorBoard, read again and drawn."""

import math
import pathlib
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from tensorboardX.proto.event_pb2 import Event, SessionLog

from fsseg_jax.files import replacing


class Point(NamedTuple):
    """One value of a curve."""

    value: float
    time: float  # when it was written, in seconds as `time.time` counts


Curve = dict[int, Point]  # by step
COLOURS = {"base": "#3b5fdb", "validation": "#2a9d6f", "novel": "#e0457b"}  # of classes
NO_LOSSES = ("learning_rate", "episodes_per_second", "gradient_norm")
COLUMNS = 3  # of the picture: trainings side by side


def read(workdir: pathlib.Path) -> dict[str, Curve]:
    """Values of a run by name, such as "train/loss" or "selection/base_mean_iou", and by step.

    A run that was stopped has several files, each of which says from which step on it does the
    steps of those before again.

    Args:
        workdir: the folder of the run; of one that has not begun there are no values.
    """
    curves: dict[str, Curve] = {}
    for file in sorted(workdir.glob("tensorboard/events*")):
        for event in _events(file.read_bytes()):
            if event.session_log.status == SessionLog.START:
                for curve in curves.values():
                    for step in [step for step in curve if step >= event.step]:
                        del curve[step]
            for value in event.summary.value:
                point = Point(value.simple_value, event.wall_time)
                curves.setdefault(value.tag, {})[event.step] = point
    return curves


def _events(content: bytes) -> Iterator[Event]:
    """The whole events of a file, whose last one may be written at this moment."""
    while len(content) >= 12:  # the length of a record, its checksum, an event, its checksum
        (length,) = struct.unpack("<Q", content[:8])
        if len(content) < 16 + length:
            return
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


def draw(runs: Mapping[str, pathlib.Path], path: pathlib.Path) -> bool:
    """Draws mean-IoU on base and on held-out classes, and losses, as one picture.

    Args:
        runs: folders by title; what has written nothing is left out.
        path: of the PNG.

    Returns:
        whether there was anything to draw.
    """
    curves = {title: read(folder) for title, folder in runs.items()}
    curves = {title: own for title, own in curves.items() if own}
    if not curves:
        return False
    import matplotlib.figure  # takes a second

    columns = min(COLUMNS, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = matplotlib.figure.Figure(figsize=(4 * columns, 4.4 * rows), layout="constrained")
    parts = figure.subfigures(rows, columns, squeeze=False).ravel()
    for part, (title, own) in zip(parts, curves.items(), strict=False):
        scores, losses = part.subplots(2, 1, sharex=True)
        part.suptitle(title, fontsize=10)
        for classes, colour in COLOURS.items():
            words = f"{'held-out' if classes == 'novel' else classes} classes"
            if curve := own.get(f"selection/{classes}_mean_iou"):
                scores.plot(*_points(curve), "o-", label=words, color=colour, ms=3)
            if curve := own.get(f"selection/{classes}_at_best_threshold"):
                words += ", best threshold"
                scores.plot(*_points(curve), ":", label=words, color=colour, linewidth=1)
        scores.set_ylabel("mean-IoU, %")
        scores.set_ylim(bottom=0)
        for name in sorted(own):
            kind, _, short = name.partition("/")
            if kind == "train" and short not in NO_LOSSES:
                losses.plot(*_points(own[name]), label=short, linewidth=1)
        losses.set_ylabel("losses")
        losses.set_xlabel("step")
        for axes in (scores, losses):
            axes.grid(alpha=0.3)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=7)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)
    return True


def _points(curve: Curve) -> tuple[list[int], list[float]]:
    steps = sorted(curve)
    return steps, [curve[step].value for step in steps]
