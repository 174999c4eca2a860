"""Every command line of the documents runs in small, each in a folder that has what it needs."""

import contextlib
import json
import re
import shlex
import shutil

import numpy as np
import pytest
from evaluation.networks import png
from packing_sources import write_list, write_parquet, write_saved
from small_lines import CLIP, DINO, TINY, run_line, value
from tars import image, write_tar
from test_documents import ROOT, command_lines, without_torchrun

ELSEWHERE = {  # patterns of lines that do not run here, and why
    "^make ": "make would install the project and take minutes; the demo and the suite have their own tests",
    "^pip ": "needs a network",
    "^docker ": "needs Docker",
    r"^python -m stages\.bench": "measures for minutes: tests/benchmark/test_bench_command.py",
    "--engine ray": "needs a Ray cluster: tests/extraction/test_ray_engine.py",
    "s3://|https://|/fast/": "needs a store: tests/storage/test_sharing_document.py",
}
IN_ORDER = "docs/imagenet.md"  # test_imagenet_page.py runs its lines one after the other
LINES = [(page, line) for page, line in command_lines() if page not in (IN_ORDER, "docs/sharing.md")]
TO_RUN = [(page, line) for page, line in LINES if not any(re.search(kind, line) for kind in ELSEWHERE)]
OF_VIEWS = f"extract-teacher --views-from in1k.cache --teacher {DINO}"
EXTRACT = "extract-teacher 'train-{0..1}.tar' --views 4"
PREPARED = {  # inputs of lines, and the commands that make them
    "in1k.cache": f"{EXTRACT} --cache in1k.cache --teacher {CLIP}",
    "clip.cache": f"{EXTRACT} --cache clip.cache --teacher {CLIP}",
    "in1k-dinov2.cache": f"{OF_VIEWS} --cache in1k-dinov2.cache",
    "a.cache": f"{EXTRACT} --cache a.cache --teacher {CLIP}",
    "b.cache": f"{EXTRACT} --cache b.cache --teacher {CLIP} --encoding float16",
    "c.cache": f"{EXTRACT} --cache c.cache --teacher {CLIP} --encoding int4",
    "d.cache": f"{EXTRACT} --cache d.cache --teacher {CLIP} --keep 0.3",
    "caches/vit-b16": f"{EXTRACT} --cache caches/vit-b16 --teacher {CLIP}",
    "photographs": "pack-images imagenette/train photographs",
    "photographs-val": "pack-images imagenette/val photographs-val --classes photographs/classes.json",
    "photographs.cache": f"extract-teacher photographs --cache photographs.cache --teacher {TINY} --levels 5",
    "runs/b16": "train-student --cache in1k.cache --run runs/b16",
    "runs/b16-seed1": "train-student --cache in1k.cache --run runs/b16-seed1 --set train.seed=1",
    "runs/fd": "train-student --cache in1k.cache --run runs/fd --set objective.name=fd",
}
TARS = [
    "train-0000",
    "train-0001",
    "val-0000",
    "val-0001",
    "train",
    "val",
    "test",
    "small-train",
    "small-val",
]


def drawn(number):
    """Image `number` as a JPEG, its mask, and its box with a polygon."""
    mask = np.zeros((48, 64), np.uint8)
    mask[8:32, 8:40] = 1 + number % 2
    notes = {"boxes": [[8, 8, 40, 32]], "labels": [number % 2], "polygons": [[[8, 8, 40, 8, 40, 32, 8, 32]]]}
    return image(number, 64, 48, "jpeg"), png(mask), notes


def write_tars(folder):
    """Tars of twenty images of five classes, with masks, boxes and polygons."""
    for tar, name in enumerate([*TARS, "imagenet-r"]):
        members = {}
        for number in range(20 * tar, 20 * tar + 20):
            jpeg, mask, notes = drawn(number)
            members |= {f"{number}.jpg": jpeg, f"{number}.cls": str(number % 5).encode()}
            members |= {f"{number}.seg.png": mask, f"{number}.json": json.dumps(notes).encode()}
        write_tar(folder / f"{name}.tar", {}, members=members)


