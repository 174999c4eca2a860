"""inspect-cache at the command line: output, exit codes, and that a mistake changes nothing."""

import re
import shutil
from functools import partial
from pathlib import Path

import caches
import pytest
from calls import call, cases
from tars import make_tars

from pipeline.cache.reader import Cache
from stages.inspect_cache import app

UNIT_1 = "unit 1 (train-0000.tar, view 1)"
TAR_1 = "views/train-0000.v01.tar"
STD = "targets.zarr/channel_std"
AGAIN = "damaged units are removed; the same extract-teacher command makes them again"


inspect = partial(call, app)


def verify(cache, *options, code=0):
    """Return the lines of a verification and what it says on stderr."""
    result = inspect("verify", cache, "--workers", 1, "--device", "cpu", *options)
    assert result.exit_code == code, result.output
    return result.stdout.splitlines(), re.sub(r"\r?verify: .*?units\n?", "", result.stderr)


@pytest.fixture
def copy(cache, tmp_path):
    return shutil.copytree(cache, tmp_path / "copy.cache")


def flip(file, place):
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_info_says_what_is_in_a_cache(cache):
    opened = Cache(cache)
    result = inspect("info", cache)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    said = [(line[:13].strip(), line[13:]) for line in lines[:13]]
    weights = opened.schema.teacher.weights_sha256[:16]
    assert said == [
        ("cache", f"{cache} (schema 1.1, digest {opened.digest[:16]})"),
        ("teacher", f"timm:test_vit.random, untrained, weights {weights}"),
        ("", "6 blocks of width 64, patches of 16 in 64 pixels"),
        ("", "ran in float32, its final norm is stored"),
        ("levels", "3, 4, 5"),
        ("encoding", "int8, channels calibrated on 24 images"),
        ("patches", "16 of 16 a view, and CLS"),
        ("views", "64 pixels as jpeg, crops of 0.4 to 1 of the area,"),
        ("", "flipped with probability 0.5, seed 0"),
        ("units", "4 of 4 (complete)"),
        ("view 0", "24 images"),
        ("view 1", "24 images"),
        ("attention", lines[12][13:]),
    ]
    features = [f"features/block_{level:02d}" for level in (3, 4, 5)]
    names = ["attention", "commits", "crops", *features, "index", "stats", "view"]
    assert [line.split()[0] for line in lines[12:-1]] == names
    files = (
        file
        for folder in ("views", "commits", "targets.zarr")
        for file in (cache / folder).rglob("*")
        if file.is_file()
    )
    on_disk = sum(file.stat().st_size for file in files)
    megabytes, per_view = re.fullmatch(r"in all +([\d.]+) MB +([\d,]+) bytes a view", lines[-1]).groups()
    assert float(megabytes) == pytest.approx(on_disk / 1e6, rel=0.1)
    assert int(per_view.replace(",", "")) == pytest.approx(float(megabytes) * 1e6 / 48, rel=0.1)


def test_info_of_an_unfinished_cache_of_some_patches_with_a_bad_image(tmp_path):
    shards = make_tars(tmp_path / "tars", tars=2, images_per_tar=4)
    data = Path(shards[0].address).read_bytes()
    start = data.index(b"\xff\xd8\xff")
    Path(shards[0].address).write_bytes(data[:start] + bytes(400) + data[start + 400 :])
    path = caches.real(tmp_path, shards=shards, keep=0.5, keep_rank="random", encoding="int4", levels="3,")
    (path / "commits/train-0001.v00.json").unlink()
    lines = inspect("info", path).stdout.splitlines()
    assert "patches      8 of 16 a view, the first of a ranking by random (--keep 0.5), and CLS" in lines
    assert "units        3 of 4 (unfinished)" in lines
    assert lines[lines.index("skipped      1 image") + 1].startswith(
        "             '000000': cannot be decoded"
    )
    assert "view 0       3 images" in lines


def test_info_of_a_damaged_commit_exits_1(copy):
    flip(copy / "commits/train-0000.v01.json", 9)
    result = inspect("info", "--cache", copy)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.endswith(
        ".v01.json' is damaged: inspect-cache verify --repair removes it, "
        "and the same extract-teacher command makes its unit again\n"
    )


