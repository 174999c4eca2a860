"""pack-images at the command line: what it prints, its exit codes, and that a mistake writes nothing."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import simplejpeg
from calls import call, call_alone
from packing_sources import members
from PIL import Image
from tars import image

from pipeline.packing.output import Output
from pipeline.storage.files import locked
from stages.pack_images import pack_images


def run(source, out, *options, workers=0):
    """Run the command in this process."""
    return call(pack_images, source, out, "--workers", workers, *options)


def class_folders(folder, images):
    """Write {name: bytes} below a folder and return it."""
    for name, data in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def photos(tmp_path):
    """Ten images of two classes."""
    return class_folders(
        tmp_path / "photos", {f"{'cat' if n % 2 else 'dog'}/{n}.jpg": image(n) for n in range(10)}
    )


def sizes(out):
    """The width and height of each JPEG in the tars."""
    found = []
    for _, files in sorted(members(out).items()):
        for name, data in files:
            if name.endswith(".jpg"):
                height, width, *_ = simplejpeg.decode_jpeg_header(data)
                found.append((width, height))
    return found


def test_says_what_it_packs_and_what_comes_next(photos, tmp_path):
    out = tmp_path / "packed"
    result = run(photos, out, "--images-per-tar", 4)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    first, classes, made, last = result.stdout.splitlines()
    assert first == f"packing 10 images of folder '{photos}' into 3 tars of 3 or 4"
    assert classes == "2 classes: 'cat' is 0, 'dog' is 1"
    assert re.fullmatch(r"3 tars made of 10 images, [\d.]+ MB, in [\d.]+ s", made)
    assert last == f"folder '{out}': complete; next: extract-teacher {out} --cache DIR --teacher SPEC"
    again = run(photos, out, "--images-per-tar", 4)
    assert (again.exit_code, again.stdout.splitlines()) == (0, [first, classes, last])


def test_files_of_other_kinds_are_named_by_their_extensions(photos, tmp_path):
    for name in ("a.heic", "b.HEIC", "odd.\udce9", "README"):
        (photos / "cat" / name).write_bytes(b"x")
    said = run(photos, tmp_path / "packed").stderr
    listed = "2 '.heic', 1 without an extension, 1 '.\\udce9'"
    assert said == f"4 files of other kinds are passed over: {listed}\n"


def test_other_options_are_refused_with_the_keys_that_differ(photos, tmp_path):
    out = tmp_path / "packed"
    run(photos, out)
    refused = run(photos, out, "--seed", 1, "--quality", 80)
    assert refused.exit_code == 2
    assert refused.stderr == (
        f"error: OUT '{out}' was packed with other options or images (seed: 0 there, 1 here; quality: null "
        "there, 80 here): repeat the first command, or give another OUT\n"
    )
    (photos / "cat" / "new.jpg").write_bytes(image(3))
    assert "(source_images: 10 there, 11 here; source_sha256: " in run(photos, out).stderr
    assert run(photos, photos).stderr == f"error: OUT '{photos}' holds 'cat': give a new or empty folder\n"


def test_damaged_images_are_counted_and_named(photos, tmp_path):
    (photos / "cat" / "cut.jpg").write_bytes(image(0)[:500])
    (photos / "dog" / "empty.jpg").write_bytes(b"")
    (photos / "dog" / "text.png").write_bytes(b"no image")
    result = run(photos, tmp_path / "packed")
    assert result.exit_code == 0, result.output
    assert "1 tar made of 10 images" in result.stdout
    assert "3 images left out\n" in result.stdout
    assert "left out 'dog/empty.jpg': is empty (0 bytes)\n" in result.stdout
    assert "left out 'dog/text.png': cannot be decoded (no image of a known format)\n" in result.stdout
    assert "left out 'cat/cut.jpg': cannot be decoded (" in result.stdout
    record = json.loads((tmp_path / "packed" / "packing.json").read_text())
    assert sorted(one["name"] for one in record["tars"]["packed-000000.tar"]["left_out"]) == [
        "cat/cut.jpg",
        "dog/empty.jpg",
        "dog/text.png",
    ]
    again = run(photos, tmp_path / "packed")  # what was left out is not forgotten
    assert "3 images left out\n" in again.stdout


@pytest.mark.parametrize("workers", [0, 2])
def test_a_tar_with_too_many_damaged_images_fails_alone(workers, photos, tmp_path):
    for number in range(10, 15):
        (photos / "cat" / f"{number}.jpg").write_bytes(b"no image")
    out = tmp_path / "packed"
    result = run(photos, out, workers=workers)
    assert result.exit_code == 1
    assert re.search(
        r"^failed 'packed-000000.tar': 4 of its first \d+ images are bad, more than max\(3, --max-bad 0.01\) "
        r"of 15; the first: 'cat/1\d.jpg' cannot be decoded \(no image of a known format\); restore them, ",
        result.stderr,
    )
    assert result.stdout.endswith(f"folder '{out}': 1 tar missing; the same command again makes them\n")
    healed = run(photos, out, "--max-bad", 0.5, workers=workers)
    assert (healed.exit_code, healed.stdout.count("left out '")) == (0, 5)


def test_images_become_smaller_if_asked(photos, tmp_path):
    (photos / "cat" / "bitmap.bmp").write_bytes(b"")
    Image.new("RGB", (30, 90), "red").save(photos / "cat" / "bitmap.bmp")
    run(photos, tmp_path / "plain")
    names = {name for name, _ in members(tmp_path / "plain")["plain-000000.tar"]}
    assert {"bitmap.jpg", "7.png", "0.jpg"} <= names
    run(photos, tmp_path / "small", "--shorter-side", 40)
    smaller = sizes(tmp_path / "small")
    assert {min(size) for size in smaller} == {30, 40}  # none is enlarged
    assert len(smaller) == 11
    before = dict(members(tmp_path / "plain")["plain-000000.tar"])
    run(photos, tmp_path / "coarse", "--quality", 40)
    after = dict(members(tmp_path / "coarse")["coarse-000000.tar"])
    assert len(after["0.jpg"]) < len(before["0.jpg"]) * 0.6
    assert "7.png" not in after


def test_a_folder_that_is_in_use_is_refused(photos, tmp_path):
    out = tmp_path / "packed"
    work = Output(out).work
    work.mkdir(parents=True)
    with locked(work / "lock"):
        result = run(photos, out)
    assert (result.exit_code, result.stderr) == (
        1,
        f"error: another pack-images packs into '{out}': wait for it\n",
    )


def test_a_tar_for_which_there_is_no_room_is_named(photos, tmp_path):
    command = [sys.executable, "-m", "stages.pack_images", str(photos), "packed", "--workers", "1"]
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))}
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, **limit)
    assert (found.returncode, found.stderr) == (1, "error: File too large (packed/packed-000000.tar)\n")
    assert run(photos, tmp_path / "packed").exit_code == 0


def test_a_tar_that_is_gone_is_made_again(photos, tmp_path):
    out = tmp_path / "packed"
    run(photos, out, "--images-per-tar", 5)
    before = (out / "packed-000001.tar").read_bytes()
    (out / "packed-000001.tar").unlink()
    assert "\n1 tar made of 5 images" in run(photos, out, "--images-per-tar", 5).stdout
    assert (out / "packed-000001.tar").read_bytes() == before


def test_packing_imports_neither_torch_nor_webdataset(photos, tmp_path):
    ((code, *_),), modules = call_alone(["pack_images", photos, tmp_path / "out", "--workers", 0])
    assert (code, modules & {"torch", "webdataset", "pyarrow"}) == (0, set())
