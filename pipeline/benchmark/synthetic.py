"""Synthetic data, used unless the user gives data: tars of drawn images, and caches of random features.

Images have the size of photographs. The cache's own writer makes the caches; their crops are real.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.layout import constant_arrays, index_rows, row_arrays
from pipeline.cache.reader import Cache
from pipeline.cache.schema import CacheSchema
from pipeline.cache.store import Values
from pipeline.cache.writer import UnitWriter, create_cache, extend_cache, with_digests
from pipeline.demo.images import SIDE, image
from pipeline.seeding import generator
from pipeline.storage.address import open_folder
from pipeline.views.codec import encode_view
from pipeline.views.maker import SampleViews, ViewMaker
from pipeline.views.source import read_samples
from pipeline.views.source_tars import SourceTar
from pipeline.views.view_tars import ViewTarWriter, tar_sample

HEIGHT, WIDTH = 375, 500
IMAGE_BYTES = 105_000  # of a tar for each image, about as in ImageNet
_SEED = 12
_DRAWN = 48  # images that the mosaics are made of
_MOSAICS = 512
_SCALE = 2.0**-6  # with codes of about one std in 127


def write_photographs(folder: Path, count: int, tars: int) -> None:
    """Write labelled JPEGs, mosaics of the demo's images, into tars from FOLDER/drawn-000000.tar on."""
    folder.mkdir(parents=True)
    rows, columns = -(-HEIGHT // SIDE), -(-WIDTH // SIDE)
    tiles = np.stack([image(_SEED, index).pixels for index in range(_DRAWN)])
    mosaics: list[bytes] = []
    for index in range(min(count, _MOSAICS)):
        chosen = generator(_SEED, "mosaic", index).integers(len(tiles), size=(rows, columns))
        mosaic = tiles[chosen].swapaxes(1, 2).reshape(rows * SIDE, columns * SIDE, 3)[:HEIGHT, :WIDTH]
        mosaics.append(encode_view(np.ascontiguousarray(mosaic), "jpeg"))
    for number, indices in enumerate(np.array_split(np.arange(count), tars)):
        tar = ViewTarWriter(folder / f"drawn-{number:06d}.tar")
        for index in indices.tolist():
            members = {"cls": str(index % _DRAWN).encode()}
            tar.append(tar_sample(f"{index:06d}", mosaics[index % _MOSAICS], members, "jpeg"))
        tar.close()


def synthetic_cache(path: Path, plain: CacheSchema, tars: Sequence[SourceTar], maker: ViewMaker) -> Cache:
    """Make a finished cache of one view: a unit for each tar, the first tar's crops and random features."""
    folder = open_folder(path)
    constants = {  # mean 0 and std 1 change nothing
        name: np.full(spec.item_shape, 1.0 if name == "channel_std" else 0.0, np.float32)
        for name, spec in constant_arrays(plain).items()
    }
    schema = with_digests(plain, constants, 0)
    create_cache(folder, schema, constants)
    units = extend_cache(folder, schema, [(tar.name, tar.size) for tar in tars], 1, ())
    views = [made for made in map(maker, read_samples(tars[0])) if isinstance(made, SampleViews)]
    for unit in units:
        with folder.scratch() as scratch:
            writer = UnitWriter(folder, schema, unit, scratch)
            view_tar = ViewTarWriter(writer.view_tar)
            for view in views:
                view_tar.append(view.tar_samples[0])
            keys, labels = [view.key for view in views], [view.label for view in views]
            writer.append("index", index_rows(keys, view_tar.ranges, labels))
            writer.append("view", np.stack([view.boxes[0] for view in views]))
            for name, rows in _random_rows(schema, len(views), unit.unit).items():
                writer.append(name, rows)
            writer.publish(view_tar.close(), ())
    return Cache(path)


def _random_rows(schema: CacheSchema, rows: int, unit: int) -> dict[str, Values]:
    """Return random features, plausible stats and attention, and rankings of a unit by array."""
    rng = generator(0, "synthetic rows", unit)
    arrays: dict[str, Values] = {}
    for name, spec in row_arrays(schema).items():
        shape = (rows, *spec.item_shape)
        if name.startswith("features/"):
            arrays[name] = np.frombuffer(rng.bytes(spec.bytes_of(rows)), spec.dtype).reshape(shape)
        elif name == "stats":
            arrays[name] = np.full(shape, _SCALE, spec.dtype)
        elif name == "attention":
            arrays[name] = rng.random(shape, np.float32) / schema.patches
        elif name == "tokens":
            order: NDArray[np.int64] = rng.permuted(np.tile(np.arange(schema.patches), (rows, 1)), axis=1)
            arrays[name] = order[:, : schema.stored_patches].astype(spec.dtype)
    return arrays
