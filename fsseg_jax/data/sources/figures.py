"""The classes of `shapes`: families of outlines and of textures, as functions of coordinates.

Shapes are implicit functions f(x, y), negative inside and approximately the distance to the
outline, in coordinates in which they extend to about 1. Textures are functions of coordinates in
periods; their values in 0..1 mix an object's two colours.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.random import Generator

REACH = 1.35  # no shape extends further from its centre

Grid = Float[np.ndarray, "#height #width"]
Family = Callable[[Grid, Grid, Generator], Grid]  # of shapes or of textures

# ----------------------------------------------------------------------------- shapes


def _box(x: Grid, y: Grid, left: float, right: float, low: float, high: float) -> Grid:
    """An upright rectangle."""
    across = np.abs(x - (left + right) / 2) - (right - left) / 2
    return np.maximum(across, np.abs(y - (low + high) / 2) - (high - low) / 2)


def _boxes(*boxes: tuple[float, float, float, float]) -> Family:
    """Unions of rectangles (left, right, low, high), such as letters."""

    def shape(x: Grid, y: Grid, rng: Generator) -> Grid:
        thicker = rng.uniform(-0.05, 0.05)
        return functools.reduce(np.minimum, (_box(x, y, *box) for box in boxes)) - thicker

    return shape


def _polygon(low: int, high: int) -> Family:
    """Regular polygons with `low` to `high` corners."""

    def shape(x: Grid, y: Grid, rng: Generator) -> Grid:
        corners = int(rng.integers(low, high + 1))
        turns = (2 * math.pi * corner / corners for corner in range(corners))
        sides = (x * math.cos(turn) + y * math.sin(turn) for turn in turns)
        return functools.reduce(np.maximum, sides) - math.cos(math.pi / corners)

    return shape


def _rosette(low: int, high: int, radius: float, depth: float, edge: float) -> Family:
    """Circles whose radius oscillates `low` to `high` times by `depth`.

    A large `edge` makes the oscillation rectangular.
    """

    def shape(x: Grid, y: Grid, rng: Generator) -> Grid:
        wave = np.cos(np.arctan2(y, x) * int(rng.integers(low, high + 1)))
        wave = np.clip(wave * edge, -1, 1) * (depth * rng.uniform(0.85, 1.15))
        return np.hypot(x, y) - radius - wave

    return shape


def _ellipse(x: Grid, y: Grid, rng: Generator) -> Grid:
    return np.hypot(x, y * rng.uniform(1.1, 1.7)) - 1


def _ring(x: Grid, y: Grid, rng: Generator) -> Grid:
    return np.abs(np.hypot(x, y) - 0.75) - rng.uniform(0.2, 0.28)


def _frame(x: Grid, y: Grid, rng: Generator) -> Grid:
    return np.abs(np.maximum(np.abs(x), np.abs(y)) - 0.65) - rng.uniform(0.17, 0.24)


def _heart(x: Grid, y: Grid, rng: Generator) -> Grid:
    lift = np.sqrt(np.abs(x) + 0.01) * rng.uniform(0.7, 0.9)
    return (np.hypot(x, y + 0.2 - lift) - 0.9) * 0.8


def _crescent(x: Grid, y: Grid, rng: Generator) -> Grid:
    bite = np.hypot(x - rng.uniform(0.5, 0.6), y) - 0.8
    return np.maximum(np.hypot(x, y) - 1, -bite)


def _half_disc(x: Grid, y: Grid, rng: Generator) -> Grid:
    return np.maximum(np.hypot(x, y + 0.4) - 1.1, -y - 0.4)


def _pac_man(x: Grid, y: Grid, rng: Generator) -> Grid:
    half_angle = rng.uniform(0.5, 0.8)  # of the mouth
    mouth = np.abs(y) * math.cos(half_angle) - x * math.sin(half_angle)
    return np.maximum(np.hypot(x, y) - 1, -mouth)


def _teardrop(x: Grid, y: Grid, rng: Generator) -> Grid:
    height = np.clip(y, -1, 1)
    width = (1 - height) * np.sqrt(1 - height * height) * rng.uniform(0.5, 0.65)
    return np.maximum(np.abs(x) - width, np.abs(y) - 1) * 0.8


def _hourglass(x: Grid, y: Grid, rng: Generator) -> Grid:
    slope = rng.uniform(0.65, 0.9)
    return np.maximum((np.abs(x) - slope * np.abs(y) - 0.12) * 0.8, np.abs(y) - 0.9)


def _arrow(x: Grid, y: Grid, rng: Generator) -> Grid:
    head = np.maximum((np.abs(x) + 0.9 * y - 0.9) * 0.75, -y)
    return np.minimum(head, _box(x, y, -0.3, 0.3, -1, 0.05) - rng.uniform(-0.05, 0.05))


def _chevron(x: Grid, y: Grid, rng: Generator) -> Grid:
    fold = np.abs(y - rng.uniform(0.7, 1.0) * (np.abs(x) - 0.5)) * 0.75
    return np.maximum(fold - rng.uniform(0.25, 0.3), np.abs(x) - 0.95)


def _zigzag(x: Grid, y: Grid, rng: Generator) -> Grid:
    fold = np.abs(y - 2 * _wave(x * 0.75 + 0.25) + 0.5) * 0.6
    return np.maximum(fold - rng.uniform(0.2, 0.25), np.abs(x) - 1.05)


def _dumbbell(x: Grid, y: Grid, rng: Generator) -> Grid:
    ends = np.hypot(np.abs(x) - 0.7, y) - rng.uniform(0.4, 0.5)
    return np.minimum(ends, _box(x, y, -0.7, 0.7, -0.17, 0.17))


# ----------------------------------------------------------------------------- textures


def _wave(t: Grid) -> Grid:
    """A triangle wave of period 1: the distance to the nearest integer, 0..0.5."""
    return np.abs(t - np.rint(t))


def _sharp(t: Grid) -> Grid:
    """1 where t > 0 and 0 elsewhere, with an edge of about a pixel if t is in periods."""
    return np.clip(0.5 + 6 * t, 0, 1)


def _cells(u: Grid, v: Grid, rng: Generator) -> Grid:
    """A random number for each unit square."""
    table = rng.random((32, 32), np.float32)
    return table[np.floor(v).astype(np.int32) & 31, np.floor(u).astype(np.int32) & 31]


def _stripes(u: Grid, v: Grid, rng: Generator) -> Grid:
    return _sharp(_wave(u) - rng.uniform(0.2, 0.3))


def _checks(u: Grid, v: Grid, rng: Generator) -> Grid:
    return _sharp((_wave(u * 0.8) - 0.25) * (_wave(v * 0.8) - 0.25) * 4)


def _dots(u: Grid, v: Grid, rng: Generator) -> Grid:
    return _sharp(rng.uniform(0.27, 0.34) - np.hypot(_wave(u), _wave(v)))


def _rings(u: Grid, v: Grid, rng: Generator) -> Grid:
    radius = np.hypot(u, v) * 0.8
    return radius - np.floor(radius)  # shaded, so as not to look like bent stripes


def _bricks(u: Grid, v: Grid, rng: Generator) -> Grid:
    v = v * 0.9
    joint = _wave(u * 0.45 + np.floor(v) * 0.5) * 2
    return _sharp(np.minimum(joint, _wave(v)) - rng.uniform(0.1, 0.16))


def _waves(u: Grid, v: Grid, rng: Generator) -> Grid:
    bend = np.sin(u * rng.uniform(1.4, 1.8)) * rng.uniform(0.6, 0.8)
    return _sharp(_wave((v + bend) * 0.8) - 0.25)


def _grid(u: Grid, v: Grid, rng: Generator) -> Grid:
    return _sharp(np.minimum(_wave(u * 0.8), _wave(v * 0.8)) - rng.uniform(0.1, 0.15))


def _herringbone(u: Grid, v: Grid, rng: Generator) -> Grid:
    return _sharp(_wave(v + _wave(u * 0.4) * rng.uniform(2.2, 3)) - 0.25)


def _noise(u: Grid, v: Grid, rng: Generator) -> Grid:
    return _cells(u * 2.2, v * 2.2, rng)


def _spiral(u: Grid, v: Grid, rng: Generator) -> Grid:
    arms = int(rng.integers(4, 7)) / (2 * math.pi)
    return _sharp(_wave(np.hypot(u, v) * 0.6 + np.arctan2(v, u) * arms) - 0.25)


def _rays(u: Grid, v: Grid, rng: Generator) -> Grid:
    rays = int(rng.integers(9, 14)) / (2 * math.pi)
    return _sharp((_wave(np.arctan2(v, u) * rays) - 0.25) * np.hypot(u, v) * 0.5)


def _camouflage(u: Grid, v: Grid, rng: Generator) -> Grid:
    bend = np.sin(u * 1.9 + np.sin(v * 2.7)) + np.sin(v * 2.1 - np.sin(u * 2.3))
    return _sharp((bend + np.sin((u - v) * 1.1)) * 0.3)


def _honeycomb(u: Grid, v: Grid, rng: Generator) -> Grid:
    u, v = u * 5.2, v * 5.2
    waves = np.cos(u) + np.cos(u * 0.5 + v * 0.866) + np.cos(u * 0.5 - v * 0.866)
    return _sharp((waves + rng.uniform(0.75, 0.95)) * 0.2)


def _triangles(u: Grid, v: Grid, rng: Generator) -> Grid:
    u, v = u * 2.6, v * 2.6
    waves = np.sin(u) * np.sin(u * 0.5 + v * 0.866) * np.sin(u * 0.5 - v * 0.866)
    return _sharp(waves * 0.8)


def _scales(u: Grid, v: Grid, rng: Generator) -> Grid:
    row = np.floor(v)
    front = np.hypot(_wave(u * 0.8 + row * 0.5) * 1.25, v - row)
    behind = np.hypot(_wave(u * 0.8 + row * 0.5 + 0.5) * 1.25, v - row + 1)
    return np.where(front < 0.75, front / 0.75, np.minimum(behind / 0.75 - 1, 1))


def _bubbles(u: Grid, v: Grid, rng: Generator) -> Grid:
    radius = np.hypot(_wave(u * 0.7), _wave(v * 0.7))
    return _sharp(np.abs(radius - rng.uniform(0.28, 0.36)) - 0.09)


def _pluses(u: Grid, v: Grid, rng: Generator) -> Grid:
    u, v = 0.5 - _wave(u * 0.75), 0.5 - _wave(v * 0.75)
    return _sharp(np.minimum(np.maximum(u - 0.36, v - 0.1), np.maximum(u - 0.1, v - 0.36)))


def _plaid(u: Grid, v: Grid, rng: Generator) -> Grid:
    width = rng.uniform(0.2, 0.3)
    return (_sharp(_wave(u * 0.6) - width) + _sharp(_wave(v * 0.6) - width)) / 2


def _weave(u: Grid, v: Grid, rng: Generator) -> Grid:
    upright = (_wave(u * 0.27) - 0.25) * (_wave(v * 0.27) - 0.25) > 0
    return _sharp(_wave(np.where(upright, u, v) * 1.08) - 0.25)


def _speckle(u: Grid, v: Grid, rng: Generator) -> Grid:
    u, v = u * 1.1, v * 1.1
    angle = _cells(u, v, rng) * (2 * math.pi)  # displaces each speck within its cell
    du, dv = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5
    return _sharp(np.hypot(du - 0.25 * np.cos(angle), dv - 0.25 * np.sin(angle)) - 0.25)


def _dashes(u: Grid, v: Grid, rng: Generator) -> Grid:
    shift = np.floor(v * 1.1) * rng.uniform(0.3, 0.5)
    return _sharp(np.maximum(_wave(v * 1.1) - 0.32, 0.17 - _wave(u * 0.5 + shift)))


def _pyramids(u: Grid, v: Grid, rng: Generator) -> Grid:
    return (_wave(u * 0.7) + _wave(v * 0.7)) ** rng.uniform(0.8, 1.2)


def _marble(u: Grid, v: Grid, rng: Generator) -> Grid:
    warp = np.sin(v * 1.1 + 1.5 * np.sin(u * 0.9))
    return 0.5 + 0.5 * np.sin(u * 3 + 2.5 * warp)


def _bar_code(u: Grid, v: Grid, rng: Generator) -> Grid:
    return _sharp(_cells(u * 2.5, v * 0, rng) - 0.5)


# ----------------------------------------------------------------------------- classes


class Kind(NamedTuple):
    """A class: a family of shapes filled with a family of textures."""

    name: str
    shape: Family
    texture: Family


_CROSS = _boxes((-0.95, 0.95, -0.33, 0.33), (-0.33, 0.33, -0.95, 0.95))
_L = _boxes((-0.7, -0.05, -0.9, 0.9), (-0.7, 0.75, -0.9, -0.3))
_T = _boxes((-0.9, 0.9, 0.3, 0.85), (-0.3, 0.3, -0.95, 0.4))
_H = _boxes((-0.85, -0.35, -0.9, 0.9), (0.35, 0.85, -0.9, 0.9), (-0.4, 0.4, -0.25, 0.25))
_U = _boxes((-0.85, -0.33, -0.85, 0.85), (0.33, 0.85, -0.85, 0.85), (-0.4, 0.4, -0.85, -0.3))
_BAR = _boxes((-1.15, 1.15, -0.45, 0.45))

KINDS = (  # six per fold, so that no fold holds out all round or all striped classes
    Kind("striped_triangle", _polygon(3, 3), _stripes),
    Kind("dotted_ring", _ring, _dots),
    Kind("checked_heart", _heart, _checks),
    Kind("wavy_L", _L, _waves),
    Kind("honeycomb_star", _rosette(5, 7, 0.75, 0.28, 1), _honeycomb),
    Kind("scaly_half_disc", _half_disc, _scales),
    Kind("brick_cross", _CROSS, _bricks),
    Kind("ringed_ellipse", _ellipse, _rings),
    Kind("noisy_arrow", _arrow, _noise),
    Kind("bar_code_crescent", _crescent, _bar_code),
    Kind("bubbly_frame", _frame, _bubbles),
    Kind("triangled_flower", _rosette(3, 4, 0.7, 0.35, 1), _triangles),
    Kind("herringbone_hexagon", _polygon(5, 7), _herringbone),
    Kind("speckled_T", _T, _speckle),
    Kind("woven_teardrop", _teardrop, _weave),
    Kind("plus_hourglass", _hourglass, _pluses),
    Kind("spiral_pac_man", _pac_man, _spiral),
    Kind("marbled_chevron", _chevron, _marble),
    Kind("camouflaged_H", _H, _camouflage),
    Kind("grid_dumbbell", _dumbbell, _grid),
    Kind("rayed_gear", _rosette(7, 9, 0.85, 0.13, 3), _rays),
    Kind("plaid_U", _U, _plaid),
    Kind("dashed_bar", _BAR, _dashes),
    Kind("pyramid_zigzag", _zigzag, _pyramids),
)


@functools.cache
def unit_area(kind: int) -> float:
    """The mean area of a class's shapes in their own coordinates."""
    axis = np.linspace(-REACH, REACH, 64, dtype=np.float32)
    rng = np.random.default_rng(0)
    shape = KINDS[kind].shape
    inside = [(shape(axis[None], axis[:, None], rng) < 0).mean() for _ in range(8)]
    return float(np.mean(inside)) * (2 * REACH) ** 2
