"""A file of a Folder, piece by piece: as much of it in memory as one piece."""

from collections.abc import Iterator

from pipeline.storage.folder import Folder

_PIECE = 8 << 20


def read_pieces(folder: Folder, key: str, start: int = 0) -> Iterator[bytes]:
    """Yield the bytes of a file from `start` on in pieces of 8 MiB; raises FileNotFoundError."""
    while piece := folder.read(key, start, start + _PIECE):
        yield piece
        start += len(piece)
        if len(piece) < _PIECE:
            return
