"""Whether a run begins or continues, and what it must find again if it continues."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.cache.reader import Cache
from pipeline.errors import CacheError, CheckpointError, ConfigError
from pipeline.storage.files import replace_file
from pipeline.training.config import RunConfig
from pipeline.training.damage import lost_units
from pipeline.training.distributed import Ranks
from pipeline.training.run_folder import (
    Resume,
    cache_digests,
    caches_of,
    continues,
    read_run,
    refuse_differences,
    refuse_other_config,
    storage_errors,
)


def begin_or_continue(
    caches: Sequence[Cache], run: Path, config: RunConfig, resume: Resume
) -> tuple[bool, list[int], int | None, dict[str, Any]]:
    """Return whether the run is continued, its units, its lanes if it has any yet, and its damage so far.

    One rank looks and decides for all: a cache may grow meanwhile, and on a network file system, other
    machines may see an older state of the folder.
    The units are those of the first cache.

    Raises MaskAlignError.
    """
    if not continues(run, resume):
        damaged: dict[int, CacheError] | None = {} if config.data.on_damage == "skip" else None
        units = caches[0].finished(config.data.views, config.data.allow_partial, damaged)["unit"].tolist()
        return False, units, None, lost_units(caches[0], damaged or {})
    refuse_other_config(config, run)
    earlier = read_run(run)
    paths = [each["path"] for each in caches_of(earlier)]
    digests = cache_digests(earlier)
    if len(caches) != len(digests):
        raise CheckpointError(
            f"cannot resume: the run began with {len(paths)} caches, {' and '.join(map(repr, paths))}, and "
            f"{len(caches)} are given: give those in their order, or a new --run"
        )
    for cache, path, digest in zip(caches, paths, digests, strict=True):
        if cache.digest != digest:
            raise CheckpointError(
                f"cannot resume: {cache.address!r} is not the cache that the run began with, {path!r}: give "
                "that one, or a new --run"
            )
    pinned = earlier["pinned"]
    lanes = pinned["lanes"] if "lanes" in pinned else pinned["ranks"]  # as runs from before lanes have
    if config.data.lanes != "auto":
        refuse_differences({"data.lanes": lanes}, {"data.lanes": config.data.lanes}, ConfigError)
    return True, earlier["units"], lanes, earlier.get("damage", {})


def refuse_other_units(run: Path, pinned: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless a continued run has the units that it began with, of every cache."""
    found = {key: value for key, value in pinned.items() if key in ("units", "other units")}
    refuse_differences(read_run(run)["pinned"], found)


def kept_file(file: Path, resumed: bool, ranks: Ranks, make: Callable[[], bytes]) -> bytes:
    """Return, on all ranks, the bytes that a new run makes and keeps in its folder, and a resumed one reads.

    The main rank sends them, since other ranks may not yet see the file on a network file system. Raises
    CheckpointError for a file that is lost, StorageError, and what `make` raises.
    """

    def decide() -> bytes:
        with storage_errors(file.parent):
            if not resumed:
                replace_file(file, make())
            elif not file.exists():
                raise CheckpointError(
                    f"run {str(file.parent)!r} has lost {file.name}: restore it, or use a new --run"
                )
            return file.read_bytes()

    return ranks.decide(decide)
