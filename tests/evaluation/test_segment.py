"""segment, of all kinds: textures are found, random masks are not, and what is left out is said."""

import numpy as np
import pytest
from networks import continued, named, png, tiny_subject
from PIL import Image
from tars import write_tar

from pipeline.config import load_config
from pipeline.errors import CheckpointError, ConfigError, MaskAlignError
from pipeline.evaluation.data import LabelledImages
from pipeline.evaluation.images import open_images
from pipeline.evaluation.run import run_evaluation
from pipeline.evaluation.segmentation.segment import Segment
from pipeline.evaluation.task import Task

SIDE, PATCH = 48, 8
SMALL = {"size": SIDE, "scale": (1.0, 1.0), "distort": False, "batch": 8, "lr": 0.02, "plots": 0}
KINDS = {
    "linear": SMALL | {"steps": 60},
    "knn": {"size": SIDE, "k": (1, 3), "c": (0.1, 100.0), "plots": 0},
    "upernet": SMALL | {"steps": 40, "batch": 4, "lr": 0.003, "channels": 16},
}


def textured(number, seed=0, side=SIDE):
    """A square of rows (class 2) on columns (class 0): pixels (S, S, 3) and mask (S, S); no class 1."""
    rng = np.random.default_rng((seed, number))
    stripes = np.arange(side) // 2 % 2
    top, left, size = (PATCH * rng.integers(low, low + 3) for low in (0, 0, 2))
    mask = np.zeros((side, side), np.uint8)
    mask[top : top + size, left : left + size] = 2
    grey = np.where(mask > 0, stripes[:, None], stripes[None]) * 150 + rng.integers(0, 60)
    pixels = grey[..., None] + rng.normal(0, 5, (side, side, 3))
    return pixels.clip(0, 255).astype(np.uint8), mask


def write(path, members):
    return write_tar(path, {}, members=members)


def members(count, seed=0, change=lambda _number, mask: mask):
    """PNGs and masks of a tar; `change` makes the masks stored from those drawn, None for no mask."""
    found = {}
    for number in range(count):
        pixels, mask = textured(number, seed)
        found[f"{seed}-{number}.png"] = png(pixels)
        if (stored := change(number, mask)) is not None:
            found[f"{seed}-{number}.seg.png"] = png(stored)
    return found


@pytest.fixture
def scored(tmp_path):
    def run(learnt, test, names=(), workers=0, log=lambda _line: None, **settings):
        sets = [named(open_images([str(spec)], tmp_path), names) for spec in (learnt, test)]
        task = Task(
            tiny_subject(3, SIDE), *map(LabelledImages, sets), tmp_path / "features", tmp_path / "plots",
            batch_size=8, workers=workers, log=log,
        )  # fmt: skip
        return run_evaluation(Segment(**settings), task)

    return run


@pytest.fixture
def tars(tmp_path):
    """Two tars with textures."""
    return write(tmp_path / "a.tar", members(16)), write(tmp_path / "b.tar", members(6, seed=1))


