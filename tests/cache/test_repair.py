"""Repair removes damaged units alone and restores metadata; the same extraction then gives the same bytes."""

import json
import shutil

import caches
import pytest
from caches import SOURCES, extract
from contents import change_schema, files_of, flip, resealed, shard
from tars import image, write_tar

from pipeline.cache.commit import committed
from pipeline.cache.layout import array_specs, metadata_key
from pipeline.cache.reader import Cache
from pipeline.cache.repair import repair, restore_metadata
from pipeline.cache.verify import verify_quickly
from pipeline.cache.verify_content import verify_unit
from pipeline.cache.writer import extend_cache
from pipeline.errors import CacheError, ConfigError
from pipeline.storage.address import open_folder
from pipeline.views.source_tars import SourceTar

UNIT_1 = "removed: unit 1 (train-0000.tar, view 1)"
KEYS_OF_1_1 = ("post_norm_eps", "projection_width", "output_sha256")
GROUP, UNITS = "targets.zarr/zarr.json", "units.json"


def mended(path):
    """Restore, verify quickly and then in full, repairing after each; return what was done."""
    done = restore_metadata(open_folder(path))
    cache = Cache(path)
    done += repair(cache, list(verify_quickly(cache)))
    cache = Cache(path)
    found = [finding for unit in committed(cache.folder, cache.units) for finding in verify_unit(cache, unit)]
    return [*done, *repair(cache, found)]


def extract_again(extracted, path, **changes):
    tally, missing = extract(path, **{**extracted.options, **changes})
    assert missing == 0
    return tally.units


def stamps(path):
    files = (file for file in path.rglob("*") if file.is_file() and "logs" not in file.parts)
    return {file: file.stat().st_mtime_ns for file in files}


def of_unit_1(file):
    return "v01" in file.name or file.as_posix().rpartition("/c/")[2].startswith("1/")


def damage_everything(path):
    for file in filter(of_unit_1, path.rglob("*")):
        if file.is_file():
            flip(file, 40)


DAMAGES = [
    lambda path: flip(shard(path, "features/block_02", 1), 1000),
    lambda path: flip(shard(path, "stats", 1), -3),  # its index
    lambda path: flip(path / "views/train-0000.v01.tar", 60_000),
    lambda path: (path / "views/train-0000.v01.tar").write_bytes(b""),
    lambda path: shard(path, "index", 1).unlink(),
    lambda path: flip(path / "commits/train-0000.v01.json", 50),
    lambda path: resealed(path / "commits/train-0000.v01.json", files={}),
    damage_everything,
]


