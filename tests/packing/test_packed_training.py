"""From a folder of images to a student, and the public tars of ImageNet as they are."""

import json

import pytest
from caches import TEACHER, extract
from calls import call
from packing_sources import CLASS_NAMES, images, write_folder
from tars import image, source_tar, write_tar
from training.training_runs import train

from pipeline.cache.join import read_joined
from pipeline.cache.reader import Cache
from pipeline.errors import ConfigError
from pipeline.evaluation.choice import Choice
from pipeline.evaluation.images import open_images
from stages.extract_teacher import extract_teacher
from stages.pack_images import pack_images

VIEW = ("--image-size", "64", "--patch-size", "16", "--levels", "3", "--batch-size", "8", "--workers", "0")


def labels_of(cache):
    """{key: label} of all rows of a cache."""
    found = {}
    for commit in cache.commits():
        chunk = read_joined(cache, commit, 0, [])
        found |= dict(zip(chunk.keys, chunk.labels.tolist(), strict=True))
    return found


def test_a_folder_becomes_a_student(tmp_path):
    folder, packed, path = write_folder(tmp_path / "photos", 24), tmp_path / "packed", tmp_path / "a.cache"
    call(pack_images, folder, packed, "--images-per-tar", 12, "--workers", 0, code=0)
    call(extract_teacher, packed, "--cache", path, "--teacher", TEACHER, *VIEW, "--device", "cpu", code=0)
    assert labels_of(Cache(path)) == {
        name.partition("/")[2].removesuffix(".jpg"): CLASS_NAMES.index(name.partition("/")[0])
        for name in images(24)
    }
    assert "6 of 6 steps done" in train(path, tmp_path / "run").stdout
    learnt, test = Choice(tmp_path, shards=[str(packed)], test_shards=[str(folder)]).images
    assert learnt.class_names == test.class_names == CLASS_NAMES


def test_packed_test_images_must_have_the_numbers_of_those_to_learn_from(tmp_path):
    for name, classes in {"learn": ("ant", "bee", "cow"), "some": ("bee", "cow")}.items():
        for number, one in enumerate(classes):
            (tmp_path / name / one).mkdir(parents=True)
            (tmp_path / name / one / f"{name}.jpg").write_bytes(image(number))
    call(pack_images, tmp_path / "learn", tmp_path / "train", "--workers", 0, code=0)
    call(pack_images, tmp_path / "some", tmp_path / "odd", "--workers", 0, code=0)
    classes = tmp_path / "train/classes.json"
    call(pack_images, tmp_path / "some", tmp_path / "val", "--workers", 0, "--classes", classes, code=0)

    def of(learn, test):
        return Choice(tmp_path, shards=[str(tmp_path / learn)], test_shards=[str(tmp_path / test)]).images

    for learn in ("train", "train/train-*.tar", "learn"):
        with pytest.raises(
            ConfigError, match=r"class 0 is 'ant' in the images to learn from and 'bee' in .*odd"
        ):
            of(learn, "odd/odd-000000.tar")
        for test in ("val", "some"):
            found = of(learn, test)[1]
            assert sorted(one.label for one in found.images) == [1, 2]
            assert found.class_names == ("ant", "bee", "cow")
    both = [str(tmp_path / "train"), str(tmp_path / "odd")]
    with pytest.raises(ConfigError, match=r"class 0 is 'ant' in '.*train' and 'bee' in '.*odd'"):
        open_images(both, tmp_path)


PUBLIC = {  # extensions of the members of a sample, and which of them says the class
    "cls": lambda number: {"cls": str(number)},
    "cls and json": lambda number: {"cls": str(number), "json": json.dumps({"label": 9, "width": 500})},
    "json": lambda number: {"json": json.dumps({"filename": "a.JPEG", "label": number, "width": 500})},
}


def test_public_tars_of_imagenet_are_read_as_they_are(tmp_path):
    members, wanted = {}, {}
    for number, form in enumerate((*PUBLIC, *PUBLIC)):
        key = f"n0144/n0144_{number}"
        wanted[key] = number
        members[f"{key}.jpg"] = image(number)
        members |= {f"{key}.{extension}": text.encode() for extension, text in PUBLIC[form](number).items()}
    tar = write_tar(tmp_path / "imagenet1k-train-0000.tar", {}, members=members)
    extract(tmp_path / "a.cache", [source_tar(tar)], views=1)
    assert labels_of(Cache(tmp_path / "a.cache")) == wanted
    assert {one.key: one.label for one in open_images([str(tar)], tmp_path).images} == wanted


def test_notes_without_a_class_number_are_no_label(tmp_path):
    notes = ["no json", "[]", '{"label": "dog"}', '{"label": -1}', '{"label": true}', "{}"]
    members = {}
    for number, text in enumerate(notes):
        members |= {f"{number}.jpg": image(number), f"{number}.json": text.encode()}
    tar = write_tar(tmp_path / "a.tar", {}, members=members)
    found = open_images([str(tar)], tmp_path).images
    assert [(one.label, one.label_fault) for one in found] == [(None, "has no .cls member")] * len(notes)
    extract(tmp_path / "a.cache", [source_tar(tar)], views=1)
    assert set(labels_of(Cache(tmp_path / "a.cache")).values()) == {-1}
