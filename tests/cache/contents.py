"""Which files a cache has and what a reader finds in it, and ways to damage it."""

import hashlib
import json

import numpy as np

from pipeline.cache.digests import digest_of, sealed
from pipeline.cache.layout import (
    array_specs,
    commit_key,
    constant_arrays,
    constant_key,
    metadata_key,
    row_arrays,
    shard_key,
    view_tar_key,
)
from pipeline.cache.reader import Cache

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
    names = {"units.json", "targets.zarr/zarr.json", "copies/units.json", "copies/zarr.json"}
    names |= {metadata_key(name) for name in ("features", *array_specs(schema))}
    names |= {constant_key(name) for name in constant_arrays(schema)}
    for unit in units[:finished]:
        names |= {shard_key(spec, unit.unit) for spec in row_arrays(schema).values()}
        names |= {view_tar_key(unit), commit_key(unit)}
    return names


def read_all(path):
    """Everything that a reader returns: {(unit, chunk, array): rows} and the calibration."""
    cache = Cache(path)
    found = {"calibration": np.stack(cache.calibration())}
    for commit in cache.commits():
        for chunk in range(2):
            rows = cache.read_chunk(commit, chunk, ARRAYS)
            found |= {(commit.unit, chunk, name): values for name, values in rows.items()}
    return found


def shard(path, name, unit):
    """Return the file with a unit's rows of an array."""
    return path / shard_key(array_specs(Cache(path).schema)[name], unit)


def flip(file, place):
    """Flip one bit of the byte at `place`; once more undoes it."""
    data = bytearray(file.read_bytes())
    data[place] ^= 1 << place % 8
    file.write_bytes(data)


def swap(one, other):
    """Exchange the content of two files."""
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def resealed(file, **changes):
    """Change keys of a sealed file and seal it again, as a maker with a fault would."""
    file.write_bytes(sealed(json.loads(file.read_bytes()) | changes))


def change_schema(path, change):
    """Let a function change the values of the schema in place, with the right digest; return them."""
    file = path / "targets.zarr/zarr.json"
    values = json.loads(file.read_bytes())
    change(values["attributes"]["maskalign_cache"])
    values["attributes"]["digest"] = digest_of(values["attributes"]["maskalign_cache"])
    file.write_bytes(json.dumps(values, indent=2).encode())
    return values["attributes"]["maskalign_cache"]
