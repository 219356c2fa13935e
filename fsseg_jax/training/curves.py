"""Learning curves: reads what training wrote for TensorBoard, and draws it."""

import contextlib
import math
import pathlib
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from google.protobuf.message import DecodeError
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from fsseg_jax.files import replacing


class Point(NamedTuple):
    """One value of a curve."""

    value: float
    time: float  # when it was written, as `time.time` counts


Curve = dict[int, Point]  # by step
COLOURS = {"base": "#3b5fdb", "validation": "#2a9d6f", "novel": "#e0457b"}  # by classes
NO_LOSSES = ("learning_rate", "episodes_per_second", "gradient_norm")
COLUMNS = 3  # of the figure: runs side by side


def read(workdir: pathlib.Path) -> dict[str, Curve]:
    """The curves of a run by name, such as "train/loss" or "selection/base_mean_iou".

    A run that was stopped and resumed has several files; each states the step from which on it
    replaces the earlier ones.

    Examples:
        >>> import tempfile
        >>> from fsseg_jax.training.summaries import Summaries
        >>> with tempfile.TemporaryDirectory() as workdir:  # of a run
        ...     Summaries(pathlib.Path(workdir, "tensorboard"), 1).add({"train/loss": 0.5}, 20)
        ...     curves = read(pathlib.Path(workdir))
        >>> {step: point.value for step, point in curves["train/loss"].items()}
        {20: 0.5}
    """
    curves: dict[str, Curve] = {}
    for file in sorted(workdir.glob("tensorboard/events*")):
        for event in _events(file.read_bytes()):
            if event.session_log.status == SessionLog.START:
                for curve in curves.values():
                    for step in [step for step in curve if step >= event.step]:
                        del curve[step]
            for value in event.summary.value:
                if not value.HasField("simple_value"):  # a picture
                    continue
                point = Point(value.simple_value, event.wall_time)
                curves.setdefault(value.tag, {})[event.step] = point
    return curves


def _events(content: bytes) -> Iterator[Event]:
    """The complete events of a file, without damaged ones; the last one may still be being written.

    tensorboardX only writes, and the reader of TensorBoard would be a large dependency.
    """
    while len(content) >= 12:  # a record is a length, its checksum, an event, and its checksum
        length, checksum = struct.unpack("<QI", content[:12])
        # Where the next record begins is not known if the length is damaged.
        if len(content) < 16 + length or checksum != masked_crc32c(content[:8]):
            return
        event, checksum = content[12 : 12 + length], content[12 + length : 16 + length]
        if struct.unpack("<I", checksum)[0] == masked_crc32c(event):
            with contextlib.suppress(DecodeError):  # another program wrote it
                yield Event.FromString(event)
        content = content[16 + length :]


def draw(runs: Mapping[str, pathlib.Path], path: pathlib.Path) -> bool:
    """Draws mean-IoU on base and held-out classes, and losses, of runs as one PNG file.

    Runs, which are folders by title, are left out if they have no curves; returns whether any has.

    Examples:
        >>> import tempfile
        >>> from fsseg_jax.training.summaries import Summaries
        >>> with tempfile.TemporaryDirectory() as workdir:
        ...     run = pathlib.Path(workdir)
        ...     Summaries(run / "tensorboard", 1).add({"train/loss": 0.5}, 20)
        ...     drawn = draw({"PANet": run}, run / "curves.png")
        >>> drawn
        True
    """
    curves = {title: read(folder) for title, folder in runs.items()}
    curves = {title: own for title, own in curves.items() if own}
    if not curves:
        return False
    import matplotlib.figure  # here, because it takes a second

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
                # Above the axes, where it hides no curve.
                place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
                axes.legend(fontsize=7, ncols=2, columnspacing=1, frameon=False, **place)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)
    return True


def _points(curve: Curve) -> tuple[list[int], list[float]]:
    steps = sorted(curve)
    return steps, [curve[step].value for step in steps]
