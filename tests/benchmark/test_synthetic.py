"""Caches that are made for measuring read like any other."""

import numpy as np
import pytest
from tars import make_tars

from pipeline.benchmark.photographs import HEIGHT, IMAGE_BYTES, WIDTH, write_photographs
from pipeline.benchmark.synthetic import linked_cache, made_up_cache
from pipeline.cache.reader import Cache
from pipeline.cache.verify import verify_quickly
from pipeline.cache.verify_content import verify_unit
from pipeline.views.codec import decode_image
from pipeline.views.crop import CropPolicy
from pipeline.views.maker import ViewMaker
from pipeline.views.source import read_samples
from pipeline.views.source_tars import resolve_tars


def findings(cache):
    return [*verify_quickly(cache), *(found for unit in cache.units for found in verify_unit(cache, unit))]


@pytest.mark.parametrize("kept", [{}, {"keep": 0.5, "keep_rank": "random", "encoding": "int4"}])
def test_a_made_up_cache_is_sound_and_has_real_crops(small_cache_path, tmp_path, kept):
    plain = Cache(small_cache_path).schema.model_copy(update=kept)
    maker = ViewMaker(CropPolicy(64, (0.4, 1.0), 0.5, 0), (0,), "jpeg")
    cache = made_up_cache(
        tmp_path / "made.cache", plain, make_tars(tmp_path / "tars", tars=2, images_per_tar=66), maker
    )
    assert findings(cache) == []
    assert cache.finished(None, allow_partial=False)["rows"].tolist() == [66, 66]
    rows = cache.read_block(next(cache.commits()), 0, ["features/block_05", "stats", "index"])
    assert rows["index"][:4, 4].tolist() == [0, 1, 2, 3]
    assert len(np.unique(rows["features/block_05"])) > 200
    if kept:
        assert len(np.unique(cache.read_block(next(cache.commits()), 0, ["tokens"])["tokens"][0])) == 8


def test_a_linked_cache_has_one_units_rows_in_every_unit(small_cache_path, tmp_path):
    original = Cache(small_cache_path)
    cache = linked_cache(tmp_path / "linked.cache", original, tars=3, views=2)
    assert findings(cache) == []
    assert cache.finished(None, allow_partial=False)["view"].tolist() == [0, 1] * 3
    name = "features/block_05"
    expected = original.read_block(next(original.commits()), 1, [name])
    for commit in cache.commits():
        np.testing.assert_array_equal(cache.read_block(commit, 1, [name])[name], expected[name])


def test_drawn_images_are_as_large_as_photographs(tmp_path):
    write_photographs(tmp_path / "images", 6, 2)
    shards = resolve_tars(str(tmp_path / "images"))
    samples = [sample for shard in shards for sample in read_samples(shard)]
    assert [sample.key for sample in samples] == [f"{number:06d}" for number in range(6)]
    assert {decode_image(sample.image).shape for sample in samples} == {(HEIGHT, WIDTH, 3)}
    assert len({sample.image for sample in samples}) == 6
    assert sum(len(sample.image) for sample in samples) / 6 == pytest.approx(IMAGE_BYTES, rel=0.2)
