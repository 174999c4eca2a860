"""The one maker of caches for all tests.

    path = real(tmp_path, tars=2, images_per_tar=70, views=1)   stage one with a tiny teacher
    arrays = synthetic(tmp_path / "a.cache", encoding="int4")   random rows of any schema, no images

The fixtures `small_cache_path` (shared by the session, never changed) and `cache_copy` (private to a test) of
conftest.py are a real cache of 2 tars x 2 views with 70 images each, two chunks a unit.
"""

from pathlib import Path

import numpy as np
import torch
from tars import make_tars

from pipeline.cache.layout import GROUP, chunk_count, commit_key, constant_arrays, row_arrays, view_tar_key
from pipeline.cache.reader import Cache
from pipeline.cache.schema import CacheSchema, CalibrationSchema, TeacherFacts, ViewSchema
from pipeline.cache.store import metadata_files
from pipeline.cache.writer import UnitWriter, create_cache, extend_cache, is_committed, with_digests
from pipeline.extraction.job import run_extraction
from pipeline.extraction.options import ExtractionOptions
from pipeline.storage.address import open_folder
from pipeline.storage.files import DigestedFile
from pipeline.views.view_tars import ViewTarWriter

TEACHER = "timm:test_vit.random"  # 6 blocks, 64 channels, 2 heads, CLS
IMAGE_SIZE = 64
PATCH_SIZE = 16

SOURCES = [("a.tar", 1000), ("b.tar", 2000)]
ROWS = 100  # of each synthetic unit: a whole chunk and a part


def extraction_options(**changes):
    """Return the options of a quick extraction without workers; `shards` and `cache` must be given."""
    options = {
        "teacher": TEACHER,
        "levels": "3",
        "views": 2,
        "encoding": "int8",
        "keep": 1.0,
        "keep_rank": "attention",
        "view_format": "jpeg",
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "crop_scale": (0.4, 1.0),
        "flip": 0.5,
        "seed": 0,
        "batch_size": 8,
        "workers": 0,
        "max_bad": 0.01,
        "limit": None,
        "device": torch.device("cpu"),
        "rank": 0,
        "processes": 1,
    }
    changes["cache"] = str(changes["cache"])
    return ExtractionOptions(**(options | changes))


def extract(cache, shards, **changes):
    """Run an extraction of one process; return its tally and the number of units that are still missing."""
    extractor, missing = run_extraction(extraction_options(cache=cache, shards=shards, **changes))
    return extractor.tally, missing


def real(folder, tars=2, images_per_tar=70, name="small.cache", shards=None, **changes):
    """Make tars in `folder`/tars and a finished cache of them at `folder`/`name`; return its path."""
    shards = shards or make_tars(Path(folder) / "tars", tars, images_per_tar)
    tally, missing = extract(Path(folder) / name, shards, **changes)
    assert (missing, tally.failed) == (0, {})
    return Path(folder) / name


def make_schema(
    *,
    width=64,
    image_size=64,
    levels=(3, 5),
    encoding="int8",
    keep=1.0,
    keep_rank="random",
    has_cls=True,
    has_importance=True,
    post_norm_eps=None,
    projection_width=None,
    **changes,
):
    """A valid schema of a small teacher on a grid of patches of 16 pixels."""
    teacher = TeacherFacts(
        library="timm",
        name="test_vit",
        tag="random",
        weights_sha256="00",
        trained=False,
        precision="float32",
        depth=12,
        width=width,
        patch_size=16,
        input_size=image_size,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        has_cls=has_cls,
        has_importance=has_importance,
        post_norm_eps=post_norm_eps,
        projection_width=projection_width,
        output_sha256="",
    )
    view = ViewSchema(
        format="jpeg",
        image_size=image_size,
        patch_size=16,
        crop_scale=(0.2, 1.0),
        flip=0.5,
        seed=0,
        decoder="any",
        resize="any",
    )
    return CacheSchema(
        teacher=teacher,
        view=view,
        levels=levels,
        encoding=encoding,
        keep=keep,
        keep_rank=None if keep == 1 else keep_rank,
        calibration=CalibrationSchema(pictures=0, sha256="00"),
        **changes,
    )


def write_group(path, schema, units):
    """Write the metadata of all arrays of a cache into the folder `path`/targets.zarr; return it."""
    for key, data in metadata_files(schema.values(), schema, units).items():
        (path / key).parent.mkdir(parents=True, exist_ok=True)
        (path / key).write_bytes(data)
    return path / GROUP


def random_rows(schema, rows, seed=0):
    """Random values of every array with rows, by name."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(1, 100, (rows, *spec.item_shape)).astype(spec.dtype)
        for name, spec in row_arrays(schema).items()
    }


def empty(path, sources=SOURCES, views=1, **changes):
    """Create a cache without finished units, changed as make_schema takes it; return its schema and units."""
    plain = make_schema(**changes)
    constants = {
        name: np.full(spec.item_shape, 2 if name == "channel_std" else 0.5, np.float32)
        for name, spec in constant_arrays(plain).items()
    }
    schema = with_digests(plain, constants, 3)
    create_cache(open_folder(path), schema, constants)
    return schema, extend_cache(open_folder(path), schema, sources, views, ())


def publish(path, schema, unit, rows=ROWS, seed=None):
    """Publish random rows of a unit; return (whether this call published it, the arrays)."""
    arrays = random_rows(schema, rows, unit.unit if seed is None else seed)
    folder = open_folder(path)
    with folder.scratch() as scratch:
        view_tar = f"crops of unit {unit.unit}".encode() * 100
        return publish_arrays(folder, schema, unit, arrays, view_tar, (), scratch), arrays


def synthetic(path, **changes):
    """Create a cache whose units hold random rows and no images; return {unit: its arrays}."""
    schema, units = empty(path, **changes)
    return {unit.unit: publish(path, schema, unit)[1] for unit in units}


def publish_arrays(folder, schema, unit, arrays, view_tar, skipped, scratch):
    """Publish arrays by name and a view tar (WrittenFile or bytes); False if another process was first."""
    if is_committed(folder, unit):
        return False
    writer = UnitWriter(folder, schema, unit, scratch)
    for name, rows in arrays.items():
        writer.append(name, rows)
    if isinstance(view_tar, bytes):
        file = DigestedFile(writer.view_tar)
        file.write(view_tar)
        view_tar = file.close()
    published = writer.publish(view_tar, skipped)
    writer.discard()
    return published


def republish(path, change=lambda _: None, write_tar=None):
    """Make unit 0 again, every checksum right: with changed arrays, and what `write_tar(writer)` appends."""
    cache = Cache(path)
    unit, commit = cache.units[0], cache.commit_of(cache.units[0])
    chunks = [cache.read_chunk(commit, chunk, commit.blocks) for chunk in range(chunk_count(commit.rows))]
    arrays = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in commit.blocks}
    with cache.folder.scratch() as scratch:
        view_tar = (Path(path) / view_tar_key(unit)).read_bytes()
        if write_tar:
            writer = ViewTarWriter(scratch / "view.tar")
            write_tar(writer)
            view_tar = writer.close()
            arrays["index"][:, 1:4] = writer.ranges[: commit.rows]
        change(arrays)
        (Path(path) / commit_key(unit)).unlink()
        assert publish_arrays(cache.folder, cache.schema, unit, arrays, view_tar, (), scratch)
