"""The forecast: near the truth, and nothing is written for it."""

import math
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from caches import extract, extraction_options
from tars import image, make_tars, write_tar

from pipeline.cache.layout import array_specs
from pipeline.cache.reader import Cache
from pipeline.errors import ConfigError, SourceError, StorageError
from pipeline.extraction.encode import FeatureEncoder
from pipeline.extraction.job import plan_extraction
from pipeline.storage.write_rate import WriteRate
from pipeline.views.source_tars import SourceTar


def planned(options):
    """Return what is forecast, and check that sizes are shown before anything is timed."""
    shown = []
    plan = plan_extraction(options, shown.append)
    assert shown == [plan.sizes]
    return plan


def size_of(cache):
    """Return the bytes of a cache and the number of files of its units."""
    files = [path for path in cache.rglob("*") if path.is_file()]
    constants = [one.name for one in array_specs(Cache(cache).schema).values() if not one.by_rows]
    of_units = [
        path for path in files if {"c", "views", "commits"} & set(path.parent.relative_to(cache).parts)
    ]
    made = [path for path in of_units if not set(constants) & set(path.parts)]
    return sum(path.stat().st_size for path in files), len(made)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Tars of 10 and of 70 images."""
    folder = tmp_path_factory.mktemp("uneven")
    return [*make_tars(folder / "small", 1, 10), *make_tars(folder / "large", 2, 70)[1:]]


@pytest.mark.parametrize(
    "changes",
    [
        {"views": 1},
        {"views": 1, "encoding": "float16"},
        {"views": 1, "encoding": "int4", "keep": 0.3},
        {"views": 2, "view_format": "raw", "levels": "1"},
    ],
    ids=["int8", "float16", "int4 in part", "raw"],
)
def test_forecasts_what_is_written(uneven, tmp_path, changes):
    options = extraction_options(shards=uneven, cache=tmp_path / "a.cache", **changes)
    plan = planned(options)
    assert not Path(options.cache).exists()
    extract(options.cache, uneven, **changes)
    real, files = size_of(Path(options.cache))
    assert plan.sizes.total_bytes == pytest.approx(real, rel=0.02)
    assert plan.sizes.images == 80
    assert plan.sizes.tars == 2
    assert plan.sizes.views == changes["views"]
    assert plan.sizes.files == files


def test_counts_are_scaled_beyond_a_few_tars(tmp_path):
    shards = make_tars(tmp_path / "tars", tars=10, images_per_tar=6)
    plan = planned(extraction_options(shards=shards, cache=tmp_path / "a.cache"))
    assert plan.sizes.images == pytest.approx(60, rel=0.1)
    assert planned(extraction_options(shards=shards, cache=tmp_path / "a.cache", limit=3)).sizes.images == 18


def test_rates_give_hours_and_the_pay_back(shards, tmp_path):
    """The slowest part sets them, also the disk."""
    plan = planned(extraction_options(shards=shards, cache=tmp_path / "a.cache", processes=2, workers=3))
    assert min(plan.teacher_rate, plan.decode_rate) > 0
    assert plan.image_rate == 2 * min(plan.teacher_rate / 2, 3 * plan.decode_rate)
    assert plan.hours == pytest.approx(24 / plan.image_rate / 3600)
    assert plan.paid_after_epochs >= 2
    assert plan.limit in {"teacher", "decoding"}
    slow = WriteRate(first=1e9, sustained=plan.sizes.image_bytes * plan.image_rate / 4, written=1, seconds=1)
    limited = replace(plan, disk=slow)
    assert limited.limit == "disk"
    assert limited.hours == pytest.approx(4 * plan.hours)
    assert limited.paid_after_epochs == pytest.approx(4 * plan.paid_after_epochs)
    fast = replace(plan, disk=replace(slow, sustained=100 * slow.sustained))
    assert (fast.limit, fast.hours) == (plan.limit, plan.hours)


def test_the_teacher_is_timed_with_its_encoding_in_growing_batches(shards, tmp_path, monkeypatch):
    sizes, encode = [], FeatureEncoder.features

    def features(encoder, pixels):
        sizes.append(len(pixels))
        return encode(encoder, pixels)

    monkeypatch.setattr(FeatureEncoder, "features", features)
    options = extraction_options(shards=shards, cache=tmp_path / "a.cache", batch_size=4)
    for allowed, expected in ((math.inf, [1, 1, 2, 4, 4]), (0.0, [1, 1, 1])):
        monkeypatch.setattr("pipeline.extraction.teacher_rate._SECONDS", allowed)
        planned(options)
        assert sizes == expected
        sizes.clear()


def test_memory_grows_with_views_and_workers_and_not_with_tars(uneven, tmp_path):
    def memory(tar, **changes):
        options = extraction_options(shards=[tar], cache=tmp_path / "a.cache", **changes)
        return planned(options).sizes.peak_memory

    short, long = uneven
    one = memory(short, views=1)
    assert one == memory(long, views=1) > 5 * 8 * 3 * 17 * 64  # five batches of 8, 3 levels of 17 tokens
    assert memory(short, views=2) == 2 * one
    assert memory(short, views=1, workers=2) > one + 2 * 3 * 8 * 64 * 64 * 3


def test_too_many_open_files_are_refused_as_in_the_extraction(shards, tmp_path, monkeypatch):
    options = extraction_options(shards=shards, cache=tmp_path / "a.cache", views=100)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    with pytest.raises(ConfigError, match="open files, but the system allows 1024: lower --views or"):
        plan_extraction(options, print)


def test_nothing_is_written_where_a_cache_will_be(shards, tmp_path):
    planned(extraction_options(shards=shards, cache=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_bad_first_images_do_not_hinder_and_none_at_all_is_told(tmp_path):
    bad = write_tar(tmp_path / "bad.tar", {f"{number:02d}": b"no image" for number in range(70)})
    tar = write_tar(tmp_path / "good.tar", {f"{number:02d}": image(number) for number in range(5)})
    shards = [SourceTar(path, path.stat().st_size) for path in (bad, tar)]
    assert planned(extraction_options(shards=shards, cache=tmp_path / "a.cache")).sizes.crop_bytes > 1024
    with pytest.raises(SourceError, match="none of the 1 tars holds an image"):
        planned(extraction_options(shards=shards[:1], cache=tmp_path / "a.cache"))


def test_a_disk_too_small_for_what_is_missing_is_refused(tmp_path, monkeypatch):
    shards, cache, usage = (
        make_tars(tmp_path / "tars", 2, 20),
        tmp_path / "a.cache",
        shutil.disk_usage(tmp_path),
    )
    needed = planned(extraction_options(shards=shards, cache=cache, views=1)).sizes.total_bytes

    def let_free(share):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(needed * share)))

    for made in (0, 1):
        left = (2 - made) / 2
        let_free(0.7 * left)
        message = (
            rf"a.cache' needs about .* GB for {2 - made} units, and its disk has .* GB free; make room, or"
        )
        with pytest.raises(StorageError, match=message):
            extract(cache, shards, views=1)
        assert len(list(cache.glob("commits/*.json"))) == made
        assert cache.exists() is bool(made)
        let_free(1.1 * left)
        assert extract(cache, shards, views=1, limit=1 + made)[1] == 0