@pytest.mark.parametrize("kind", KINDS)
def test_textures_are_segmented(scored, tars, kind):
    for score in scored(*tars, kind=kind, **KINDS[kind]):
        assert score.metrics["mIoU"] > 0.9, score.representation
        assert score.metrics["pixel accuracy"] > 0.95
        assert score.per_class.keys() == {"0", "2"}
        assert score.class_images == {"0": 6, "2": 6}
        assert score.chance < 0.5
        low, high = score.intervals["mIoU"]
        assert low <= score.metrics["mIoU"] <= high


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_random_masks_stay_near_chance(scored, tmp_path, kind):
    rng = np.random.default_rng(0)

    def noise(_number, _mask):
        return rng.integers(0, 3, (SIDE // PATCH, SIDE // PATCH), np.uint8).repeat(PATCH, 0).repeat(PATCH, 1)

    learnt = write(tmp_path / "a.tar", members(16, change=noise))
    test = write(tmp_path / "b.tar", members(6, seed=1, change=noise))
    settings = KINDS[kind] | ({"steps": 20} if kind == "linear" else {})
    for score in scored(learnt, test, kind=kind, **settings):
        assert score.metrics["pixel accuracy"] < 0.45
        assert score.metrics["mIoU"] < 0.32


def test_equal_commands_give_equal_scores_and_another_seed_does_not(scored, tars):
    settings = SMALL | {"steps": 5, "distort": True, "scale": (0.75, 1.5)}
    first, again, other = (
        scored(*tars, workers=workers, seed=seed, **settings)[0] for workers, seed in ((0, 0), (1, 0), (0, 1))
    )
    assert first.metrics == again.metrics
    assert first.details == again.details
    assert first.details["losses"] != other.details["losses"]


@pytest.mark.parametrize("kind", ["linear", "upernet"])
def test_a_training_that_is_killed_ends_with_the_same_numbers(scored, tars, tmp_path, monkeypatch, kind):
    settings = KINDS[kind] | {"kind": kind, "steps": 6, "batch": 2, "scale": (0.75, 1.5)}
    (whole,) = scored(*tars, **settings)
    (again,) = continued(monkeypatch, lambda log: scored(*tars, log=log, **settings), 4)
    assert (again.metrics, again.details) == (whole.metrics, whole.details)
    assert not list((tmp_path / "plots").glob("*.state"))

    def spoil(_line):
        for state in (tmp_path / "plots").glob(f"segment-{kind}-*.state"):
            state.write_bytes(b"no state")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scored(*tars, log=spoil, **settings)
    with pytest.raises(
        CheckpointError, match=r"\.state' cannot be read \(UnpicklingError\): remove that file"
    ):
        scored(*tars, **settings)


def test_a_loss_that_is_not_finite_ends_the_training(scored, tars):
    with pytest.raises(
        MaskAlignError, match="the loss is not finite from step 1 on: give a smaller learning"
    ):
        scored(*tars, **SMALL | {"steps": 5, "lr": 1e30})


def test_windows_and_masks_of_other_sizes_work_together(scored, tmp_path):
    """Images of 96 x 48 pixels, tested through windows of 48 at half their size."""

    def wide(count, seed):
        found = {}
        for number in range(count):
            parts = [textured(10 * number + part, seed, SIDE) for part in range(2)]
            pixels, mask = (np.concatenate(each, axis=1) for each in zip(*parts, strict=True))
            found[f"{seed}-{number}.png"], found[f"{seed}-{number}.seg.png"] = png(pixels), png(mask)
        return found

    learnt, test = (write(tmp_path / f"{seed}.tar", wide(6, seed)) for seed in (0, 1))
    (score,) = scored(learnt, test, **SMALL | {"steps": 40, "stride": 24})
    assert score.metrics["mIoU"] > 0.85
    assert score.details["pixels"] == 6 * 48 * 96
    (score,) = scored(learnt, test, **SMALL | {"steps": 2, "size": 24, "crop": (24, 24)})
    assert score.details["pixels"] == 6 * 48 * 96


def test_folders_of_ade20k_and_its_zero_are_read(scored, tmp_path):
    def folder(name, count, seed):
        for what in ("images", "annotations"):
            (tmp_path / what / name).mkdir(parents=True)
        for number in range(count):
            pixels, mask = textured(number, seed)
            mask = np.where(mask == 2, 2, 1).astype(np.uint8)
            mask[0] = 0
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{seed}-{number}.png")
            Image.fromarray(mask).save(tmp_path / "annotations" / name / f"{seed}-{number}.png")
        return tmp_path / "images" / name

    learnt, test = folder("training", 12, 0), folder("validation", 5, 1)
    names = ("column", "row")
    score, _ = scored(learnt, test, reduce_zero=True, names=names, kind="knn", **KINDS["knn"])
    assert score.metrics["mIoU"] > 0.9
    assert score.details["pixels"] == 5 * (SIDE - 1) * SIDE
    assert score.test.classes == 2
    assert (score.bank.kind, score.bank.class_names) == ("folder", ("column", "row"))


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_a_plot_shows_truth_and_prediction(scored, tars, tmp_path, kind):
    settings = KINDS[kind] | {"plots": 2} | ({"steps": 2} if kind == "linear" else {})
    plots = [
        plot.file
        for score in scored(*tars, names=("column", "unused", "row"), kind=kind, **settings)
        for plot in score.plots
    ]
    assert len(plots) == len({*plots}) == (1 if kind == "linear" else 2)
    for file in plots:
        with Image.open(tmp_path / "plots" / file) as image:
            assert image.size[0] > 800
            assert len(image.convert("RGB").getcolors(1 << 24)) > 10


def test_images_with_faults_are_counted_with_the_first_reason(scored, tmp_path):
    def change(number, mask):
        faults = {0: None, 1: mask[:-1], 2: np.full_like(mask, 255), 3: np.stack([mask] * 3, axis=2)}
        return faults.get(number, mask)

    learnt = write(tmp_path / "a.tar", members(10, change=change) | {"0-9.png": b"no image"})
    test = write(tmp_path / "b.tar", members(3, seed=1))
    (score,) = scored(learnt, test, **SMALL | {"steps": 2})
    assert score.bank.left_out == {
        "without mask": 1, "mask of another size": 1, "void": 1, "mask of colours": 1, "damaged": 1,
    }  # fmt: skip
    assert (
        score.bank.first_reasons["mask of another size"]
        == "a.tar/0-1 is 48 x 48 pixels, but its mask 48 x 47"
    )
    assert score.bank.images == 5
    assert score.test.left_out == {}


def test_classes_without_examples_are_noted(scored, tmp_path):
    learnt = write(tmp_path / "a.tar", members(6))
    test = write(
        tmp_path / "b.tar", members(3, 1, lambda n, mask: np.where(n == 0, 4, mask).astype(np.uint8))
    )
    (score,) = scored(learnt, test, **SMALL | {"steps": 2})
    assert score.notes == (
        "1 classes of the test masks are not in those to learn from, such as class 4: they have 33.3% of the "
        "pixels and cannot be learnt",
    )
    assert score.test.classes == 3


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda _, mask: mask * 0, {}, r"have the one class 0 besides void \(255\): at least two"),
        (lambda *_: None, {}, r"no image with a mask that fits \(a.tar/0-0 has no mask: seg.png"),
        (
            lambda _, mask: mask + 7,
            {"classes": 3},
            r"a.tar/0-0 has the class 9, but there are 3 classes, 0 to 2",
        ),
        (
            lambda _, mask: mask,
            {"crop": (40, 50)},
            "images of 40 x 50 pixels do not divide into patches of 8",
        ),
    ],
)
def test_masks_that_teach_nothing_are_refused(scored, tmp_path, change, settings, message):
    learnt = write(tmp_path / "a.tar", members(3, change=change))
    test = write(tmp_path / "b.tar", members(2, seed=1))
    with pytest.raises(ConfigError, match=message):
        scored(learnt, test, **SMALL | {"steps": 2} | settings)