def test_a_damaged_unit_alone_is_removed_and_made_again(extracted, damaged):
    whole = files_of(extracted.path)
    sound = {file: stamp for file, stamp in stamps(damaged).items() if not of_unit_1(file)}
    for damage in DAMAGES:
        damage(damaged)
        assert mended(damaged) == [UNIT_1]
        assert not [file for file in stamps(damaged) if of_unit_1(file.relative_to(damaged))]
        for name in whole.keys() - files_of(damaged).keys() if damage is not damage_everything else ():
            (damaged / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(extracted.path / name, damaged / name)
    assert extract_again(extracted, damaged) == 1
    assert files_of(damaged) == whole
    assert stamps(damaged).items() >= sound.items()


def test_a_sound_cache_is_left_alone(damaged):
    before = stamps(damaged)
    assert mended(damaged) == []
    assert stamps(damaged) == before


def test_damaged_metadata_is_written_again_byte_by_byte(extracted, damaged):
    keys = [metadata_key(name) for name in ("features", *array_specs(Cache(damaged).schema))]
    keys += ["copies/units.json", "copies/zarr.json"]
    whole = files_of(extracted.path)
    for content in (None, b"{}", b"\xff"):
        before = stamps(damaged)
        for key in keys:
            (damaged / key).unlink()
            if content is not None:
                (damaged / key).write_bytes(content)
        assert mended(damaged) == [f"written again: {key}" for key in sorted(keys)]
        assert files_of(damaged) == whole
        changed = {file for file, stamp in stamps(damaged).items() if before[file] != stamp}
        assert changed == {damaged / key for key in keys}


def test_the_group_is_written_again_while_its_schema_can_be_read(extracted, damaged):
    file = damaged / GROUP
    file.write_bytes(json.dumps(json.loads(file.read_bytes()) | {"zarr_format": 2, "extra": 1}).encode())
    assert f"written again: {GROUP}" in mended(damaged)
    assert files_of(damaged) == files_of(extracted.path)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff"])
def test_the_group_and_the_list_are_restored_from_their_copies(extracted, damaged, content):
    for key in (GROUP, UNITS):
        (damaged / key).unlink()
        if content is not None:
            (damaged / key).write_bytes(content)
        with pytest.raises(CacheError, match="inspect-cache verify --repair restores it"):
            Cache(damaged)
    done = mended(damaged)
    assert done == [
        f"restored: {GROUP} from its copy",
        f"restored: {UNITS} with 2 units, from its copy and the commits",
    ]
    assert files_of(damaged) == files_of(extracted.path)


def test_the_list_is_rebuilt_from_commits_alone(extracted, damaged):
    (damaged / "commits/train-0000.v00.json").unlink()
    (damaged / UNITS).write_bytes(b"damaged")
    (damaged / "copies/units.json").unlink()
    assert mended(damaged)[0] == f"restored: {UNITS} with 2 units, from its copy and the commits"
    assert [unit.source for unit in Cache(damaged).units] == ["lost-000000.tar", "train-0000.tar"]
    assert extract_again(extracted, damaged) == 1
    assert files_of(damaged) == files_of(extracted.path)


def test_without_a_copy_the_schema_cannot_be_restored(damaged):
    (damaged / GROUP).write_bytes(b"{}")
    (damaged / "copies/zarr.json").unlink()
    with pytest.raises(CacheError, match=r"zarr\.json of '.*' is not that of a cache"):
        restore_metadata(open_folder(damaged))
    with pytest.raises(ConfigError, match=r"is not a cache \(no units\.json\)"):
        restore_metadata(open_folder(damaged / "commits"))


@pytest.mark.parametrize("kind", ["int8", "float16 by blosc, raw views"])
def test_damaged_constants_are_made_again(kinds, tmp_path, kind):
    path = shutil.copytree(kinds(kind).path, tmp_path / "small.cache")
    before = stamps(path)
    mean, std, norm = (
        path / f"targets.zarr/{name}/c/0/0" for name in ("channel_mean", "channel_std", "post_norm")
    )
    mean.unlink()
    flip(std, -1)
    flip(norm, 0)
    assert mended(path) == []  # the extraction alone can make them again
    assert extract_again(kinds(kind), path) == 0
    assert files_of(path) == files_of(kinds(kind).path)
    assert {file for file, stamp in stamps(path).items() if before[file] != stamp} == {mean, std, norm}


def test_a_calibration_that_would_come_out_otherwise_is_refused(extracted, damaged, tmp_path):
    (damaged / "targets.zarr/channel_std/c/0/0").unlink()
    other = write_tar(tmp_path / "other.tar", {f"{n}": image(n) for n in range(200, 203)})
    shards = [SourceTar(other, other.stat().st_size), extracted.options["shards"][0]]
    before = files_of(damaged)
    with pytest.raises(
        CacheError,
        match=r"has a damaged calibration, and these tars do not reproduce it; "
        "restore targets.zarr/channel_mean and channel_std "
        "from a copy, or name the tars of the first extraction in its order",
    ):
        extract_again(extracted, damaged, shards=shards)
    assert files_of(damaged) == before


def test_a_calibration_of_version_1_0_is_not_made_again(extracted, damaged):
    """It was of other images: no extraction reproduces it, so nothing but a copy is named."""
    cure = "restore channel_mean and channel_std from a copy$"
    change_schema(damaged, lambda schema: schema.update(version="1.0"))
    change_schema(damaged, lambda schema: [schema["teacher"].pop(key) for key in KEYS_OF_1_1])
    for name in ("commits", "copies", "targets.zarr/post_norm"):
        shutil.rmtree(damaged / name)
    (damaged / "targets.zarr/channel_std/c/0/0").unlink()
    before = files_of(damaged)
    with pytest.raises(CacheError, match=f"has a damaged calibration: {cure}"):
        extract_again(extracted, damaged)
    assert files_of(damaged) == before
    with pytest.raises(CacheError, match=rf"channel_std' of '.*' cannot be read \(.*\): {cure}"):
        Cache(damaged).calibration()
    shutil.copy(damaged / "targets.zarr/channel_mean/c/0/0", damaged / "targets.zarr/channel_std/c/0/0")
    with pytest.raises(CacheError, match=f"does not match its digest: {cure}"):
        Cache(damaged).calibration()
    texts = [finding.text for finding in verify_quickly(Cache(damaged))]
    assert f"the calibration does not match its digest: {cure[:-1]}" in texts
    change_schema(damaged, lambda schema: schema.update(encoding="float16"))
    assert not Cache(damaged).schema.is_calibrated_otherwise  # 0 and 1, whatever the images


def test_an_extraction_into_damaged_metadata_names_the_cure(extracted, damaged):
    key = metadata_key("index")
    for content in (b"{}", None):
        (damaged / key).unlink()
        if content is not None:
            (damaged / key).write_bytes(content)
        message = rf"{key} of cache .* is damaged: inspect-cache verify --repair writes"
        with pytest.raises(CacheError, match=message):
            extract_again(extracted, damaged)


def test_commits_of_no_unit_are_left_alone(tmp_path):
    """An older units.json, put back in place of a damaged one, costs no unit of a later extension."""
    path = tmp_path / "made.cache"
    schema, units = caches.empty(path)
    older = (path / UNITS).read_bytes()
    for unit in extend_cache(Cache(path).folder, schema, SOURCES, 2, ()):
        caches.publish(path, schema, unit)
    before = files_of(path)
    (path / UNITS).write_bytes(older)
    (path / "copies/units.json").write_bytes(older)
    cache = Cache(path)
    assert len(cache.units) == len(units)
    found = list(verify_quickly(cache))
    assert (len(found), repair(cache, found)) == (2, [])
    extend_cache(cache.folder, schema, SOURCES, 2, ())
    assert files_of(path) == before
    assert list(verify_quickly(Cache(path))) == []


def test_metadata_is_written_for_the_units_of_this_moment(made):
    """A cache that was extended after it was opened gets no array that ends before units.json does."""
    path, _ = made
    cache, key = Cache(path), metadata_key("view")
    extend_cache(cache.folder, cache.schema, [*SOURCES, ("c.tar", 3000)], 2, ())
    whole = (path / key).read_bytes()
    (path / key).write_bytes(b"")
    assert repair(cache, list(verify_quickly(cache))) == [f"written again: {key}"]
    assert (path / key).read_bytes() == whole
    assert json.loads(whole)["shape"][0] == 6 * 16384
