"""Ways to damage a cache: the file of an array's rows, a flipped bit, a sealed file with other content."""

import json

from pipeline.cache import layout
from pipeline.cache.digests import sealed
from pipeline.cache.layout import array_specs
from pipeline.cache.reader import Cache


def shard(path, name, unit):
    """Return the file with a unit's rows of an array."""
    spec = array_specs(Cache(path).schema)[name]
    return path / layout.shard_key(spec, unit)


def flip(file, place):
    """Flip one bit of the byte at `place`; once more undoes it."""
    data = bytearray(file.read_bytes())
    data[place] ^= 1 << place % 8
    file.write_bytes(data)


def swap(one, other):
    """Exchange the content of two files."""
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def resealed(file, **changes):
    """Change keys of a sealed file and seal it again, as a maker with a fault would."""
    file.write_bytes(sealed(json.loads(file.read_bytes()) | changes))
