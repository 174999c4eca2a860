"""A cache with the metadata of ImageNet and no data: 1,282 tars of 1,000 images, 4 views, five levels of a B/16 teacher."""

import hashlib
import sys
from pathlib import Path

import numpy as np
from caches import make_schema

from pipeline.cache.commit import Commit, FileRecord
from pipeline.cache.digests import digest_of_arrays, sealed
from pipeline.cache.layout import (
    commit_key,
    row_arrays,
    shard_bytes,
    shard_key,
    view_tar_key,
)
from pipeline.cache.schema import CalibrationSchema
from pipeline.cache.writer import create_cache, extend_cache
from pipeline.storage.address import open_folder

TARS, VIEWS, ROWS = 1282, 4, 1000


def imagenet_sized(path, tars=TARS, views=VIEWS):
    """Make the cache at `path`; its commits are true but for digests and checksums, its shards and view tars do not exist."""
    folder, plain = open_folder(path), make_schema(levels=(7, 8, 9, 10, 11), width=768, image_size=224)
    mean, std = (np.full((5, 768), value, np.float32) for value in (0.0, 1.0))
    schema = plain.model_copy(
        update={"calibration": CalibrationSchema(pictures=256, sha256=digest_of_arrays(mean, std))}
    )
    create_cache(folder, schema, {"channel_mean": mean, "channel_std": std})
    units = extend_cache(
        folder,
        schema,
        [(f"imagenet-train-{tar:06d}.tar", 100_000_000 + tar) for tar in range(tars)],
        views,
        (),
    )
    (Path(path) / "commits").mkdir()
    for unit in units:
        commit = made_up_commit(schema, unit, ROWS)
        (Path(path) / commit_key(unit)).write_bytes(
            sealed(commit.model_dump(mode="json", exclude={"digest"}))
        )


def made_up_commit(schema, unit, rows):
    """The commit of a unit with so many rows, of which only digests, checksums and the size of the view tar are made up."""
    specs = [spec for spec in row_arrays(schema).values()]
    blocks = -(-rows // schema.block_rows)
    digest = hashlib.sha256(str(unit.unit).encode()).hexdigest()
    files = {shard_key(spec, unit.unit): shard_bytes(spec, rows) for spec in specs}
    files[view_tar_key(unit)] = 30_000_000
    return Commit(
        unit=unit.unit,
        source=unit.source,
        view=unit.view,
        rows=rows,
        skipped=(),
        files={key: FileRecord(size=size, sha256=digest) for key, size in sorted(files.items())},
        blocks={spec.name: tuple(range(4_000_000_000, 4_000_000_000 + blocks)) for spec in specs},
        schema_digest=schema.digest,
    )


if __name__ == "__main__":
    imagenet_sized(sys.argv[1])
