"""The detector: its pyramid and training, a tiny one that learns three images, and what it refuses."""

import json
import sys

import pytest
import torch
from networks import continued, named
from PIL import Image
from squares import squares, tar_of
from timm.models.vision_transformer import VisionTransformer

from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.evaluation.data import LabelledImages
from pipeline.evaluation.detection.detect import Detect
from pipeline.evaluation.detection.pyramid import HeadSizes, SimplePyramid
from pipeline.evaluation.detection.training import build_detector, parameter_groups
from pipeline.evaluation.fitting import stepwise
from pipeline.evaluation.images import open_images
from pipeline.evaluation.run import EVALUATIONS, run_evaluation
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.task import Task
from pipeline.report.scores import SubjectFacts

TINY = {"image_size": 64, "channels": 32, "hidden": 64, "convolutions": 1, "rois": 32, "plots": 1}
QUICK = TINY | {"steps": 2, "warmup": 1, "batch": 2, "resamples": 2, "plots": 0}
SIZES = HeadSizes(32, 64, 1, 32)


def tiny_subject(patch_size=16):
    """A ViT of random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = VisionTransformer(
            img_size=4 * patch_size, patch_size=patch_size, embed_dim=32, depth=2, num_heads=2, num_classes=0
        )
    facts = SubjectFacts(kind="model", name="tiny", weights="00" * 32)
    return Subject(facts, vit.eval(), patch_size)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A tar of three images of two squares."""
    folder = tmp_path_factory.mktemp("squares")
    return tar_of(folder / "squares.tar", {str(number): squares(number) for number in range(3)})


@pytest.fixture
def evaluated(tmp_path):
    def run(bank, test, subject=None, names=(), log=lambda _line: None, **options):
        sets = [LabelledImages(named(open_images([str(one)], tmp_path), names)) for one in (bank, test)]
        task = Task(subject or tiny_subject(), *sets, tmp_path / "features", tmp_path / "plots", log=log)
        (score,) = run_evaluation(Detect(**(QUICK | options)), task)
        return score

    return run


def test_the_pyramid_has_five_levels_of_strides_4_to_64():
    torch.manual_seed(0)
    pyramid, patches = SimplePyramid(32, 16), torch.randn(2, 32, 4, 8)
    levels = pyramid(patches)
    assert {name: tuple(level.shape) for name, level in levels.items()} == {
        "0": (2, 16, 16, 32),
        "1": (2, 16, 8, 16),
        "2": (2, 16, 4, 8),
        "3": (2, 16, 2, 4),
        "pool": (2, 16, 1, 2),
    }
    assert torch.equal(levels["pool"], levels["3"][:, :, ::2, ::2])
    assert {name for name, _ in pyramid.named_parameters() if name.endswith("conv.bias")} == set()


def test_a_frozen_encoder_is_not_trained_and_sees_the_last_block_unnormed():
    subject = tiny_subject()
    detector = build_detector(subject, 64, 2, masks=True, frozen=True, drop_path=0.1, sizes=SIZES).train()
    assert not detector.encoder.training
    assert detector.rpn.training
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    box = torch.tensor([[4.0, 4, 30, 30]])
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[0, 4:30, 4:30] = 1
    targets = [
        {"boxes": box, "labels": torch.tensor([1]), "masks": masks},
        {"boxes": box[:0], "labels": torch.zeros(0, dtype=torch.int64), "masks": masks[:0]},
    ]
    detector.losses(pixels, targets).backward()
    assert all(parameter.grad is None for parameter in detector.encoder.parameters())
    heads = torch.nn.ModuleList([detector.pyramid, detector.rpn, detector.heads])
    assert all(parameter.grad is not None for parameter in heads.parameters())
    with torch.no_grad():
        *_, last = detector.subject.hidden(pixels)
        maps = last[:, 1:].reshape(2, 4, 4, 32).permute(0, 3, 1, 2)
        expected = detector.pyramid(maps)["2"]
        assert torch.equal(detector._levels(pixels, [(64, 64)] * 2)[1]["2"], expected)