def test_sizes_that_do_not_divide_are_refused_with_some_that_do(scored, tars):
    with pytest.raises(ConfigError, match=r"give multiples of 8, such as --set size=296 --set crop=296"):
        scored(*tars, **SMALL | {"size": 30, "crop": (30, 30)})


def test_equal_keys_are_refused_or_left_out(scored, tmp_path):
    learnt, test = (write(tmp_path / f"{name}.tar", members(4)) for name in "ab")
    with pytest.raises(ConfigError, match="4 keys are in the data to learn from and in the test data"):
        scored(learnt, test, **SMALL)
    more = write(tmp_path / "c.tar", members(6))
    (score,) = scored(more, test, shared_keys="exclude", **SMALL | {"steps": 2})
    assert (score.bank.images, score.bank.left_out) == (2, {"shared": 4})


def test_views_of_a_cache_and_missing_test_images_are_refused(tars, tmp_path):
    learnt = LabelledImages(open_images([str(tars[0])], tmp_path))
    for data, test, message in (
        (learnt, None, "segment needs other images to test with: give --test-shards"),
        (None, learnt, "segment cuts its own crops, which views of a cache do not allow: give --shards"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_evaluation(Segment(), Task(tiny_subject(3, SIDE), data, test, tmp_path, tmp_path))


def settings_of(*assignments):
    return load_config(Segment, None, assignments)


def test_defaults_are_those_of_the_publications():
    linear, knn, upernet = (settings_of(f"kind={kind}") for kind in ("linear", "knn", "upernet"))
    assert (linear.size, linear.crop, linear.stride, linear.warmup) == (512, (512, 512), (341, 341), 1500)
    assert (linear.steps, linear.lr, linear.weight_decay, linear.dropout) == (40_000, 1e-3, 1e-3, 0.1)
    assert (upernet.steps, upernet.lr, upernet.weight_decay, upernet.warmup) == (160_000, 1e-4, 0.05, 1500)
    assert (upernet.stride, upernet.layer_decay, upernet.drop_path) == ((256, 256), 0.65, 0.1)
    assert (knn.size, knn.k, knn.distance, len(knn.c)) == (224, (1, 3, 10, 30), ("cosine", "l2"), 8)
    assert settings_of("size=192", "crop=[192, 256]", "steps=400").stride == (128, 170)
    assert settings_of("steps=400").warmup == 15
    assert settings_of("kind=knn", "k=3").k == (3,)


def test_only_keys_of_the_kind_are_recorded():
    assert "k" not in settings_of().model_dump(mode="json")
    assert settings_of("kind=knn").model_dump(mode="json").keys() == {
        "kind", "size", "k", "distance", "c", "logistic_patches", "classes", "reduce_zero", "shared_keys",
        "plots", "seed",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("k=3", "k is an option of kind knn, not of kind linear"),
        ("kind=unet", "configuration key 'kind' is 'unet': input should be 'linear', 'knn' or 'upernet'"),
        ("stride=600", r"stride is \[600, 600\]: give 1 to \[512, 512\], the size of a window"),
        ("scale=[2.0, 0.5]", r"scale is \[2.0, 0.5\]: two factors are needed, such as \[0.5, 2.0\]"),
        ("warmup=40000", "warmup is 40000: give fewer steps than the 40000 of the training"),
        ("batch=1", "configuration key 'batch' is 1: input should be greater than or equal to 2"),
        ("stepz=1", "unknown configuration key 'stepz': did you mean 'steps'"),
    ],
)
def test_wrong_keys_are_refused_in_one_line(assignment, message):
    with pytest.raises(ConfigError, match=message) as found:
        settings_of(assignment)
    assert len(str(found.value).splitlines()) == 1
