"""A cache compared with its teacher: fresh ones agree, other weights or levels are noticed."""

import copy
import re
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from caches import TEACHER, extract, republish
from tars import make_tars

from pipeline.cache.reader import Cache
from pipeline.errors import CacheError, ConfigError
from pipeline.extraction.verify_teacher import compare_with_teacher, load_teacher_of, refuse_differences
from pipeline.teacher.load import load_teacher

CPU = torch.device("cpu")
DEMO = f"open_clip:local-dir:{Path(__file__).parents[2] / 'pipeline/demo/teacher'}"
VARIANTS = {
    "int8": {},
    "float16, raw views": {"encoding": "float16", "view_format": "raw"},
    "int4, some patches at random": {"encoding": "int4", "keep": 0.3, "keep_rank": "random"},
    "int4 of a trained teacher": {"encoding": "int4", "teacher": DEMO},
}


@dataclass(frozen=True)
class Made:
    """A cache of two adjacent levels of 20 images, and the address of its teacher."""

    path: Path
    spec: str

    def teacher(self, levels="2,3"):
        """Not to be changed."""
        return load(self.spec, levels)


@lru_cache
def load(spec, levels):
    return load_teacher(spec, image_size=64, patch_size=16, levels=levels)


@pytest.fixture(scope="module", params=VARIANTS)
def made(request, tmp_path_factory):
    folder, options = tmp_path_factory.mktemp("made"), VARIANTS[request.param]
    extract(
        folder / "a.cache", make_tars(folder, tars=1, images_per_tar=20), levels="2,3", views=1, **options
    )
    return Made(folder / "a.cache", options.get("teacher", TEACHER))


def refused(cache, found):
    """Return the levels that are refused."""
    try:
        refuse_differences(cache, found)
    except CacheError as error:
        told = re.fullmatch(
            r"levels \[(.*)\] of cache '.*' are not what the teacher gives here \(required: mean cosine "
            r"at least 0\.\d+, and 9\d\.\d% of values off by at most the encoding's error bound plus "
            r"0\.\d+\); use the library "
            r"versions in logs/, or extract again",
            str(error),
        )
        return [int(level) for level in told[1].split(",")]
    return []


def test_a_fresh_cache_is_what_its_teacher_gives(made):
    cache = Cache(made.path)
    spec = None if made.spec != DEMO else made.spec
    found = compare_with_teacher(cache, load_teacher_of(cache, spec, CPU), CPU, rows=16)
    least, most = {"int8": (0.9999, 0.05), "int4": (0.995, 0.8), "float16": (0.999999, 0.003)}[
        cache.schema.encoding
    ]
    for one in found:
        assert least < one.mean_cosine <= 1.0001
        assert one.least_cosine <= one.mean_cosine
        assert 0 < one.mean_error < one.largest_error < most
        assert one.within == 1
    assert [one.level for one in found] == [2, 3]
    assert refused(cache, found) == []


def test_a_teacher_without_cls(tmp_path):
    """Of it alone: its untrained blocks change next to nothing, so that a neighbour is as good."""
    cache = tmp_path / "a.cache"
    shards = make_tars(tmp_path, tars=1, images_per_tar=20)
    extract(
        cache, shards, teacher="timm:test_vit4.random", levels="2,3", views=1, keep=0.5, keep_rank="random"
    )
    found = compare_with_teacher(Cache(cache), load_teacher_of(Cache(cache), None, CPU), CPU, rows=16)
    assert [one.within for one in found] == [1, 1]
    assert refused(Cache(cache), found) == []


def opened(path, **facts):
    """A cache as if the facts of its teacher were others."""
    cache = Cache(path)
    teacher = cache.schema.teacher.model_copy(update=facts)
    cache.schema = cache.schema.model_copy(update={"teacher": teacher})
    return cache


def test_the_neighbouring_block_is_noticed(made):
    """Even where bfloat16 allows larger errors; the least different is int4 of an untrained teacher."""
    cache = opened(made.path, precision="bfloat16")
    for levels, wrong in (("2,3", []), ("1,2", [2, 3]), ("3,4", [2, 3])):
        assert refused(cache, compare_with_teacher(cache, made.teacher(levels), CPU, rows=16)) == wrong


def slightly_other(weights):
    """Noise of a hundredth of each tensor's deviation."""
    for weight in weights:
        weight.add_(
            0.01
            * weight.std(correction=0)
            * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        )


def slightly_larger(weights):
    for weight in weights:
        if weight.ndim > 1:
            weight.mul_(1.01)


def not_numbers(weights):
    next(iter(weights)).fill_(torch.nan)


def test_other_weights_under_the_same_name_are_noticed(made):
    cache = Cache(made.path)
    for change in (slightly_other, slightly_larger, not_numbers):
        teacher = copy.deepcopy(made.teacher())
        with torch.no_grad():
            norms = {id(parameter) for parameter in teacher.tower.final_norm.parameters()}
            change(one for one in teacher.tower.module.parameters() if id(one) not in norms)
        assert refused(cache, compare_with_teacher(cache, teacher, CPU, rows=16)) == [2, 3]


