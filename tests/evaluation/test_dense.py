"""Images, masks and boxes move together, windows cover an image, and scores agree with scikit-learn."""

import io

import numpy as np
import pytest
import torch
from networks import png
from PIL import Image
from sklearn.metrics import jaccard_score
from torchvision import tv_tensors
from torchvision.transforms import v2

from pipeline.evaluation.segmentation.confusion import Confusion, class_iou, mask_intervals, mask_metrics
from pipeline.evaluation.segmentation.dense import (
    VOID,
    BalancedCrop,
    DenseDataset,
    UnusableImageError,
    decode_mask,
    training_transform,
)
from pipeline.evaluation.segmentation.sliding import best_classes, slide, window_starts


def one_object(height, width, top, left, bottom, right):
    """A white object of class 3 with its box on black."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    mask = torch.zeros(height, width, dtype=torch.uint8)
    image[:, top:bottom, left:right] = 255
    mask[top:bottom, left:right] = 3
    boxes = torch.tensor([[left, top, right, bottom]])
    return {
        "image": tv_tensors.Image(image),
        "mask": tv_tensors.Mask(mask),
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
    }


@pytest.mark.parametrize("seed", range(6))
def test_flip_scale_and_crop_move_image_mask_and_box_together(seed):
    torch.manual_seed(seed)
    transform = training_transform(48, (40, 48), (0.75, 1.5), flip=True, distort=False)
    moved = transform(one_object(60, 80, 22, 30, 40, 54))
    mask, white = moved["mask"] == 3, moved["image"][0] > 127
    assert moved["image"].shape == (3, 40, 48)
    assert mask.sum() > 20
    assert (mask != white).sum() <= 0.15 * mask.sum() + 8  # the edges: nearest against bilinear
    left, top, right, bottom = moved["boxes"].clamp(min=0)[0].tolist()
    rows, columns = torch.nonzero(mask, as_tuple=True)
    found = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
    expected = [left, top, min(right, 48), min(bottom, 40)]
    assert np.abs(np.subtract(found, expected)).max() <= 1.5


def test_a_small_image_is_padded_by_black_and_void():
    moved = BalancedCrop((40, 48))(one_object(20, 30, 5, 5, 15, 15))
    outside = moved["mask"] == VOID
    assert int((~outside).sum()) == 20 * 30
    assert int(moved["image"][:, outside].sum()) == 0
    assert moved["image"].shape[1:] == moved["mask"].shape == (40, 48)


def test_a_crop_avoids_one_class_over_three_quarters():
    torch.manual_seed(0)
    sample = one_object(64, 512, 0, 0, 64, 128)  # an edge that few crops of 64 x 64 see
    plain, balanced = v2.RandomCrop(64), BalancedCrop((64, 64))

    def mixed(crop):
        shares = [float((crop(sample)["mask"] == 3).float().mean()) for _ in range(60)]
        return sum(0.25 < share < 0.75 for share in shares)

    assert mixed(plain) < 10
    assert mixed(balanced) > 2 * mixed(plain) + 10


def test_draws_depend_on_seed_epoch_and_index_only():
    def dataset(seed):
        transform = training_transform(32, (24, 24), (0.5, 2.0), flip=True, distort=True)
        return DenseDataset([None] * 3, lambda _: one_object(40, 50, 4, 4, 30, 30), transform, seed)

    first = dataset(0)[(1, 2)][1]["image"]
    torch.rand(7)
    assert dataset(0)[(1, 2)][1]["image"].equal(first)
    assert not dataset(0)[(2, 2)][1]["image"].equal(first)
    assert not dataset(1)[(1, 2)][1]["image"].equal(first)


def test_a_mask_is_read_as_it_is_stored():
    values = np.array([[0, 1, 255], [2, 3, 4]], np.uint8)
    assert decode_mask(png(values), (2, 3)).tolist() == values.tolist()
    palette = Image.fromarray(values)
    palette = palette.convert("P")
    palette.putdata(values.flatten().tolist())
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    assert decode_mask(buffer.getvalue(), (2, 3)).tolist() == values.tolist()
    assert decode_mask(png(values.astype(np.uint16)), (2, 3)).tolist() == values.tolist()


def tiff(values):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "kind", "reason"),
    [
        (png(np.zeros((3, 2), np.uint8)), "mask of another size", "is 3 x 2 pixels, but its mask 2 x 3"),
        (png(np.zeros((2, 3, 3), np.uint8)), "mask of colours", "has a mask of mode RGB: one channel"),
        (png(np.full((2, 3), 300, np.uint16)), "mask of other values", "has the mask value 300: 0 to 255"),
        (png(np.zeros((2, 3), np.uint8))[:41], "mask damaged", "has a mask that cannot be decoded"),
        (
            tiff(np.array([[-1, 0, 0], [0, 0, 1]], np.int32)),
            "mask of other values",
            "has the mask value -1: 0",
        ),
        (b"no mask", "mask damaged", r"has a mask that cannot be decoded \(no image of a known format\)$"),
    ],
    ids=["size", "colours", "values", "cut", "negative", "text"],
)
def test_a_mask_that_does_not_fit_gives_a_reason(data, kind, reason):
    with pytest.raises(UnusableImageError, match=reason) as found:
        decode_mask(data, (2, 3))
    assert found.value.kind == kind


@pytest.mark.parametrize(
    ("length", "window", "stride", "starts"),
    [
        (512, 512, 341, [0]),
        (683, 512, 341, [0, 171]),
        (100, 512, 341, [0]),
        (1200, 512, 341, [0, 341, 682, 688]),
    ],
)
def test_windows_cover_a_side_and_end_with_it(length, window, stride, starts):
    assert window_starts(length, window, stride) == starts


def of_colours(pixels):
    """A network that knows nothing of its surroundings: four logits of each pixel's colours."""
    weights = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.3, 0.3, 0.3]])
    return (pixels.float() @ weights.T).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [(24, 32), (40, 61), (10, 20)])
