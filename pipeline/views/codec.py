"""Images to pixels and back, without torch, so that a stream worker need not import it.

What decides the pixels of a crop is named in DECODER, or in RESIZE of crop.py, and every cache records both.
"""

import io
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, get_args

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.errors import SourceError

Pixels = NDArray[np.uint8]
ViewFormat = Literal["jpeg", "raw"]

VIEW_FORMATS: tuple[str, ...] = get_args(ViewFormat)
VIEW_EXTENSION: dict[str, str] = {"jpeg": "jpg", "raw": "npy"}
DECODER = "libjpeg-turbo exact DCT and upsampling, else Pillow"
JPEG_QUALITY = 95
JPEG_SUBSAMPLING = "420"
Image.init()  # else only some of these are known
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
MAX_PIXELS = 100_000_000  # a larger image is a decompression bomb rather than a photograph
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow raises at twice this, also for tiles, and only warns before
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else logs of damaged files go to stderr
_BOMB = f"more than the {MAX_PIXELS} that are accepted"
_MAX_SCANS = 1000  # of a JPEG; each scan passes over all of its pixels, and a usual progressive JPEG has ten
# libjpeg only warns of a JPEG that lacks data and fills it up with grey; Pillow ignores the warning.
_INCOMPLETE = re.compile(r"Premature end|Corrupt JPEG data|Invalid SOS|Inconsistent progression")
_JUNK = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0x(\w\w)")
_MOST_JUNK = 4096  # bytes in one place; those that cameras write before the end are at most half as many
_MOST_JUNK_PLACES = 4
_MOST_READ_AHEAD = 16  # eight bytes of bits, each of which may be two in the file
_MARKER = re.compile(rb"\xff+[^\0\xff]", re.DOTALL)
_MARKER_AFTER_SCAN = re.compile(rb"\xff+[^\0\xff\xd0-\xd7]", re.DOTALL)
_SCAN, _END, _WITHOUT_LENGTH = 0xDA, 0xD9, (0x01, *range(0xD0, 0xD8))


