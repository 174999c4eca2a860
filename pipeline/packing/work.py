"""What a worker of pack-images does: unpack a parquet file, or write a tar."""

import secrets
import tarfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import MaskAlignError, SourceError
from pipeline.packing.encode import packed_image
from pipeline.packing.output import LeftOut, TarRecord
from pipeline.packing.plan import Entry
from pipeline.packing.tables import unpack_parquet
from pipeline.runtime.workers import Owner
from pipeline.storage.files import DigestedFile, flush_to_disk, move_file, replace_file
from pipeline.views.sample import LEAST_BAD_ALLOWED
from pipeline.views.view_tars import tar_bytes

_IMAGES_BETWEEN_MESSAGES = 16

Advance = Callable[[int], None]


@dataclass(frozen=True)
class UnpackJob:
    """Unpack one column of a parquet file."""

    source: Path
    column: str
    target: Path
    new: Path

    def run(self, advance: Advance) -> None:
        """Write the Arrow file; `advance` gets numbers of rows. Raises SourceError, OSError."""
        written = self.new / f"{self.target.name}.{secrets.token_hex(4)}"
        unpack_parquet(self.source, self.column, written, advance)
        move_file(written, self.target)


@dataclass(frozen=True)
class TarJob:
    """Write a tar of images with their labels."""

    target: Path
    record: Path
    new: Path
    entries: Sequence[Entry]
    shorter_side: int | None
    quality: int | None
    max_bad: float

    def run(self, advance: Advance) -> TarRecord:
        """Write tar and record; `advance` gets numbers of images. Raises SourceError for too many bad."""
        written = self.new / f"{self.target.name}.{secrets.token_hex(4)}"
        file = DigestedFile(written)
        try:
            left_out = self._fill(file, advance)
            whole = file.close()
        except BaseException:
            file.discard()
            raise
        flush_to_disk(written)
        images = len(self.entries) - len(left_out)
        record = TarRecord(images=images, bytes=whole.size, sha256=whole.sha256, left_out=tuple(left_out))
        replace_file(self.record, record.model_dump_json().encode())
        move_file(written, self.target)
        return record

    def _fill(self, file: DigestedFile, advance: Advance) -> list[LeftOut]:
        """Write all images that are whole and return the others."""
        allowed, total = max(LEAST_BAD_ALLOWED, self.max_bad * len(self.entries)), len(self.entries)
        left_out: list[LeftOut] = []
        for count, entry in enumerate(self.entries, 1):
            try:
                extension, data = packed_image(entry.place.read(), self.shorter_side, self.quality)
            except SourceError as error:
                left_out.append(LeftOut(name=entry.name, reason=str(error)))
                if len(left_out) > allowed or len(left_out) == total:
                    raise SourceError(
                        f"{len(left_out)} of its first {count} images are bad, more than "
                        f"max({LEAST_BAD_ALLOWED}, --max-bad {self.max_bad:g}) of {total}; the first: "
                        f"{left_out[0].name!r} {left_out[0].reason}; restore them, leave them out of the "
                        "source, or raise --max-bad"
                    ) from None
            else:
                file.write(_member(f"{entry.key}.{extension}", data))
                if entry.label >= 0:
                    file.write(_member(f"{entry.key}.cls", str(entry.label).encode()))
            if count % _IMAGES_BETWEEN_MESSAGES == 0 or count == total:
                advance((count - 1) % _IMAGES_BETWEEN_MESSAGES + 1)
        file.write(bytes(tar_bytes(file.size) - file.size))
        return left_out


Job = UnpackJob | TarJob


@dataclass(frozen=True)
class Ended:
    """The end of a job: its result, or its error; a text is the traceback of a bug."""

    result: TarRecord | None = None
    error: Exception | str | None = None


def run_job(job: Job, advance: Advance) -> Ended:
    """Run a job and return how it ended."""
    try:
        return Ended(job.run(advance))
    except MaskAlignError as error:
        return Ended(error=error)
    except OSError as error:
        error.filename = error.filename or str(job.target)  # a full disk names no file
        return Ended(error=error)
    except Exception:
        return Ended(error=traceback.format_exc())


def serve_packing(owner: Owner) -> None:
    """Do jobs until the owner closes the pipe."""
    while True:
        owner.send(run_job(owner.receive(), owner.send))


def _member(name: str, data: bytes) -> bytes:
    """Return a file of a tar without dates and owners: header, data, and zeros to a whole block."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o444
    return info.tobuf() + data + bytes(-len(data) % tarfile.BLOCKSIZE)
