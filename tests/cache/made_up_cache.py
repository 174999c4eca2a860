"""Files of a synthetic cache and what a reader finds in it; and old names of tests/caches.py until all tests import from there."""

import hashlib

import numpy as np
from caches import ROWS, SOURCES, publish
from caches import empty as empty_cache
from caches import synthetic as full_cache

from pipeline.cache.layout import array_specs, shard_key, view_tar_key
from pipeline.cache.reader import Cache

__all__ = [
    "ROWS",
    "SOURCES",
    "empty_cache",
    "expected_files",
    "files_of",
    "full_cache",
    "publish",
    "read_all",
]

ARRAYS = ["features/block_03", "features/block_05", "stats", "index", "attention", "view"]


def files_of(path):
    """Return {path below the cache: digest} of all files outside logs/."""
    files = (file for file in path.rglob("*") if file.is_file())
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if not (name := file.relative_to(path).as_posix()).startswith("logs/")
    }


def expected_files(schema, units, finished):
    """Every file that a cache may have outside logs/."""
    specs = array_specs(schema).values()
    names = {"units.json", "targets.zarr/zarr.json", "targets.zarr/features/zarr.json"}
    names |= {"copies/units.json", "copies/zarr.json"}
    names |= {f"targets.zarr/{spec.name}/zarr.json" for spec in specs}
    names |= {f"targets.zarr/{spec.name}/c/0/0" for spec in specs if not spec.by_rows}
    for unit in units[:finished]:
        names |= {shard_key(spec, unit.unit) for spec in specs if spec.by_rows}
        names |= {view_tar_key(unit), f"commits/{unit.stem}.json"}
    return names


def read_all(path):
    """Everything that a reader returns: {(unit, block, array): rows} and the calibration."""
    cache = Cache(path)
    found = {"calibration": np.stack(cache.calibration())}
    for commit in cache.commits():
        for block in range(2):
            found |= {
                (commit.unit, block, name): rows
                for name, rows in cache.read_chunk(commit, block, ARRAYS).items()
            }
    return found
