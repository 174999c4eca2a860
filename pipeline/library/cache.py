"""A cache for one's own code: the images of a view by number, as NumPy arrays or tensors. Needs no torch."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from pipeline.cache import reader
from pipeline.cache.commit import Commit
from pipeline.cache.join import decode_crop, read_expected, read_joined
from pipeline.cache.layout import KEY_HASH, LABEL, LENGTH, OFFSET, array_specs, view_tar_key
from pipeline.cache.schema import BLOCK_ROWS
from pipeline.cache.store import Values
from pipeline.errors import CacheError, ConfigError
from pipeline.seeding import key_hash
from pipeline.storage.address import is_url
from pipeline.views.codec import VIEW_EXTENSION, Pixels

if TYPE_CHECKING:
    import torch

    from pipeline.library.features import FeatureDecoder, Levels
    from pipeline.objectives.needs import TargetKind

Rows = int | slice | Sequence[int] | NDArray[Any] | None
_NAME_BYTES = 100  # of a member, at the start of its header in a tar
_IMPORTED_BY = os.getpid()


@dataclass(frozen=True)
class _Found:
    """Rows of one chunk: `rows` (k,) in the chunk belong at `places` (k,) of the result."""

    commit: Commit
    chunk: int
    rows: NDArray[np.int64]
    places: NDArray[np.int64]


def open_in_worker(address: str) -> "Cache":
    """Open a cache in the process that reads it; raises ConfigError in a forked one for an object store.

    Its client has threads, which a fork does not copy: the first read would wait for ever.
    """
    if is_url(address) and os.getpid() != _IMPORTED_BY:
        raise ConfigError(
            f"cache {address!r} cannot be read by a forked worker: give the DataLoader "
            "multiprocessing_context='forkserver'"
        )
    return Cache(address)


class Cache(reader.Cache):
    """A cache of teacher features, opened for reading; picklable through its address.

    The images of a view have rows from 0 on, in the order of the source tars; units that are not finished are
    left out, and a unit that is finished later is not seen. `rows` is whatever indexes a NumPy array; None
    stands for all. With an int the results have no first axis. Every byte that is read is checked: methods
    raise CacheError for damage, IndexError for a row that is not there, ConfigError for another view.
    """

    def __repr__(self) -> str:
        return f"Cache({self.address!r})"

    def __reduce__(self) -> tuple[type["Cache"], tuple[str]]:
        return type(self), (self.address,)

    @property
    def views(self) -> tuple[int, ...]:
        """The numbers of the views that have finished units."""
        return tuple(np.unique(self.finished(None, allow_partial=True)["view"]).tolist())

    def units_of(self, view: int) -> reader.FinishedUnits:
        """Return the finished units of a view, as they were when first asked for."""
        known: dict[int, reader.FinishedUnits] = self.__dict__.setdefault("_units_of_views", {})
        if view not in known:
            known[view] = self.finished([view], allow_partial=True)
        return known[view]

    def count(self, view: int = 0) -> int:
        """Return how many images a view has."""
        return int(self.units_of(view)["rows"].sum())

    def view_tars(self, view: int = 0) -> list[str]:
        """Return the paths of a view's tars, for webdataset: each sample has KEY.jpg and, if any, KEY.cls.

        webdataset opens s3:// and az:// only through a command: f"pipe:aws s3 cp {tar} -".
        """
        numbers = self.units_of(view)["unit"].tolist()
        return [f"{self.address}/{view_tar_key(self.units[unit])}" for unit in numbers]

    def keys(self, rows: Rows = None, view: int = 0) -> list[str]:
        """Return the keys of images. On a disk only a name of each is read, otherwise the whole crops."""
        numbers, found = self._numbers(rows, view).reshape(-1), dict[int, str]()
        for part in self._parts(numbers, view):
            if self.folder.parallel_reads > 1:  # a request for each name would cost more than the crops
                chunk = read_joined(self, part.commit, part.chunk, [])
                keys = [chunk.keys[row] for row in part.rows.tolist()]
            else:
                index = self.read_chunk(part.commit, part.chunk, ["index"])["index"][part.rows]
                keys = [self._key_at(part.commit, row) for row in index.tolist()]
            found |= dict(zip(part.places.tolist(), keys, strict=True))
        return [found[place] for place in range(len(numbers))]

    def labels(self, rows: Rows = None, view: int = 0) -> NDArray[np.int64]:
        """Return class indices (n,), -1 for an image without a label."""
        labels: NDArray[np.int64] = self.read(["index"], rows, view)["index"][..., LABEL].astype(np.int64)
        return labels

    def row_of(self, key: str, view: int = 0) -> int:
        """Return the first row with a key; raises KeyError. Reads the index of the view, 40 bytes a row."""
        hashes = self.read(["index"], None, view)["index"][:, KEY_HASH]
        rows = np.flatnonzero(hashes == np.uint64(key_hash(key))) if isinstance(key, str) else ()
        if not len(rows):
            raise KeyError(f"view {view} of cache {self.address!r} has no image with the key {key!r}")
        return int(rows[0])

    def images(self, rows: Rows = None, view: int = 0) -> Pixels:
        """Return the crops that the teacher saw, (n, S, S, 3) uint8. Reads whole chunks of 64."""
        numbers, side = self._numbers(rows, view), self.schema.view.image_size
        images = np.empty((numbers.size, side, side, 3), np.uint8)
        for part in self._parts(numbers.reshape(-1), view):
            chunk = read_joined(self, part.commit, part.chunk, [])
            for row, place in zip(part.rows.tolist(), part.places.tolist(), strict=True):
                images[place] = decode_crop(self, chunk.crops[row], chunk.keys[row])
        return images.reshape(*numbers.shape, side, side, 3)

    def attention(self, rows: Rows = None, view: int = 0) -> NDArray[np.float32]:
        """Return the teacher's attention to each patch, (n, N), row-major; ConfigError if it has none."""
        if not self.schema.teacher.has_importance:
            raise ConfigError(
                f"cache {self.address!r} has no attention: its teacher has neither CLS nor a pooling query"
            )
        return self.read(["attention"], rows, view)["attention"]

    def patches(self, rows: Rows = None, view: int = 0) -> NDArray[np.int64]:
        """Return which patches the features are of, (n, K): all N, or with --keep the stored ones."""
        if self.schema.keep < 1:
            return self.read(["tokens"], rows, view)["tokens"].astype(np.int64)
        numbers, everything = self._numbers(rows, view), np.arange(self.schema.patches)
        return np.broadcast_to(everything, (*numbers.shape, len(everything))).copy()

    @overload
    def features(
        self, levels: "Levels" = ..., rows: Rows = ..., view: int = ..., *, target: "TargetKind" = ...
    ) -> NDArray[np.float32]: ...

    @overload
    def features(
        self,
        levels: "Levels" = ...,
        rows: Rows = ...,
        view: int = ...,
        *,
        target: "TargetKind" = ...,
        device: "torch.device | str",
    ) -> "torch.Tensor": ...

    def features(
        self,
        levels: "Levels" = None,
        rows: Rows = None,
        view: int = 0,
        *,
        target: "TargetKind" = "whiten",
        device: "torch.device | str | None" = None,
    ) -> "NDArray[np.float32] | torch.Tensor":
        """Return the teacher's features (n, M, T, D) float32: CLS first if there is one, then `patches()`.

        One level as an int leaves out M; None are all stored levels. `target` is a form of
        `objective.target`: "whiten" as it is stored, "none" for the block's output itself. They are a NumPy
        array, or with `device` a tensor there, decoded there.
        """
        import torch

        decoder, numbers = self.decoder(levels, target).to(device or "cpu"), self._numbers(rows, view)
        features: torch.Tensor | None = None
        for part in self._parts(numbers.reshape(-1), view):
            arrays = self.read_chunk(part.commit, part.chunk, decoder.arrays)
            stored = [decoder.stored(arrays, row) for row in part.rows.tolist()]
            codes, stats = (
                torch.stack([one[name] for one in stored]).to(device or "cpu") for name in stored[0]
            )
            decoded = decoder(codes, stats).float()
            features = decoded.new_empty(numbers.size, *decoded.shape[1:]) if features is None else features
            features[torch.from_numpy(part.places)] = decoded
        if features is None:
            one = self.features(levels, [0], view, target=target, device=device or "cpu")[:0]
            return one.numpy() if device is None else one
        features = features.reshape(*numbers.shape, *features.shape[1:])
        return features.numpy() if device is None else features

    def decoder(self, levels: "Levels" = None, target: "TargetKind" = "whiten") -> "FeatureDecoder":
        """Return the module that decodes `codes` and `stats` of samples, such as those of a CacheDataset."""
        from pipeline.library.features import FeatureDecoder

        return FeatureDecoder(self, levels, target)

    def read(self, names: Sequence[str], rows: Rows = None, view: int = 0) -> dict[str, Values]:
        """Return rows (n, ...) of arrays as they are stored, by the names of cache_schema.md."""
        specs, numbers = array_specs(self.schema), self._numbers(rows, view)
        if unknown := [name for name in names if name not in specs]:
            raise ConfigError(
                f"cache {self.address!r} has no array {unknown[0]!r}: give a list of {', '.join(specs)}"
            )
        found = {name: np.empty((numbers.size, *specs[name].item_shape), specs[name].dtype) for name in names}
        for part in self._parts(numbers.reshape(-1), view):
            for name, values in self.read_chunk(part.commit, part.chunk, names).items():
                found[name][part.places] = values[part.rows]
        return {name: values.reshape(*numbers.shape, *values.shape[1:]) for name, values in found.items()}

    def _numbers(self, rows: Rows, view: int) -> NDArray[np.int64]:
        """Return the row numbers that `rows` means, of any shape."""
        count = self.count(view)
        try:
            chosen = np.asarray(rows) if isinstance(rows, Sequence) else slice(None) if rows is None else rows
            if isinstance(chosen, np.ndarray) and not chosen.size:
                return np.empty(0, np.int64)
            return np.asarray(np.arange(count)[chosen])
        except (IndexError, ValueError):  # a list that cannot become an array
            raise IndexError(
                f"rows {rows!r} are not in view {view} of cache {self.address!r}: it has {count} rows"
            ) from None

    def _parts(self, numbers: NDArray[np.int64], view: int) -> Iterator[_Found]:
        """Yield the chunks that row numbers (n,) lie in, each once."""
        table = self.units_of(view)
        ends = np.cumsum(table["rows"])
        units = np.searchsorted(ends, numbers, side="right")
        within = numbers - (ends - table["rows"])[units]
        order = np.lexsort((within, units))
        chunks = np.stack([units, within // BLOCK_ROWS])[:, order]
        starts = 1 + np.flatnonzero((chunks[:, 1:] != chunks[:, :-1]).any(0))
        for places in np.split(order, starts) if len(order) else ():
            unit, chunk = int(units[places[0]]), int(within[places[0]] // BLOCK_ROWS)
            yield _Found(self.pinned_commit(table[unit]), chunk, within[places] % BLOCK_ROWS, places)

    def _key_at(self, commit: Commit, row: Sequence[int]) -> str:
        """Return the key of a row of `index`: from the name in the tar, which its hash must confirm."""
        start = row[OFFSET]
        name = self.read_crops(commit, start, start + _NAME_BYTES).partition(b"\0")[0]
        folder, slash, file = name.decode(errors="replace").rpartition("/")
        key = f"{folder}{slash}{file.partition('.')[0]}"
        if key_hash(key) == row[KEY_HASH]:
            return key
        sample = self.read_crops(commit, start, start + row[LENGTH])  # such as a name of over 100 bytes
        try:
            return read_expected(sample, row, VIEW_EXTENSION[self.schema.view.format])[0]
        except ValueError as error:
            raise CacheError(f"{commit.name}: {error}: {reader.REMEDY}") from None
