"""The zarr group of a cache on an object store, to read: zarr's own store, with errors and retries as the rest of the cache has them."""

from typing import Any

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from pipeline.storage.connection import patiently_awaited, told


class RemoteStore(ObjectStore[Any]):
    """Reads whole objects and ranges; what is not there is None, everything else an OSError with the URL."""

    address = ""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return the bytes of an object or a range of it."""
        with told(f"{self.address}/{key}"):
            return await patiently_awaited(lambda: ObjectStore.get(self, key, prototype, byte_range))
