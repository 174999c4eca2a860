"""What an extraction writes: files, pixels and features, and that nothing but the options decides them."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_files import changed, contents, stamps
from caches import extract, extraction_options
from tars import image, write_tar

from pipeline.cache.encoding import TargetDecoder, whiten
from pipeline.cache.reader import Cache
from pipeline.extraction.job import build_teacher
from pipeline.views.codec import decode_image, decode_view, encode_view
from pipeline.views.crop import cut_crop, draw_crop
from pipeline.views.source_tars import SourceTar

ARRAYS = {
    "features/block_03": 3,
    "features/block_04": 3,
    "features/block_05": 3,
    "stats": 4,
    "index": 2,
    "attention": 2,
    "view": 2,
}


def crops_of(cache, unit):
    """Return the decoded crops of a unit's tar by key, in order."""
    with tarfile.open(cache.folder.path / "views" / f"{unit.stem}.tar") as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    return {name[:-4]: decode_view(data, "jpeg") for name, data in members if name.endswith(".jpg")}


def sources_of(shards):
    """Return the undecoded images of some tars by key."""
    found = {}
    for shard in shards:
        with tarfile.open(shard.address) as tar:
            found |= {
                member.name[:-4]: tar.extractfile(member).read()
                for member in tar
                if member.name.endswith(".jpg")
            }
    return found


def test_leaves_exactly_the_files_of_the_layout(finished):
    units = {"train-0000.v00": 0, "train-0000.v01": 1, "train-0001.v00": 2, "train-0001.v01": 3}
    expected = {"units.json", "targets.zarr/zarr.json", "targets.zarr/features/zarr.json"}
    expected |= {"copies/units.json", "copies/zarr.json"}
    expected |= {f"views/{stem}.tar" for stem in units} | {f"commits/{stem}.json" for stem in units}
    for name, axes in ARRAYS.items():
        expected |= {f"targets.zarr/{name}/zarr.json"}
        expected |= {f"targets.zarr/{name}/c/{unit}{'/0' * (axes - 1)}" for unit in units.values()}
    for name in ("channel_mean", "channel_std", "post_norm"):
        expected |= {f"targets.zarr/{name}/zarr.json", f"targets.zarr/{name}/c/0/0"}
    assert set(contents(finished)) == expected
    assert list((finished / "logs" / "scratch").iterdir()) == []
    assert [path.name for path in finished.parent.iterdir()] == [finished.name]


@pytest.mark.parametrize("encoding", ["int8", "float16"])
def test_features_are_those_of_the_stored_crops(finished, shards, tmp_path, encoding):
    options = extraction_options(cache=tmp_path / "b.cache", shards=shards, encoding=encoding)
    path = finished if encoding == "int8" else tmp_path / "b.cache"
    if encoding == "float16":
        extract(path, shards, encoding=encoding)
    cache, teacher = Cache(path), build_teacher(options)
    decoder = TargetDecoder(*map(torch.from_numpy, cache.calibration()), encoding)
    for commit in tuple(cache.commits()):
        crops = np.stack(list(crops_of(cache, cache.units[commit.unit]).values()))
        features = teacher.features(torch.from_numpy(crops))
        truth, mean, deviation = (
            torch.stack(values, dim=1) for values in zip(*map(whiten, features.hidden), strict=True)
        )
        levels = [f"features/block_{level:02d}" for level in (3, 4, 5)]
        stored = cache.read_chunk(commit, 0, [*levels, "stats", "attention"])
        stats = torch.from_numpy(stored["stats"])
        decoded, stored_mean, stored_deviation = decoder(
            torch.from_numpy(np.stack([stored[level] for level in levels], axis=1)), stats
        )
        bound = (
            stats[..., 2:].float() * decoder.channel_std / 2 + 1e-5
            if encoding == "int8"
            else truth.abs() * 2**-11 + 1e-7
        )
        assert ((decoded - truth).abs() <= bound).all()
        torch.testing.assert_close(stored_mean, mean, rtol=2**-10, atol=1e-5)
        torch.testing.assert_close(stored_deviation, deviation, rtol=2**-10, atol=1e-5)
        torch.testing.assert_close(
            torch.from_numpy(stored["attention"]), features.importance, rtol=1e-5, atol=1e-7
        )


