"""Images by their place: tars against tarfile, folders of classes, ADE20K's and COCO's forms, and damage."""

import json
import os
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from tars import image, write_tar
from torchvision.transforms import v2

from pipeline.errors import ConfigError, SourceError
from pipeline.evaluation import choice
from pipeline.evaluation.crops import CropDataset, LeftOut, centre_crop, load, load_views, random_crop
from pipeline.evaluation.images import MASK, Place, folder_images, open_images

IMAGES = {f"a/{n}": image(n) for n in range(6)}


@pytest.fixture
def tar(tmp_path):
    members = {"a/5.seg.png": b"mask", "a/5.json": b"{}", "a/5.TXT": b"words", "a/5.npy": b"other"}
    return write_tar(tmp_path / "some.tar", IMAGES, {"a/0": 3, "a/2": 0, "a/3": "dog"}, members)


def opened(*specs, **options):
    return open_images([str(spec) for spec in specs], specs[0].parent, **options)


def test_a_tar_is_indexed_as_tarfile_reads_it(tar):
    found = opened(tar)
    with tarfile.open(tar) as whole:
        contents = {member.name: whole.extractfile(member).read() for member in whole}
    assert [(one.key, one.source, one.name) for one in found.images] == [
        (key, "some.tar", f"some.tar/{key}") for key in IMAGES
    ]
    assert [one.image.read() for one in found.images] == [contents[f"{key}.jpg"] for key in IMAGES]
    beside = found.images[5].members
    assert {name: place.read() for name, place in beside.items()} == {
        "seg.png": b"mask",
        "json": b"{}",
        "txt": b"words",
    }
    assert (found.kind, found.address, found.class_names) == ("tars", str(tar), ())


def test_a_label_that_is_missing_or_wrong_has_a_reason(tar):
    images = opened(tar).images
    assert [one.label for one in images] == [3, None, 0, None, None, None]
    assert images[1].label_fault == "has no .cls member"
    assert images[3].label_fault.startswith("has the label 'dog', which is not a whole number")
    left_out = LeftOut()
    (batch,) = load_views(images, 32, 4, 0, left_out)
    assert batch.names == [("some.tar", "a/0", 3), ("some.tar", "a/2", 0)]
    assert (batch.labels, batch.pixels.shape) == ([3, 0], (2, 32, 32, 3))
    assert (left_out.counts, left_out.first) == (
        {"unlabelled": 4},
        {"unlabelled": "some.tar/a/1 has no .cls member"},
    )


def test_several_tars_keep_their_order_and_a_subset_its_own(tar, tmp_path):
    other = write_tar(tmp_path / "b.tar", {"z": image(8)})
    found = opened(other, tar)
    assert [one.source for one in found.images] == ["b.tar"] + ["some.tar"] * 6
    assert [one.key for one in found.subset([3, 0]).images] == ["a/2", "z"]
    assert found.digest != found.subset([3, 0]).digest != found.subset([0, 3]).digest
    assert opened(other, tar).digest == found.digest


def damaged(tar, place, data):
    content = bytearray(tar.read_bytes())
    content[place : place + len(data)] = data
    tar.write_bytes(bytes(content))


@pytest.mark.parametrize("offset", [0, 100, 148, 156], ids=["name", "mode", "checksum", "kind"])
def test_a_damaged_header_is_not_taken_for_the_end(tar, offset):
    place = opened(tar).images[2].image.offset - 512
    damaged(tar, place + offset, b"\xff" * 8)
    with pytest.raises(SourceError, match=f"some.tar' continues after byte {place}, where its reader ends"):
        opened(tar)


def test_a_cut_tar_is_refused_wherever_that_is(tar):
    whole, third = tar.read_bytes(), opened(tar).images[3].image
    ends = (third.offset - 512, third.offset + 10, third.offset + third.size)
    for size in (*ends, whole.rstrip(b"\0").__len__() + 600):
        tar.write_bytes(whole[:size])
        with pytest.raises(SourceError, match=r"some.tar' .*: make the tar again or leave it out"):
            opened(tar)


