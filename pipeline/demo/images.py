"""Captioned images for the demo: a form on a ground, both of any colour and texture, amid clutter.

Only the form makes the class. Colours, textures, place, size, tilt and clutter are random, so features
that ignore the form score badly. An image is a pure function of (seed, index).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.demo.forms import CLASSES, FORMS, Patch, Point

SIDE = 96
_OVERSAMPLING = 2
_COLOURS = {
    "red": (215, 45, 40),
    "orange": (235, 140, 35),
    "yellow": (235, 215, 60),
    "green": (60, 165, 75),
    "cyan": (70, 195, 205),
    "blue": (50, 85, 205),
    "purple": (135, 60, 175),
    "pink": (240, 150, 185),
    "brown": (125, 80, 45),
    "black": (25, 25, 28),
    "white": (240, 240, 236),
    "grey": (130, 132, 135),
}
_LUMA = {name: float(np.dot(colour, (0.299, 0.587, 0.114))) for name, colour in _COLOURS.items()}
_TEXTURES = ("plain", "striped", "spotted", "shaded", "grainy")
_MIN_CONTRAST = 60.0  # least difference of luma between form and ground, of 255

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class DrawnImage:
    """One image: `pixels` (SIDE, SIDE, 3) uint8, its class index, its caption, and where its form is.

    `form` (SIDE, SIDE) bool is exact: a pixel belongs to the form if at least half of it does.
    """

    pixels: NDArray[np.uint8]
    label: int
    caption: str
    form: NDArray[np.bool_]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The box around the form: left, top, right and bottom, the last two exclusive."""
        rows, columns = np.flatnonzero(self.form.any(1)), np.flatnonzero(self.form.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def image(seed: int, index: int) -> DrawnImage:
    """Draw image `index` of the endless series `seed`."""
    rng = np.random.default_rng([seed, index])
    label = int(rng.integers(len(CLASSES)))
    form_colour = str(rng.choice(list(_COLOURS)))
    unlike = [name for name in _COLOURS if abs(_LUMA[name] - _LUMA[form_colour]) > _MIN_CONTRAST]
    ground_colour = str(rng.choice(unlike))
    form_texture, ground_texture = (str(rng.choice(_TEXTURES)) for _ in range(2))
    ground = _texture(rng, ground_texture, _shade(rng, ground_colour))
    ground = _paste(ground, _clutter_mask(rng), _shade(rng, str(rng.choice(list(_COLOURS)))))
    form = _texture(rng, form_texture, _shade(rng, form_colour))
    mask = _form_mask(rng, CLASSES[label])
    pixels = _paste(ground, mask, form)
    pixels += rng.normal(0, rng.uniform(0, 8), pixels.shape).astype(np.float32)
    # The caption names the form always, colours and textures only sometimes, as people do.
    noun = CLASSES[label]
    if rng.random() < 0.5:
        caption = str(rng.choice([f"{article(noun)} {noun}", f"a picture of {article(noun)} {noun}"]))
    else:
        adjectives = [word for word in (form_texture, form_colour) if rng.random() < 0.5]
        noun = " ".join([*adjectives, noun])
        where = f" on {article(ground_colour)} {ground_colour} ground" if rng.random() < 0.3 else ""
        caption = f"{article(noun)} {noun}{where}"
    return DrawnImage(pixels.clip(0, 255).astype(np.uint8), label, caption, mask >= 0.5)


def article(word: str) -> str:
    """Return the article of a word of the captions."""
    return "an" if word[0] in "aeiou" or word.startswith("hour") else "a"


def _shade(rng: np.random.Generator, colour: str) -> Pixels:
    return (np.asarray(_COLOURS[colour]) + rng.normal(0, 12, 3)).astype(np.float32)


def _texture(rng: np.random.Generator, name: str, colour: Pixels) -> Pixels:
    """Spread a colour over the image with a texture: (SIDE, SIDE, 3)."""
    strength = np.float32(rng.uniform(15, 40))
    pattern = np.zeros((SIDE, SIDE), np.float32)
    if name == "grainy":
        coarse = rng.normal(0, 0.6, (SIDE // 4, SIDE // 4)).astype(np.float32)
        pattern = coarse.repeat(4, axis=0).repeat(4, axis=1)
    elif name != "plain":
        y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
        angle = rng.uniform(0, math.pi)
        u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        if name == "striped":
            pattern = np.sign(np.sin(u * (2 * math.pi / rng.uniform(6, 16))))
        elif name == "spotted":
            scale = 2 * math.pi / rng.uniform(8, 16)
            pattern = (np.sin(u * scale) * np.sin(v * scale) > 0.3).astype(np.float32)
        else:
            pattern = (u - u.mean()) * (1.5 / SIDE)
    return (colour + strength * pattern[..., None]).astype(np.float32)


def _paste(ground: Pixels, mask: Pixels, colour: Pixels) -> Pixels:
    return np.asarray(ground + (colour - ground) * mask[..., None], np.float32)


def _smooth(mask: Image.Image) -> Pixels:
    return np.asarray(mask.reduce(_OVERSAMPLING), np.float32) / np.float32(255)


def _clutter_mask(rng: np.random.Generator) -> Pixels:
    """Draw a few small discs and sticks, the same colour all."""
    mask = Image.new("L", (SIDE * _OVERSAMPLING, SIDE * _OVERSAMPLING))
    draw = ImageDraw.Draw(mask)
    for _ in range(int(rng.integers(0, 7))):
        x, y = rng.uniform(0, mask.width, 2)
        length, angle = rng.uniform(6, 22), rng.uniform(0, math.pi)
        if rng.random() < 0.5:
            draw.ellipse((x - length / 3, y - length / 3, x + length / 3, y + length / 3), fill=255)
        else:
            draw.line((x, y, x + length * math.cos(angle), y + length * math.sin(angle)), fill=255, width=5)
    return _smooth(mask)


def _form_mask(rng: np.random.Generator, form: str) -> Pixels:
    """Draw a form at a random place, size and tilt, wholly inside the image."""
    mask = Image.new("L", (SIDE * _OVERSAMPLING, SIDE * _OVERSAMPLING))
    draw = ImageDraw.Draw(mask)
    half = rng.uniform(0.27, 0.42) * mask.width
    centre = rng.uniform(half, mask.width - half, 2)
    tilt, mirror = rng.normal(0, 0.2), rng.choice((-1, 1))

    def place(point: Point) -> Point:
        x, y = mirror * point[0], point[1]
        across, down = x * math.cos(tilt) - y * math.sin(tilt), x * math.sin(tilt) + y * math.cos(tilt)
        return float(centre[0] + half * across), float(centre[1] + half * down)

    for part in FORMS[form]:
        points = [place(point) for point in part.points]
        if isinstance(part, Patch):
            draw.polygon(points, fill=0 if part.hole else 255)
        else:
            draw.line(points, fill=255, width=round(part.width * half), joint="curve")
    return _smooth(mask)
