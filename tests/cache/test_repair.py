"""Repair drops the damaged units and nothing else, and the same extraction then gives the same bytes."""

import json
import shutil

import caches
import pytest
from caches import extraction_options
from damage import flip, resealed, shard
from made_up_cache import files_of
from tars import image, write_tar

from pipeline.cache.commit import committed
from pipeline.cache.layout import array_specs
from pipeline.cache.reader import Cache
from pipeline.cache.repair import repair
from pipeline.cache.verify import count_unfinished, verify_quickly
from pipeline.cache.verify_content import verify_unit
from pipeline.cache.writer import extend_cache
from pipeline.errors import CacheError
from pipeline.extraction.job import run_extraction
from pipeline.views.source_tars import SourceTar

UNIT_1 = "dropped: unit 1 (train-0000.tar, view 1)"
STD = "targets.zarr/channel_std/c/0/0"


def mended(path):
    """Verify a cache quickly and then in full, repairing after each; returns what was done."""
    cache = Cache(path)
    done = repair(cache, list(verify_quickly(cache)))
    cache = Cache(path)
    found = [finding for unit in committed(cache.folder, cache.units) for finding in verify_unit(cache, unit)]
    return [*done, *repair(cache, found)]


def extract_again(extracted, path, **changes):
    extractor, missing = run_extraction(extraction_options(cache=path, **{**extracted.options, **changes}))
    assert missing == 0
    return extractor.tally.units


def stamps(path):
    return {
        file: file.stat().st_mtime_ns
        for file in path.rglob("*")
        if file.is_file() and "logs" not in file.parts
    }


def of_unit_1(file):
    return "v01" in file.name or file.as_posix().rpartition("/c/")[2].startswith("1/")


def damage_feature(path):
    flip(shard(path, "features/block_02", 1), 1000)


def damage_index_of_shard(path):
    flip(shard(path, "stats", 1), -3)


def damage_tar(path):
    flip(path / "views/train-0000.v01.tar", 60_000)


def cut_tar(path):
    (path / "views/train-0000.v01.tar").write_bytes(b"")


def remove_shard(path):
    shard(path, "index", 1).unlink()


def damage_commit(path):
    flip(path / "commits/train-0000.v01.json", 50)


def replace_commit(path):
    resealed(path / "commits/train-0000.v01.json", files={})


def damage_everything(path):
    for file in filter(of_unit_1, path.rglob("*")):
        if file.is_file():
            flip(file, 40)


DAMAGES = [
    damage_feature,
    damage_index_of_shard,
    damage_tar,
    cut_tar,
    remove_shard,
    damage_commit,
    replace_commit,
    damage_everything,
]


