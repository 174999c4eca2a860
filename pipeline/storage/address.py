"""Addresses as users give them: a path, or a URL of an object store."""

from pathlib import Path

from pipeline.storage.folder import Folder
from pipeline.storage.local import LocalFolder


def is_url(address: str) -> bool:
    """Tell whether an address is a URL rather than a path."""
    return "://" in address


def absolute(address: str) -> str:
    """Return an address that means the same from any working folder."""
    return address if is_url(address) else str(Path(address).resolve())


def open_folder(address: str | Path) -> Folder:
    """Return the folder at an address, which need not exist."""
    return LocalFolder(Path(address))
