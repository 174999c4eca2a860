"""The classes of the demo's images: strokes and patches in the square [-1, 1] x [-1, 1], y downwards.

No form changes its class under a horizontal flip or a small rotation, since training views do both.
"""

import math
from dataclasses import dataclass

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


def _circle(radius: float, centre: Point = (0.0, 0.0), steps: int = 32) -> tuple[Point, ...]:
    """Points on a circle at equal angles."""
    angles = [2 * math.pi * (i / steps) for i in range(steps)]
    return tuple((centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in angles)


def _disc(radius: float, centre: Point = (0.0, 0.0), hole: bool = False) -> Patch:
    return Patch(_circle(radius, centre), hole)


def _box(left: float, top: float, right: float, bottom: float, hole: bool = False) -> Patch:
    return Patch(((left, top), (right, top), (right, bottom), (left, bottom)), hole)


_STAR_RADII = [1.0 if i % 2 == 0 else 0.4 for i in range(10)]
_STAR = [(r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5)) for i, r in enumerate(_STAR_RADII)]
_HEART = [
    (
        16 * math.sin(a) ** 3 / 17,
        (-13 * math.cos(a) + 5 * math.cos(2 * a) + 2 * math.cos(3 * a) + math.cos(4 * a) - 2) / 17,
    )
    for a in (2 * math.pi * i / 40 for i in range(40))
]
_SPIRAL = [
    ((0.05 + 0.85 * t) * math.cos(4.4 * math.pi * t), (0.05 + 0.85 * t) * math.sin(4.4 * math.pi * t))
    for t in (i / 60 for i in range(61))
]

FORMS: dict[str, Shape] = {
    "ring": [_disc(0.95), _disc(0.6, hole=True)],
    "target": [_disc(1.0), _disc(0.74, hole=True), _disc(0.42)],
    "frame": [_box(-0.85, -0.85, 0.85, 0.85), _box(-0.5, -0.5, 0.5, 0.5, hole=True)],
    "triangle": [Patch(((0.0, -0.95), (0.95, 0.8), (-0.95, 0.8)))],
    "star": [Patch(tuple(_STAR))],
    "plus": [_box(-0.24, -0.95, 0.24, 0.95), _box(-0.95, -0.24, 0.95, 0.24)],
    "crescent": [_disc(0.95), _disc(0.78, centre=(0.45, -0.1), hole=True)],
    "heart": [Patch(tuple(_HEART))],
    "arrow": [_box(-1.0, -0.2, 0.2, 0.2), Patch(((0.1, -0.75), (1.0, 0.0), (0.1, 0.75)))],
    "spiral": [Stroke(tuple(_SPIRAL), 0.2)],
    "zigzag": [Stroke(tuple((-1.0 + 0.4 * i, -0.5 if i % 2 else 0.5) for i in range(6)), 0.26)],
    "ladder": [
        _box(-0.7, -1.0, -0.45, 1.0),
        _box(0.45, -1.0, 0.7, 1.0),
        *(_box(-0.5, y - 0.1, 0.5, y + 0.1) for y in (-0.6, 0.0, 0.6)),
    ],
    "necklace": [_disc(0.21, centre) for centre in _circle(0.78, steps=8)],
    "stack": [_box(-0.95, y - 0.2, 0.95, y + 0.2) for y in (-0.75, 0.0, 0.75)],
    "hourglass": [Patch(((-0.8, -0.95), (0.8, -0.95), (-0.8, 0.95), (0.8, 0.95)))],
    "comb": [
        _box(-0.95, -0.85, 0.95, -0.5),
        *(_box(x - 0.12, -0.6, x + 0.12, 0.8) for x in (-0.83, -0.28, 0.28, 0.83)),
    ],
    "flower": [*(_disc(0.36, centre) for centre in _circle(0.6, steps=5)), _disc(0.3, hole=True)],
    "staircase": [
        _box(-0.95 + 0.475 * i, 0.95 - 0.475 * (i + 1), -0.95 + 0.475 * (i + 1), 0.95) for i in range(4)
    ],
}
CLASSES: tuple[str, ...] = tuple(FORMS)
