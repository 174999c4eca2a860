"""A stage for webdataset: joins what it reads from view tars with the targets of the cache."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.cache.layout import CRC, KEY_HASH, chunk_count
from pipeline.cache.reader import REMEDY, FinishedUnits
from pipeline.cache.schema import BLOCK_ROWS
from pipeline.errors import CacheError, ConfigError
from pipeline.library.cache import Cache, open_in_worker
from pipeline.library.features import FeatureDecoder, Levels, sample_arrays, sample_fields
from pipeline.objectives.needs import TargetKind
from pipeline.seeding import key_hash
from pipeline.views.codec import VIEW_EXTENSION
from pipeline.views.view_tars import tar_sample

Samples = Iterable[dict[str, Any]]
_UNITS_HELD, _CHUNKS_HELD = 8, 8


def with_targets(
    cache: Cache | str,
    levels: Levels = None,
    *,
    target: TargetKind = "whiten",
    decoded: bool = True,
    check_crops: bool = True,
) -> Callable[[Samples], Iterator[dict[str, Any]]]:
    """Return a stage that adds to each sample of a view tar the `features` (M, T, D) of its key.

        wds.WebDataset(cache.view_tars(view=0)).compose(with_targets(cache, levels=[7, 11]))

    The fields are those of `CacheDataset`. A sample is found by the name of its tar and its key, so tars may
    be in any order, on any node and in any worker. Put the stage right behind the reader: there each chunk is
    read once, and the bytes of a sample are compared with their checksum. `.decode(...)` then needs
    `partial=True`. Behind stages that change, select or decode members, give `check_crops=False`.
    Raises CacheError for what does not match, ConfigError for tars that are not this cache's.
    """
    opened = cache if isinstance(cache, Cache) else Cache(cache)
    units = opened.finished(None, allow_partial=True)
    return TargetStage(opened.address, units, opened.decoder(levels, target), decoded, check_crops)


@dataclass(frozen=True)
class TargetStage:
    """The stage of `with_targets`: picklable, and opens the cache in each process that runs it."""

    address: str
    units: FinishedUnits
    decoder: FeatureDecoder
    decoded: bool
    check_crops: bool

    def __call__(self, samples: Samples) -> Iterator[dict[str, Any]]:
        """Yield the samples with their targets."""
        join = _Join(open_in_worker(self.address), self)
        for sample in samples:
            fields = join.fields(sample)
            yield {**sample, **fields}


class _Join:
    """Finds the row of a sample, and holds the chunks that were read last."""

    def __init__(self, cache: Cache, stage: TargetStage) -> None:
        self._cache, self._stage = cache, stage
        names = sample_arrays(cache, stage.decoder)
        self._units = {f"{cache.units[int(unit['unit'])].stem}.tar": unit for unit in stage.units}
        self._index = lru_cache(_UNITS_HELD)(self._read_index)
        self._chunk = lru_cache(_CHUNKS_HELD)(
            lambda tar, chunk: cache.read_chunk(cache.pinned_commit(self._units[tar]), chunk, names)
        )

    def fields(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return the targets of a sample; raises CacheError or ConfigError."""
        if not isinstance(sample, dict) or not sample.keys() >= {"__url__", "__key__"}:
            raise ConfigError(
                f"a sample is a {type(sample).__name__} without __url__ and __key__: put with_targets right "
                "behind wds.WebDataset"
            )
        url, key = str(sample["__url__"]), sample["__key__"]
        tar = url.rpartition("/")[2]
        if tar not in self._units:  # the view tar may stand in a command such as pipe:aws s3 cp TAR -
            words = re.findall(r"[^\s/'\"]+\.tar\b", url)
            tar = next((word for word in words if word in self._units), tar)
        if tar not in self._units:
            raise ConfigError(
                f"tar {tar!r} is not a view tar of cache {self._cache.address!r}: give webdataset the "
                "paths of cache.view_tars(view)"
            )
        index, rows = self._index(tar)
        row = rows.get(key_hash(key))
        if row is None:
            raise CacheError(f"sample {key!r} of view tar {tar!r} has no target in its cache: {REMEDY}")
        if self._stage.check_crops:
            self._compare(sample, tar, index[row])
        chunk = self._chunk(tar, row // BLOCK_ROWS)
        return sample_fields(self._stage.decoder, chunk, row % BLOCK_ROWS, self._stage.decoded)

    def _compare(self, sample: dict[str, Any], tar: str, expected: NDArray[np.uint64]) -> None:
        """Compare a sample with its checksum, which is of its bytes in the tar: they are made again."""
        view_format, key = self._cache.schema.view.format, sample["__key__"]
        members = {name: value for name, value in sample.items() if not name.startswith("__")}
        crop = members.pop(VIEW_EXTENSION[view_format], None)
        if not all(isinstance(value, bytes) for value in (crop, *members.values())):
            raise ConfigError(
                f"sample {key!r} is decoded already: put with_targets before .decode(..., partial=True), or "
                "give check_crops=False"
            )
        if google_crc32c.value(tar_sample(key, crop, members, view_format)) != int(expected[CRC]):
            raise CacheError(
                f"sample {key!r} of view tar {tar!r} does not match its checksum: {REMEDY}; if webdataset "
                "selects or renames members, give check_crops=False"
            )

    def _read_index(self, tar: str) -> tuple[NDArray[np.uint64], dict[int, int]]:
        """Return `index` (rows, 5) of a unit, and its rows by the hash of their keys."""
        commit = self._cache.pinned_commit(self._units[tar])
        chunks = range(chunk_count(commit.rows))
        index = np.concatenate([self._cache.read_chunk(commit, one, ["index"])["index"] for one in chunks])
        return index, {hashed: row for row, hashed in enumerate(index[:, KEY_HASH].tolist())}
