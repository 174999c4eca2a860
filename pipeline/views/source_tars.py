"""Source tars named by a brace pattern, a glob, a folder or a text list, on a disk or behind URLs."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from braceexpand import braceexpand

from pipeline.errors import ConfigError
from pipeline.runtime.ordered import ordered_map
from pipeline.storage.address import is_url
from pipeline.storage.tar_streams import list_tars, tar_name, tar_size

_ACCEPTED = (
    "give a brace pattern such as 'train-{000000..000009}.tar', a folder of .tar files, or a text file that lists one tar a line; "
    "tars and folders may be URLs"
)
_AT_ONCE = 16  # a thousand sizes asked for one after another would take minutes
_WILDCARDS = "*?["


@dataclass(frozen=True)
class SourceTar:
    """One source tar: the path or URL where it lies now, and the name and size in bytes by which a cache knows it."""

    address: str
    size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", str(self.address))  # a Path serves, too

    @property
    def name(self) -> str:
        """File name, unique within a cache."""
        return tar_name(self.address)


def resolve_tars(spec: str) -> list[SourceTar]:
    """Expand `spec` to existing, non-empty tars with distinct names, in the order given (a folder: sorted).

    Raises ConfigError that names the tar or the pattern, OSError if a URL does not answer.
    """
    addresses = _expand(spec)
    if not addresses:
        raise ConfigError(f"shards {spec!r} match no .tar file: {_ACCEPTED}")
    shards = list(ordered_map(_checked, addresses, _AT_ONCE if any(map(is_url, addresses)) else 1))
    _refuse_equal_names(shards)
    return shards


def _expand(spec: str) -> list[str]:
    path = Path(spec)
    if path.is_dir():
        return [str(tar) for tar in sorted(path.glob("*.tar")) if not tar.name.startswith(".")]
    if path.is_file() and path.suffix != ".tar":
        return _listed(path)
    try:
        patterns = list(braceexpand(spec))
    except ValueError:
        raise ConfigError(f"shards {spec!r} have a brace without its partner: {_ACCEPTED}") from None
    return [
        found
        for pattern in patterns
        for found in (_remote_matches(pattern) if is_url(pattern) else _matches(Path(pattern)))
    ]


def _listed(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ConfigError(
            f"shards {str(path)!r} is neither a .tar file nor a text list: {_ACCEPTED}"
        ) from None
    named = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return [name if is_url(name) else str(path.parent / name) for name in named]


def _matches(pattern: Path) -> list[str]:
    if any(character in pattern.name for character in _WILDCARDS):
        return [str(path) for path in sorted(pattern.parent.glob(pattern.name))]
    return [str(pattern)]


def _remote_matches(pattern: str) -> list[str]:
    """Return the tars of a URL: of a folder, of a pattern in the last part, or itself."""
    parent, _, name = pattern.rpartition("/")
    try:
        if any(character in name for character in _WILDCARDS):
            return [tar for tar in list_tars(f"{parent}/") if fnmatchcase(tar_name(tar), name)]
        return [pattern] if name.endswith(".tar") else list_tars(f"{pattern.rstrip('/')}/")
    except FileNotFoundError as error:
        raise ConfigError(f"shards {pattern!r} cannot be listed ({error.strerror}): {_ACCEPTED}") from None


def _checked(address: str) -> SourceTar:
    name = tar_name(address)
    if not name.endswith(".tar") or name == ".tar":
        raise ConfigError(
            f"shard {address!r} has no name that ends in .tar: {_ACCEPTED}; unpack a compressed tar first"
        )
    try:
        size = tar_size(address)
    except FileNotFoundError:
        raise ConfigError(f"shard {address!r} does not exist: {_ACCEPTED}") from None
    if size == 0:
        raise ConfigError(f"shard {address!r} is empty (0 bytes): make it again or leave it out")
    return SourceTar(address, size)


def _refuse_equal_names(shards: list[SourceTar]) -> None:
    seen: dict[str, SourceTar] = {}
    for shard in shards:
        other = seen.setdefault(shard.name, shard)
        if other is not shard:
            raise ConfigError(
                f"shards {other.address!r} and {shard.address!r} have the same file name, by which a cache knows them: rename one"
            )
