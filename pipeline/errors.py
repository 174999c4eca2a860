"""Errors that a user can cause or cure. A message gives name, value, what is accepted and the remedy."""

import re

_USER = re.compile(r"(?<=://)[^/\s\"]*@")  # with a password, which may have an @ and a single quote
# All after the question mark of a web address, and key=value after one of any address: elsewhere it is a
# wildcard. The quote after an address is not part of it.
_QUERY = re.compile(r"(?P<web>https?://[^?\s\"']*\?)[^\s\"']+|(?<=\?)[\w.%~-]+=[^\s\"']*")


def printable(address: str) -> str:
    """Return an address, or a text with some, without the secret parts: user, password and query."""
    if "://" not in address:
        return address
    return _QUERY.sub(r"\g<web>", _USER.sub("", address))


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