def test_a_sound_cache(cache):
    assert verify(cache) == (
        [f"cache '{cache}', 4 of 4 units: names, sizes and metadata are what was committed"],
        "",
    )
    assert verify(cache, "--full") == (
        [f"cache '{cache}', 4 of 4 units: every byte is what was committed"],
        "",
    )
    assert verify(cache, "--full", "--repair")[0] == verify(cache, "--full", "--workers", 2)[0]


def test_strays_are_notes(copy):
    (copy / "commits/train-0000.v00.json").unlink()
    (copy / "mine.txt").touch()
    lines, error = verify(copy)
    assert error == ""
    assert lines == [
        "note: 8 files of unfinished units; the next extraction replaces them",
        "note: 'mine.txt' is not part of a cache",
        f"cache '{copy}', 3 of 4 units: names, sizes and metadata are what was committed",
    ]


def refusal(cache, problems):
    cure = "add --repair to remove what is damaged, then run the same extract-teacher command"
    return f"error: cache '{cache}' has {problems}: {cure}\n"


def unfixed(cache):
    told = "has 1 problem that --repair cannot fix; the lines above say what to do about each"
    return f"error: cache '{cache}' {told}\n"


def test_quick_damage_and_its_repair(copy):
    (copy / TAR_1).unlink()
    said = f"damaged: {UNIT_1}: {TAR_1} is missing"
    assert verify(copy, code=1) == ([said], refusal(copy, "1 problem"))
    assert verify(copy, "--full", code=1) == (
        [said],
        refusal(copy, "1 problem"),
    )  # the rest of the unit is not read
    assert verify(copy, "--repair") == ([said, f"removed: {UNIT_1}", f"cache '{copy}': {AGAIN}"], "")
    assert verify(copy, "--full") == ([f"cache '{copy}', 3 of 4 units: every byte is what was committed"], "")


def test_full_damage_and_its_repair(copy):
    flip(copy / "targets.zarr/stats/c/1/0/0/0", 100)
    assert verify(copy)[1] == ""
    said = [
        f"damaged: {UNIT_1}, targets.zarr/stats/c/1/0/0/0 does not match its SHA-256",
        f"damaged: {UNIT_1}, array 'stats', rows 0 to 11: not what was committed",
    ]
    assert verify(copy, "--full", code=1) == (said, refusal(copy, "2 problems"))
    assert verify(copy, "--full", "--repair") == (
        [*said, f"removed: {UNIT_1}", f"cache '{copy}': {AGAIN}"],
        "",
    )
    assert verify(copy, "--full")[1] == ""


def test_damaged_metadata_never_cost_a_unit(copy):
    (copy / "targets.zarr/stats/zarr.json").write_text("{}")
    (copy / f"{STD}/zarr.json").write_text("{}")
    said = [
        f"damaged: targets.zarr/{name}/zarr.json is not what the schema says"
        for name in ("stats", "channel_std")
    ]
    note = "note: the arrays can be read after their metadata is repaired; add --repair"
    assert verify(copy, code=1) == (said, refusal(copy, "2 problems"))
    assert verify(copy, "--full", code=1) == ([*said, note], refusal(copy, "2 problems"))
    written = [f"written again: targets.zarr/{name}/zarr.json" for name in ("channel_std", "stats")]
    verdict = f"cache '{copy}': its metadata is written again, and no unit had to be removed"
    assert verify(copy, "--full", "--repair") == ([*said, *written, verdict], "")
    assert verify(copy, "--full")[0] == [f"cache '{copy}', 4 of 4 units: every byte is what was committed"]


def test_a_damaged_calibration(copy):
    flip(copy / f"{STD}/c/0/0", 0)
    cure = "the same extract-teacher command makes it again; else restore it"
    said = f"damaged: the calibration does not match its digest: {cure}"
    assert verify(copy, "--teacher", code=1) == ([said], refusal(copy, "1 problem"))
    assert verify(copy, "--repair", code=1) == ([said], unfixed(copy))


