"""What an extraction writes: files, pixels and features, and that nothing but the options decides them."""

import json
import tarfile
from dataclasses import astuple

import numpy as np
from cache_files import changed, contents, stamps
from caches import extract, extraction_options

from pipeline.cache.reader import Cache
from pipeline.views.codec import decode_image, decode_view, encode_view
from pipeline.views.crop import cut_crop, draw_crop


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


def test_views_are_a_function_of_seed_tar_key_and_number(finished, shards):
    cache, policy = Cache(finished), extraction_options(cache=finished, shards=shards).maker().policy
    sources = sources_of(shards)
    for commit in tuple(cache.commits()):
        boxes = cache.read_chunk(commit, 0, ["view"])["view"]
        for (key, crop), row in zip(crops_of(cache, cache.units[commit.unit]).items(), boxes, strict=True):
            source = decode_image(sources[key])
            box = draw_crop(policy, commit.source, key, commit.view, source.shape[1], source.shape[0])
            assert astuple(box) == tuple(row)
            np.testing.assert_array_equal(
                crop, decode_view(encode_view(cut_crop(source, box, 64), "jpeg"), "jpeg")
            )


def test_the_same_bytes_however_it_is_made(finished, shards, tmp_path):
    extract(tmp_path / "b.cache", shards, workers=2, rank=1, processes=2)
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
    """Also with other options, if they change no byte."""
    before = contents(finished), stamps(finished / "targets.zarr")
    tally, missing = extract(finished, shards, batch_size=3, workers=1, max_bad=0.5, processes=3)
    assert (tally.units, tally.images, tally.skipped, tally.failed, missing) == (0, 0, [], {}, 0)
    assert (contents(finished), stamps(finished / "targets.zarr")) == before


def test_the_log_says_where_a_cache_came_from(finished):
    logs = [json.loads(path.read_text()) for path in (finished / "logs").glob("*.json")]
    log = next(log for log in logs if log["units"])  # others found nothing to do
    assert {"maskalign", "commit", "command", "host", "began", "ended", "versions"} <= log.keys()
    assert log["precision"] == "float32"
    assert not log["compiled"]
    assert log["device"] == "cpu"
    assert log["batch_size"] == 8
    assert (log["units"], log["images"], log["failed"]) == (4, 24, {})
