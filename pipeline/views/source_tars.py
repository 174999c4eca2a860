"""Source tars named by paths, brace patterns, globs, folders or text lists, on a disk or behind URLs."""

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain, islice
from math import prod
from pathlib import Path
from tarfile import is_tarfile

from braceexpand import braceexpand

from pipeline.errors import ConfigError, printable
from pipeline.runtime.ordered import ordered_map
from pipeline.storage.address import STORE_SCHEMES, is_url, name_fault, tar_name_fault
from pipeline.storage.tar_streams import list_tars, tar_name, tar_size
from pipeline.views.sample import IMAGE_EXTENSIONS

_ACCEPTED = (
    "give a brace pattern such as 'train-{000000..000009}.tar', a glob, tars, a folder of .tar files, "
    "or a text file that lists one tar per line; tars and folders may be URLs"
)
UNFINISHED = ".packing"  # a folder in that of the tars until pack-images has made all of them
_TABLES, _LISTS = (".parquet", ".arrow"), (".csv", ".tsv")
_NO_MATCH = "match no .tar file"
_NO_FILE = "neither a file nor a folder"  # such as a named pipe
_AT_ONCE = 16  # a thousand sizes asked for one after another would take minutes
_PATTERN = re.compile(r"[*?\[{]")
_WILDCARD = re.compile(r"[*?\[]")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)")
_MOST_TARS = 1_000_000  # of one brace pattern
_LOOKED_AT = 10_000  # files of a folder without tars
# False, where Path.exists raises, for a pattern longer than a name may be and for a zero byte
_is_there = os.path.exists


@dataclass(frozen=True)
class SourceTar:
    """One source tar: the path or URL where it is now, and the name and size by which a cache knows it."""

    address: str
    size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", str(self.address))  # a Path is accepted, too

    @property
    def name(self) -> str:
        """File name, unique within a cache."""
        return tar_name(self.address)


def resolve_tars(specs: str | Sequence[str]) -> list[SourceTar]:
    """Expand specs to existing, non-empty tars with distinct names, in the order given (a folder: sorted).

    What exists under the very name that is given is taken as it is; everything else is a pattern. Raises
    ConfigError that names the tar or the pattern, OSError if a URL does not answer.
    """
    specs = [specs] if isinstance(specs, str) else specs
    found = (_remote_matches(spec) if is_url(spec) else _local_matches(Path(spec)) for spec in specs)
    addresses = list(dict.fromkeys(chain.from_iterable(found)))
    for address in addresses:  # a cache must be able to name its files after them
        name, shown = tar_name(address), printable(address)
        if not name.endswith(".tar") or name == ".tar":
            raise ConfigError(
                f"shard {shown!r} has no name that ends in .tar: {_ACCEPTED}; unpack a compressed tar first"
            )
        if fault := tar_name_fault(name) or name_fault(address):
            raise ConfigError(f"shard {shown!r} has a name that {fault}: rename it")
    tars = list(ordered_map(_measured, addresses, _AT_ONCE if any(map(is_url, addresses)) else 1))
    seen: dict[str, SourceTar] = {}
    for tar in tars:
        if (other := seen.setdefault(tar.name, tar)) is not tar:
            raise ConfigError(
                f"shards {printable(other.address)!r} and {printable(tar.address)!r} have the same file "
                "name, by which a cache knows them: rename one"
            )
    return tars


def _at_home(path: Path) -> Path:
    """Return a path with the home folder in place of its tilde."""
    try:
        return path.expanduser()
    except RuntimeError as error:  # of a user who is not known
        raise _refusal(path, f"cannot be found ({error})") from None


def _refusal(shards: str | Path, fault: str) -> ConfigError:
    """Return the refusal of what does not name tars; the fault completes the sentence `shards SPEC ...`."""
    return ConfigError(f"shards {printable(str(shards))!r} {fault}: {_ACCEPTED}")


def _braces(spec: str) -> list[str]:
    ranges = (abs(int(first) - int(last)) + 1 for first, last in _RANGE.findall(spec))
    if prod(ranges) > _MOST_TARS:
        accepted = f"the {_MOST_TARS:,} tars that are accepted"
        raise ConfigError(f"shards {printable(spec)!r} are more than {accepted}")
    try:
        return list(braceexpand(spec))
    except ValueError:
        raise _refusal(spec, "have a brace without its partner") from None


def _local_matches(path: Path) -> list[str]:
    """Return the tars of a path. Braces and brackets in the names of existing folders are not patterns."""
    path = path if _is_there(path) else _at_home(path)
    if _is_there(path):
        if path.is_dir():
            return _in_folder(path)
        if not path.is_file():
            raise _refusal(path, f"are {_NO_FILE}")
        return [str(path)] if path.suffix == ".tar" else _listed(path)
    root = next(folder for folder in path.parents if _is_there(folder))
    found: list[str] = []
    for pattern in [root / name for name in _braces(str(path.relative_to(root)))]:
        if _is_there(pattern):
            found += _local_matches(pattern)
        elif _WILDCARD.search(str(pattern)):
            base = next(folder for folder in pattern.parents if _is_there(folder))
            if not (matches := _tars(base.glob(str(pattern.relative_to(base))))):
                raise _refusal(pattern, _NO_MATCH)
            found += matches
        else:
            found.append(str(pattern))
    return found