def test_an_empty_file_and_a_compressed_tar_are_refused(tar):
    for data in (b"", b"\x1f\x8b" + bytes(3000)):
        tar.write_bytes(data)
        with pytest.raises((SourceError, ConfigError), match=r"some\.tar"):
            opened(tar)


def test_a_key_in_two_places_or_a_link_is_refused(tmp_path):
    twice = write_tar(tmp_path / "a.tar", {"a": image(0), "b": image(1)}, members={"a.json": b"{}"})
    with pytest.raises(SourceError, match=r"holds 'a\.json' or its key twice"):
        opened(twice)
    with tarfile.open(tmp_path / "b.tar", "w") as made:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "b.jpg"
        made.addfile(link)
    with pytest.raises(SourceError, match=r"holds 'a\.jpg', which is a link"):
        opened(tmp_path / "b.tar")


def test_an_image_that_is_damaged_is_left_out_with_its_name(tar):
    first = opened(tar).images[0].image
    damaged(tar, first.offset, bytes(first.size))
    left_out = LeftOut()
    (batch,) = load_views(opened(tar).images, 32, 4, 0, left_out)
    assert batch.names == [("some.tar", "a/2", 0)]
    assert left_out.counts["damaged"] == 1
    assert left_out.first["damaged"].startswith("some.tar/a/0 ")


def test_a_file_that_shrinks_or_goes_is_a_fault(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"12345")
    assert Place(str(file), 1, 3).read() == b"234"
    with pytest.raises(SourceError, match="has 2 of 3 bytes: the file was cut meanwhile"):
        Place(str(file), 3, 3).read()
    file.unlink()
    with pytest.raises(SourceError, match=r"cannot be read \(No such file"):
        Place(str(file), 0, 1).read()


def write_images(folder, names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image(number, kind="jpeg"))


def test_a_folder_has_a_class_for_each_subfolder(tmp_path):
    write_images(tmp_path / "set", ["dog/b.jpg", "dog/deep/a.JPEG", "cat/a.png", "loose.jpg"])
    (tmp_path / "set" / "cat" / "notes.txt").write_text("no image")
    found = opened(tmp_path / "set")
    assert [(one.key, one.label) for one in found.images] == [
        ("cat/a", 0),
        ("dog/b", 1),
        ("dog/deep/a", 1),
        ("loose", None),
    ]
    assert (found.class_names, found.kind) == (("cat", "dog"), "folder")
    assert found.images[3].label_fault == "is in no class folder"
    assert found.images[1].image.read() == image(0, kind="jpeg")
    (tmp_path / "set" / "none").mkdir()
    with pytest.raises(ConfigError, match="holds no images: give tars, or a folder of images"):
        folder_images(tmp_path / "set" / "none")


def test_linked_class_folders_are_followed_and_what_is_no_file_is_left_out(tmp_path):
    """A part of ImageNet is often a folder of links. A named pipe would be waited for without end."""
    write_images(tmp_path / "whole", ["cat/a.jpg", "dog/b.jpg"])
    write_images(tmp_path / "set", ["ant/c.jpg"])
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "whole" / "cat")
    os.mkfifo(tmp_path / "set" / "ant" / "pipe.jpg")
    (tmp_path / "set" / "ant" / "gone.jpg").symlink_to("nowhere")
    found = opened(tmp_path / "set")
    assert [(one.key, one.label) for one in found.images] == [
        ("ant/c", 0),
        ("ant/gone", 0),
        ("ant/pipe", 0),
        ("cat/a", 1),
    ]
    left_out = LeftOut()
    (batch,) = load_views(found.images, 32, 4, 0, left_out)
    assert ([key for _, key, _ in batch.names], left_out.counts["damaged"]) == (["ant/c", "cat/a"], 2)
    with pytest.raises(SourceError, match=r"cannot be read \(not a regular file\)"):
        found.images[2].image.read()


