"""Notes of objects and their faults, and that image, boxes and masks move together."""

import io
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from squares import COLOURS, squares, tar_of
from torchvision import tv_tensors

from pipeline.errors import SourceError
from pipeline.evaluation.crops import LeftOut
from pipeline.evaluation.detection.data import read_notes, read_objects, size_of, survey
from pipeline.evaluation.detection.regions import decode_regions, encode_region
from pipeline.evaluation.detection.views import JitteredSquare, WholeSquare, read_detection
from pipeline.evaluation.images import open_images
from pipeline.evaluation.segmentation.dense import DenseDataset

SIZE = (48, 64)
FILL = (120, 120, 120)
RING = [2, 2, 12, 2, 12, 22, 2, 22]


def read(**notes):
    """Return the objects of notes about an image of 64 x 48 pixels with two classes, and their faults."""
    faults = LeftOut()
    return read_objects("a.tar/x", notes, SIZE, 2, faults), faults


def pixels_and_objects(number):
    data, notes = squares(number)
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).permute(2, 0, 1)
    return tv_tensors.Image(pixels), read_objects("x", notes, SIZE, 2, LeftOut())


def seen(view, pixels, objects):
    return view({"image": pixels, "objects": objects})


def test_boxes_are_cut_at_the_edge_and_counted():
    objects, faults = read(boxes=[[-5, 3, 70, 20], [0, 0, 64.3, 48]], labels=[1, 0])
    assert objects.boxes.tolist() == [[0, 3, 64, 20], [0, 0, 64, 48]]
    assert faults.counts == {"clipped boxes": 1}
    assert faults.first["clipped boxes"] == "a.tar/x of 64 x 48 pixels has the box [-5, 3, 70, 20]"


@pytest.mark.parametrize(
    ("box", "label", "kind", "reason"),
    [
        ([5, 5, 5, 9], 0, "empty boxes", "has the box [5, 5, 5, 9]"),
        ([9, 5, 5, 9], 0, "empty boxes", "has the box [9, 5, 5, 9]"),
        ([70, 5, 90, 9], 0, "empty boxes", "has the box [70, 5, 90, 9]"),
        ([1, 2, 3], 0, "empty boxes", "has the box [1, 2, 3]"),
        ([1, 2, float("nan"), 4], 0, "empty boxes", "has the box [1, 2, nan, 4]"),
        ("1 2 3 4", 0, "empty boxes", "has the box '1 2 3 4'"),
        ("\x1b[31m" * 9_000, 0, "empty boxes", r"has the box '\x1b[31m\x1b...b[31m\x1b[31m'"),
        (["1", "2", "3", "4"], 0, "empty boxes", "has the box ['1', '2', '3', '4']"),
        ([10**400, 2, 3, 4], 0, "empty boxes", f"has the box [1{'0' * 17}...{'0' * 19}, 2, 3, 4]"),
        ([1, 2, 9, 9], 2, "boxes of unknown classes", "has the label 2"),
        ([1, 2, 9, 9], -1, "boxes of unknown classes", "has the label -1"),
        ([1, 2, 9, 9], "cat", "boxes of unknown classes", "has the label 'cat'"),
    ],
)
def test_a_box_that_cannot_be_used_is_left_out_and_counted(box, label, kind, reason):
    objects, faults = read(
        boxes=[box, [1, 1, 9, 9]], labels=[label, 1], polygons=[None, [RING]], area=[7, 8], iscrowd=[0, 1]
    )
    assert objects.boxes.tolist() == [[1, 1, 9, 9]]
    assert (objects.labels.tolist(), objects.areas, objects.crowd.tolist()) == ([1], [8.0], [True])
    assert objects.regions[0] is not None
    assert (dict(faults.counts), faults.first) == ({kind: 1}, {kind: f"a.tar/x {reason}"})


def test_polygons_in_any_order_belong_to_the_box_that_fits():
    boxes = [[30, 10, 50, 40], [2, 2, 12, 22], [2, 2, 12, 22]]
    second = [30, 10, 50, 10, 50, 40]
    polygons = [{"label": 1, "polygon": RING}, {"label": 0, "polygon": second}, {"label": 0, "polygon": [1]}]
    objects, _ = read(boxes=boxes, labels=[0, 1, 0], polygons=polygons)
    assert [region is not None for region in objects.regions] == [True, True, False]
    masks = decode_regions(objects.regions[:2], SIZE)
    assert masks[1, 2:22, 2:12].all()
    assert masks[1].sum() == 200
    assert objects.areas == [float(masks[0].sum()), 200.0, 200.0]


