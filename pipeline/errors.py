"""Errors that a user can cause or cure. A message gives name, value, what is accepted and the remedy."""

import difflib
import re
from collections.abc import Iterable

_USER = re.compile(r"(?<=://)[^/\s\"]*@")  # with a password, which may have an @ and a single quote
# All after the question mark of a web address, and key=value after one of any address: elsewhere it is a
# wildcard. The quote after an address is not part of it.
_QUERY = re.compile(r"(?P<web>https?://[^?\s\"']*\?)[^\s\"']+|(?<=\?)[\w.%~-]+=[^\s\"']*")


def printable(address: str) -> str:
    """Return an address, or a text with some, without the secret parts: user, password and query."""
    if "://" not in address:
        return address
    return _QUERY.sub(r"\g<web>", _USER.sub("", address))


def cause_of(error: Exception) -> str:
    """Return the type of an exception and the first line of its text, for a message about it."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0].rstrip()


def suggestion(value: str, known: Iterable[str], most: int = 3) -> str:
    """Return `did you mean ...? ` with a few known names like the value, or nothing."""
    close = difflib.get_close_matches(value, list(known), n=most)
    return f"did you mean {' or '.join(map(repr, close))}? " if close else ""


class MaskAlignError(Exception):
    """Any failure that is reported in one sentence, without a traceback."""

    exit_code = 1
    printed_by_rank: int | None = None  # where all ranks raise it: the one that prints it

    def __str__(self) -> str:
        """Return the sentence without what may be secret in an address, such as a password."""
        return printable(super().__str__())


class ConfigError(MaskAlignError):
    """A wrong option, configuration or address."""

    exit_code = 2


class SourceError(MaskAlignError):
    """A source tar or image that cannot be read."""


class CacheError(MaskAlignError):
    """A cache that is damaged, incomplete or not the one that was asked for."""


class OtherContentError(CacheError):
    """Sound content that does not belong here, such as a unit that was made again. It is not damage."""


class StorageError(MaskAlignError):
    """A folder, disk or object store that cannot do what is needed."""


class CheckpointError(MaskAlignError):
    """A run folder or checkpoint that cannot be used."""


class DivergedError(MaskAlignError):
    """Training produced a value that is not finite."""

    printed_by_rank = 0  # all ranks compute the same values


class StreamError(MaskAlignError):
    """A worker of the stream failed."""
