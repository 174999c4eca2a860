"""Ways in which the bytes of a cache go wrong: each takes a file, or a pair of them, and returns what they would then hold."""

import struct
from dataclasses import dataclass

import google_crc32c

_ENTRY = 16  # offset and length of an inner chunk
_CRC = 4
_LONGEST = 64


@dataclass(frozen=True)
class Damage:
    """What some files would hold, None for a file that would be gone; the kind and the place are told."""

    kind: str
    contents: dict
    place: str


def flip(path, data, rng):
    """Flip one bit."""
    place, bit = rng.randrange(len(data)), rng.randrange(8)
    return Damage(
        "flip",
        {path: data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]},
        f"bit {bit} of byte {place}",
    )


def overwrite(path, data, rng):
    """Write random bytes over some."""
    place, length = _run(data, rng)
    return Damage(
        "overwrite",
        {path: data[:place] + rng.randbytes(length) + data[place + length :]},
        f"bytes {place} to {place + length}",
    )


def blank(path, data, rng):
    """Write zeros over some bytes, as a lost page of a disk reads."""
    place, length = _run(data, rng)
    return Damage(
        "blank",
        {path: data[:place] + bytes(length) + data[place + length :]},
        f"bytes {place} to {place + length}",
    )


def delete(path, data, rng):
    """Leave some bytes out."""
    place, length = _run(data, rng)
    return Damage(
        "delete", {path: data[:place] + data[place + length :]}, f"bytes {place} to {place + length}"
    )


def truncate(path, data, rng):
    """Cut the file off."""
    length = rng.choice([0, rng.randrange(len(data))])
    return Damage("truncate", {path: data[:length]}, f"at byte {length}")


def remove(path, _data, _rng):
    """Remove the file."""
    return Damage("remove", {path: None}, "whole")


ANYWHERE = (flip, flip, flip, overwrite, blank, delete, truncate, remove)


def swap(one, other):
    """Exchange two files."""
    return Damage("swap", {one: other.read_bytes(), other: one.read_bytes()}, f"with {other.name}")


def swap_blocks(path, data, chunks):
    """Exchange the first two inner chunks of a shard that has `chunks` of them, the index and its checksum staying right."""
    index = data[-_CRC - chunks * _ENTRY : -_CRC]
    first, second = index[:_ENTRY], index[_ENTRY : 2 * _ENTRY]
    swapped = second + first + index[2 * _ENTRY :]
    checksum = struct.pack("<I", google_crc32c.value(swapped))
    return Damage("swap blocks", {path: data[: -_CRC - len(index)] + swapped + checksum}, "first and second")


def _run(data, rng):
    place = rng.randrange(len(data))
    return place, min(rng.randint(1, _LONGEST), len(data) - place)