def test_views_are_a_function_of_seed_tar_key_and_number(finished, shards):
    cache, policy = Cache(finished), extraction_options(cache=finished, shards=shards).policy
    sources = sources_of(shards)
    for commit in tuple(cache.commits()):
        boxes = cache.read_chunk(commit, 0, ["view"])["view"]
        for (key, crop), row in zip(crops_of(cache, cache.units[commit.unit]).items(), boxes, strict=True):
            source = decode_image(sources[key])
            box = draw_crop(policy, commit.source, key, commit.view, source.shape[1], source.shape[0])
            assert box.as_row() == tuple(row)
            np.testing.assert_array_equal(
                crop, decode_view(encode_view(cut_crop(source, box, 64), "jpeg"), "jpeg")
            )


def test_views_of_a_image_differ(finished):
    cache = Cache(finished)
    first, second = (crops_of(cache, cache.units[unit]) for unit in (0, 1))
    assert list(first) == list(second)
    assert not any((first[key] == second[key]).all() for key in first)


def test_raw_views_are_the_pixels_that_were_cut(shards, tmp_path):
    options = extraction_options(cache=tmp_path / "raw.cache", shards=shards, views=1, view_format="raw")
    extract(options.cache, shards, views=1, view_format="raw")
    source = decode_image(sources_of(shards)["000004"])
    with tarfile.open(Path(options.cache) / "views" / "train-0000.v00.tar") as tar:
        stored = decode_view(tar.extractfile("000004.npy").read(), "raw")
    np.testing.assert_array_equal(
        stored,
        cut_crop(
            source,
            draw_crop(options.policy, "train-0000.tar", "000004", 0, source.shape[1], source.shape[0]),
            64,
        ),
    )


@pytest.mark.parametrize("changes", [{}, {"workers": 1}, {"workers": 2}, {"rank": 1, "processes": 2}])
def test_the_same_bytes_however_it_is_made(finished, shards, tmp_path, changes):
    extract(tmp_path / "b.cache", shards, **changes)
    assert changed(contents(finished), contents(tmp_path / "b.cache")) == []


def test_the_batch_size_changes_features_by_rounding_only(finished, shards, tmp_path):
    extract(tmp_path / "b.cache", shards, batch_size=5)
    before, after = Cache(finished), Cache(tmp_path / "b.cache")
    differing = changed(contents(finished), contents(after.folder.path))
    assert [
        name for name in differing if name.startswith("views/") or "/view/" in name or "/index/" in name
    ] == []
    for ours, theirs in zip(tuple(before.commits()), tuple(after.commits()), strict=True):
        rows = (
            cache.read_chunk(commit, 0, ["stats", "attention"])
            for cache, commit in ((before, ours), (after, theirs))
        )
        for left, right in zip(*(block.values() for block in rows), strict=True):
            np.testing.assert_allclose(left.astype(float), right.astype(float), rtol=2e-3, atol=1e-5)


def test_again_does_nothing(finished, shards):
    before = contents(finished), stamps(finished / "targets.zarr")
    tally, missing = extract(finished, shards)
    assert (tally.units, tally.images, tally.skipped, tally.failed, missing) == (0, 0, [], {}, 0)
    assert (contents(finished), stamps(finished / "targets.zarr")) == before


def test_images_of_all_colours_keep_them(tmp_path):
    kinds = ["jpeg", "grey", "cmyk", "png"]
    tar = write_tar(tmp_path / "a.tar", {kind: image(0, 80, 70, kind) for kind in kinds})
    extract(
        tmp_path / "a.cache", [SourceTar(tar, tar.stat().st_size)], views=1, crop_scale=(1.0, 1.0), flip=0.0
    )
    cache = Cache(tmp_path / "a.cache")
    colours = {key: crop.mean((0, 1)) for key, crop in crops_of(cache, cache.units[0]).items()}
    assert list(colours) == kinds
    for kind in ("cmyk", "png"):
        np.testing.assert_allclose(colours[kind], colours["jpeg"], atol=3)
    np.testing.assert_allclose(colours["grey"], colours["jpeg"] @ [0.299, 0.587, 0.114], atol=3)


def test_the_log_says_where_a_cache_came_from(finished):
    logs = [json.loads(path.read_text()) for path in (finished / "logs").glob("*.json")]
    log = next(log for log in logs if log["units"])  # others found nothing to do
    assert {"maskalign", "commit", "command", "host", "began", "ended", "versions"} <= log.keys()
    assert (log["precision"], log["compiled"], log["device"], log["batch_size"]) == (
        "float32",
        False,
        "cpu",
        8,
    )
    assert (log["units"], log["images"], log["failed"]) == (4, 24, {})
