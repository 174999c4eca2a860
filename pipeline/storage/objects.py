"""A prefix of an object store as a Folder: whole objects, and conditional puts, which only one maker wins."""

import errno
import os
import random
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError

from pipeline.errors import StorageError
from pipeline.storage.claims import CLAIM_EXPIRY, Claim
from pipeline.storage.connection import version_of, with_retries
from pipeline.storage.folder import PART_BYTES
from pipeline.storage.local import LocalFolder
from pipeline.storage.remote import RemoteFiles

if TYPE_CHECKING:
    from obstore import GetResult

_MOST_PARTS = 9_000  # S3 takes 10,000
_WRITER = "writer"  # metadata of an object: identifies our own put if its answer was lost
_CREATE_TRIES = 5
_UPDATE_TRIES = 50
_CLAIMS = "logs/claims"


class _LostError(Exception):
    """Ends an upload, which obstore then aborts."""


class ObjectFolder(RemoteFiles):
    """A Folder on an object store."""

    can_list = True
    claim_expiry = CLAIM_EXPIRY

    def __init__(self, address: str) -> None:
        """Take the URL without a request. Raises ConfigError for one that cannot be used."""
        super().__init__(address)
        self._claims: dict[str, Claim] = {}

    def names(self, prefix: str = "") -> set[str]:
        folders, objects = self.listed(prefix)
        return folders | objects

    def listed(self, prefix: str = "") -> tuple[set[str], set[str]]:
        """Return the names of the folders and of the objects directly in a folder."""
        with self._errors(prefix):
            found = with_retries(lambda: obstore.list_with_delimiter(self._store, prefix))
        paths = found["common_prefixes"], [meta["path"] for meta in found["objects"]]
        folders, objects = ({path.rpartition("/")[2] for path in some} for some in paths)
        return folders, objects

    def sizes(self, prefix: str = "") -> dict[str, int]:
        with self._errors(prefix):
            batches = with_retries(lambda: list(obstore.list(self._store, prefix)))
        return {meta["path"]: meta["size"] for batch in batches for meta in batch}

    def replace(self, key: str, data: bytes) -> None:
        with self._errors(key):
            obstore.put(self._store, key, data, use_multipart=False)

    def create(self, key: str, data: bytes) -> bool:
        """Create an object unless it is there. Never in parts: one could be completed over another."""
        writer = secrets.token_hex(8)
        for _ in range(_CREATE_TRIES):
            with self._errors(key):
                try:
                    self._put(key, data, "create", writer)
                    return True
                except AlreadyExistsError:  # or this put was tried again because its first answer got lost
                    # S3 may refuse one of two puts before the other is there
                    with suppress(FileNotFoundError):
                        return obstore.get(self._store, key).attributes.get(_WRITER) == writer
            time.sleep(random.uniform(0, 0.1))
        text = "the store neither creates the object nor has it: run the same command again"
        raise OSError(errno.EAGAIN, text, self._url(key))

    def take(self, source: Path, key: str, still: Callable[[], bool] = lambda: True) -> bool:
        """Upload a file, a large one in parts side by side, and unlink it.

        A large one takes long, so `still` is asked again before its last part, which makes the object appear.
        """
        size = source.stat().st_size
        part = max(PART_BYTES, size // _MOST_PARTS)

        def parts() -> Iterator[bytes]:
            with source.open("rb") as file, ThreadPoolExecutor(1) as another:
                for start in range(0, size, part):
                    # in another thread: obstore, which iterates here, cannot be called by this one
                    if start + part >= size and not another.submit(still).result():
                        raise _LostError
                    yield file.read(part)

        if not still():
            return False
        try:
            with self._errors(key):
                data = parts if size > part else lambda: source
                with_retries(lambda: obstore.put(self._store, key, data(), chunk_size=part))
        except _LostError:
            return False
        source.unlink()
        return True

    def take_tree(self, source: Path, key: str, marker: str) -> bool:
        """Create the marker, which decides who makes the folder, then upload the files that are missing."""
        data = (source / marker).read_bytes()
        made = self.create(f"{key}/{marker}", data)
        if not made and self.read(f"{key}/{marker}") != data:
            raise StorageError(
                f"{self._url(key)!r} was started by another process with other contents: "
                "run the command again once that one is under way, or remove the folder if none is"
            )
        present = {} if made else self.sizes(key)  # an object is whole; it may have been extended
        paths = (path for path in sorted(source.rglob("*")) if path.is_file())
        files = {f"{key}/{path.relative_to(source).as_posix()}": path for path in paths}
        missing = [name for name in files if name != f"{key}/{marker}" and name not in present]
        with ThreadPoolExecutor(self.parallel_reads) as pool:
            list(pool.map(lambda name: self.create(name, files[name].read_bytes()), missing))
        return made

    def update(self, key: str, change: Callable[[bytes], bytes]) -> None:
        """Replace an object by a function of its bytes; try again if another process was faster."""

        def fetch() -> tuple["GetResult", bytes]:
            found = obstore.get(self._store, key)
            return found, bytes(found.bytes())

        writer = secrets.token_hex(8)
        for attempt in range(_UPDATE_TRIES):
            with self._errors(key):
                found, before = with_retries(fetch)
                if found.attributes.get(_WRITER) == writer or (after := change(before)) == before:
                    return  # the object is ours: the answer to the put was lost
                try:
                    self._put(key, after, version_of(found.meta), writer)
                    return
                except (PreconditionError, AlreadyExistsError):
                    time.sleep(random.uniform(0, min(1.0, 0.01 * 2**attempt)))
        text = f"others changed the object {_UPDATE_TRIES} times in a row: run the same command again"
        raise OSError(errno.EAGAIN, text, self._url(key))

    def remove(self, key: str) -> None:
        with suppress(FileNotFoundError), self._errors(key):
            with_retries(lambda: obstore.delete(self._store, key))

    @contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Hold an object of that name, unless another live process holds it."""
        key = f"{_CLAIMS}/{name}.json"
        claim = Claim(self._store, key, self._url(key), self.claim_expiry)
        held = claim.take()
        try:
            if held:
                self._claims[name] = claim
            yield held
        finally:
            if held:
                del self._claims[name]
                claim.release()

    def holds(self, name: str) -> bool:
        """Return whether no one else has taken over a claim; True for what was not claimed here."""
        return name not in self._claims or self._claims[name].is_ours()

    def moving(self) -> AbstractContextManager[None]:
        """Hold nothing: object stores have no locks."""
        return nullcontext()

    def scratch(self) -> AbstractContextManager[Path]:
        """Lend a folder of the disk for temporary files."""
        return LocalFolder(Path(tempfile.gettempdir()) / f"maskalign-{os.getuid()}").scratch()

    def free_bytes(self) -> None:
        """Return None: a bucket has no bound."""
        return

    def _put(self, key: str, data: bytes, mode: Any, writer: str) -> None:
        obstore.put(self._store, key, data, mode=mode, attributes={_WRITER: writer}, use_multipart=False)