@pytest.fixture(scope="module")
def of_a_folder(tmp_path_factory):
    """A cache of a teacher with final norm and projection, from a folder."""
    folder = tmp_path_factory.mktemp("folder")
    shards = make_tars(folder, tars=1, images_per_tar=4)
    extract(folder / "a.cache", shards, levels="2,3", views=1, teacher=DEMO)
    return Cache(folder / "a.cache")


def test_a_teacher_from_a_folder_must_be_told(of_a_folder):
    message = "came from a folder; name it with --teacher-spec open_clip:local-dir:PATH"
    with pytest.raises(ConfigError, match=message):
        load_teacher_of(of_a_folder, None, CPU)
    assert load_teacher_of(of_a_folder, DEMO, CPU).facts == load(DEMO, "2,3").facts


def test_another_final_norm_or_projection_is_noticed(of_a_folder):
    cache, sound = of_a_folder, load(DEMO, "2,3")
    assert set(cache.teacher_output()) == {"post_norm", "projection"}
    for name in ("post_norm", "projection"):
        teacher = copy.deepcopy(sound)
        weight = teacher.tower.projection if name == "projection" else teacher.tower.post_norm.weight
        with torch.no_grad():
            weight[0] += 1
        with pytest.raises(CacheError, match=f"array '{name}' of cache '.*' is not its teacher's; extract"):
            compare_with_teacher(cache, teacher, CPU, rows=16)


def levels_swapped(arrays):
    arrays["features/block_02"], arrays["features/block_03"] = (
        arrays["features/block_03"],
        arrays["features/block_02"],
    )
    arrays["stats"] = arrays["stats"][:, ::-1]


def rows_shifted(arrays):
    """Features beside the crop of another image."""
    for name in ("features/block_02", "features/block_03", "stats"):
        arrays[name] = np.roll(arrays[name], 1, axis=0)


def tokens_turned(arrays):
    for name in ("features/block_02", "features/block_03"):
        arrays[name] = np.roll(arrays[name], 1, axis=1)
    arrays["stats"] = np.roll(arrays["stats"], 1, axis=2)


def test_features_that_were_stored_in_a_wrong_place_are_noticed(made, tmp_path):
    for change in (levels_swapped, rows_shifted, tokens_turned):
        path = shutil.copytree(made.path, tmp_path / change.__name__)
        republish(path, change)
        found = compare_with_teacher(Cache(path), made.teacher(), CPU, rows=16)
        assert refused(Cache(path), found) == [2, 3]


@pytest.fixture(scope="module")
def units(tmp_path_factory):
    """A cache of two units with two blocks each: 66 rows."""
    folder = tmp_path_factory.mktemp("units")
    extract(folder / "a.cache", make_tars(folder, tars=1, images_per_tar=66), levels="5,", views=2)
    return folder / "a.cache"


def test_sixteen_views_of_a_block_at_most_and_each_block_once(units):
    cache, teacher, sizes = Cache(units), load(TEACHER, "5,"), []
    hook = teacher.tower.module.register_forward_hook(lambda _, images, __: sizes.append(len(images[0])))
    for rows, calls in ((1, 1), (16, 1), (17, 2), (10_000, 4)):
        sizes.clear()
        compare_with_teacher(cache, teacher, CPU, rows)
        assert len(sizes) <= calls
        assert set(sizes) <= {2, 16}
    hook.remove()


def test_a_cache_without_units_cannot_be_compared(units, tmp_path):
    path = shutil.copytree(units, tmp_path / "a.cache")
    shutil.rmtree(path / "commits")
    with pytest.raises(CacheError, match="is not finished: 0 of 2 units are committed"):
        compare_with_teacher(Cache(path), load(TEACHER, "5,"), CPU, 16)


def test_another_teacher_is_refused_by_what_differs(units):
    message = r"teacher 'timm:test_vit2.random' is not the one of cache '.*' \(name: 'test_vit2' here,"
    with pytest.raises(CacheError, match=message) as told:
        load_teacher_of(Cache(units), "timm:test_vit2.random", CPU)
    assert "; weights_sha256: " in str(told.value)
    assert str(told.value).endswith("); give the right one by --teacher-spec")


def test_the_same_model_with_other_weights_is_refused(units):
    message = rf"\(weights_sha256: '[0-9a-f]{{64}}' here, '{'0' * 64}' in the cache\); give the right"
    with pytest.raises(CacheError, match=message):
        load_teacher_of(opened(units, weights_sha256="0" * 64), None, CPU)


def test_the_arithmetic_alone_makes_no_other_teacher(units):
    assert load_teacher_of(opened(units, precision="bfloat16"), None, CPU).levels == (5,)


@pytest.mark.parametrize(
    ("library", "remedy"),
    [
        ("timm", "came from a folder; name it with --teacher-spec timm:local-dir:PATH"),
        ("module", "'test_vit' was a network given in Python, which no address loads: leave --teacher out"),
    ],
)
def test_a_teacher_without_an_address_is_refused(units, library, remedy):
    with pytest.raises(ConfigError, match=remedy):
        load_teacher_of(opened(units, library=library, name="test_vit", tag="local"), None, CPU)
