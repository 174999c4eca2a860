"""Addresses as users give them: a path, or a URL of an object store."""

import os
import re
from pathlib import Path

from pipeline.errors import ConfigError, printable
from pipeline.optional import optional_library
from pipeline.storage.folder import Folder
from pipeline.storage.local import LocalFolder

STORE_SCHEMES = ("s3", "gs", "az")
WEB_SCHEMES = ("http", "https")
MOST_NAME_BYTES = 220  # a file system takes 255; view tar, commit and temporary files have the tar's name
_CONTROL = re.compile(r"[\0-\x1f\x7f-\x9f]")

_with_password: dict[str, str] = {}  # web addresses given to this process, by their printed form


def is_url(address: str | Path) -> bool:
    """Return whether an address is a URL rather than a path."""
    return "://" in str(address)


def is_web(address: str | Path) -> bool:
    """Return whether an address is of a web server, which serves files and cannot list or take any."""
    return str(address).partition("://")[0] in WEB_SCHEMES


def absolute(address: str) -> str:
    """Return an address that means the same in any working folder."""
    return address if is_url(address) else os.path.realpath(address)  # Path.resolve refuses a loop of links


def name_fault(name: str) -> str:
    """Return why a name cannot be stored in metadata or in the names of other files; "" if it can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "is not UTF-8"
    return "has a control character" if _CONTROL.search(name) else ""


def check_path(option: str, path: str | Path) -> None:
    """Raise ConfigError for a link to nothing, and for what metadata cannot store.

    That is a path that is not UTF-8 or has control characters.
    """
    shown = str(path)
    if fault := name_fault(shown) or name_fault(shown := absolute(shown)):
        raise ConfigError(f"{option} {printable(shown)!r} has a name that {fault}: rename it")
    if os.path.islink(path) and not os.path.exists(path):  # noqa: PTH110, PTH114  # raise for a long name
        raise ConfigError(
            f"{option} {str(path)!r} is a link to {str(Path(path).readlink())!r}, which does not exist: make "
            "that folder, or remove the link"
        )


def tar_name_fault(name: str) -> str:
    """Return what is wrong with the name of a source tar; "" if files of a cache can be named after it."""
    if fault := name_fault(name):
        return fault
    if "/" in name or name.startswith("."):
        return "has a slash, or a dot at its start"
    if len(name.encode()) > MOST_NAME_BYTES:
        return f"has more than {MOST_NAME_BYTES} bytes"
    return ""


def open_folder(address: str | Path) -> Folder:
    """Return the folder at an address, which need not exist; raises ConfigError for an unusable address.

    run.json has addresses without passwords. Such an address gets the password that this process was given
    with it before.
    """
    check_path("folder", address)
    if not is_url(address):
        return LocalFolder(Path(address))
    check_url(str(address))
    if not is_web(address):
        from pipeline.storage.objects import ObjectFolder

        return ObjectFolder(str(address))
    if odd := sorted(set(str(address)) & set("?#")):
        raise ConfigError(
            f"address {printable(str(address))!r} contains {' '.join(odd)}: give the URL of the cache's "
            "folder, to which the names of its files can be appended"
        )
    from pipeline.storage.web import WebFolder

    shown = printable(str(address))
    if shown != str(address):
        _with_password[shown] = str(address)
    return WebFolder(_with_password.get(shown, shown))


def check_url(url: str) -> None:
    """Raise ConfigError for a URL with another scheme or without a host, or if obstore is missing."""
    scheme, _, rest = url.partition("://")
    shown = printable(url)
    if scheme not in (*STORE_SCHEMES, *WEB_SCHEMES):
        kinds = " or ".join(f"{name}://..." for name in (*STORE_SCHEMES, *WEB_SCHEMES))
        raise ConfigError(f"address {shown!r} is not of a known kind: give a path, or {kinds}")
    if not rest.partition("/")[0]:
        where = "server: give {}://HOST/PATH" if scheme in WEB_SCHEMES else "bucket: give {}://BUCKET/PATH"
        raise ConfigError(f"address {shown!r} names no {where.format(scheme)}")
    if scheme in STORE_SCHEMES and (odd := sorted(set(rest) & set("?#%"))):
        raise ConfigError(
            f"address {shown!r} contains {' '.join(odd)}, which tools read differently: choose a name without"
        )
    optional_library(f"address {shown!r}", "obstore", "'maskalign[cloud]'")