def decode_image(data: bytes) -> Pixels:
    """Decode a source image of any common format to (H, W, 3) uint8 RGB.

    EXIF orientation and alpha are ignored (hidden colours show, as in Pillow's convert), 16 bits become their
    upper 8, and an animation gives its first frame. Raises SourceError for what cannot be decoded whole.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        _refuse_bomb(height, width)
        # the first count takes a third of the time of the second
        if data.count(b"\xda") > _MAX_SCANS and data.count(b"\xff\xda") > _MAX_SCANS:
            raise SourceError(f"has more than the {_MAX_SCANS} scans that are accepted of a JPEG")
        return _decode_jpeg(data)
    except ValueError as error:
        if _is_incomplete(data, str(error)):
            raise SourceError(f"cannot be decoded ({error})") from None
        return _decode_by_pillow(data, str(error))


def encode_view(pixels: Pixels, view_format: ViewFormat) -> bytes:
    """Encode a crop (S, S, 3) uint8 as a member of a view tar."""
    if view_format == "raw":
        buffer = io.BytesIO()
        np.save(buffer, pixels)
        return buffer.getvalue()
    return encode_jpeg(pixels, JPEG_QUALITY)


def encode_jpeg(pixels: Pixels, quality: int) -> bytes:
    """Encode an image (H, W, 3) uint8."""
    return bytes(
        simplejpeg.encode_jpeg(
            pixels, quality=quality, colorspace="RGB", colorsubsampling=JPEG_SUBSAMPLING, fastdct=False
        )
    )


def decode_view(data: bytes, view_format: ViewFormat) -> Pixels:
    """Decode a member of a view tar to (S, S, 3) uint8; raises ValueError for anything else."""
    if view_format == "jpeg":
        return _decode_jpeg(data)
    pixels: NDArray[Any] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"an array {pixels.shape} of {pixels.dtype} is not an image")
    return pixels


def _decode_jpeg(data: bytes) -> Pixels:
    pixels: Pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=False, fastupsample=False)
    return pixels


def _is_incomplete(data: bytes, warning: str) -> bool:
    """Tell whether a JPEG lacks data, from the first warning of libjpeg, which gives no other.

    Cameras write junk before markers, mostly before the end: it is taken out, so that the next warning shows.
    """
    scan_end, with_junk = 0, data
    for _ in range(_MOST_JUNK_PLACES):
        if not (found := _JUNK.match(warning)):
            return bool(_INCOMPLETE.match(warning))
        count, marker = int(found[1]), int(found[2], 16)
        if count > _MOST_JUNK or not (junk := _junk(data, count, marker)):
            return True
        start, stop, after_scan = junk
        if after_scan:
            with_junk, scan_end = data if scan_end == 0 else with_junk, start
        data = data[:start] + data[stop:]
        try:
            pixels = _decode_jpeg(data)
        except ValueError as error:
            warning = str(error)
        else:
            return scan_end > 0 and _has_strange_end(data, scan_end, pixels, with_junk)
    return True


def _junk(data: bytes, count: int, marker: int) -> tuple[int, int, bool] | None:
    """Return start and end of the first junk of a JPEG, `count` bytes, and whether it follows a scan.

    None if it is not before the marker or, after a scan, if that is not the last one.
    """
    place, in_scan = 2, False
    while found := (_MARKER_AFTER_SCAN if in_scan else _MARKER).search(data, place):
        start, code = found.start(), data[found.end() - 1]
        if in_scan and code == marker and code in (_END, 0x01):
            return start - count, start, True
        if not in_scan and start > place:
            return (place, start, False) if code == marker else None
        if code == _END:
            return None
        place, in_scan = found.end(), code == _SCAN
        if code not in _WITHOUT_LENGTH:
            place += int.from_bytes(data[place : place + 2])
    return None


def _has_strange_end(data: bytes, scan_end: int, pixels: Pixels, with_junk: bytes) -> bool:
    """Tell whether a scan ends as none does: then it was cut, and the junk filled it up.

    The bits of the last byte that are left over are ones, so a zero before them belongs to the pixels. Zeros
    are codes, and what they fill up may end at a whole byte. Random bytes that fill a scan up pass in about
    a quarter of the cases, when they happen to end in ones: nothing else tells them from pixels.
    """
    for _ in range(_MOST_READ_AHEAD):  # libjpeg has read on from where the pixels end
        try:
            _decode_jpeg(data[: scan_end - 1] + data[scan_end:])
        except ValueError:
            break
        data, scan_end = data[: scan_end - 1] + data[scan_end:], scan_end - 1
    last = data[scan_end - 1]
    if data[scan_end - 2] == 0xFF or last == 0xFF:  # a byte of ones, and the zero that always follows it
        return False
    if last == with_junk[scan_end] == 0:
        return True
    changed = bytes([last | (last + 1)])  # its last zero becomes a one
    changed += b"\0" * (changed == b"\xff")
    try:
        return np.array_equal(_decode_jpeg(data[: scan_end - 1] + changed + data[scan_end:]), pixels)
    except ValueError:
        return False


def _decode_by_pillow(data: bytes, jpeg_reason: str) -> Pixels:
    """Return a writable copy in 8 bits; torch needs writable arrays."""
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS) as image,
        ):
            _refuse_bomb(image.height, image.width)
            with _silent_stderr() if image.format == "TIFF" else nullcontext():
                if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
                    grey = (np.asarray(image) >> 8).astype(np.uint8)  # convert() would clip it at 255
                    return np.repeat(grey[..., None], 3, axis=2)
                if image.mode in ("I", "F"):
                    raise SourceError(
                        "has 32 bits a channel, and their range is not known: at most 16 are accepted"
                    )
                return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except UnidentifiedImageError:  # its own text has the address of an object
        reason = jpeg_reason if data.startswith(b"\xff\xd8") else "no image of a known format"
        raise SourceError(f"cannot be decoded ({reason})") from None
    except Image.DecompressionBombError:
        raise SourceError(f"has {_BOMB}") from None
    except (SourceError, MemoryError):
        raise
    except Exception as error:  # on hostile files Pillow raises almost anything
        raise SourceError(f"cannot be decoded ({type(error).__name__}: {error})") from None


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard output on stderr: libtiff reports damaged files there, and Pillow has no option to stop it."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _refuse_bomb(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise SourceError(f"has {width} x {height} pixels, {_BOMB}")
