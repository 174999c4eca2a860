"""A cache that is continued or extended keeps what it has; one of another configuration is refused."""

import shutil

import pytest
from cache_files import changed, contents
from caches import extract
from tars import make_tars

from pipeline.cache.reader import Cache
from pipeline.errors import ConfigError

METADATA = {
    "units.json",
    "copies/units.json",
    *(f"targets.zarr/{name}/zarr.json" for name in ("stats", "index", "attention", "view")),
}
METADATA |= {f"targets.zarr/features/block_{level:02d}/zarr.json" for level in (3, 4, 5)}


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy.cache")


def test_more_tars_and_views_extend(copy, shards, tmp_path):
    """First by a new tar alone, then by a view of all."""
    third = make_tars(tmp_path / "more", tars=3, images_per_tar=5)[2]
    for tars, views, new in (([third], 2, 2), ([*shards, third], 3, 3)):
        before = contents(copy)
        tally, missing = extract(copy, tars, views=views)
        assert (tally.units, missing) == (new, 0)
        assert {name for name in changed(before, contents(copy)) if name in before} == METADATA
    units = [(unit.unit, unit.source, unit.view) for unit in Cache(copy).units]
    assert units[:6] == [(u, f"train-{u // 2:04d}.tar", u % 2) for u in range(6)]
    assert units[6:] == [(6 + tar, f"train-{tar:04d}.tar", 2) for tar in range(3)]
    assert [commit.rows for commit in Cache(copy).commits()] == [12] * 4 + [5] * 2 + [12] * 2 + [5]


def test_a_trial_is_continued(finished, shards, tmp_path):
    cache = tmp_path / "a.cache"
    tally, missing = extract(cache, shards, limit=1)
    assert (tally.units, missing, len(Cache(cache).units)) == (2, 0, 2)
    tally, missing = extract(cache, shards)
    assert (tally.units, missing) == (2, 0)
    assert changed(contents(finished), contents(cache)) == []
    assert extract(cache, shards, limit=1)[0].units == 0


OTHERS = (
    (
        {"teacher": "timm:test_vit3.random"},
        ["teacher.name: 'test_vit3' asked, 'test_vit' in the cache", "teacher.weights_sha256"],
    ),
    ({"levels": "2"}, ["levels: [4, 5] asked, [3, 4, 5] in the cache"]),
    ({"encoding": "float16"}, ["encoding: 'float16' asked, 'int8' in the cache"]),
    ({"view_format": "raw"}, ["view.format: 'raw' asked"]),
    ({"keep": 0.5}, ["keep: 0.5 asked, 1.0 in the cache", "keep_rank: 'attention' asked, None in"]),
    ({"seed": 1}, ["view.seed: 1 asked, 0 in the cache"]),
    ({"crop_scale": (0.5, 1.0)}, ["view.crop_scale: [0.5, 1.0] asked, [0.4, 1.0] in the cache"]),
    ({"flip": 0.0}, ["view.flip: 0.0 asked, 0.5 in the cache"]),
    ({"image_size": 32, "patch_size": 8}, ["view.image_size: 32 asked", "view.patch_size: 8 asked"]),
)


def test_another_configuration_is_refused(finished, shards):
    before = contents(finished)
    for changes, keys in OTHERS:
        with pytest.raises(ConfigError, match="was made with another configuration") as error:
            extract(finished, shards, **changes)
        assert [key for key in keys if key not in str(error.value)] == []
        assert str(error.value).endswith("repeat its options or use another --cache")
    assert contents(finished) == before
