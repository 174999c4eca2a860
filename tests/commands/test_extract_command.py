"""extract-teacher at the command line: what it says, its exit codes, and that a mistake writes nothing."""

import json
import os
import re
import shutil

import pytest
from caches import TEACHER
from calls import call, cases
from tars import image, write_tar

from pipeline.cache.digests import digest_of
from stages.extract_teacher import extract_teacher
from stages.inspect_cache import app as inspect_app

VIEW = ("--image-size", "64", "--patch-size", "16", "--levels", "3", "--batch-size", "8")
VIEW += ("--workers", "0", "--device", "cpu")
CACHE_VIEW = (*VIEW, "--views", "2", "--crop-scale", "0.4", "1.0")


def run(shards, cache, *options, teacher=TEACHER, view=VIEW, **how):
    """Run the command in this process."""
    return call(extract_teacher, shards, "--cache", cache, "--teacher", teacher, *view, *options, **how)


def entries(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_makes_a_cache_and_continues_it(tars, tmp_path):
    cache = tmp_path / "a.cache"
    result = run(tars, cache, "--views", 2, "--limit", 1)
    assert result.exit_code == 0, result.output
    summary, busy, last = result.stdout.splitlines()
    assert re.fullmatch(r"2 units made of 12 images \(24 views\) in [\d.]+ s, [\d.]+ views/s", summary)
    assert re.fullmatch(r"busy: .*; the slowest part is (read|decode|teacher|write|publish)", busy)
    assert last == f"cache '{cache}': complete"
    shown = run(tars, cache, "--views", 2, "--dry-run", "--disk-seconds", 0).stdout
    assert "\nfinished     2 of 4 units exist already\n" in shown
    assert "\ndisk " not in shown
    first, second = sorted(tars.glob("*.tar"))  # arguments may name each tar
    made = run(first, cache, second, "--views", 2)
    assert made.stdout.startswith("2 units made of 12 images (24 views) in ")
    again = run(tars, cache, "--views", 2)
    assert (again.exit_code, again.stdout) == (0, last + "\n")


def test_a_failed_tar_is_reported_and_others_are_done(tars, tmp_path):
    shards = tmp_path / "tars"
    shutil.copytree(tars, shards)
    write_tar(shards / "train-0000.tar", {f"{n}": image(n) if n < 8 else b"no image" for n in range(12)})
    result = run(shards, tmp_path / "a.cache")
    assert result.exit_code == 1
    told = "failed 'train-0000.tar': tar 'train-0000.tar' has 4 bad images of 12, more than max(3, --max"
    assert result.stderr.startswith(told)
    assert result.stdout.endswith(": 1 unit missing; make the failed tars again and run the same command\n")
    healed = run(shards, tmp_path / "a.cache", "--max-bad", 0.5)
    assert healed.exit_code == 0
    assert healed.stdout.count("skipped '") == 4
    assert (
        "\n4 images skipped\nskipped '8': cannot be decoded (no image of a known format)\n" in healed.stdout
    )
    assert healed.stdout.endswith(": complete\n")


def test_what_a_latin_1_terminal_lacks_is_escaped(tmp_path):
    tar, cache = write_tar(tmp_path / "a.tar", {"0": image(0), "é漢": b"broken"}), tmp_path / "a.cache"
    result = run(tar, cache, charset="latin-1")
    assert "\nskipped 'é\\u6f22': cannot be decoded" in result.stdout
    assert result.stdout.endswith(f"cache '{cache}': complete\n")
    result = call(inspect_app, "info", cache, code=0, charset="latin-1")
    assert "é\\u6f22" in result.stdout


def test_labels_that_are_no_numbers_are_counted(tmp_path):
    images = {f"{number}": image(number) for number in range(4)}
    tar = write_tar(tmp_path / "a.tar", images, labels={"0": "dog", "1": 3, "2": "cat"})
    result = run(tar, tmp_path / "a.cache")
    assert result.exit_code == 0
    told = "2 images stored without a label, since theirs cannot be used; the first: '0' has the label 'dog'"
    assert told in result.stdout
    assert "1 unit made of 4 images" in result.stdout


def test_a_dry_run_prints_the_plan_and_writes_nothing(tars, tmp_path):
    result = run(tars, tmp_path / "a.cache", "--views", 2, "--dry-run")
    assert result.exit_code == 0, result.output
    told = {line[:13].strip(): line[13:] for line in result.stdout.splitlines()}
    sizes = ["images", "bytes a view", "cache", "memory"]
    rates = ["teacher", "decoding", "disk", "extraction", "limit", "training", "paid back"]
    assert list(told) == [*sizes, *rates]
    assert re.fullmatch(
        r"[\d.,e+]+ MB/s sustained, [\d.,e+]+ MB/s at first \(.* GB in .* s, one writer\)", told["disk"]
    )
    assert told["limit"].startswith(("the teacher", "the decoding", "the disk: teacher and decoding alone"))
    assert told["images"] == "24 in 2 tars, 2 views of each"
    assert told["cache"].endswith(" GB in 36 files")
    assert told["teacher"].endswith(" views/s on cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_reports_a_tar_that_is_too_large(tars, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.cache.schema.UNIT_ROWS", 8)
    shown = run(tars, tmp_path / "a.cache", "--dry-run").stdout
    assert "\ntoo large    tar 'train-0000.tar' has 12 images, more than 8; split it\n" in shown


def test_a_dry_run_refuses_another_configuration(tars, cache):
    assert run(tars, cache, "--dry-run", view=CACHE_VIEW).exit_code == 0
    refused = run(tars, cache, "--dry-run", "--seed", "7", view=CACHE_VIEW)
    assert refused.exit_code == 2
    assert "view.seed: 7 asked, 0 in the cache" in refused.stderr


def test_a_dry_run_refuses_too_few_views_for_new_tars(cache, tmp_path):
    write_tar(tmp_path / "new.tar", {"new": image(0)})
    for dry in ([], ["--dry-run"]):
        refused = run(tmp_path / "new.tar", cache, *dry, view=(*CACHE_VIEW, "--views", "1"))
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "--views 1 is too few for new tar 'new.tar': this cache has 2 views" in refused.stderr


MISTAKES = """
none.tar
    shard 'none.tar' does not exist: give a brace pattern
{empty}
    match no .tar file: give a brace pattern
{tars} --teacher clip:ViT-B-16
    'clip:ViT-B-16' is not the address of a teacher
{tars} --teacher clip:ViT-B-16
    accepted is open_clip:
{tars} --teacher timm:resnet18
    is a ResNet, not a plain ViT: choose a VisionTransformer
{tars} --patch-size 15
    image size 64 is not a multiple of patch size 15; give image size 60 or 75
{tars} --levels 7
    levels '7' asks for 7 blocks, but the teacher has 6 blocks: give a count from 1 to 6
{tars} --encoding int3
    --encoding 'int3' is unknown; give int8, int4 or float16
{tars} --keep 0
    --keep 0 is not a share; give more than 0 and at most 1, such as 0.3
{tars} --keep 0.06
    --keep 0.06 leaves 0 of 16 patches; give 0.0625 to 1
{tars} --keep-rank block
    --keep-rank 'block' is unknown; give attention or random
{tars} --keep 0.5 --teacher timm:test_vit4.random
    needs a teacher that ranks patches, and 'timm:test_vit4.random' has neither
{tars} --keep 0.5 --teacher timm:test_vit4.random
    give --keep-rank random
{tars} --view-format png
    --view-format 'png' is unknown; give jpeg or raw
{tars} --crop-scale 0.5 0.2
    --crop-scale 0.5 0.2 is not a range of shares; give 0 < least <= greatest <= 1
{tars} --device cuda:99
    device 'cuda:99' needs GPU 99
{tars} --device gpu
    device 'gpu' is unknown: give auto, cpu, cuda or cuda:N
"""


def test_a_mistake_is_one_sentence_and_writes_nothing(tars, tmp_path):
    (tmp_path / "empty").mkdir()
    for line, part in cases(MISTAKES):
        words = line.format(tars=tars, empty=tmp_path / "empty").split()
        result = run(words[0], tmp_path / "a.cache", *words[1:])
        assert (result.exit_code, result.stdout) == (2, ""), line
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert part in result.stderr
    assert entries(tmp_path) == ["empty"]


def test_typer_refuses_what_it_can_see(tars, tmp_path):
    wrong = "views=0 views=many flip=2 flip=nan limit=0 batch-size=0 workers=-1 sed=1"
    for option in wrong.split():
        result = run(tars, tmp_path / "a.cache", f"--{option}")
        assert (result.exit_code, result.stdout) == (2, ""), option
        assert f"--{option.split('=')[0]}" in result.stderr
    assert list(tmp_path.iterdir()) == []


def newer(cache):
    """Give a cache's schema a version of the future."""
    path = cache / "targets.zarr" / "zarr.json"
    values = json.loads(path.read_text())
    schema = values["attributes"]["maskalign_cache"] | {"version": "7.0"}
    values["attributes"] |= {"maskalign_cache": schema, "digest": digest_of(schema)}
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("prepare", "code", "parts"),
    [
        (lambda path: path.write_text("mine"), 2, ["is a file or below one: give a folder, or a path where"]),
        (
            lambda path: (path.mkdir(), (path / "mine.txt").write_text("mine")),
            2,
            ["is not a cache (no units.json): give a folder that extract-teacher made"],
        ),
        (
            newer,
            1,
            ["has version 7.0, this program reads 1.", "use the version of this program that made the"],
        ),
    ],
    ids=["file", "folder", "newer"],
)
def test_what_is_no_cache_of_ours_is_left_alone(tars, cache, tmp_path, prepare, code, parts):
    path = tmp_path / "a.cache"
    if prepare is newer:
        shutil.copytree(cache, path)
    prepare(path)
    before = entries(tmp_path)
    for dry in ([], ["--dry-run"]):
        result = run(tars, path, *dry, view=CACHE_VIEW)
        assert (result.exit_code, result.stdout) == (code, "")
        assert [part for part in ["error: ", str(path), *parts] if part not in result.stderr] == []
    assert entries(tmp_path) == before


def test_a_full_disk_is_one_sentence(monkeypatch, tars, tmp_path):
    def full(_source, target, **_kwargs):
        raise OSError(28, "No space left on device", os.fspath(target))

    monkeypatch.setattr(os, "replace", full)
    result = run(tars, tmp_path / "a.cache")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: No space left on device (")
    assert "Traceback" not in result.output
