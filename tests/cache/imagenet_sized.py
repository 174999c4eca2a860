"""A cache with the metadata of ImageNet alone: 1,282 tars of 1,000 images, 4 views, 5 levels of a B/16."""

import hashlib
import sys
from pathlib import Path

import numpy as np
from caches import make_schema

from pipeline.cache.commit import Commit, FileRecord
from pipeline.cache.digests import sealed
from pipeline.cache.layout import (
    chunk_count,
    commit_key,
    constant_arrays,
    row_arrays,
    shard_bytes,
    shard_key,
    view_tar_key,
)
from pipeline.cache.writer import create_cache, extend_cache, with_digests
from pipeline.storage.address import open_folder

TARS, VIEWS, ROWS = 1282, 4, 1000


def imagenet_sized(path, tars=TARS, views=VIEWS):
    """Make the cache at `path`; commits are true but for digests and checksums, no shard exists."""
    folder, plain = open_folder(path), make_schema(levels=(7, 8, 9, 10, 11), width=768, image_size=224)
    constants = {name: np.ones(spec.item_shape, np.float32) for name, spec in constant_arrays(plain).items()}
    schema = with_digests(plain, constants, 256)
    create_cache(folder, schema, constants)
    sources = [(f"imagenet-train-{tar:06d}.tar", 100_000_000 + tar) for tar in range(tars)]
    units = extend_cache(folder, schema, sources, views, ())
    (Path(path) / "commits").mkdir()
    for unit in units:
        commit = made_up_commit(schema, unit, ROWS)
        (Path(path) / commit_key(unit)).write_bytes(
            sealed(commit.model_dump(mode="json", exclude={"digest"}))
        )


def made_up_commit(schema, unit, rows):
    """The commit of a unit; digests, checksums and the size of the view tar are invented."""
    chunks = chunk_count(rows)
    digest = hashlib.sha256(str(unit.unit).encode()).hexdigest()
    specs = row_arrays(schema).values()
    files = {shard_key(spec, unit.unit): shard_bytes(spec, rows) for spec in specs}
    files[view_tar_key(unit)] = 30_000_000
    return Commit(
        unit=unit.unit,
        source=unit.source,
        view=unit.view,
        rows=rows,
        skipped=(),
        files={key: FileRecord(size=size, sha256=digest) for key, size in sorted(files.items())},
        blocks=dict.fromkeys(row_arrays(schema), tuple(range(4_000_000_000, 4_000_000_000 + chunks))),
        schema_digest=schema.digest,
    )


if __name__ == "__main__":
    imagenet_sized(sys.argv[1])
