"""Connections to object stores and web servers: who is asked at an address, how often, and its errors as OSErrors with the whole URL."""

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

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

# a wrong endpoint is given up after half a minute, a silent one after a minute
RETRIES: "RetryConfig" = {
    "max_retries": 10,
    "retry_timeout": timedelta(seconds=45),
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

_STATUS = re.compile(r"status code: (\d+) ([A-Za-z ]+)")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_RETRIED = re.compile(r"after (\d+) retries")
_NUMBERS = {"403": errno.EACCES, "401": errno.EACCES, "412": errno.ESTALE, "404": errno.ENOENT}


def connect(address: str, retries: "RetryConfig | None" = None) -> ObjectStore:
    """Return the store whose keys are below `address`, configured by the environment; raises ConfigError for an address it cannot use."""
    if retries:
        return _connected(address, retries)
    return _connection(
        address, tuple(sorted(item for item in os.environ.items() if item[0].startswith(_SETTINGS)))
    )


@lru_cache(maxsize=64)
def _connection(address: str, settings: tuple[tuple[str, str], ...]) -> ObjectStore:  # noqa: ARG001
    return _connected(address, RETRIES)


def _connected(address: str, retries: "RetryConfig") -> ObjectStore:
    client: ClientConfig = {**_CLIENT}
    plain = address if _scheme(address) == "http" else os.environ.get("AWS_ENDPOINT_URL", "")
    if plain.startswith("http://"):  # who says so means it
        client["allow_http"] = True
    try:
        if _scheme(address) in ("http", "https"):
            return HTTPStore.from_url(address, client_options=client, retry_config=retries)
        return from_url(address, client_options=client, retry_config=retries)
    except (BaseError, ValueError) as error:
        raise ConfigError(
            f"address {address!r} cannot be used ({_first_line(error)}): {_remedy(address)}"
        ) from None


@contextmanager
def told(url: str) -> Iterator[None]:
    """Turn what obstore raises into an OSError with errno, a clear sentence and the URL; FileNotFoundError where it is one."""
    try:
        yield
    except FileNotFoundError as error:
        if "<Code>NoSuchBucket</Code>" in str(error):
            raise FileNotFoundError(
                errno.ENOENT, "the bucket does not exist: make it, or correct the address", url
            ) from None
        raise FileNotFoundError(errno.ENOENT, "no such object", url) from None
    except BaseError as error:
        raise OSError(*_reason(error, url), url) from None


def patiently(work: Callable[[], Result]) -> Result:
    """Do something that can be done twice; again if its answer breaks off, from which obstore itself does not always recover."""
    for _ in range(_BROKEN_TRIES - 1):
        try:
            return work()
        except GenericError as error:
            if not _broke_off(error):
                raise
    return work()


def _broke_off(error: GenericError) -> bool:
    """Tell whether an answer began and did not end."""
    return "body error" in str(error)


def out_of_range(error: BaseError) -> bool:
    """Tell whether a range was refused for beginning beyond the object's end."""
    return "416" in _status(str(error))


def _reason(error: BaseError, url: str) -> tuple[int, str]:
    text = str(error)
    if isinstance(error, PreconditionError):
        return errno.ESTALE, "the object has changed meanwhile: run the same command again"
    if "<Code>NoSuchBucket</Code>" in text:
        return errno.ENOENT, "the bucket does not exist: make it, or correct the address"
    if "non-partial response" in text or "Content-Range" in text:
        return (
            errno.ENOTSUP,
            "the server does not serve ranges of a file: copy the file to a disk or an object store first",
        )
    retried = f" after {found[1]} retries" if (found := _RETRIED.search(text)) else ""
    status = _status(text)
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or status[:3] in ("401", "403"):
        return errno.EACCES, f"access is denied ({_with_code(status, text)}): {_remedy(url)}"
    if status:
        return _NUMBERS.get(
            status[:3], errno.EIO
        ), f"the server answered {_with_code(status, text)}{retried}: {_remedy(url)}"
    return errno.EIO, f"the server cannot be reached ({_first_line(error)}): {_remedy(url)}"


def _status(text: str) -> str:
    found = _STATUS.search(text)
    return f"{found[1]} {found[2].strip()}" if found else ""


def _with_code(status: str, text: str) -> str:
    found = _CODE.search(text)
    return f"{status}, {found[1]}" if found else status or "no answer"


def _first_line(error: Exception) -> str:
    """Return the end of the first line, which says what happened; the beginning repeats the URL."""
    return str(error).splitlines()[0].rpartition(" - ")[2] if str(error) else type(error).__name__


def _remedy(address: str) -> str:
    names = _REMEDIES.get(_scheme(address))
    return f"check the address, the network and {names}" if names else "check the address and the network"


def _scheme(address: str) -> str:
    return address.partition("://")[0]


def version_of(meta: Mapping[str, Any]) -> dict[str, str]:
    """Return what a conditional put needs to know of the object that it replaces: e_tag, and version where there is one."""
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name)}