def test_layers_of_a_trained_encoder_learn_more_slowly_the_deeper_they_lie():
    detector = build_detector(tiny_subject(), 64, 2, masks=False, frozen=False, drop_path=0.1, sizes=SIZES)
    rates = {}
    for group in parameter_groups(detector, 1e-4, 0.1, 0.5):
        for parameter in group["params"]:
            rates[id(parameter)] = (group["lr"], group["weight_decay"])
    vit, heads = detector.encoder, detector.heads
    assert rates[id(vit.patch_embed.proj.weight)] == pytest.approx((1e-4 * 0.5**3, 0.1))
    assert rates[id(vit.pos_embed)] == pytest.approx((1e-4 * 0.5**3, 0))
    assert rates[id(vit.blocks[0].mlp.fc1.weight)] == pytest.approx((1e-4 * 0.5**2, 0.1))
    assert rates[id(vit.blocks[1].norm1.weight)] == pytest.approx((1e-4 * 0.5, 0))
    assert rates[id(heads.box_predictor.cls_score.weight)] == pytest.approx((1e-4, 0.1))
    assert rates[id(heads.box_predictor.cls_score.bias)] == pytest.approx((1e-4, 0))
    assert len(rates) == len(list(detector.parameters()))


def test_the_rate_rises_linearly_and_falls_twice():
    factor = stepwise(27, (8 / 9, 26 / 27), warmup=3)
    found = [factor(step) for step in range(27)]
    assert found == pytest.approx([0.001, 0.334, 0.667, *[1] * 21, 0.1, 0.1, 0.01])


@pytest.mark.faults  # too slow for every run
def test_a_frozen_tiny_model_learns_three_images_by_heart(three, evaluated):
    learnt = TINY | {"steps": 60, "warmup": 10, "batch": 3, "lr": 3e-3, "jitter": (1.0, 1.0)}
    score = evaluated(three, three, shared_keys="allow", names=("red", "blue"), **learnt)
    assert score.metrics["box AP50"] > 0.8
    assert score.metrics["mask AP50"] > 0.8
    assert list(score.metrics)[:3] == ["box AP", "box AP50", "box AP75"]
    assert set(score.per_class) == {"0", "1"}
    assert (score.chance, score.class_images, score.test.images) == (0, {"0": 3, "1": 3}, 3)
    assert score.details["AP of each class"][0]["class"] == "red"
    assert score.details["loss of each tenth of the steps"][-1] < 1.2
    assert "3 test images have the key of an image to learn from: this may measure memory" in score.notes
    assert "not ViTDet: all blocks attend to the whole image instead of windows" in score.notes[0]
    (plot,) = score.plots
    assert plot.caption.startswith("squares.tar/1: true objects 2, found ")


def test_plots_show_truth_beside_what_is_found(three, evaluated, tmp_path):
    score = evaluated(three, three, shared_keys="allow", plots=2)
    for plot in score.plots:
        with Image.open(tmp_path / "plots" / plot.file) as drawn:
            assert drawn.size == (320 + 8 + 320, 240)  # small images are enlarged
    assert len({plot.file for plot in score.plots}) == 2


def test_equal_commands_give_equal_numbers(three, evaluated):
    state = torch.get_rng_state()
    first = evaluated(three, three, shared_keys="allow")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    again = evaluated(three, three, shared_keys="allow")
    assert (again.metrics, again.intervals) == (first.metrics, first.intervals)
    assert again.details == first.details
    assert evaluated(three, three, shared_keys="allow", seed=1).details != first.details


@pytest.mark.parametrize("frozen", [True, False])
def test_a_training_that_is_killed_ends_with_the_same_numbers(evaluated, tmp_path, monkeypatch, frozen):
    data, notes = squares(7)
    samples = {"good": (data, notes), "other": squares(8), "cut": (data[:-60], notes)}
    tar = tar_of(tmp_path / "a.tar", samples)
    options = {"shared_keys": "allow", "frozen": frozen, "steps": 5, "resamples": 0}
    whole = evaluated(tar, tar, **options)
    again = continued(monkeypatch, lambda log: evaluated(tar, tar, log=log, **options), 4)
    assert (again.metrics, again.details) == (whole.metrics, whole.details)
    assert again.bank == whole.bank
    assert whole.bank.left_out == {"damaged": 1}
    assert not list((tmp_path / "plots").glob("*.state"))


def test_fine_tuning_leaves_the_subject_as_it_was(three, evaluated):
    subject = tiny_subject()
    before = {name: value.clone() for name, value in subject.vit.state_dict().items()}
    options = {"shared_keys": "allow", "lr": 1e-2, "steps": 3}
    tuned = evaluated(three, three, subject=subject, frozen=False, **options)
    assert all(torch.equal(before[name], value) for name, value in subject.vit.state_dict().items())
    frozen = evaluated(three, three, subject=subject, **options)
    assert (
        tuned.details["loss of each tenth of the steps"] != frozen.details["loss of each tenth of the steps"]
    )


