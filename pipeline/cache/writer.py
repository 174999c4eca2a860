"""Making a cache: creating and extending it, and publishing units whole or not at all."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.cache import layout, store
from pipeline.cache.commit import Commit, FileRecord, committed, create_commit
from pipeline.cache.digests import digest_of_arrays
from pipeline.cache.layout import CARD_FILE, COPY_OF, GROUP, GROUP_FILE, LOGS, UNITS_FILE
from pipeline.cache.reader import read_units
from pipeline.cache.schema import CacheSchema, CalibrationSchema
from pipeline.cache.shards import ShardWriter
from pipeline.cache.units import Source, Unit, extended_units, parse_units, units_json
from pipeline.storage.files import WrittenFile, flush_to_disk
from pipeline.storage.folder import Folder
from pipeline.views.sample import SkippedImage

# From the units of a cache and the numbers of those that are committed to a longer list of units.
LongerList = Callable[[tuple[Unit, ...], set[int]], tuple[Unit, ...]]


def foreign_names(folder: Folder) -> set[str]:
    """Return what is directly in a folder, but for unfinished files."""
    return {name for name in folder.names() if not name.startswith(".")}


def is_empty(folder: Folder) -> bool:
    """Return whether a cache can be created here: there is at most a card, or what a dead maker left."""
    return foreign_names(folder) <= {GROUP, LOGS, CARD_FILE}


def with_digests(schema: CacheSchema, constants: store.Constants, images: int) -> CacheSchema:
    """Return a schema with the digests of its arrays without rows; the calibration is of so many images."""
    mean, std, *output = (constants[name] for name in layout.constant_arrays(schema))
    calibration = CalibrationSchema(pictures=images, sha256=digest_of_arrays(mean, std))
    teacher = schema.teacher.model_copy(update={"output_sha256": digest_of_arrays(*output)})
    return schema.model_copy(update={"calibration": calibration, "teacher": teacher})


def create_cache(folder: Folder, schema: CacheSchema, constants: store.Constants) -> None:
    """Create a cache without units from its schema and every array without rows, by name.

    What another process has made already stays as it is. The cache exists when units.json does.
    """
    files = store.metadata_files(schema.values(), schema, units=0)
    assert store.parse_group(files[GROUP_FILE], folder.address)[0] == schema, "the schema cannot be read back"
    for name, spec in layout.constant_arrays(schema).items():
        assert constants[name].shape == spec.item_shape, f"{name} has the shape {constants[name].shape}"
        files[layout.constant_key(name)] = store.constant_bytes(constants[name])
    with folder.scratch() as scratch:
        for key, data in files.items():
            (scratch / key).parent.mkdir(parents=True, exist_ok=True)
            (scratch / key).write_bytes(data)
        folder.take_tree(scratch / GROUP, GROUP, "zarr.json")
        folder.create(UNITS_FILE, units_json(()))
        write_copies(folder)


def write_copies(folder: Folder) -> None:
    """Copy the two metadata files that cannot be rebuilt from anything else."""
    for key, copy in COPY_OF.items():
        data = folder.read(key)
        if not folder.exists(copy) or folder.read(copy) != data:
            folder.replace(copy, data)


def restore_constants(folder: Folder, constants: store.Constants) -> None:
    """Put arrays without rows back in place of damaged ones."""
    for name, values in constants.items():
        folder.replace(layout.constant_key(name), store.constant_bytes(values))


def extend_cache(
    folder: Folder, schema: CacheSchema, sources: Sequence[Source], views: int, present: Iterable[Source]
) -> tuple[Unit, ...]:
    """Append units for new tars and views, and return all; raises ConfigError as `extended_units` does."""
    return change_units(
        folder, schema, lambda units, finished: extended_units(units, sources, views, present, finished)
    )


def change_units(folder: Folder, schema: CacheSchema, longer_list: LongerList) -> tuple[Unit, ...]:
    """Replace the list of units by a longer one, and return it; raises what `longer_list` raises."""

    def extended(data: bytes) -> bytes:
        units = parse_units(data, folder.address)
        longer = longer_list(units, {unit.unit for unit in committed(folder, units)})
        store.ensure_rows(folder, schema, len(longer))  # first: a unit in units.json has its rows
        return units_json(longer) if longer != units else data

    folder.update(UNITS_FILE, extended)
    write_copies(folder)
    return read_units(folder)


def is_committed(folder: Folder, unit: Unit) -> bool:
    """Return whether a unit exists."""
    return folder.exists(layout.commit_key(unit))


@dataclass(frozen=True)
class UnitContent:
    """What is published of a unit: finished local files by key, and for each array the CRC of each chunk."""

    rows: int
    files: Mapping[str, WrittenFile]
    blocks: Mapping[str, tuple[int, ...]]
    skipped: tuple[SkippedImage, ...]


def publish_files(folder: Folder, schema: CacheSchema, unit: Unit, content: UnitContent, claim: str) -> bool:
    """Move the files of a unit into place and commit it; False if another process was first.

    `claim` is the name under which this process claimed the unit.
    """
    files = {key: FileRecord(size=file.size, sha256=file.sha256) for key, file in content.files.items()}
    commit = Commit(
        unit=unit.unit,
        source=unit.source,
        view=unit.view,
        rows=content.rows,
        skipped=content.skipped,
        files=dict(sorted(files.items())),
        blocks=dict(content.blocks),
        schema_digest=schema.digest,
    )
    for file in content.files.values():
        flush_to_disk(file.path)

    def is_ours() -> bool:
        return folder.holds(claim) and not is_committed(folder, unit)

    # Three rules keep a unit whole: its files are complete before they are moved, the commit comes after
    # all of them, and only one maker can create it. Files of a dead maker are replaced. Not every place
    # admits one maker at a time, and one that was suspended may have lost its claim since. So each step
    # first looks whether another maker is at work or has committed.
    with folder.moving():
        taken = all(folder.take(file.path, key, is_ours) for key, file in content.files.items())
        return taken and is_ours() and create_commit(folder, unit, commit)


class UnitWriter:
    """Writes the files of one unit in a scratch folder, chunk by chunk, and publishes them."""

    def __init__(self, folder: Folder, schema: CacheSchema, unit: Unit, scratch: Path) -> None:
        """Begin a unit; no file is made before its first row."""
        self._folder, self._schema, self._unit, self._scratch = folder, schema, unit, scratch / unit.stem
        self._specs = layout.row_arrays(schema)
        self._shards: dict[str, ShardWriter] = {}
        self._scratch.mkdir()
        self.view_tar = self._scratch / "view.tar"  # where to write the unit's view tar

    def append(self, name: str, rows: store.Values) -> None:
        """Append rows to an array. Different arrays may be written by different threads."""
        if name not in self._shards:
            self._shards[name] = ShardWriter(self._scratch / name.replace("/", "."), self._specs[name])
        self._shards[name].append(rows)

    def publish(self, view_tar: WrittenFile, skipped: Sequence[SkippedImage]) -> bool:
        """Finish the shards, move all files into place and commit; False if another process was first.

        Every array with rows must have as many.
        """
        files = {
            layout.shard_key(self._specs[name], self._unit.unit): shard.close()
            for name, shard in self._shards.items()
        }
        files[layout.view_tar_key(self._unit)] = view_tar
        (rows,) = {shard.rows for shard in self._shards.values()}
        blocks = {name: tuple(shard.checksums) for name, shard in self._shards.items()}
        content = UnitContent(rows, files, blocks, tuple(skipped))
        return publish_files(self._folder, self._schema, self._unit, content, claim=self._unit.source)

    def discard(self) -> None:
        """Remove what is left of the unit in the scratch folder."""
        for shard in self._shards.values():
            shard.file.discard()
        shutil.rmtree(self._scratch, ignore_errors=True)