def _remote_matches(spec: str) -> list[str]:
    """Return the tars of a URL: of a folder, of a pattern in the last part or with braces, or itself."""
    if _PATTERN.search(spec) and spec.startswith(STORE_SCHEMES):
        with suppress(FileNotFoundError):  # what looks like a pattern may be the very name of an object
            tar_size(spec)
            return [spec]
    tars: list[str] = []
    for url in _braces(spec):
        parent, _, name = url.rpartition("/")
        if _WILDCARD.search(parent):
            raise _refusal(url, "have a wildcard in the folder part of a URL")
        try:
            if _WILDCARD.search(name):
                found = [tar for tar in list_tars(f"{parent}/") if fnmatchcase(tar_name(tar), name)]
            else:
                found = [url] if name.endswith(".tar") else list_tars(f"{url.rstrip('/')}/")
        except FileNotFoundError as error:
            raise _refusal(url, f"cannot be listed ({error.strerror})") from None
        if not found:
            raise _refusal(url, _NO_MATCH)
        tars += found
    return tars


def _tars(files: Iterable[Path]) -> list[str]:
    return sorted(str(file) for file in files if file.suffix == ".tar" and not file.name.startswith("."))


def _in_folder(path: Path) -> list[str]:
    """Return the tars of a folder, sorted; raises ConfigError that says what it holds instead."""
    if (path / UNFINISHED).is_dir():
        raise ConfigError(f"folder {str(path)!r} is not packed to its end: run pack-images again first")
    if tars := _tars(path.iterdir()):
        return tars
    if is_cache(path):
        raise ConfigError(
            f"folder {str(path)!r} is a cache, not source tars: give it as --views-from to extract-teacher, "
            "as --cache to other commands"
        )
    held = list(islice(path.rglob("*"), _LOOKED_AT))
    if deeper := next((file for file in held if file.suffix == ".tar"), None):
        raise ConfigError(
            f"folder {str(path)!r} has tars in its subfolders only, such as {str(deeper)!r}: "
            f"give '{path}/**/*.tar'"
        )
    if image := next((file for file in held if file.suffix[1:].lower() in IMAGE_EXTENSIONS), None):
        raise ConfigError(
            f"folder {str(path)!r} holds image files, such as {str(image)!r}, but no .tar file: {_pack(path)}"
        )
    if any(file.suffix in _TABLES for file in held):
        raise ConfigError(f"folder {str(path)!r} holds a data set, but no .tar file: {_pack(path)}")
    raise _refusal(path, _NO_MATCH)


def is_cache(folder: Path) -> bool:
    """Return whether a folder is a cache: its view tars hold crops of images."""
    return all((folder / name).exists() for name in ("units.json", "commits", "views"))


def _pack(path: Path) -> str:
    """Return the remedy for images that are not in tars."""
    return f"pack it first, by pack-images {shlex.quote(str(path))} OUT, and give OUT"


def _listed(path: Path) -> list[str]:
    """Return the tars of a text list; raises ConfigError that says what the file is instead."""
    shown = f"shards {str(path)!r}"
    if is_tarfile(path):  # also a compressed one
        raise ConfigError(
            f"{shown} is a tar, but its name does not end in .tar: rename it, unpack a compressed tar first"
        )
    if path.suffix[1:].lower() in IMAGE_EXTENSIONS:
        raise ConfigError(f"{shown} is an image: {_pack(path.parent)}")
    if path.suffix.lower() in _TABLES:
        raise ConfigError(f"{shown} is a table: {_pack(path)}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise _refusal(path, "is neither a .tar file nor a text list") from None
    named = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not named:
        raise _refusal(path, f"{_NO_MATCH}, since the list is empty")
    if other := next((name for name in named if not name.endswith(".tar")), ""):
        if path.suffix.lower() in _LISTS:
            raise ConfigError(f"{shown} lists no tars: {_pack(path)}")
        line = printable(other)[:80]
        raise _refusal(path, f"is read as a text list, but its line {line!r} does not end in .tar")
    return [name if is_url(name) else str(path.parent / _at_home(Path(name))) for name in named]


def _measured(address: str) -> SourceTar:
    shown = printable(address)
    try:
        size = tar_size(address)
    except FileNotFoundError:
        fault = f"is {_NO_FILE}" if _is_there(address) else "does not exist"
        raise ConfigError(f"shard {shown!r} {fault}: {_ACCEPTED}") from None
    if size == 0:
        raise ConfigError(f"shard {shown!r} is empty (0 bytes): make it again or leave it out")
    return SourceTar(address, size)
