"""Making a cache: creating and extending it, and publishing units so that a reader sees a whole unit or none."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pipeline.cache import store
from pipeline.cache.commit import Commit, FileRecord, commit_key, committed, create_commit
from pipeline.cache.digests import digest_of_arrays
from pipeline.cache.schema import CacheSchema, CalibrationSchema, array_specs
from pipeline.cache.shards import ShardWriter
from pipeline.cache.units import UNITS_FILE, Source, Unit, extended_units, parse_units, read_units, units_json
from pipeline.storage.files import WrittenFile, flush_to_disk
from pipeline.storage.folder import Folder
from pipeline.views.sample import SkippedImage


def is_empty(folder: Folder) -> bool:
    """Tell whether a cache can be created here: nothing is there but what a maker that died left behind."""
    return folder.names() <= {store.GROUP, "logs"}


def with_digests(schema: CacheSchema, constants: store.Constants, images: int) -> CacheSchema:
    """Return a schema that names the digests of its arrays without rows; the calibration is of so many images."""
    mean, std, *output = (constants[name] for name, spec in array_specs(schema).items() if not spec.by_rows)
    calibration = CalibrationSchema(pictures=images, sha256=digest_of_arrays(mean, std))
    teacher = schema.teacher.model_copy(update={"output_sha256": digest_of_arrays(*output)})
    return schema.model_copy(update={"calibration": calibration, "teacher": teacher})


def create_cache(folder: Folder, schema: CacheSchema, constants: store.Constants) -> None:
    """Create a cache without units from its schema and every array without rows, by name.

    What another process has made already stays as it is. The cache exists when units.json does.
    """
    specs = {name: spec for name, spec in array_specs(schema).items() if not spec.by_rows}
    shapes = {name: values.shape for name, values in constants.items()}
    if shapes != {name: spec.item_shape for name, spec in specs.items()}:
        raise ValueError(f"arrays without rows of shapes {shapes} for {list(specs)}")
    with folder.scratch() as scratch:
        store.create_group(scratch / store.GROUP, schema, units=0)
        for name, values in constants.items():
            path = scratch / store.constant_key(name)
            path.parent.mkdir(parents=True)
            path.write_bytes(store.constant_bytes(values))
        folder.take_tree(scratch / store.GROUP, store.GROUP, "zarr.json")
        folder.create(UNITS_FILE, units_json(()))


def restore_constants(folder: Folder, constants: store.Constants) -> None:
    """Put arrays without rows back in place of damaged ones."""
    for name, values in constants.items():
        folder.replace(store.constant_key(name), store.constant_bytes(values))


def extend_cache(
    folder: Folder, schema: CacheSchema, sources: Sequence[Source], views: int, present: Iterable[Source]
) -> tuple[Unit, ...]:
    """Append units for new tars and views, and return all; raises ConfigError as `extended_units` does."""

    def extended(data: bytes) -> bytes:
        units = parse_units(folder, data)
        made = {unit.source for unit in committed(folder, units)}
        longer = extended_units(units, sources, views, present, made)
        store.ensure_rows(folder, schema, len(longer))  # first: a unit in units.json has its rows
        return units_json(longer) if longer != units else data

    folder.update(UNITS_FILE, extended)
    return read_units(folder)


def is_committed(folder: Folder, unit: Unit) -> bool:
    """Tell whether a unit exists."""
    return folder.exists(commit_key(unit))


class UnitWriter:
    """Writes the files of one unit in a scratch folder, shard by shard and block by block, and publishes them."""

    def __init__(self, folder: Folder, schema: CacheSchema, unit: Unit, scratch: Path) -> None:
        """Begin a unit; no file is made before its first row."""
        self._folder, self._schema, self._unit, self._scratch = folder, schema, unit, scratch / unit.stem
        self._shards: dict[str, ShardWriter] = {}
        self._scratch.mkdir()

    @property
    def view_tar(self) -> Path:
        """Where the unit's view tar is to be written."""
        return self._scratch / "view.tar"

    def append(self, name: str, rows: store.Values) -> None:
        """Append rows to an array. Different arrays may be written by different threads."""
        if name not in self._shards:
            self._shards[name] = ShardWriter(
                self._scratch / name.replace("/", "."), array_specs(self._schema)[name], self._schema
            )
        self._shards[name].append(rows)

    def publish(self, view_tar: WrittenFile, skipped: Sequence[SkippedImage]) -> bool:
        """Finish the shards, move them and the view tar into place and commit; False if another process was first.

        Every array with rows must have as many.
        """
        specs = array_specs(self._schema)
        shards = {name: shard.close() for name, shard in self._shards.items()}
        moves = {
            f"{store.GROUP}/{store.shard_key(specs[name], self._unit.unit)}": file
            for name, file in shards.items()
        }
        moves[f"views/{self._unit.stem}.tar"] = view_tar
        (rows,) = {shard.rows for shard in self._shards.values()}
        commit = Commit(
            unit=self._unit.unit,
            source=self._unit.source,
            view=self._unit.view,
            rows=rows,
            skipped=tuple(skipped),
            files={
                key: FileRecord(size=file.size, sha256=file.sha256) for key, file in sorted(moves.items())
            },
            blocks={name: tuple(shard.block_crcs) for name, shard in self._shards.items()},
            schema_digest=self._schema.digest,
        )
        for file in moves.values():
            flush_to_disk(file.path)
        with self._folder.moving():
            return self._move_and_commit(moves, commit)

    def discard(self) -> None:
        """Remove what is left of the unit in the scratch folder."""
        for shard in self._shards.values():
            shard.discard()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _move_and_commit(self, moves: Mapping[str, WrittenFile], commit: Commit) -> bool:
        """Move the flushed files into place, then commit; the file of a maker that died before its commit is replaced.

        Not every place lets one maker in at a time, so each step looks for another's commit first.
        """
        for key, file in moves.items():
            if is_committed(self._folder, self._unit):
                return False
            self._folder.take(file.path, key)
        return create_commit(self._folder, self._unit, commit)