def test_a_damaged_unit_alone_is_dropped_and_made_again(extracted, damaged):
    whole, sound = (
        files_of(extracted.path),
        {file: stamp for file, stamp in stamps(damaged).items() if not of_unit_1(file)},
    )
    for damage in DAMAGES:
        damage(damaged)
        assert mended(damaged) == [UNIT_1]
        left = {
            file.relative_to(damaged)
            for file in damaged.rglob("*")
            if file.is_file() and of_unit_1(file.relative_to(damaged))
        }
        assert {file for file in left if "logs" not in file.parts} == set()
        if damage in (damage_everything, damage_tar):
            assert extract_again(extracted, damaged) == 1
            assert files_of(damaged) == whole
        else:
            for name in whole:
                if not (damaged / name).exists():
                    (damaged / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(extracted.path / name, damaged / name)
    assert stamps(damaged).items() >= sound.items()


def test_a_sound_cache_is_left_alone(damaged):
    before = stamps(damaged)
    assert mended(damaged) == []
    assert stamps(damaged) == before


def metadata(path):
    schema = Cache(path).schema
    return [
        f"targets.zarr/{name}zarr.json"
        for name in ("features/", *(f"{name}/" for name in array_specs(schema)))
    ]


def test_damaged_metadata_are_written_anew_byte_by_byte_and_cost_nothing_else(extracted, damaged):
    keys, whole = metadata(damaged), files_of(extracted.path)
    for content in (None, b"{}", b"\xff"):
        before = stamps(damaged)
        for key in keys:
            (damaged / key).unlink()
            if content is not None:
                (damaged / key).write_bytes(content)
        assert mended(damaged) == [f"written anew: {key}" for key in sorted(keys)]
        assert files_of(damaged) == whole
        assert {file for file, stamp in stamps(damaged).items() if before[file] != stamp} == {
            damaged / key for key in keys
        }


def test_the_groups_metadata_are_written_anew_while_the_schema_can_be_read(extracted, damaged):
    file = damaged / "targets.zarr/zarr.json"
    file.write_bytes(json.dumps(json.loads(file.read_bytes()) | {"zarr_format": 2, "extra": 1}).encode())
    assert mended(damaged) == ["written anew: targets.zarr/zarr.json"]
    assert files_of(damaged) == files_of(extracted.path)


def test_damage_of_all_sorts_at_once(extracted, damaged):
    damage_feature(damaged)
    (damaged / STD).unlink()
    key = "targets.zarr/features/block_02/zarr.json"
    (damaged / key).unlink()
    assert mended(damaged) == [f"written anew: {key}", UNIT_1]
    assert count_unfinished(Cache(damaged)) == 0
    assert extract_again(extracted, damaged) == 1
    assert files_of(damaged) == files_of(extracted.path)


@pytest.mark.parametrize("name", ["channel_mean", "channel_std"])
@pytest.mark.parametrize("place", [None, 0, -1])
def test_a_damaged_calibration_is_made_again(extracted, damaged, name, place):
    file = damaged / f"targets.zarr/{name}/c/0/0"
    before = stamps(damaged)
    if place is None:
        file.unlink()
    else:
        flip(file, place)
    assert mended(damaged) == []  # the extraction alone can make it again
    assert extract_again(extracted, damaged) == 0
    assert files_of(damaged) == files_of(extracted.path)
    assert {file.name for file, stamp in stamps(damaged).items() if before[file] != stamp} == {"0"}


def test_a_calibration_that_would_come_out_otherwise_is_refused(extracted, damaged, tmp_path):
    (damaged / STD).unlink()
    source = extracted.options["shards"][0]
    other = write_tar(tmp_path / "other.tar", {f"{n}": image(n) for n in range(200, 203)})
    shards = [SourceTar(other, other.stat().st_size), source]
    if extracted.options.get("encoding") == "float16":
        return assert_made_without_images(extracted, damaged, shards)
    before = files_of(damaged)
    with pytest.raises(
        CacheError,
        match=r"the calibration of cache .* is damaged, and the first images of these tars give another: "
        "restore targets.zarr/channel_mean and channel_std from a copy, or name the tars in the order of the first extraction",
    ):
        extract_again(extracted, damaged, shards=shards)
    assert files_of(damaged) == before
    return None


def assert_made_without_images(extracted, damaged, shards):
    """float16 has no statistics: other first tars do not matter."""
    assert extract_again(extracted, damaged, shards=shards) == 2
    assert Cache(damaged).calibration()[1].min() == 1


def test_an_extraction_into_damaged_metadata_names_the_cure(extracted, damaged):
    key = "targets.zarr/index/zarr.json"
    for content in (b"{}", b"\xff", None):
        (damaged / key).unlink()
        if content is not None:
            (damaged / key).write_bytes(content)
        with pytest.raises(
            CacheError,
            match=rf"{key} of cache .* cannot be read: inspect-cache verify --repair writes it anew",
        ):
            extract_again(extracted, damaged)


def test_commits_of_no_unit_are_left_alone(tmp_path):
    """An older units.json, put back in place of a damaged one, costs no unit of a later extension."""
    path = tmp_path / "made.cache"
    schema, units = caches.empty(path)
    older = (path / "units.json").read_bytes()
    for unit in extend_cache(Cache(path).folder, schema, [("a.tar", 1000), ("b.tar", 2000)], 2, ()):
        caches.publish(path, schema, unit)
    before = files_of(path)
    (path / "units.json").write_bytes(older)
    cache = Cache(path)
    assert len(cache.units) == len(units)
    found = list(verify_quickly(cache))
    assert (len(found), repair(cache, found)) == (2, [])
    extend_cache(cache.folder, schema, [("a.tar", 1000), ("b.tar", 2000)], 2, ())
    assert files_of(path) == before
    assert list(verify_quickly(Cache(path))) == []


def test_metadata_are_written_for_the_units_of_this_moment(made):
    """A cache that was extended after it was opened gets no array that ends before units.json does."""
    path, _ = made
    cache = Cache(path)
    key = "targets.zarr/view/zarr.json"
    extend_cache(cache.folder, cache.schema, [("a.tar", 1000), ("b.tar", 2000), ("c.tar", 3000)], 2, ())
    whole = (path / key).read_bytes()
    (path / key).write_bytes(b"")
    assert repair(cache, list(verify_quickly(cache))) == [f"written anew: {key}"]
    assert (path / key).read_bytes() == whole
    assert json.loads(whole)["shape"][0] == 6 * cache.schema.unit_rows