def test_lost_metadata_is_restored_or_the_cure_named(copy):
    for name in ("units.json", "targets.zarr/zarr.json"):
        (copy / name).write_text("{}")
        lines, error = verify(copy, code=1)
        assert lines == []
        assert "inspect-cache verify --repair restores it" in error
        lines, error = verify(copy, "--repair")
        assert (lines[0].partition(" from")[0].partition(" with")[0], error) == (f"restored: {name}", "")
        assert lines[1] == f"cache '{copy}': its metadata is written again, and no unit had to be removed"
    assert verify(copy, "--full")[0] == [f"cache '{copy}', 4 of 4 units: every byte is what was committed"]


def test_the_teacher_agrees(cache):
    lines, error = verify(cache, "--teacher", "--rows", "16")
    assert error == ""
    assert lines[0].split("  ") == [
        "level",
        "mean cosine",
        "least cosine",
        "mean |error|",
        "largest |error|",
        "within the bound",
    ]
    assert [line.split()[0] for line in lines[1:4]] == ["3", "4", "5"]
    assert all(line.endswith(" 100.0000%") for line in lines[1:4])
    assert [len(line) for line in lines[:4]] == [len(lines[0])] * 4
    assert lines[4].endswith("names, sizes and metadata are what was committed")


MISUSE = """
verify {tmp}/none
    none' is not a cache (no units.json): give a folder that extract-teacher made
verify --cache {tmp}
    ' is not a cache (no units.json): give a folder that extract-teacher made
info --cache {tmp}/file
    file' is not a cache (no units.json): give a folder that extract-teacher made
verify --cache {cache} --teacher --device gpu
    error: device 'gpu' is unknown: give auto, cpu, cuda
verify --cache {cache} --teacher-spec clip:x
    error: teacher 'clip:x' is not the address of a teacher
verify --cache {cache} --rows 0
    Invalid value for '--rows'
verify --cache {cache} --workers 0
    Invalid value for '--workers'
verify
    error: one cache must be named: give CACHE
info {cache} --cache {cache}
    error: only one cache can be named: give CACHE
inspect --cache {cache}
    No such command 'inspect'
copy {cache} c --tars a b
    for several repeat --tars, or quote a pattern
"""


def test_misuse(cache, tmp_path):
    (tmp_path / "file").touch()
    for line, part in cases(MISUSE):
        result = inspect(*line.format(tmp=tmp_path, cache=cache).split())
        assert (result.exit_code, result.stdout) == (2, ""), line
        assert part in result.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_without_a_command_it_lists_them():
    result = inspect()
    assert result.exit_code == 2
    assert "info" in result.output
    assert "verify" in result.output


def test_the_plan_has_requests_and_dollars_and_names_the_origin_of_prices(cache):
    usual = inspect("plan", cache, "--rate", 6400).stdout
    assert "\non a store   at most 8 GETs for 64 images, 800 a second,\n" in usual
    assert (
        "a month; computed, default prices: S3 Standard in us-east-1, as published in early 2025\n" in usual
    )
    given = inspect("plan", cache, "--levels", 3, "--price-put", 1e6, "--price-read", 0.09).stdout
    assert "\non a store   at most 6 GETs for 64 images, " in given
    puts = re.search(r"\n +about ([\d,]+) PUTs and POSTs to write it\n", given)[1]
    assert f" an epoch, ${puts}.00 to write, $0.00 a month; computed, prices as given\n" in given
    assert (
        "$0.4 and $1e+06 for a million GETs and PUTs, $0.023 for a GB a month, $0.09 for a GB read" in given
    )


def test_a_cache_is_named_by_argument_or_option(cache):
    for command in ("info", "plan", "verify"):
        named = [inspect(command, *words).stdout for words in ([cache], ["--cache", cache])]
        argument, option = (re.sub(r"\d+ us to read", "", text) for text in named)  # which is measured
        assert argument == option
        assert inspect(command, "-h").stdout == inspect(command, "--help").stdout