def write_dense(folder, notes_folder, names):
    """Images with masks as ADE20K has them, and with boxes as COCO has them."""
    for part, name in enumerate(names):
        found = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}],
        }
        (folder / name).mkdir(parents=True)
        (notes_folder / name).mkdir(parents=True)
        for number in range(100 * part, 100 * part + 8):
            jpeg, mask, notes = drawn(number)
            (folder / name / f"{number}.jpg").write_bytes(jpeg)
            (notes_folder / name / f"{number}.png").write_bytes(mask)
            size = {"width": 64, "height": 48}
            found["images"].append({"id": number, "file_name": f"{number}.jpg", **size})
            found["annotations"].append(
                {"id": number, "image_id": number, "category_id": notes["labels"][0] + 1, "iscrowd": 0}
                | {"bbox": [8, 8, 32, 24], "area": 768, "segmentation": notes["polygons"][0]}
            )
        (notes_folder / f"instances_{name}.json").write_text(json.dumps(found))


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """A folder with the images and lists that the documents name, and later what is prepared of them."""
    folder = tmp_path_factory.mktemp("pages")
    write_tars(folder)
    write_dense(folder / "images", folder / "annotations", ("training", "validation"))
    write_dense(folder / "coco", folder / "coco/annotations", ("train2017", "val2017"))
    for name, first in (
        ("ILSVRC2012/train", 0),
        ("ILSVRC2012/val", 500),
        ("photos", 0),
        ("flowers/train", 0),
        ("flowers/val", 500),
        ("imagenette/train", 0),
        ("imagenette/val", 500),
    ):
        for number in range(first, first + 20):
            path = folder / name / ("cat", "dog")[number % 2] / f"{number}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image(number, kind="jpeg"))
    listed = write_list(folder, names=("file", "animal"))
    listed.rename(folder / "photos.csv")
    write_parquet(folder / "imagenet-1k/data")
    write_saved(folder / "saved/train")
    (folder / "classes.txt").write_text("ant\nbee\ncow\ndog\nelk\n")
    (folder / "stages").symlink_to(ROOT / "stages")
    return folder


def names_of(line):
    """The prepared inputs that a line names and does not make itself."""
    words = shlex.split(line)
    words = words if "torchrun" not in words[0] else without_torchrun(words)
    places = {"extract-teacher": "--cache", "train-student": "--run", "pack-images": words[1]}
    before = places.get(words[0], "--out")  # the word before what the line makes
    made = value(words, before) if before in words and "--resume" not in words else ""
    named = {word.rpartition("=")[2].removesuffix("/classes.json") for word in words}
    needed = {"in1k.cache"} if any(name.startswith("runs/") for name in named) else set()
    return [name for name in PREPARED if name in named | needed and name != made]


def prepare(name, inputs):
    """Make a cache or a run in the folder of inputs, unless it is there."""
    if not (inputs / name).exists():
        for other in names_of(PREPARED[name]):
            prepare(other, inputs)
        with contextlib.chdir(inputs):
            run_line(PREPARED[name], inputs / "models")


@pytest.mark.faults  # too slow for every run
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", sorted({page for page, _ in TO_RUN}))
def test_the_lines_of_a_page_run(page, inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    given = [path.name for path in inputs.iterdir()]
    for number, line in enumerate(line for name, line in TO_RUN if name == page):
        here = tmp_path / str(number)
        here.mkdir()
        for name in names_of(line):
            prepare(name, inputs)
            shutil.copytree(inputs / name, here / name)
        for name in given:
            if name not in ("runs", "caches") and name not in PREPARED:
                (here / name).symlink_to(inputs / name)
        with contextlib.chdir(here):
            run_line(line, inputs / "models")


def test_each_kind_of_line_that_runs_elsewhere_is_in_the_documents():
    assert [kind for kind in ELSEWHERE if not any(re.search(kind, line) for _, line in LINES)] == []
    assert len(TO_RUN) > 60
