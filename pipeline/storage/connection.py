"""Connections to object stores and web servers: their configuration, retries, and errors as OSErrors."""

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from obstore.exceptions import (
    BaseError,
    GenericError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import HTTPStore, ObjectStore, from_url

from pipeline.errors import ConfigError, printable
from pipeline.storage.address import WEB_SCHEMES

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

# A wrong endpoint fails after half a minute, a silent one after two or three minutes. A server that does not
# answer for a minute ends no training.
RETRIES: "RetryConfig" = {
    "max_retries": 10,
    "retry_timeout": timedelta(seconds=120),
    "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2},
}
_CLIENT: "ClientConfig" = {"connect_timeout": timedelta(seconds=10), "timeout": timedelta(seconds=30)}
_BROKEN_TRIES = 4
_SETTINGS = ("AWS_", "GOOGLE_", "AZURE_")
_REMEDIES = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
Result = TypeVar("Result")

# obstore reports the server's answer only in the text of its errors
_STATUS = re.compile(r"status code: (\d+) ([A-Za-z ]+\b)")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_TRIED = re.compile(r" in ([\d.]+)(m?s), after (\d+) retries")
_NO_RANGES = ("non-partial response", "Content-Range", "Range request not supported")
_NO_BUCKET = "the bucket does not exist: create it, or correct the address"
_PASSWORD = (
    "check the address; if it needs a password, which no run records, give it again (--cache, --shards or "
    "--set evaluate.shards) with USER:PASSWORD@ before the host"
)
_NUMBERS = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT, 412: errno.ESTALE}


def connect(address: str) -> ObjectStore:
    """Return the store of the keys below `address`, configured by the environment; raises ConfigError."""
    settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith(_SETTINGS)))
    return _connected(address, settings)


@lru_cache(maxsize=64)
def _connected(address: str, settings: tuple[tuple[str, str], ...]) -> ObjectStore:  # noqa: ARG001
    scheme = address.partition("://")[0]
    client: ClientConfig = {**_CLIENT}
    if (address if scheme == "http" else os.environ.get("AWS_ENDPOINT_URL", "")).startswith("http://"):
        client["allow_http"] = True  # the user has written http on purpose
    make = HTTPStore.from_url if scheme in WEB_SCHEMES else from_url
    try:
        return make(address, client_options=client, retry_config=RETRIES)
    except (BaseError, ValueError) as error:
        raise ConfigError(
            f"address {printable(address)!r} cannot be used ({_end_of_line(error)}): {_remedy(address)}"
        ) from None


@contextmanager
def translate_errors(url: str) -> Iterator[None]:
    """Turn obstore's errors into an OSError with errno, a sentence and the URL."""
    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        raise OSError(*_reason(error, url), printable(url)) from None


def with_retries(work: Callable[[], Result]) -> Result:
    """Do work, and repeat it if its answer breaks off, which obstore does not always retry."""
    for _ in range(_BROKEN_TRIES - 1):
        try:
            return work()
        except GenericError as error:
            if "body error" not in str(error):
                raise
    return work()


def version_of(meta: Mapping[str, Any]) -> dict[str, str]:
    """Return what a conditional put needs of the object that it replaces."""
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name)}


def _reason(error: Exception, url: str) -> tuple[int, str]:
    """Return errno and a sentence."""
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    if code and code[1] == "NoSuchBucket":
        return errno.ENOENT, _NO_BUCKET
    if isinstance(error, FileNotFoundError):
        return errno.ENOENT, "no such object"
    if isinstance(error, PreconditionError):
        return errno.ESTALE, "the object has changed meanwhile: run the same command again"
    if any(part in text for part in _NO_RANGES):
        return (
            errno.ENOTSUP,
            "the server does not serve ranges: copy the file to a disk or an object store first",
        )
    answer = ", ".join([*([f"{status[1]} {status[2]}"] if status else []), *([code[1]] if code else [])])
    number = _NUMBERS.get(int(status[1]), errno.EIO) if status else errno.EIO
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or number == errno.EACCES:
        remedy = _PASSWORD if url.startswith("http") else _remedy(url)
        return errno.EACCES, f"access is denied ({answer or 'no answer'}): {remedy}"
    if status:
        return number, f"the server answered {answer}: {_remedy(url)}"
    return errno.EIO, f"the server cannot be reached ({_end_of_line(error)}): {_remedy(url)}"


def _end_of_line(error: Exception) -> str:
    """Return the end of an error's first line, which has the cause, and the number of retries.

    The beginning of the line repeats the URL.
    """
    line = printable(str(error)).splitlines()[0] if str(error) else type(error).__name__
    tried = _TRIED.search(line)
    return line.rpartition(" - ")[2] + (
        f" after {tried[3]} retries in {float(tried[1]):.3g} {tried[2]}" if tried else ""
    )


def _remedy(address: str) -> str:
    names = _REMEDIES.get(address.partition("://")[0])
    return f"check the address, the network and {names}" if names else "check the address and the network"
