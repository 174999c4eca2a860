"""A cache of made-up rows, written through the cache's own writer: quick, and with any schema."""

import hashlib

import numpy as np
from cache_schemas import made_up_rows, make_schema
from published_units import publish_arrays

from pipeline.cache import store
from pipeline.cache.digests import digest_of_arrays
from pipeline.cache.reader import Cache
from pipeline.cache.schema import CalibrationSchema, array_specs
from pipeline.cache.writer import create_cache, extend_cache
from pipeline.storage.address import open_folder

SOURCES = [("a.tar", 1000), ("b.tar", 2000)]
ROWS = 100  # of each unit: a whole block and a part
ARRAYS = ["features/block_03", "features/block_05", "stats", "index", "attention", "view"]


def empty_cache(path, sources=SOURCES, views=1, **changes):
    """Create a cache without finished units; returns its schema and units."""
    plain = make_schema(**changes)
    mean, std = (np.full((len(plain.levels), plain.teacher.width), value, np.float32) for value in (0.5, 2.0))
    schema = plain.model_copy(
        update={"calibration": CalibrationSchema(pictures=3, sha256=digest_of_arrays(mean, std))}
    )
    create_cache(open_folder(path), schema, {"channel_mean": mean, "channel_std": std})
    return schema, extend_cache(open_folder(path), schema, sources, views, ())


def publish(path, schema, unit, rows=ROWS, seed=None):
    """Publish made-up rows of a unit; returns (whether this call published it, the arrays)."""
    arrays = made_up_rows(schema, rows, unit.unit if seed is None else seed)
    folder = open_folder(path)
    with folder.scratch() as scratch:
        view_tar = f"crops of unit {unit.unit}".encode() * 100
        return publish_arrays(folder, schema, unit, arrays, view_tar, (), scratch), arrays


def full_cache(path, **changes):
    """Create a cache with all units published; returns {unit number: its arrays}."""
    schema, units = empty_cache(path, **changes)
    return {unit.unit: publish(path, schema, unit)[1] for unit in units}


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
    names |= {f"targets.zarr/{spec.name}/zarr.json" for spec in specs}
    names |= {f"targets.zarr/{spec.name}/c/0/0" for spec in specs if not spec.by_rows}
    for unit in units[:finished]:
        names |= {f"targets.zarr/{store.shard_key(spec, unit.unit)}" for spec in specs if spec.by_rows}
        names |= {f"views/{unit.stem}.tar", f"commits/{unit.stem}.json"}
    return names


def read_all(path):
    """Everything that a reader returns: {(unit, block, array): rows} and the calibration."""
    cache = Cache(path)
    found = {"calibration": np.stack(cache.calibration())}
    for commit in cache.commits():
        for block in range(2):
            found |= {
                (commit.unit, block, name): rows
                for name, rows in cache.read_block(commit, block, ARRAYS).items()
            }
    return found