def test_folders_of_test_images_are_numbered_as_those_to_learn_from(tmp_path):
    """Numbered by its own names, `cat` would be class 0 of the test images, which is `ant` in training."""
    write_images(tmp_path / "train", ["ant/a.jpg", "cat/b.jpg"])
    write_images(tmp_path / "test", ["bee/a.jpg", "cat/b.jpg", ".hidden/c.jpg"])
    asked = choice.Choice(tmp_path, shards=[str(tmp_path / "train")], test_shards=[str(tmp_path / "test")])
    learnt, test = asked.images
    assert [(one.key, one.label) for one in learnt.images] == [("ant/a", 0), ("cat/b", 1)]
    assert [(one.key, one.label) for one in test.images] == [("bee/a", 2), ("cat/b", 1)]
    assert test.class_names == ("ant", "cat", "bee")


def test_images_with_a_dot_in_their_names_are_refused(tmp_path):
    tar = write_tar(tmp_path / "a.tar", {"frame.0001": image(0), "b": image(1)})
    with pytest.raises(SourceError, match=r"^tar 'a.tar' has no image of 'frame': .*'frame.0001.jpg'"):
        opened(tar)


def test_image_names_that_cannot_be_stored_are_refused(tmp_path):
    write_images(tmp_path / "set", ["a/x.jpg"])
    odd = os.fsdecode(b"caf\xe9.jpg")
    (tmp_path / "set" / "a" / "x.jpg").rename(tmp_path / "set" / "a" / odd)
    with pytest.raises(
        ConfigError, match=r"^image .*caf\\udce9.jpg' has a name that is not UTF-8: rename it"
    ):
        opened(tmp_path / "set")
    write_images(tmp_path / "caf\udce9", ["a/x.jpg"])
    with pytest.raises(ConfigError, match=r"^folder .*caf\\udce9' has a name that is not UTF-8: rename it"):
        opened(tmp_path / "caf\udce9")


def test_files_of_one_name_but_for_the_extension_have_their_own_keys(tmp_path):
    write_images(tmp_path / "set", ["a/1.jpg", "a/1.png", "a/2.jpg"])
    assert [one.key for one in opened(tmp_path / "set").images] == ["a/1.jpg", "a/1.png", "a/2"]


def test_masks_lie_beside_images_as_in_ade20k(tmp_path):
    write_images(tmp_path / "images" / "training", ["a.jpg", "b.jpg", "park/c.jpg"])
    (tmp_path / "annotations" / "training" / "park").mkdir(parents=True)
    for name in ("a", "park/c"):
        (tmp_path / "annotations" / "training" / f"{name}.png").write_bytes(name.encode())
    found = opened(tmp_path / "images" / "training")
    masks = {one.key: one.members[MASK].read() for one in found.images if MASK in one.members}
    assert masks == {"a": b"a", "park/c": b"park/c"}
    assert [one.label for one in found.images] == [None, None, None]
    assert found.class_names == ()


CAT = {"id": 3, "name": "cat"}
COCO = {
    "categories": [{"id": 7, "name": "dog"}, CAT],
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
    "annotations": [
        {"image_id": 1, "category_id": 7, "bbox": [1, 2, 30, 40], "area": 900.5, "iscrowd": 0,
         "segmentation": [[1, 2, 31, 2, 31, 42]]},
        {"image_id": 1, "category_id": 3, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 1},
    ],
}  # fmt: skip


def test_boxes_lie_beside_images_as_in_coco(tmp_path):
    write_images(tmp_path / "val", ["a.jpg", "b.jpg", "c.jpg"])
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(COCO))
    found = opened(tmp_path / "val")
    first, second, third = (one.annotations for one in found.images)
    assert first == {
        "boxes": [[1, 2, 31, 42], [0, 0, 5, 5]],
        "labels": [1, 0],
        "polygons": [[[1, 2, 31, 2, 31, 42]], None],
        "area": [900.5, 25],
        "iscrowd": [0, 1],
    }
    assert second == {"boxes": [], "labels": [], "polygons": [], "area": [], "iscrowd": []}
    assert third is None
    assert found.class_names == ("cat", "dog")


