"""View tars: the crops that teacher and student see, in webdataset form, read by byte ranges."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from tarfile import BLOCKSIZE, RECORDSIZE
from typing import Any

import google_crc32c

from pipeline.storage.files import DigestedFile, WrittenFile, link_or_new
from pipeline.views.codec import VIEW_EXTENSION, ViewFormat

_END_MARKER = bytes(2 * BLOCKSIZE)
_NAME, _SIZE = slice(100), slice(124, 135)
_KIND, _MAGIC, _PREFIX = slice(156, 257), slice(257, 263), slice(345, BLOCKSIZE)
_PLAIN = (b"0" + bytes(100), b"ustar\0", bytes(BLOCKSIZE - 345))  # a regular file with its name in one field


def tar_sample(key: str, crop: bytes, members: dict[str, bytes], view_format: ViewFormat) -> bytes:
    """Return a sample's bytes in a view tar: the encoded crop and the carried members, without dates."""
    # here, since it imports torch, which a worker of the stream does not need
    from webdataset.writer import TarWriter

    buffer = io.BytesIO()
    tar = TarWriter(buffer, mtime=0, user="root", group="root", mode=0o444, encoder=False)
    tar.write({"__key__": key, VIEW_EXTENSION[view_format]: crop, **members})
    size = tar.tarstream.offset
    tar.close()
    return buffer.getvalue()[:size]


class ViewTarWriter:
    """Puts samples into a tar, one after the other, and notes where each lies."""

    def __init__(self, path: Path, same_as: Path | None = None) -> None:
        """Take the tar's path, and a file that has the same bytes: it is linked where that is possible."""
        self.ranges: list[tuple[int, int, int]] = []  # offset, length and crc32c of each sample
        self._path, self._same_as = path, same_as
        # opened with the first sample: many tars may wait for their turn
        self._file: DigestedFile | None = None

    def append(self, sample: bytes) -> None:
        """Append a sample as `tar_sample` gives it."""
        self._file = self._file or link_or_new(self._path, self._same_as)
        self.ranges.append((self._file.size, len(sample), google_crc32c.value(sample)))
        self._file.write(sample)

    def close(self) -> WrittenFile:
        """Finish the tar."""
        assert self._file
        self._file.write(bytes(tar_bytes(self._file.size) - self._file.size))
        return self._file.close()

    def discard(self) -> None:
        """Close and remove a tar that will not be used."""
        if self._file:
            self._file.discard()


def tar_bytes(samples: int) -> int:
    """Return the size of a view tar of so many bytes of samples: with an end marker, in whole records."""
    return -(-(samples + len(_END_MARKER)) // RECORDSIZE) * RECORDSIZE


def read_sample(data: bytes, extension: str) -> tuple[str, bytes]:
    """Return the key of the one sample in a range of a view tar, and its member with an extension.

    Headers of plain names are read here in 3 us a member, all others by webdataset in 45. Raises ValueError
    if there is not one such member.
    """
    start, keys, found = 0, set(), []
    while start < len(data):
        header = data[start : start + BLOCKSIZE]
        name, size = header[_NAME].rstrip(b"\0"), header[_SIZE]
        file = name.rfind(b"/") + 1
        dot = name.find(b".", file)
        if (
            (header[_KIND], header[_MAGIC], header[_PREFIX]) != _PLAIN
            or not size.isdigit()
            or dot <= file
            or not name.isascii()
        ):
            break
        keys.add(name[:dot])
        end = start + BLOCKSIZE + int(size, 8)
        if name[dot + 1 :].lower() == extension.encode():
            found.append(data[start + BLOCKSIZE : end])
        start = -(-end // BLOCKSIZE) * BLOCKSIZE
    else:
        if start != len(data):
            raise ValueError("the sample is cut")
        if len(keys) == len(found) == 1:
            return keys.pop().decode(), found[0]
    samples = list(parse_samples(data))
    if len(samples) != 1 or extension not in samples[0]:
        raise ValueError(f"{len(samples)} samples, or none with a member {extension!r}, in the place of one")
    return samples[0]["__key__"], samples[0][extension]


def parse_samples(data: bytes) -> Iterator[dict[str, Any]]:
    """Yield the samples in a range of a view tar as dicts from extension to bytes, with `__key__`.

    Raises ValueError if the range does not hold whole samples.
    """
    from webdataset.handlers import reraise_exception
    from webdataset.tariterators import group_by_keys, tar_file_expander

    source = [{"url": "view tar", "stream": io.BytesIO(data + _END_MARKER)}]
    try:
        yield from group_by_keys(
            tar_file_expander(source, handler=reraise_exception), handler=reraise_exception
        )
    except tarfile.TarError as error:  # which is neither an OSError nor a ValueError
        raise ValueError(str(error.args[0]) if error.args else type(error).__name__) from None
