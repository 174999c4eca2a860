"""Source tars named by a brace pattern, a glob, a folder or a text list."""

from dataclasses import dataclass
from pathlib import Path

from braceexpand import braceexpand

from pipeline.errors import ConfigError

_ACCEPTED = "give a brace pattern such as 'train-{000000..000009}.tar', a folder of .tar files, or a text file that lists one tar a line"


@dataclass(frozen=True)
class Shard:
    """One source tar: where it lies now, and the name and size in bytes by which a cache knows it."""

    path: Path
    size: int

    @property
    def name(self) -> str:
        """File name, unique within a cache."""
        return self.path.name


def resolve_shards(spec: str) -> list[Shard]:
    """Expand `spec` to existing, non-empty tars with distinct names, in the order given (a folder: sorted).

    Raises ConfigError that names the tar or the pattern.
    """
    paths = _expand(spec)
    if not paths:
        raise ConfigError(f"shards {spec!r} match no .tar file: {_ACCEPTED}")
    shards = [_checked(path) for path in paths]
    _refuse_equal_names(shards)
    return shards


def _expand(spec: str) -> list[Path]:
    path = Path(spec)
    if path.is_dir():
        return sorted(tar for tar in path.glob("*.tar") if not tar.name.startswith("."))
    if path.is_file() and path.suffix != ".tar":
        return _listed(path)
    try:
        patterns = [Path(text) for text in braceexpand(spec)]
    except ValueError:
        raise ConfigError(f"shards {spec!r} have a brace without its partner: {_ACCEPTED}") from None
    return [found for pattern in patterns for found in _matches(pattern)]


def _listed(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"shards {str(path)!r} is neither a .tar file nor a text list: {_ACCEPTED}") from None
    return [path.parent / line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _matches(pattern: Path) -> list[Path]:
    if any(character in pattern.name for character in "*?["):
        return sorted(pattern.parent.glob(pattern.name))
    return [pattern]


def _checked(path: Path) -> Shard:
    if path.suffix != ".tar":
        raise ConfigError(f"shard {str(path)!r} has no name that ends in .tar: {_ACCEPTED}; unpack a compressed tar first")
    if not path.is_file():
        raise ConfigError(f"shard {str(path)!r} does not exist: {_ACCEPTED}")
    size = path.stat().st_size
    if size == 0:
        raise ConfigError(f"shard {str(path)!r} is empty (0 bytes): make it again or leave it out")
    return Shard(path, size)


def _refuse_equal_names(shards: list[Shard]) -> None:
    seen: dict[str, Shard] = {}
    for shard in shards:
        other = seen.setdefault(shard.name, shard)
        if other is not shard:
            raise ConfigError(
                f"shards {str(other.path)!r} and {str(shard.path)!r} have the same file name, by which a cache knows them: rename one"
            )
