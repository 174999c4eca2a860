"""Caches for measuring that no teacher made: real crops with made-up features, and units that share one unit's files.

They go through the cache's own writer and read like any other; their features mean nothing.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.commit import Commit, create_commit
from pipeline.cache.digests import digest_of_arrays
from pipeline.cache.reader import Cache
from pipeline.cache.schema import CacheSchema, CalibrationSchema, array_specs
from pipeline.cache.store import GROUP, Values, shard_key
from pipeline.cache.units import Source, Unit
from pipeline.cache.writer import UnitWriter, create_cache, extend_cache
from pipeline.seeding import generator, key_hash
from pipeline.storage.address import open_folder
from pipeline.storage.files import WrittenFile
from pipeline.storage.folder import Folder
from pipeline.views.maker import SampleViews, ViewMaker
from pipeline.views.source import read_samples
from pipeline.views.source_tars import SourceTar
from pipeline.views.view_tars import ViewTarWriter

_SCALE = 2.0**-6  # with codes of about one deviation in 127


def made_up_cache(path: Path, plain: CacheSchema, shards: Sequence[SourceTar], maker: ViewMaker) -> Cache:
    """Make a finished cache of one view of the images of some tars: their crops, and random features of the shape of `plain`."""
    folder, schema = _created(path, plain)
    for shard, unit in zip(
        shards, extend_cache(folder, schema, [(one.name, one.size) for one in shards], 1, ()), strict=True
    ):
        views = [made for made in map(maker, read_samples(shard)) if isinstance(made, SampleViews)]
        with folder.scratch() as scratch:
            writer = UnitWriter(folder, schema, unit, scratch)
            view_tar, index = _write_crops(writer.view_tar, views)
            arrays = _made_up_rows(schema, len(views), unit.unit) | {
                "index": index,
                "view": np.stack([one.boxes[0] for one in views]),
            }
            for name, rows in arrays.items():
                writer.append(name, rows)
            writer.publish(view_tar, ())
    return Cache(path)


def linked_cache(path: Path, original: Cache, tars: int, views: int) -> Cache:
    """Make a finished cache whose units all have the rows of the first unit of another: hard links to its files, which cost no space."""
    folder, commit = open_folder(path), next(original.commits())
    mean, std = original.calibration()
    constants = {"channel_mean": mean, "channel_std": std} | original.teacher_output()
    create_cache(folder, original.schema, constants)
    sources: list[Source] = [(f"linked-{tar:06d}.tar", 1) for tar in range(tars)]
    for unit in extend_cache(folder, original.schema, sources, views, ()):
        linked = dict(_linked_files(original, commit, unit))
        for mine, theirs in linked.items():
            (path / mine).parent.mkdir(parents=True, exist_ok=True)
            os.link(Path(original.address) / theirs, path / mine)
        files = {mine: commit.files[theirs] for mine, theirs in linked.items()}
        owner = {
            "unit": unit.unit,
            "source": unit.source,
            "view": unit.view,
            "files": dict(sorted(files.items())),
        }
        create_commit(folder, unit, commit.model_copy(update=owner))
    return Cache(path)


def _created(path: Path, plain: CacheSchema) -> tuple[Folder, CacheSchema]:
    """Create a cache without units whose calibration changes nothing; return its folder and schema."""
    folder, shape = open_folder(path), (len(plain.levels), plain.teacher.width)
    mean, std = np.zeros(shape, np.float32), np.ones(shape, np.float32)
    constants = {"channel_mean": mean, "channel_std": std}
    output = {
        name: np.zeros(spec.item_shape, np.float32)
        for name, spec in array_specs(plain).items()
        if not spec.by_rows and name not in constants
    }
    calibration = CalibrationSchema(pictures=0, sha256=digest_of_arrays(mean, std))
    teacher = plain.teacher.model_copy(update={"output_sha256": digest_of_arrays(*output.values())})
    schema = plain.model_copy(update={"calibration": calibration, "teacher": teacher})
    create_cache(folder, schema, constants | output)
    return folder, schema


def _write_crops(path: Path, views: Sequence[SampleViews]) -> tuple[WrittenFile, NDArray[np.uint64]]:
    """Write the view tar of a unit; return it and the rows of `index`."""
    tar = ViewTarWriter(path)
    for one in views:
        tar.append(one.tar_samples[0])
    rows = [(key_hash(one.key), *where, one.label) for one, where in zip(views, tar.ranges, strict=True)]
    return tar.close(), np.array(rows, np.uint64)


def _made_up_rows(schema: CacheSchema, rows: int, unit: int) -> dict[str, Values]:
    """Return random features, plausible stats and attention, and rankings of a unit by array."""
    rng, arrays = generator(0, "made-up rows", unit), {}
    for name, spec in array_specs(schema).items():
        shape = (rows, *spec.item_shape)
        if name.startswith("features/"):
            arrays[name] = np.frombuffer(rng.bytes(spec.block_bytes(rows)), spec.dtype).reshape(shape)
        elif name == "stats":
            arrays[name] = np.full(shape, _SCALE, spec.dtype)
        elif name == "attention":
            arrays[name] = rng.random(shape, np.float32) / schema.patches
        elif name == "tokens":
            order = rng.permuted(np.tile(np.arange(schema.patches), (rows, 1)), axis=1)
            arrays[name] = order[:, : schema.stored_patches].astype(spec.dtype)
    return arrays


def _linked_files(original: Cache, commit: Commit, unit: Unit) -> Iterator[tuple[str, str]]:
    """Yield the paths of a unit's files and those of the committed unit whose content they have."""
    for spec in array_specs(original.schema).values():
        if spec.by_rows:
            yield f"{GROUP}/{shard_key(spec, unit.unit)}", f"{GROUP}/{shard_key(spec, commit.unit)}"
    yield f"views/{unit.stem}.tar", f"views/{original.units[commit.unit].stem}.tar"
