"""--views-from: another teacher on the views of a cache makes what it would make of the source tars."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cache.contents import flip
from cache_files import changed, contents
from caches import extract, extraction_options
from calls import call
from tars import image, make_tars, source_tar, write_tar

from pipeline.cache.reader import Cache
from pipeline.cache.verification import verify_cache
from pipeline.errors import ConfigError
from pipeline.extraction.from_views import FromViews
from pipeline.extraction.options import options_of_views
from stages.extract_teacher import extract_teacher

OTHER = "timm:test_vit3.random"  # 9 blocks of 96 channels without CLS, patches of 16 pixels
HERE = ("--levels", "3", "--batch-size", "8", "--workers", "0", "--device", "cpu")
TESTS = Path(__file__).parents[1]


def followed(views_from, cache, **changes):
    """Extract the other teacher from the views of a cache; return the tally and what is missing."""
    options = {"teacher": OTHER, "views_from": str(views_from), **options_of_views(Cache(views_from))}
    return extract(cache, **(options | changes))


def command(cache, *options, teacher=OTHER):
    return call(extract_teacher, "--cache", cache, "--teacher", teacher, *HERE, *options)


@pytest.fixture(scope="module")
def direct(tmp_path_factory, shards):
    """A cache of the other teacher that was made from the source tars; not to be changed."""
    cache = tmp_path_factory.mktemp("direct") / "b.cache"
    assert extract(cache, shards, teacher=OTHER)[1] == 0
    return cache


@pytest.fixture(scope="module")
def second(tmp_path_factory, finished):
    """The same cache from the views of the finished one; no source image is decoded for it."""
    cache = tmp_path_factory.mktemp("second") / "b.cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.views.maker.decode_image", lambda _: pytest.fail("decoded"))
        tally, missing = followed(finished, cache)
    assert (tally.units, tally.images, tally.views, tally.failed, missing) == (4, 24, 48, {}, 0)
    return cache


def test_the_cache_is_the_one_that_source_tars_give(finished, direct, second, tmp_path):
    assert changed(contents(direct), contents(second)) == []
    assert Cache(finished).units == Cache(second).units
    for unit in Cache(finished).units:
        tar = f"views/{unit.stem}.tar"
        assert (finished / tar).samefile(second / tar)
    followed(finished, tmp_path / "c.cache", workers=2)
    assert changed(contents(direct), contents(tmp_path / "c.cache")) == []


def test_another_file_system_gets_copies(finished, direct, tmp_path, monkeypatch):
    link = os.link

    def elsewhere(source, target):
        if str(source).startswith(str(finished)):
            raise OSError(errno.EXDEV, "another file system")
        link(source, target)

    monkeypatch.setattr(os, "link", elsewhere)
    followed(finished, tmp_path / "b.cache")
    assert changed(contents(direct), contents(tmp_path / "b.cache")) == []
    tar = "views/train-0000.v00.tar"
    assert not (finished / tar).samefile(tmp_path / "b.cache" / tar)


def test_a_growing_cache_is_followed(shards, direct, tmp_path):
    first, second = tmp_path / "a.cache", tmp_path / "b.cache"
    extract(first, shards, limit=1)
    assert followed(first, second)[0].units == 2
    extract(first, shards, views=3)
    tally, missing = followed(first, second)
    assert (tally.units, missing) == (4, 0)
    assert Cache(first).units == Cache(second).units
    found = contents(second)
    expected = {name: data for name, data in contents(direct).items() if name.startswith("views/")}
    assert {name: found[name] for name in expected} == expected


def test_units_that_are_not_there_yet_are_reported(first, tmp_path):
    second = tmp_path / "b.cache"
    away = (first / "commits" / "train-0001.v01.json").rename(tmp_path / "away")
    result = command(second, "--views-from", first)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("3 units made of 24 images (36 views) in ")
    told = f"1 unit missing, which '{first}' has not finished yet; run the same command again when it has\n"
    assert result.stdout.endswith(told)
    away.rename(first / "commits" / "train-0001.v01.json")
    assert command(second, "--views-from", first).stdout.endswith(f"cache '{second}': complete\n")


def test_skipped_images_are_skipped_again(tmp_path):
    images = {f"{number}": image(number) if number != 3 else b"no image" for number in range(9)}
    shards = [source_tar(write_tar(tmp_path / "tars" / "a.tar", images))]
    extract(tmp_path / "a.cache", shards, max_bad=0.5, views=1)
    tally, missing = followed(tmp_path / "a.cache", tmp_path / "b.cache")
    assert (missing, [one.key for one in tally.skipped]) == (0, ["3"])
    extract(tmp_path / "direct.cache", shards, teacher=OTHER, max_bad=0.5, views=1)
    assert changed(contents(tmp_path / "direct.cache"), contents(tmp_path / "b.cache")) == []


@pytest.mark.faults
def test_a_killed_extraction_is_continued(finished, direct, tmp_path):
    second = tmp_path / "b.cache"
    script = (
        "import os, signal, sys\n"
        "from pipeline.cache import writer\n"
        "create, made = writer.create_commit, []\n"
        "def killing(*arguments):\n"
        "    made.append(create(*arguments))\n"
        "    if len(made) == 2:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return made[-1]\n"
        "writer.create_commit = killing\n"
        "from stages.extract_teacher import main\n"
        "main()\n"
    )
    options = ["--cache", second, "--teacher", OTHER, "--views-from", finished, *HERE]
    process = subprocess.run(
        [sys.executable, "-c", script, *map(str, options)],
        cwd=TESTS.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert process.returncode == -signal.SIGKILL
    assert followed(finished, second)[0].units == 2
    assert changed(contents(direct), contents(second)) == []


@pytest.fixture
def first(finished, tmp_path):
    """A copy of the finished cache."""
    return shutil.copytree(finished, tmp_path / "a.cache")


def test_a_damaged_view_tar_fails_alone(first, tmp_path):
    """Also one that is damaged where no checksum of a sample covers it: it is not linked."""
    tar = first / "views" / "train-0001.v00.tar"
    units = 2
    for place, told in (
        (-1, f"view tar '{tar}' is not what was committed: inspect-cache verify --full --repair"),
        (5000, "unit 2 (train-0001.tar, view 0), row "),
    ):
        flip(tar, place)
        tally, missing = followed(first, tmp_path / "b.cache")
        assert (tally.units, missing, list(tally.failed)) == (units, 2, ["train-0001.tar"])
        assert tally.failed["train-0001.tar"].startswith(told)
        assert "inspect-cache verify --full --repair" in tally.failed["train-0001.tar"]
        flip(tar, place)  # sound again
        units = 0


def test_verify_repair_and_making_again_hold(first, direct, tmp_path):
    second = tmp_path / "b.cache"
    followed(first, second)
    verify = {"full": True, "repairing": True, "workers": 1, "report": lambda _: None}
    assert verify_cache(str(second), **verify)[1].endswith("every byte is what was committed")
    shard = next(path for path in (second / "targets.zarr/stats/c/3").rglob("*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "damaged units are removed" in verify_cache(str(second), **verify)[1]
    assert "every byte is" in verify_cache(str(first), **verify)[1]  # a removed link is not a removed file
    assert followed(first, second)[0].units == 1
    assert changed(contents(direct), contents(second)) == []


def test_a_dry_run_counts_no_linked_bytes_and_writes_nothing(finished, tmp_path):
    linked = command(tmp_path / "b.cache", "--views-from", finished, "--dry-run")
    assert linked.exit_code == 0, linked.output
    told = {line[:13].strip(): line[13:] for line in linked.stdout.splitlines()}
    assert told["images"] == "24 in 2 tars, 2 views of each"
    assert told["view tars"] == f"hard links to those of '{finished}'"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["--seed", 3],
            "--seed cannot be given with --views-from: that cache decides the views; leave it out",
        ),
        (
            ["--flip", 0.5, "--views", 2, "x.tar"],
            "SHARDS and --views and --flip cannot be given with --views-from",
        ),
        (["--max-bad", 0.1], "--max-bad cannot be given"),
        (["--patch-size", 24], "image size 64 is not a multiple of patch size 24"),
    ],
)
def test_options_of_the_views_are_refused_by_name(finished, tmp_path, options, told):
    result = command(tmp_path / "b.cache", "--views-from", finished, *options)
    assert result.exit_code == 2
    assert told in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_followed_is_refused(finished, second, tmp_path):
    assert "give SHARDS, or --views-from CACHE" in command(tmp_path / "b.cache").stderr
    assert "are both" in command(finished, "--views-from", finished).stderr
    told = command(tmp_path / "b.cache", finished).stderr
    assert f"folder {str(finished)!r} is a cache, not source tars: give it as --views-from" in told
    told = command(tmp_path / "b.cache", finished / "views").stderr
    assert f"are the views of a cache, crops of images: give --views-from {finished}" in told
    assert "is not a cache" in command(tmp_path / "b.cache", "--views-from", tmp_path / "none").stderr
    others = make_tars(tmp_path / "others", tars=1, images_per_tar=3)
    renamed = [source_tar(Path(others[0].address).rename(tmp_path / "others" / "z.tar"))]
    extract(tmp_path / "z.cache", renamed)
    result = command(second, "--views-from", tmp_path / "z.cache", "--encoding", "int8")
    assert result.exit_code == 2
    assert "has 'z.tar', view 0, where this cache has 'train-0000.tar', view 0" in result.stderr
    assert list(tmp_path.glob(".*")) == []


def test_the_library_refuses_other_views_by_name(finished, tmp_path):
    options = extraction_options(cache=tmp_path / "b", shards=[], views_from=str(finished), seed=5)
    with pytest.raises(ConfigError, match=r"--seed 5 is not that of the views in .*, 0: leave --seed out"):
        FromViews(options)


def test_another_patch_size_gives_another_grid_of_the_same_views(finished, tmp_path):
    followed(finished, tmp_path / "b.cache", patch_size=32, levels="1")
    assert Cache(tmp_path / "b.cache").schema.grid == 2


def test_a_cache_that_follows_may_be_followed(finished, second, tmp_path):
    followed(second, tmp_path / "c.cache", teacher="timm:test_vit.random")
    assert changed(contents(finished), contents(tmp_path / "c.cache")) == []
