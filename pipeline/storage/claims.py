"""Claims on an object store: objects that say which process works on what. They avoid double work."""

import json
import os
import platform
import secrets
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import ObjectStore

from pipeline.json_text import load_json
from pipeline.storage.connection import translate_errors, version_of

CLAIM_EXPIRY = timedelta(minutes=10)
_BEATS = 10  # in the time of expiry
_HOST = platform.node()
_ours: set[str] = set()  # tokens of the claims that this process holds


class Claim:
    """One object, held by the process that created it or took it over; a thread keeps it fresh."""

    def __init__(self, store: ObjectStore, key: str, url: str, expiry: timedelta) -> None:
        self._store, self._key, self._url, self._expiry = store, key, url, expiry
        self._token = secrets.token_hex(8)
        values = {"host": _HOST, "process": os.getpid(), "token": self._token}
        self._data = (json.dumps(values) + "\n").encode()
        self._version: dict[str, str] = {}
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep_fresh, name="claim", daemon=True)

    def take(self) -> bool:
        """Take the claim unless a live process has it."""
        with translate_errors(self._url):
            held = self._put("create")
            with suppress(FileNotFoundError):  # released just now
                if not held:
                    found = obstore.get(self._store, self._key)
                    data, age = bytes(found.bytes()), datetime.now(UTC) - found.meta["last_modified"]
                    if data == self._data or age > self._expiry or _is_of_dead_process(data):
                        held = self._put(version_of(found.meta))
        if held:
            _ours.add(self._token)
            self._thread.start()
        return held

    def is_ours(self) -> bool:
        """Return whether no other process has the claim; one that has expired may have been taken over."""
        try:
            with translate_errors(self._url):
                return bytes(obstore.get(self._store, self._key).bytes()) == self._data
        except FileNotFoundError:  # whoever had it has released it
            return True

    def release(self) -> None:
        """Remove the object, if it is still ours."""
        self._released.set()
        self._thread.join()
        _ours.discard(self._token)
        with suppress(BaseError, OSError):  # the next process will find it stale
            if version_of(obstore.head(self._store, self._key)) == self._version:
                obstore.delete(self._store, self._key)

    def _put(self, mode: str | dict[str, str]) -> bool:
        if not mode:  # the store names no version: nothing can be replaced safely
            return False
        try:
            put = obstore.put(self._store, self._key, self._data, mode=mode, use_multipart=False)  # type: ignore[arg-type]
            self._version = version_of(put)
        except (AlreadyExistsError, PreconditionError):
            return False
        return True

    def _keep_fresh(self) -> None:
        while not self._released.wait(self._expiry.total_seconds() / _BEATS):
            with suppress(BaseError, OSError):  # at worst the work is done twice
                if not self._put(self._version):
                    return


def _is_of_dead_process(data: bytes) -> bool:
    """Return whether a claim is of this host and its process is gone.

    A restarted container may give this process the number of the dead one. So a claim with our number but
    not one of our tokens belongs to the dead process.
    """
    try:
        values = load_json(data)
        if values["host"] != _HOST:
            return False
        if values["process"] == os.getpid():
            return values["token"] not in _ours
        os.kill(int(values["process"]), 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, TypeError, OSError):
        return False
    return False
