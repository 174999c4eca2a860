"""Generated images of two coloured squares with exact boxes and polygons, and tars of them."""

import json

import numpy as np
from networks import png
from PIL import Image, ImageDraw
from tars import write_tar

COLOURS = ((220, 40, 40), (40, 60, 220))


def squares(number, width=64, height=48):
    """Return the bytes of a PNG and its notes: a red square on the left and a blue one on the right."""
    rng = np.random.default_rng(number)
    drawn = Image.fromarray(rng.integers(110, 140, (height, width, 3), dtype=np.uint8))
    notes = {"boxes": [], "labels": [0, 1], "polygons": []}
    for label, colour in enumerate(COLOURS):
        side = int(rng.integers(18, 25))
        left = int(rng.integers(0, width // 2 - side)) + label * width // 2
        top = int(rng.integers(0, height - side))
        right, bottom = left + side, top + side
        ImageDraw.Draw(drawn).rectangle([left, top, right - 1, bottom - 1], fill=colour)
        notes["boxes"].append([left, top, right, bottom])
        notes["polygons"].append([[left, top, right, top, right, bottom, left, bottom]])
    return png(np.array(drawn)), notes


def tar_of(path, samples):
    """Write a tar of {key: (bytes of KEY.png, notes | None)} and return its path."""
    members = {}
    for key, (data, notes) in samples.items():
        members[f"{key}.png"] = data
        if notes is not None:
            members[f"{key}.json"] = notes if isinstance(notes, bytes) else json.dumps(notes).encode()
    return write_tar(path, {}, members=members)