def test_windows_of_a_local_network_equal_the_whole_image(size):
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    cpu = torch.device("cpu")
    found, again = slide(of_colours, [image, image], (24, 32), (16, 20), 3, cpu)
    whole = of_colours(image.permute(1, 2, 0)[None])[0]
    assert found.shape == whole.shape
    assert torch.allclose(found, whole, atol=1e-3)
    assert found.equal(again)


def test_the_best_class_does_not_depend_on_parts_of_the_classes():
    logits = torch.randn(37, 5, 6)
    whole = torch.nn.functional.interpolate(logits[None], (20, 31), mode="bilinear")[0].argmax(0)
    assert best_classes(logits, (20, 31)).equal(whole)


def test_miou_equals_macro_jaccard_of_scikit_learn():
    rng = np.random.default_rng(0)
    confusion, truths, found = Confusion(9), [], []
    for _ in range(5):
        truth = rng.choice(
            [0, 1, 2, 3, 5, VOID], (13, 17)
        )  # classes 4 and 8 are nowhere, 6 and 7 only predicted
        predicted = np.where(rng.random(truth.shape) < 0.5, truth % 8, rng.choice([0, 1, 6], truth.shape))
        confusion.add(torch.from_numpy(truth), torch.from_numpy(predicted))
        truths.append(truth[truth != VOID])
        found.append(predicted[truth != VOID])
    truth, predicted = np.concatenate(truths), np.concatenate(found)
    metrics = mask_metrics(confusion.images.sum(0))
    assert float(metrics["mIoU"]) == pytest.approx(jaccard_score(truth, predicted, average="macro"))
    assert confusion.miou == float(metrics["mIoU"])
    assert float(metrics["pixel accuracy"]) == pytest.approx((truth == predicted).mean())
    iou = class_iou(confusion.images.sum(0))
    assert iou.isnan().nonzero()[:, 0].tolist() == sorted({*range(9)} - {*truth, *predicted})
    recalls = [(predicted[truth == one] == one).mean() for one in np.unique(truth)]
    assert float(metrics["mean class accuracy"]) == pytest.approx(np.mean(recalls))


def test_intervals_hold_the_score_and_narrow_with_images():
    generator = torch.Generator().manual_seed(0)
    right = torch.randint(30, 60, (200, 2), generator=generator)
    images = torch.stack([right, torch.full_like(right, 100), torch.full_like(right, 100)], dim=1)
    few, many = mask_intervals(images[:10]), mask_intervals(images)
    for name, value in mask_metrics(images.sum(0)).items():
        low, high = many[name]
        assert low < float(value) < high
        assert high - low < few[name][1] - few[name][0]
