"""Addresses as users give them: a path, or a URL of an object store."""

from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.storage.folder import Folder
from pipeline.storage.local import LocalFolder

STORE_SCHEMES = ("s3", "gs", "az")
WEB_SCHEMES = ("http", "https")


def is_url(address: str | Path) -> bool:
    """Tell whether an address is a URL rather than a path."""
    return "://" in str(address)


def absolute(address: str) -> str:
    """Return an address that means the same from any working folder."""
    return address if is_url(address) else str(Path(address).resolve())


def open_folder(address: str | Path) -> Folder:
    """Return the folder at an address, which need not exist; raises ConfigError for a URL that cannot be used."""
    if not is_url(address):
        return LocalFolder(Path(address))
    check_url(str(address), STORE_SCHEMES)
    from pipeline.storage.objects import ObjectFolder

    return ObjectFolder(str(address))


def check_url(url: str, accepted: tuple[str, ...]) -> None:
    """Raise ConfigError for a URL of another scheme, without a bucket or host, or without the library that reads it."""
    scheme, _, rest = url.partition("://")
    if scheme not in accepted:
        only = " (http:// and https:// are for source tars only)" if scheme in WEB_SCHEMES else ""
        raise ConfigError(
            f"address {url!r} is of no known kind{only}: give a path, or {' or '.join(f'{name}://...' for name in accepted)}"
        )
    if not rest.partition("/")[0]:
        raise ConfigError(f"address {url!r} names no bucket: give {scheme}://BUCKET/PATH")
    if scheme in STORE_SCHEMES and (odd := sorted(set(rest) & set("?#%"))):
        raise ConfigError(
            f"address {url!r} has {' '.join(odd)} in it, which tools read differently: choose a name without"
        )
    try:
        import obstore  # noqa: F401
    except ImportError:
        raise ConfigError(f"address {url!r} needs obstore: pip install 'maskalign[cloud]'") from None
