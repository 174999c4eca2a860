"""A prefix of an object store as a Folder: every write is one whole object, and conditional puts decide who was first."""

import errno
import os
import random
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import AlreadyExistsError, GenericError, PreconditionError
from obstore.store import ObjectStore

from pipeline.errors import StorageError
from pipeline.storage.claims import CLAIM_EXPIRY, Claim
from pipeline.storage.connection import connect, out_of_range, patiently, told, version_of
from pipeline.storage.local import LocalFolder

if TYPE_CHECKING:
    from obstore import GetResult
    from obstore.store import RetryConfig

PART_BYTES = 8 << 20  # of a multipart upload
_MOST_PARTS = 9_000  # S3 takes 10,000
_WRITER = "writer"  # metadata of an object: tells a put whose answer was lost from another's
_CREATE_TRIES = 5
_UPDATE_TRIES = 50
_CLAIMS = "logs/claims"


class ObjectFolder:
    """A Folder on an object store."""

    parallel_reads = 16

    def __init__(
        self, address: str, retries: "RetryConfig | None" = None, claim_expiry: timedelta = CLAIM_EXPIRY
    ) -> None:
        """Take the URL; nothing is asked yet. Raises ConfigError for one that cannot be used."""
        self.address = address.rstrip("/")
        self._retries, self._claim_expiry = retries, claim_expiry
        self._store = connect(self.address, retries)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.address,)

    def exists(self, key: str) -> bool:
        """Tell whether an object is there."""
        try:
            with self._told(key):
                obstore.head(self._store, key)
        except FileNotFoundError:
            return False
        return True

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Return bytes [start, end) of an object."""
        with self._told(key):
            if end is not None and end <= start:
                obstore.head(self._store, key)
                return b""
            ranged: Any = {"offset": start} if end is None else (start, end)
            options: Any = {"range": ranged} if start or end is not None else {}
            try:
                return patiently(lambda: bytes(obstore.get(self._store, key, options=options).bytes()))
            except GenericError as error:
                if out_of_range(error):
                    return b""
                raise

    def read_into(self, key: str, start: int, buffer: memoryview) -> int:
        """Fill a buffer with the bytes of an object from `start` on."""
        data = self.read(key, start, start + len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def names(self, prefix: str = "") -> set[str]:
        """Return the names of what is directly in a folder."""
        with self._told(prefix):
            found = patiently(lambda: obstore.list_with_delimiter(self._store, prefix))
        paths = [*found["common_prefixes"], *(meta["path"] for meta in found["objects"])]
        return {path.rpartition("/")[2] for path in paths}

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the size of every object below a folder, by key."""
        with self._told(prefix):
            return patiently(
                lambda: {
                    meta["path"]: meta["size"]
                    for batch in obstore.list(self._store, prefix)
                    for meta in batch
                }
            )

    def replace(self, key: str, data: bytes) -> None:
        """Write an object whole."""
        with self._told(key):
            obstore.put(self._store, key, data, use_multipart=False)

    def create(self, key: str, data: bytes) -> bool:
        """Create an object unless it is there. Never in parts: then a second one could be completed over the first."""
        writer = secrets.token_hex(8)
        for _ in range(_CREATE_TRIES):
            with self._told(key):
                try:
                    obstore.put(
                        self._store,
                        key,
                        data,
                        mode="create",
                        attributes={_WRITER: writer},
                        use_multipart=False,
                    )
                    return True
                except AlreadyExistsError:  # or it was this put, tried again after its first answer got lost
                    with suppress(
                        FileNotFoundError
                    ):  # S3 may refuse one of two puts before the other is there
                        return obstore.get(self._store, key).attributes.get(_WRITER) == writer
            time.sleep(random.uniform(0, 0.1))
        raise OSError(
            errno.EAGAIN,
            "the store neither creates the object nor has it: run the same command again",
            self._url(key),
        )

    def take(self, source: Path, key: str) -> None:
        """Upload a file, a large one in parts side by side, and unlink it."""
        self._upload(source, key)
        source.unlink()

    def take_tree(self, source: Path, key: str, marker: str) -> bool:
        """Create the marker, which decides who makes the folder, then upload the other files; finish what another began alike."""
        data = (source / marker).read_bytes()
        made = self.create(f"{key}/{marker}", data)
        if not made and self.read(f"{key}/{marker}") != data:
            raise StorageError(
                f"{self._url(key)!r} was begun by another process with other contents: "
                "run the command again once that one is under way, or remove the folder if none is"
            )
        present = {} if made else self.sizes(key)
        files = {
            f"{key}/{path.relative_to(source).as_posix()}": path
            for path in sorted(source.rglob("*"))
            if path.is_file()
        }
        missing = [
            name for name in files if name != f"{key}/{marker}" and name not in present
        ]  # an object is whole; it may have been extended
        with ThreadPoolExecutor(self.parallel_reads) as pool:
            list(pool.map(lambda name: self.create(name, files[name].read_bytes()), missing))
        return made

    def update(self, key: str, change: Callable[[bytes], bytes]) -> None:
        """Replace an object by a function of what it holds, if no one else has meanwhile, else again."""
        writer = secrets.token_hex(8)
        for attempt in range(_UPDATE_TRIES):
            with self._told(key):
                found, before = patiently(partial(_fetched, self._store, key))
                after = (
                    change(before) if found.attributes.get(_WRITER) != writer else before
                )  # ours: its answer was lost
                if after == before:
                    return
                try:
                    version: Any = version_of(found.meta)
                    obstore.put(
                        self._store,
                        key,
                        after,
                        mode=version,
                        attributes={_WRITER: writer},
                        use_multipart=False,
                    )
                    return
                except (PreconditionError, AlreadyExistsError):
                    time.sleep(random.uniform(0, min(1.0, 0.01 * 2**attempt)))
        raise OSError(
            errno.EAGAIN,
            f"others changed the object {_UPDATE_TRIES} times in a row: run the same command again",
            self._url(key),
        )

    def remove(self, key: str) -> None:
        """Remove an object."""
        with suppress(FileNotFoundError), self._told(key):
            patiently(lambda: obstore.delete(self._store, key))

    @contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Hold an object of that name, unless another process that is alive does."""
        key = f"{_CLAIMS}/{name}.json"
        claim = Claim(self._store, key, self._url(key), self._claim_expiry)
        held = claim.take()
        try:
            yield held
        finally:
            if held:
                claim.release()

    def moving(self) -> AbstractContextManager[None]:
        """Hold nothing: there is no lock."""
        return nullcontext()

    def scratch(self) -> AbstractContextManager[Path]:
        """Lend a folder of the disk for temporary files."""
        return LocalFolder(Path(tempfile.gettempdir()) / f"maskalign-{os.getuid()}").scratch()

    def free_bytes(self) -> None:
        """Tell nothing: a bucket has no bound."""
        return

    def _upload(self, source: Path, key: str) -> None:
        part = max(PART_BYTES, source.stat().st_size // _MOST_PARTS)
        with self._told(key):
            patiently(lambda: obstore.put(self._store, key, source, chunk_size=part))

    def _url(self, key: str) -> str:
        return f"{self.address}/{key}" if key else self.address

    def _told(self, key: str) -> AbstractContextManager[None]:
        return told(self._url(key))


def _fetched(store: ObjectStore, key: str) -> tuple["GetResult", bytes]:
    """Return an object with what is known of it."""
    found = obstore.get(store, key)
    return found, bytes(found.bytes())