@pytest.mark.parametrize(
    "region",
    [
        *({"size": [48, 64], "counts": counts} for counts in ([5, 2], [-1, 9], ["a"], [1.5], {"a": 1}, 5)),
        *({"size": [48, 64], "counts": counts} for counts in ("zz~~", "\u221a", "\ud800")),
        {"size": 5, "counts": [1]},
        *([[1, 1, value, 9, 9, 9]] for value in (1e9, -1e9, 1e300, 10**400, float("nan"), "5")),
    ],
)
def test_a_region_that_cannot_be_drawn_is_counted(region):
    objects, faults = read(boxes=[[2, 2, 12, 22]], labels=[0], polygons=[region])
    assert objects.regions == [None]
    assert dict(faults.counts) == {"polygons that cannot be drawn": 1}


@pytest.mark.parametrize("area", [float("nan"), float("inf"), 10**400, -1, "9", None])
def test_an_area_that_is_none_is_counted_in_pixels(area):
    objects, _ = read(boxes=[[2, 2, 12, 22]], labels=[0], area=[area])
    assert objects.areas == [200.0]


def test_a_run_length_encoding_is_read_as_numbers_or_packed():
    counts = [2 * 48 + 2, 20, 48 * 61 + 26]
    packed = encode_region({"size": [48, 64], "counts": counts}, SIZE)["counts"].decode()
    for form in (counts, packed):
        objects, faults = read(
            boxes=[[2, 2, 3, 22]], labels=[0], polygons=[{"size": [48, 64], "counts": form}]
        )
        assert (objects.areas, faults.counts) == ([20.0], {})


def test_polygons_that_fit_no_boxes_are_counted():
    _, faults = read(boxes=[[2, 2, 12, 22]], labels=[0], polygons=[[RING], [RING]])
    assert faults.first == {"sets of polygons that fit no boxes": "a.tar/x has 2 for 1 boxes"}
    objects, faults = read(boxes=[[2, 2, 12, 22]], labels=[0], polygons=[[[1, 2, 3, 4]]])
    assert objects.regions == [None]
    assert dict(faults.counts) == {"polygons that cannot be drawn": 1}


def test_a_survey_counts_images_and_objects(tmp_path):
    data, notes = squares(1)
    samples = {
        "a": (data, notes | {"iscrowd": [0, 1], "area": [9, None]}),
        "empty": (data, {"boxes": [], "labels": []}),
        "none": (data, None),
        "broken": (data, b"{"),
        "nested": (data, b"[" * 60_000),
        "uneven": (data, {"boxes": [[1, 2, 3, 4]], "labels": []}),
        "damaged": (b"no image", notes),
    }
    found = survey(open_images([str(tar_of(tmp_path / "a.tar", samples))], tmp_path))
    assert [one.key for one in found.images] == ["a", "empty"]
    assert (found.objects, found.crowds, found.masked) == (1, 1, 1)
    assert (found.negatives, found.without_area, found.classes) == (1, 1, {0: 1})
    assert dict(found.left_out.counts) == {"unlabelled": 4, "damaged": 1}
    assert found.left_out.first["unlabelled"] == (
        "a.tar/none has no .json member, nor an entry in the annotations"
    )
    assert found.left_out.first["damaged"].startswith("a.tar/damaged cannot be decoded")


@pytest.mark.parametrize("change", [{"area": [5, 9]}, {"iscrowd": [0, 1]}, {"polygons": []}])
def test_another_truth_has_another_digest(change, tmp_path):
    data, notes = squares(1)
    tars = [
        tar_of(tmp_path / f"{name}.tar", {"x": (data, notes | part)})
        for name, part in (("a", {}), ("b", {}), ("c", change))
    ]
    first, same, other = (survey(open_images([str(tar)], tmp_path)).digest for tar in tars)
    assert first == same
    assert first != other


def test_a_header_that_is_long_gives_the_size_all_the_same(tmp_path):
    image = Image.new("RGB", (40, 30))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", comment=b"x" * 60_000, icc_profile=b"y" * 100_000)
    tar = tar_of(tmp_path / "a.tar", {"long": (buffer.getvalue(), None)})
    (one,) = open_images([str(tar)], tmp_path).images
    assert size_of(one) == (30, 40)
    with pytest.raises(SourceError, match=r"has no \.json member"):
        read_notes(one)


