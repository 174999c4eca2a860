"""The classes of the demo's images: strokes and patches in the square [-1, 1] x [-1, 1], y downwards.

No form changes its class under a horizontal flip or a small rotation, since training views do both.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

Point = tuple[float, float]


@dataclass(frozen=True)
class Patch:
    """A filled polygon; `hole` cuts it out instead."""

    points: tuple[Point, ...]
    hole: bool = False


@dataclass(frozen=True)
class Stroke:
    """A line through `points`, `width` in units of the half side."""

    points: tuple[Point, ...]
    width: float = 0.26


Shape = list[Patch | Stroke]


def _arc(
    radius: float, start: float, end: float, centre: Point = (0.0, 0.0), steps: int = 32
) -> tuple[Point, ...]:
    """Points on a circle between two angles in turns."""
    angles = [2 * math.pi * (start + (end - start) * i / steps) for i in range(steps + 1)]
    return tuple((centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in angles)


def _disc(radius: float, centre: Point = (0.0, 0.0), hole: bool = False) -> Patch:
    return Patch(_arc(radius, 0, 1, centre), hole)


def _box(left: float, top: float, right: float, bottom: float, hole: bool = False) -> Patch:
    return Patch(((left, top), (right, top), (right, bottom), (left, bottom)), hole)


def _ring() -> Shape:
    return [_disc(0.95), _disc(0.6, hole=True)]


def _target() -> Shape:
    return [_disc(1.0), _disc(0.74, hole=True), _disc(0.42)]


def _frame() -> Shape:
    return [_box(-0.85, -0.85, 0.85, 0.85), _box(-0.5, -0.5, 0.5, 0.5, hole=True)]


def _triangle() -> Shape:
    return [Patch(((0.0, -0.95), (0.95, 0.8), (-0.95, 0.8)))]


def _star() -> Shape:
    radii = [1.0 if i % 2 == 0 else 0.4 for i in range(10)]
    return [
        Patch(
            tuple(
                (r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5)) for i, r in enumerate(radii)
            )
        )
    ]


def _plus() -> Shape:
    return [_box(-0.24, -0.95, 0.24, 0.95), _box(-0.95, -0.24, 0.95, 0.24)]


def _crescent() -> Shape:
    return [_disc(0.95), _disc(0.78, centre=(0.45, -0.1), hole=True)]


def _heart() -> Shape:
    angles = [2 * math.pi * i / 40 for i in range(40)]
    outline = [
        (
            16 * math.sin(a) ** 3,
            -13 * math.cos(a) + 5 * math.cos(2 * a) + 2 * math.cos(3 * a) + math.cos(4 * a),
        )
        for a in angles
    ]
    return [Patch(tuple((x / 17, (y - 2) / 17) for x, y in outline))]


def _arrow() -> Shape:
    return [_box(-1.0, -0.2, 0.2, 0.2), Patch(((0.1, -0.75), (1.0, 0.0), (0.1, 0.75)))]


def _spiral() -> Shape:
    turns = [i / 60 for i in range(61)]
    path = tuple(
        ((0.05 + 0.85 * t) * math.cos(4.4 * math.pi * t), (0.05 + 0.85 * t) * math.sin(4.4 * math.pi * t))
        for t in turns
    )
    return [Stroke(path, 0.2)]


def _zigzag() -> Shape:
    return [Stroke(tuple((-1.0 + 0.4 * i, -0.5 if i % 2 else 0.5) for i in range(6)), 0.26)]


def _ladder() -> Shape:
    rungs = [_box(-0.5, y - 0.1, 0.5, y + 0.1) for y in (-0.6, 0.0, 0.6)]
    return [_box(-0.7, -1.0, -0.45, 1.0), _box(0.45, -1.0, 0.7, 1.0), *rungs]


def _dots(centres: list[Point], radius: float) -> Shape:
    return [_disc(radius, centre) for centre in centres]


def _stack() -> Shape:
    return [_box(-0.95, y - 0.2, 0.95, y + 0.2) for y in (-0.75, 0.0, 0.75)]


def _hourglass() -> Shape:
    return [Patch(((-0.8, -0.95), (0.8, -0.95), (-0.8, 0.95), (0.8, 0.95)))]


def _comb() -> Shape:
    teeth = [_box(x - 0.12, -0.6, x + 0.12, 0.8) for x in (-0.83, -0.28, 0.28, 0.83)]
    return [_box(-0.95, -0.85, 0.95, -0.5), *teeth]


def _flower() -> Shape:
    petals = _dots([p for p in _arc(0.6, 0, 1, steps=5)[:5]], 0.36)
    return [*petals, _disc(0.3, hole=True)]


def _staircase() -> Shape:
    return [_box(-0.95 + 0.475 * i, 0.95 - 0.475 * (i + 1), -0.95 + 0.475 * (i + 1), 0.95) for i in range(4)]


FORMS: dict[str, Callable[[], Shape]] = {
    "ring": _ring,
    "target": _target,
    "frame": _frame,
    "triangle": _triangle,
    "star": _star,
    "plus": _plus,
    "crescent": _crescent,
    "heart": _heart,
    "arrow": _arrow,
    "spiral": _spiral,
    "zigzag": _zigzag,
    "ladder": _ladder,
    "necklace": partial(_dots, list(_arc(0.78, 0, 1, steps=8)[:8]), 0.21),
    "stack": _stack,
    "hourglass": _hourglass,
    "comb": _comb,
    "flower": _flower,
    "staircase": _staircase,
}
CLASSES: tuple[str, ...] = tuple(FORMS)
