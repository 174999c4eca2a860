"""Data that is made for measuring reads like any other."""

import numpy as np
import pytest
from tars import make_tars

from pipeline.benchmark.synthetic import HEIGHT, IMAGE_BYTES, WIDTH, synthetic_cache, write_photographs
from pipeline.cache.reader import Cache
from pipeline.cache.verify import verify_quickly
from pipeline.cache.verify_content import verify_unit
from pipeline.views.codec import decode_image
from pipeline.views.crop import CropPolicy
from pipeline.views.maker import ViewMaker
from pipeline.views.source import read_samples
from pipeline.views.source_tars import resolve_tars


@pytest.mark.parametrize("kept", [{}, {"keep": 0.5, "keep_rank": "random", "encoding": "int4"}])
def test_a_synthetic_cache_is_sound_and_has_real_crops(small_cache_path, tmp_path, kept):
    plain = Cache(small_cache_path).schema.model_copy(update=kept)
    tars = make_tars(tmp_path / "tars", tars=2, images_per_tar=66)
    maker = ViewMaker(CropPolicy(64, (0.4, 1.0), 0.5, 0), (0,), "jpeg")
    cache = synthetic_cache(tmp_path / "synthetic.cache", plain, tars, maker)
    assert list(verify_quickly(cache)) == []
    assert [found for unit in cache.units for found in verify_unit(cache, unit)] == []
    assert cache.finished(None, allow_partial=False)["rows"].tolist() == [66, 66]
    rows = cache.read_chunk(next(cache.commits()), 0, ["features/block_05", "stats", "index"])
    assert rows["index"][:4, 4].tolist() == [0, 1, 2, 3]
    assert len(np.unique(rows["features/block_05"])) > 200
    if kept:
        assert len(np.unique(cache.read_chunk(next(cache.commits()), 0, ["tokens"])["tokens"][0])) == 8


def test_drawn_images_are_as_large_as_photographs(tmp_path):
    write_photographs(tmp_path / "images", 6, 2)
    tars = resolve_tars(str(tmp_path / "images"))
    samples = [sample for tar in tars for sample in read_samples(tar)]
    assert [sample.key for sample in samples] == [f"{number:06d}" for number in range(6)]
    assert {decode_image(sample.image).shape for sample in samples} == {(HEIGHT, WIDTH, 3)}
    assert len({sample.image for sample in samples}) == 6
    assert sum(len(sample.image) for sample in samples) / 6 == pytest.approx(IMAGE_BYTES, rel=0.2)