def test_boxes_alone_are_enough(evaluated, tmp_path):
    samples = {str(number): squares(number) for number in range(2)}
    for _, notes in samples.values():
        del notes["polygons"]
    tar = tar_of(tmp_path / "boxes.tar", samples)
    score = evaluated(tar, tar, shared_keys="allow")
    assert "the images to learn from have no polygons: there is no mask head and no mask AP" in score.notes
    assert all(name.startswith("box") for name in score.metrics)
    assert (
        "4 test objects have no `area`: small, medium and large go by the pixels of their polygon, or of "
        "their box without one"
    ) in score.notes


def test_faults_of_the_data_are_told_and_nothing_is_left_out_silently(three, evaluated, tmp_path):
    data, notes = squares(7)
    samples = {
        "good": (data, notes),
        "negative": (data, {"boxes": [], "labels": []}),
        "cut": (data[:-60], notes),
        "none": (data, None),
        "strange": (
            data,
            {
                "boxes": [[-9, 0, 20, 20], [5, 5, 5, 9], [1, 1, 9, 9]],
                "labels": [0, 1, 7],
                "iscrowd": [1, 0, 0],
            },
        ),
    }
    tar = tar_of(tmp_path / "faulty.tar", samples)
    score = evaluated(tar, three, names=("red", "blue"), steps=4)
    assert score.bank.images == 3
    assert score.bank.left_out == {"unlabelled": 1, "damaged": 1}
    assert score.bank.first_reasons["unlabelled"].startswith("faulty.tar/none has no .json member")
    told = "\n".join(score.notes)
    for part in (
        "1 of the images to learn from have no objects: they are kept, and all found there is wrong",
        "1 clipped boxes of the images to learn from are cut at the edge of the image; the first: ",
        "1 empty boxes of the images to learn from are left out; the first: faulty.tar/strange has the ",
        "1 boxes of unknown classes of the images to learn from are left out; the first: faulty.tar/strange",
        "1 crowds are not learnt from",
    ):
        assert part in told


def test_a_folder_in_cocos_form_is_read(three, evaluated, tmp_path):
    annotations, images = [], []
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "annotations").mkdir()
    for number in range(4, 6):
        data, notes = squares(number)
        (tmp_path / "data" / "train" / f"{number}.png").write_bytes(data)
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 48})
        for label, (left, top, right, bottom) in enumerate(notes["boxes"]):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": (3, 9)[label], "iscrowd": 0,
                 "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top),
                 "segmentation": notes["polygons"][label]}
            )  # fmt: skip
    categories = [{"id": 9, "name": "blue"}, {"id": 3, "name": "red"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "data" / "annotations" / "instances_train.json").write_text(json.dumps(content))
    score = evaluated(tmp_path / "data" / "train", three)
    assert score.bank.class_names == ("red", "blue")
    assert (score.bank.images, score.bank.left_out) == (2, {})
    assert "mask AP" in score.metrics
    assert all("polygon" not in note for note in score.notes[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 72}, "image_size is 72: the pyramid needs a multiple of 64, .* image_size=64"),
        ({"steps": 5, "warmup": 5}, "warmup is 5 of 5 steps: give fewer"),
        ({"jitter": (2.0, 1.0)}, r"jitter is \[2.0, 1.0\]: give the least and the greatest scale"),
        ({}, "3 keys are in the data to learn from and in the test data"),
        (
            {"shared_keys": "exclude"},
            "has no boxes to learn from or to find .no image has any.: give KEY.json",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(three, evaluated, options, message):
    with pytest.raises(ConfigError, match=message):
        evaluated(three, three, **options)


def test_subjects_and_data_that_do_not_fit_are_refused(three, evaluated, tmp_path):
    with pytest.raises(
        ConfigError, match="patches have 12 pixels: torchvision's RoIAlign needs a power of 2"
    ):
        evaluated(three, three, subject=tiny_subject(12))
    tar = tar_of(tmp_path / "none.tar", {"x": (squares(8)[0], None)})
    with pytest.raises(
        ConfigError, match=r"none.tar has no boxes to learn from or to find \(the first reason"
    ):
        evaluated(tar, three)


def test_without_the_extra_the_remedy_is_named(three, evaluated, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core.mask", None)
    with pytest.raises(
        ConfigError,
        match=r"detect needs faster-coco-eval, which is not installed: pip install 'maskalign\[detection\]'",
    ):
        evaluated(three, three, image_size=72)


def test_options_come_from_the_command_line():
    detect = load_config(
        EVALUATIONS["detect"], None, ["frozen=false", "jitter=[0.5, 1.5]", "image_size=1024"]
    )
    assert (detect.frozen, detect.jitter, detect.image_size) == (False, (0.5, 1.5), 1024)
    assert [Detect(steps=steps).warmup for steps in (100, 5000, 184_375)] == [5, 250, 250]
    assert Detect(steps=100, warmup=50).warmup == 50