def coloured(image, colour):
    """Return where an image (3, S, S) has a colour (S, S)."""
    distance = (image.float() - torch.tensor(colour).view(3, 1, 1)).abs().amax(0)
    return distance < 60


@pytest.mark.parametrize("masks", [True, False])
def test_flip_scale_and_crop_move_image_boxes_and_masks_together(masks):
    view = JitteredSquare(64, (0.8, 2.0), FILL, masks=masks)
    flipped = missing = 0
    for number in range(25):
        torch.manual_seed(number)
        sample = seen(view, *pixels_and_objects(number))
        assert sample["image"].shape == (3, 64, 64)
        for index, label in enumerate(sample["labels"].tolist()):
            there = coloured(sample["image"], COLOURS[label])
            rows, columns = (there.any(axis).nonzero()[:, 0] for axis in (1, 0))
            if not len(rows) or min(len(rows), len(columns)) < 4:
                continue
            edges = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert (sample["boxes"][index] - edges).abs().max() <= 2
            if masks:
                assert (sample["masks"][index].bool() ^ there).float().mean() < 0.06
        if sample["labels"].tolist() == [0, 1]:
            flipped += bool(sample["boxes"][0, 0] > sample["boxes"][1, 0])
        missing += len(sample["labels"]) < 2
    assert 0 < flipped < 25
    assert missing > 0


def test_crowds_are_not_trained_on_and_no_objects_are_fine():
    pixels, objects = pixels_and_objects(3)
    view = JitteredSquare(64, (1.0, 1.0), FILL, masks=True)
    objects.crowd[0] = True
    assert seen(view, pixels, objects)["labels"].tolist() == [1]
    objects.crowd[1] = True
    sample = seen(view, pixels, objects)
    assert (sample["boxes"].shape, sample["masks"].shape) == ((0, 4), (0, 64, 64))


def test_a_long_image_at_the_smallest_scale_has_a_pixel_left():
    pixels = tv_tensors.Image(torch.full((3, 4, 400), 200, dtype=torch.uint8))
    objects = read_objects("x", {"boxes": [[0, 0, 400, 4]], "labels": [0]}, (4, 400), 1, LeftOut())
    jittered = seen(JitteredSquare(64, (0.1, 0.1), FILL, masks=False), pixels, objects)
    assert jittered["image"].shape == (3, 64, 64)
    assert seen(WholeSquare(64, FILL), pixels, objects).inside == (1, 64)


def test_a_test_image_fills_the_longer_side_of_its_square():
    pixels, objects = pixels_and_objects(3)
    square = seen(WholeSquare(128, FILL), pixels, objects)
    assert (square.pixels.shape, square.inside) == ((128, 128, 3), (96, 128))
    assert (square.pixels[96:] == 120).all()
    left, top, right, bottom = (2 * objects.boxes[1]).astype(int)
    assert coloured(
        square.pixels[top + 2 : bottom - 2, left + 2 : right - 2].permute(2, 0, 1), COLOURS[1]
    ).all()


def test_without_jitter_training_sees_what_tests_see():
    pixels, objects = pixels_and_objects(3)
    sample = seen(JitteredSquare(128, (1.0, 1.0), FILL, masks=True, flip=False), pixels, objects)
    assert torch.equal(sample["image"].permute(1, 2, 0), seen(WholeSquare(128, FILL), pixels, objects).pixels)
    assert sample["boxes"].tolist() == (2 * objects.boxes).tolist()


def test_draws_depend_on_epoch_and_image_alone(tmp_path):
    tar = tar_of(tmp_path / "a.tar", {str(number): squares(number) for number in range(2)})
    images = list(open_images([str(tar)], tmp_path).images)
    read = partial(read_detection, classes=2)
    dataset = DenseDataset(images, read, JitteredSquare(64, (0.5, 2.0), FILL, masks=True), seed=0)
    first = dataset[3, 1][1]
    torch.manual_seed(99)
    assert dataset[3, 0][1]["image"].shape == (3, 64, 64)
    again, other = dataset[3, 1][1], dataset[4, 1][1]
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], other["image"])
