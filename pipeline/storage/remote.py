"""Files by key behind an address of an object store or a web server: what reading needs."""

from contextlib import AbstractContextManager, suppress
from typing import Any

import obstore
from obstore.exceptions import GenericError

from pipeline.storage.connection import connect, translate_errors, with_retries


class RemoteFiles:
    """The methods of a Folder that read files by key; picklable through its address."""

    parallel_reads = 16

    def __init__(self, address: str) -> None:
        """Take the URL without a request. Raises ConfigError for one that cannot be used."""
        self.address = address.rstrip("/")
        self._store = connect(self.address)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.address,)

    def exists(self, key: str) -> bool:
        return self.size(key) is not None

    def size(self, key: str) -> int | None:
        with suppress(FileNotFoundError), self._errors(key):
            return int(with_retries(lambda: obstore.head(self._store, key))["size"])
        return None

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        with self._errors(key):
            if end is not None and end <= start:
                obstore.head(self._store, key)
                return b""
            ranged: Any = {"offset": start} if end is None else (start, end)
            options: Any = {"range": ranged} if start or end is not None else {}
            try:
                return with_retries(lambda: bytes(obstore.get(self._store, key, options=options).bytes()))
            except GenericError as error:
                if "status code: 416" in str(error):  # the range begins beyond the object's end
                    return b""
                raise

    def read_into(self, key: str, start: int, buffer: memoryview) -> int:
        data = self.read(key, start, start + len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _url(self, key: str) -> str:
        return f"{self.address}/{key}" if key else self.address

    def _errors(self, key: str) -> AbstractContextManager[None]:
        return translate_errors(self._url(key))