def test_file_names_of_coco_may_have_subfolders(tmp_path):
    write_images(tmp_path / "val", ["city/a.jpg", "park/a.jpg", "a.jpg"])
    (tmp_path / "annotations").mkdir()
    images = [{"id": 1, "file_name": "park/a.jpg"}, {"id": 2, "file_name": "a.jpg"}]
    text = "\ufeff" + json.dumps(COCO | {"images": images})  # as some editors begin a file
    (tmp_path / "annotations" / "instances_val.json").write_text(text, encoding="utf-8")
    notes = {
        one.key: one.annotations and one.annotations["labels"] for one in opened(tmp_path / "val").images
    }
    assert notes == {"a": [], "city/a": None, "park/a": [1, 0]}


@pytest.mark.parametrize(
    "content",
    [
        *("[1", "[]", json.dumps(COCO | {"annotations": [{"image_id": 9}]}), "[" * 60_000),
        json.dumps(COCO | {"categories": [{"id": 3}, {"id": 7}]}),
        *(
            json.dumps(COCO | {"categories": [CAT, {"id": 7, "name": name}]})
            for name in (5, "\ud800", "\x1b")
        ),
        json.dumps(COCO | {"categories": [CAT, {"id": 7, "name": "dog"}, {"id": 3, "name": "horse"}]}),
        json.dumps(COCO | {"annotations": [{"image_id": 1, "bbox": [0.5, 0, 10**400, 1]}]}),
    ],
    ids=["cut", "list", "image", "nested", "no names", "number", "surrogate", "escape", "two", "huge"],
)
def test_a_file_that_is_not_cocos_is_refused(tmp_path, content):
    write_images(tmp_path / "val", ["a.jpg"])
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val.json").write_text(content)
    with pytest.raises(ConfigError, match=r"instances_val.json' is not in COCO's form \("):
        opened(tmp_path / "val")


def test_class_names_are_a_list_of_objects_or_lines(tmp_path):
    for name, text in (
        ("a.json", '["cat", "dog"]'),
        ("b.json", '[{"name": "cat", "id": 1}, {"name": "dog"}]'),
        ("c.txt", "cat\ndog\n"),
    ):
        (tmp_path / name).write_text(text)
        assert choice._class_names(tmp_path / name) == ("cat", "dog")
    for text, part in (
        ("{}", "is not a list of names"),
        ("[", "cannot be read"),
        ("[" * 60_000, "cannot be"),
    ):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ConfigError, match=f"--class-names .*a.json' {part}"):
            choice._class_names(tmp_path / "a.json")


def test_a_centre_crop_is_that_of_torchvision():
    drawn = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8))
    by_hand = v2.functional.resize(drawn, 73, v2.InterpolationMode.BICUBIC, antialias=True)
    by_hand = v2.functional.center_crop(by_hand, [64, 64])
    assert np.array_equal(np.asarray(centre_crop(64)(drawn)), np.asarray(by_hand))


@pytest.mark.parametrize("workers", [0, 2])
def test_random_crops_depend_on_seed_epoch_and_image_only(tar, workers):
    images = opened(tar).images
    items = [(0, 1), (0, 2), (1, 1)]

    def crops(seed, batches, count=0):
        dataset = CropDataset(images, random_crop(32), seed)
        return [pixels for batch in load(dataset, batches, count) for _, pixels, _ in batch]

    state = torch.random.get_rng_state()
    expected = crops(5, [items])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(expected[0], expected[2])
    assert not torch.equal(expected[0], crops(6, [items])[0])
    found = crops(5, [items[2:], items[:2]], workers)
    assert all(map(torch.equal, found, [expected[2], *expected[:2]]))
