"""Full verification names unit, array and rows of every wrong byte of the right size."""

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest
from caches import republish
from contents import flip, resealed, shard

from pipeline.cache.commit import committed
from pipeline.cache.digests import digest_of
from pipeline.cache.layout import row_arrays
from pipeline.cache.reader import Cache
from pipeline.cache.verify import verify_quickly
from pipeline.cache.verify_content import verify_unit
from pipeline.errors import StorageError
from pipeline.views.view_tars import tar_sample

ROWS = 66
INDEX_BYTES = 256 * 16 + 4
UNITS = [f"unit {view} (train-0000.tar, view {view})" for view in (0, 1)]


def full(path):
    """Findings of all units, as texts; each belongs to the unit that it names, and none is seen quickly."""
    cache = Cache(path)
    assert list(verify_quickly(cache)) == []
    found = [finding for unit in committed(cache.folder, cache.units) for finding in verify_unit(cache, unit)]
    assert all(finding.text.startswith(f"{UNITS[finding.unit.unit]}, ") for finding in found)
    return [finding.text for finding in found]


def arrays_of(path):
    return list(row_arrays(Cache(path).schema))


def of_file(path, file, unit=0):
    return f"{UNITS[unit]}, {file.relative_to(path)} does not match its SHA-256"


def of_rows(name, rows, unit=0):
    return f"{UNITS[unit]}, array {name!r}, {rows}: not what was committed"


def view_tar(path, unit=0):
    return path / "views" / f"train-0000.v{unit:02d}.tar"


def places(path, unit=0):
    """(offset, end) of each sample of a unit's view tar."""
    cache = Cache(path)
    commit = cache.commit_of(cache.units[unit])
    index = np.concatenate([cache.read_chunk(commit, chunk, ["index"])["index"] for chunk in range(2)])
    return [(offset, offset + length) for offset, length in index[:, 1:3].tolist()]


def test_a_sound_cache_gives_no_findings(every_kind):
    assert full(every_kind.path) == []


def test_a_flipped_bit_anywhere_in_a_shard_is_named(damaged):
    files = {name: shard(damaged, name, 0) for name in arrays_of(damaged)}
    for place, rows in [
        (lambda _: 0, "rows 0 to 63"),
        (lambda chunks: chunks // 2 - 1, "rows 0 to 63"),  # the checksum of the first block
        (lambda chunks: chunks // 2, "rows 64 to 65"),
        (lambda chunks: chunks - 5, "rows 64 to 65"),  # the padding of the last block
        (lambda chunks: chunks + 3, "rows 0 to 65"),  # the index, under one checksum for all chunks
        (lambda chunks: chunks + 4000, "rows 0 to 65"),  # where it has chunks that are not stored
        (lambda chunks: chunks + INDEX_BYTES - 1, "rows 0 to 65"),
    ]:
        damage = {file: place(file.stat().st_size - INDEX_BYTES) for file in files.values()}
        for file in damage:
            flip(file, damage[file])
        expected = [
            text for name, file in files.items() for text in (of_file(damaged, file), of_rows(name, rows))
        ]
        assert sorted(full(damaged)) == sorted(expected)
        for file in damage:
            flip(file, damage[file])
    assert full(damaged) == []


def test_a_flipped_bit_anywhere_in_a_view_tar_is_named(damaged):
    file, samples = view_tar(damaged), places(damaged)
    for place, rows in {
        0: "row 0",
        samples[3][0] + 150: "row 3",  # in a header
        samples[64][1] - 1: "row 64",  # in the zeros after a member
        samples[65][0] + 2000: "row 65",
        samples[65][1]: None,  # the end marker
        file.stat().st_size - 1: None,
    }.items():
        flip(file, place)
        told = [f"{UNITS[0]}, view tar, {rows}: the sample is not the one of the index"] if rows else []
        assert full(damaged) == [of_file(damaged, file), *told]
        flip(file, place)


def test_a_damaged_index_hides_no_damage_of_the_view_tar(damaged):
    file, index = view_tar(damaged), shard(damaged, "index", 0)
    samples = places(damaged)
    flip(file, samples[65][0])
    flip(index, 0)
    assert set(full(damaged)) == {
        of_file(damaged, file),
        of_file(damaged, index),
        of_rows("index", "rows 0 to 63"),
        f"{UNITS[0]}, view tar, row 65: the sample is not the one of the index",
    }


def test_a_unit_that_goes_or_breaks_meanwhile(damaged):
    cache = Cache(damaged)
    flip(damaged / "commits/train-0000.v00.json", 100)
    (damaged / "commits/train-0000.v01.json").unlink()
    assert verify_unit(cache, cache.units[1]) == []
    (found,) = verify_unit(cache, cache.units[0])
    assert (found.unit, found.text.endswith("train-0000.v00.json' is damaged")) == (cache.units[0], True)


def test_a_missing_file_is_named(damaged):
    cache, file = Cache(damaged), view_tar(damaged)
    file.unlink()
    (found,) = verify_unit(cache, cache.units[0])
    assert found.text == f"{UNITS[0]}, views/train-0000.v00.tar cannot be read (No such file or directory)"


def other_key(arrays):
    arrays["index"][7, 0] += 1


def other_range(arrays):
    arrays["index"][7, 2] -= 512


def other_checksum(arrays):
    arrays["index"][65, 3] ^= 1


@pytest.mark.parametrize(
    ("change", "rows"),
    [(other_key, "row 7"), (other_range, "rows 7 to 8"), (other_checksum, "row 65"), (lambda _: None, None)],
)
def test_an_index_that_was_wrong_from_the_start_is_noticed(damaged, change, rows):
    republish(damaged, change)
    assert full(damaged) == (
        [f"{UNITS[0]}, view tar, {rows}: the sample is not the one of the index"] if rows else []
    )


def test_samples_beyond_the_index_are_noticed(damaged):
    data = view_tar(damaged).read_bytes()
    samples = [data[start:end] for start, end in places(damaged)]
    samples.append(tar_sample("more", bytes(20_000), {}, "jpeg"))
    republish(damaged, write_tar=lambda writer: [writer.append(sample) for sample in samples])
    assert full(damaged) == [f"{UNITS[0]}, view tar: it does not end after its last sample"]


def test_a_resealed_commit_with_another_checksum_is_noticed(damaged):
    cache = Cache(damaged)
    commit = cache.commit_of(cache.units[0]).model_dump(mode="json")
    commit["blocks"]["stats"][1] ^= 1
    resealed(damaged / "commits/train-0000.v00.json", blocks=commit["blocks"])
    assert digest_of(commit) != commit["digest"]
    assert full(damaged) == [of_rows("stats", "rows 64 to 65")]


def test_nothing_is_changed_by_looking(damaged):
    before = {file: file.stat().st_mtime_ns for file in damaged.rglob("*")}
    full(damaged)
    shutil.rmtree(damaged / "logs")
    assert full(damaged) == []
    assert {
        file: file.stat().st_mtime_ns for file in damaged.rglob("*") if file != damaged
    }.items() <= before.items()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.ESTALE])
def test_what_may_be_sound_is_not_a_finding(original, monkeypatch, number):
    cache, opened = Cache(original[0]), Path.open

    def refused(path, *arguments, **options):
        if "c" in path.parts:
            raise OSError(number, "refused", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(
        StorageError,
        match=r"cannot be read \(refused\)\. The cache may be intact, but this file cannot be opened now: "
        "restore access",
    ):
        verify_unit(cache, cache.units[0])
