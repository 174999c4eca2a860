"""Fine-tuning: its recipes, groups and rates against formulas, continuation to the bit, what it learns."""

import json
import math
import os
import signal
from dataclasses import replace

import pytest
import torch
from calls import call, under_torchrun
from safetensors.torch import load_file
from tars import image, write_tar
from timm.data import create_transform
from timm.models.vision_transformer import VisionTransformer

from pipeline.config import load_config
from pipeline.errors import ConfigError, DivergedError, SourceError
from pipeline.evaluation.crops import drawn_by_key, open_image
from pipeline.evaluation.data import LabelledImages
from pipeline.evaluation.finetuning import training as finetune_training
from pipeline.evaluation.finetuning.batches import build_schedule, collate, train_transform
from pipeline.evaluation.finetuning.finetune import Finetune
from pipeline.evaluation.finetuning.model import build_classifier, layer_groups
from pipeline.evaluation.finetuning.recipe import Settings, build_recipe, choose_pool
from pipeline.evaluation.finetuning.training import Plan, Training
from pipeline.evaluation.images import ImageSet, open_images
from pipeline.evaluation.run import run_evaluation
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.task import Task
from pipeline.report.scores import SubjectFacts
from pipeline.runtime.signals import StoppedError, polite_signals
from pipeline.training.distributed import Ranks
from stages.evaluate_student import app

SIDE, PATCH, DEPTH = 32, 16, 2
SCRATCH = {"layer_decay": 1.0, "drop_path": 0.0, "smoothing": 0.0, "warmup_epochs": 0.0, "head_epochs": 0}
PLAIN = {**SCRATCH, "augment": "", "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0, "lr": (0.02,)}
QUICK = {**PLAIN, "epochs": 2, "batch": 8}


def subject(kind="run", **options):
    """A tiny ViT with random weights, without classifier, as students are."""
    options = {"class_token": True, "global_pool": "token"} | options
    with drawn_by_key(0, 0, 0):
        vit = VisionTransformer(
            img_size=SIDE, patch_size=PATCH, embed_dim=32, depth=DEPTH, num_heads=2, num_classes=0, **options
        )
    return Subject(SubjectFacts(kind=kind, name="tiny", weights="00"), vit.eval(), PATCH)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """40 images to learn from and 24 to test with, of 4 classes that differ by colour."""
    folder = tmp_path_factory.mktemp("finetune")

    def tar(name, numbers):
        images = {f"{n}": image(n, 40, 40, "jpeg") for n in numbers}
        return write_tar(folder / name, images, {f"{n}": n % 4 * 10 for n in numbers})

    paths = tar("train.tar", range(40)), tar("test.tar", range(100, 124))
    return tuple(open_images([str(path)], folder) for path in paths)


def task(sets, folder, network=None, **how):
    learnt, tested = (LabelledImages(one) for one in sets)
    return Task(network or subject(), learnt, tested, folder / "features", folder, batch_size=16, **how)


def score(sets, folder, network=None, **settings):
    (found,) = run_evaluation(Finetune(**({**QUICK} | settings)), task(sets, folder, network))
    return found


def training(sets, folder, plan=None, keep_best=False, workers=0, **changes):
    """A training on the images to learn from, watched on the test images by the class of the first logit."""
    recipe = build_recipe("small", Settings(**({**QUICK} | changes)), 32, 40, pretrained=True)
    plan = {"lr": 0.02, "pool": "mean", "frozen": 0, "accumulate": 1, "seed": 3, "classes": 4} | (plan or {})
    labels = torch.tensor([one.label // 10 for one in sets[0].images])
    watch = (lambda vit: float(vit.eval().head.weight.detach().abs().sum())) if keep_best else None
    return Training(
        subject(), sets[0].images, labels, recipe, Plan(**plan), folder, Ranks(), workers, lambda _: None,
        watch=watch, keep_best=keep_best,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "width", "expected"),
    [
        ("maskalign", 768, (100, 1024, 3e-4, 0.55, 0.2)),
        ("maskalign", 1024, (50, 1024, 3e-4, 0.75, 0.4)),
        ("mae", 768, (100, 1024, 5e-4, 0.65, 0.1)),
        ("mae", 1024, (50, 1024, 1e-3, 0.75, 0.2)),
    ],
)
def test_published_recipes_are_chosen_by_width(preset, width, expected):
    recipe = build_recipe(preset, Settings(), width, 1_281_167, pretrained=True)
    found = (recipe.epochs, recipe.batch, *recipe.lr, recipe.layer_decay, recipe.drop_path)
    assert found == expected
    assert (recipe.weight_decay, recipe.betas, recipe.warmup_epochs, recipe.min_lr) == (
        0.05, (0.9, 0.999), 5.0, 1e-6,
    )  # fmt: skip
    assert (recipe.smoothing, recipe.mixup, recipe.cutmix, recipe.erasing) == (0.1, 0.8, 1.0, 0.25)
    assert (recipe.augment, recipe.head_epochs, recipe.ema) == ("rand-m9-mstd0.5-inc1", 0, 0.0)
    assert recipe.rate(recipe.lr[0]) == pytest.approx(4 * recipe.lr[0])


def test_small_sets_have_no_mixup_and_smaller_batches():
    small = build_recipe("auto", Settings(), 768, 800, pretrained=True)
    assert (small.epochs, small.batch, small.mixes, small.head_epochs) == (50, 64, False, 5)
    assert (len(small.lr), small.warmup_epochs) == (3, 5.0)
    assert build_recipe("auto", Settings(epochs=5), 768, 800, pretrained=True).warmup_epochs == 0.5
    assert build_recipe("auto", Settings(epochs=7), 768, 31, pretrained=True).batch == 30
    assert build_recipe("small", Settings(), 768, 5000, pretrained=True).mixes
    assert build_recipe("auto", Settings(), 768, 5000, pretrained=True).layer_decay == 0.55
    untrained = build_recipe("auto", Settings(), 768, 5000, pretrained=False)
    assert (untrained.layer_decay, untrained.ema, untrained.weight_decay) == (1.0, 0.9999, 0.3)


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_layer_decay_follows_the_formula(pool):
    vit = build_classifier(subject(reg_tokens=2), 5, pool, 0.1)
    decay, found = 0.65, {}
    groups = layer_groups(vit, 0.05, decay)
    names = {id(value): name for name, value in vit.named_parameters()}
    for group in groups:
        for value in group["params"]:
            found[names[id(value)]] = (group["lr_scale"], group["weight_decay"])
    expected = {}
    for name, value in vit.named_parameters():
        scale = decay ** (DEPTH + 1)
        if name.startswith("blocks."):
            scale = decay ** (DEPTH - int(name.split(".")[1]))
        elif name.split(".")[0] in ("norm", "fc_norm", "head"):
            scale = decay if name.startswith("norm.") else 1.0
        embeds = name in ("cls_token", "reg_token", "pos_embed")
        expected[name] = (pytest.approx(scale), 0.0 if value.ndim == 1 or embeds else 0.05)
    assert found == expected


def test_the_rate_of_each_step_follows_the_formula():
    recipe = build_recipe("maskalign", Settings(epochs=7, warmup_epochs=2.0), 768, 10_240, pretrained=True)
    vit, per_epoch = build_classifier(subject(), 5, "mean", 0.0), 10
    optimiser = torch.optim.AdamW(layer_groups(vit, 0.05, 0.55), lr=recipe.rate(3e-4))
    schedule = build_schedule(optimiser, recipe, 7 * per_epoch, per_epoch)
    for step in range(7 * per_epoch):
        schedule.step_update(step)
        epoch = step / per_epoch
        rate = 1.2e-3 * epoch / 2
        if epoch >= 2:
            rate = 1e-6 + (1.2e-3 - 1e-6) * 0.5 * (1 + math.cos(math.pi * (epoch - 2) / 5))
        for group in optimiser.param_groups:
            assert group["lr"] == pytest.approx(rate * group["lr_scale"], rel=1e-9)


def test_only_norm_and_head_differ_from_the_students_state():
    student = subject()
    vit = build_classifier(student, 5, "mean", 0.1)
    state = student.vit.state_dict()
    ours = vit.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in state.items() if name in ours)
    result = vit.load_state_dict(state, strict=False)
    assert {*result.unexpected_keys} == {"norm.weight", "norm.bias"}
    assert {*result.missing_keys} == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert vit.head.weight.detach().std() == pytest.approx(2e-5, rel=0.3)
    assert vit.fc_norm.eps == student.vit.norm.eps
    assert all(value.requires_grad for value in vit.parameters())
    assert [getattr(block.drop_path1, "drop_prob", 0.0) for block in vit.blocks] == [0.0, pytest.approx(0.1)]


def test_mean_pooling_leaves_out_cls_and_registers():
    vit = build_classifier(subject(reg_tokens=2), 5, "mean", 0.0).eval()
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    tokens = vit.blocks(vit._pos_embed(vit.patch_embed(images)))[:, 3:]
    expected = vit.head(torch.nn.functional.layer_norm(tokens.mean(1), (32,), eps=vit.fc_norm.eps))
    assert torch.allclose(vit(images), expected, atol=1e-9)


@pytest.mark.parametrize(("pool", "options"), [("cls", {}), ("mean", {"global_pool": "avg"})])
def test_networks_that_pool_otherwise_get_the_norm_in_its_place(pool, options):
    network = subject(**options)
    with torch.no_grad():
        (network.vit.fc_norm if options else network.vit.norm).weight.fill_(2)
    vit = build_classifier(network, 5, pool, 0.0)
    norm = vit.norm if pool == "cls" else vit.fc_norm
    assert norm.weight.unique().tolist() == [2.0 if pool == "cls" else 1.0]
    assert vit(torch.zeros(2, 3, SIDE, SIDE)).shape == (2, 5)


def test_training_crops_are_timms(sets):
    recipe = build_recipe("mae", Settings(), 768, 10_000, pretrained=True)
    ours = train_transform(subject(), recipe)
    theirs = create_transform(
        SIDE, is_training=True, color_jitter=None, auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic", re_prob=0.25, re_mode="pixel", re_count=1,
    )  # fmt: skip
    for number in range(30):
        crops = []
        for transform in (ours, theirs):
            with drawn_by_key(number, 0, 0):
                crops.append(transform(open_image(sets[0].images[number])))
        assert torch.equal(*crops)
        assert crops[0].shape == (3, SIDE, SIDE)


def test_posterize_of_no_bits_keeps_one(sets):
    recipe = build_recipe("mae", Settings(), 768, 10_000, pretrained=True)
    (augment,) = [part for part in train_transform(subject(), recipe).transforms if hasattr(part, "ops")]
    (operation,) = [one for one in augment.ops if one.name.startswith("Posterize")]
    plot = open_image(sets[0].images[0])
    values = {*operation.aug_fn(plot, 0).tobytes()}
    assert values == {*operation.aug_fn(plot, 1).tobytes()} == {0, 128}


def test_draws_are_keyed_and_leave_no_trace():
    import random

    import numpy as np

    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    expected = [draw(), draw()]
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    with drawn_by_key(0, 1, 2):
        first = draw()
    assert [draw(), draw()] == expected
    with drawn_by_key(0, 1, 2):
        assert draw() == first
    with drawn_by_key(0, 1, 3):
        assert draw() != first


class Ending(Training):
    """Ends before or in a step: by an exception, as if killed, or by a polite signal."""

    end, polite = 0, False

    def step(self, step, micros):
        if step == self.end and not self.polite:
            raise KeyboardInterrupt
        if step == self.end:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step(step, micros)


def test_a_training_that_was_ended_continues_to_the_bit(sets, tmp_path, monkeypatch):
    changes = {
        "epochs": 3, "ema": 0.9, "drop_path": 0.2, "mixup": 0.8, "cutmix": 1.0, "erasing": 0.5,
        "augment": "rand-m9-mstd0.5-inc1",
    }  # fmt: skip
    how = {"plan": {"accumulate": 2}, "keep_best": True} | changes
    whole = training(sets, tmp_path / "whole", **how)
    expected = whole.run().state_dict()
    assert len(whole.history.losses) == 3
    monkeypatch.setattr(finetune_training, "SECONDS_BETWEEN_SAVES", 0.0)
    for polite, error, step in ((False, KeyboardInterrupt, 8), (True, StoppedError, 9)):
        folder = tmp_path / error.__name__
        first = training(sets, folder, **how)
        first.__class__, first.end, first.polite = Ending, 8, polite
        with polite_signals(), pytest.raises(error):
            first.run()
        assert max(path.name for path in folder.iterdir()) == f"step_{step:08}.pt"
        second = training(sets, folder, workers=int(polite), **how)
        found = second.run().state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        assert second.history == whole.history
        assert {path.name for path in folder.iterdir()} == {"finetuned.safetensors", "training.json"}
    third = training(sets, folder, **how)
    monkeypatch.setattr(third, "step", None)  # it has nothing left to do
    assert all(torch.equal(third.run().state_dict()[name], value) for name, value in expected.items())


def test_accumulation_equals_the_whole_batch(sets, tmp_path):
    gradients, losses = [], []
    for parts in (1, 2):
        one = training(sets, tmp_path / str(parts), plan={"accumulate": parts}, batch=20)
        one.run()
        losses.append(one.history.losses)
        gradients.append({name: value.grad for name, value in one.vit.named_parameters()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, value in gradients[0].items():
        assert torch.allclose(gradients[1][name], value, atol=1e-4 * max(1e-2, float(value.abs().max()))), (
            name
        )


def test_separable_classes_are_learnt_from_nothing(sets, tmp_path):
    found = score(sets, tmp_path, subject("untrained"), epochs=8)
    assert found.metrics["top-1"] >= 0.95
    assert found.chance == 0.25
    assert (found.representation, found.seeds) == ("mean", (0,))
    assert found.selection == "lr: given; epoch: the last"
    assert (found.bank.images, found.test.images, found.bank.classes) == (40, 24, 4)
    assert {*found.per_class} == {"0", "10", "20", "30"}
    assert [row["epoch"] for row in found.details["epochs"]] == list(range(1, 9))
    assert found.details["tested epoch"] == 8


def test_random_labels_stay_at_chance(sets, tmp_path):
    labels = torch.randint(4, (40,), generator=torch.Generator().manual_seed(2)).tolist()
    images = tuple(
        replace(one, label=label * 10) for one, label in zip(sets[0].images, labels, strict=True)
    )  # fmt: skip
    found = score((replace(sets[0], images=images), sets[1]), tmp_path, epochs=3)
    assert found.metrics["top-1"] < 0.55


def test_a_sweep_is_decided_on_held_out_images(sets, tmp_path):
    found = score(sets, tmp_path, subject("untrained"), lr=(1e-12, 0.02), min_lr=0.0, epochs=8)
    assert found.details["lr"] == 0.02
    low, high = found.details["sweep"]
    assert (low["lr"], high["lr"]) == (1e-12, 0.02)
    assert high["accuracy"] > low["accuracy"]
    assert found.selection == "lr: a tenth of the images to learn from; epoch: the last"
    assert found.bank.images == 40
    weights = [path for path in tmp_path.rglob("finetuned.safetensors")]
    assert [str(path.relative_to(tmp_path)) for path in weights] == [found.details["weights"]]
    again = score(sets, tmp_path, subject("untrained"), lr=(1e-12, 0.02), min_lr=0.0, epochs=8)
    assert (again.metrics, again.details) == (found.metrics, found.details)


@pytest.mark.parametrize(("select", "images"), [("train", 36), ("test", 40)])
def test_the_best_epoch_is_chosen_where_asked(sets, tmp_path, select, images):
    found = score(sets, tmp_path, select=select, epochs=4)
    accuracies = [row["accuracy"] for row in found.details["epochs"]]
    assert len(accuracies) == 4
    assert accuracies.index(max(accuracies)) == found.details["tested epoch"] - 1
    assert found.bank.images == images
    if select == "test":
        assert found.metrics["top-1"] == pytest.approx(max(accuracies))
        assert found.notes == (
            "the epoch was chosen on the test set, as published: the accuracy is optimistic",
        )
    else:
        assert found.selection == "lr: given; epoch: a tenth of the images to learn from, not trained on"


def test_a_sweep_with_a_best_epoch_trains_its_winner_once(sets, tmp_path):
    found = score(sets, tmp_path, lr=(1e-12, 0.02), min_lr=0.0, select="train", epochs=4)
    accuracies = [row["accuracy"] for row in found.details["epochs"]]
    assert max(accuracies) == max(row["accuracy"] for row in found.details["sweep"])
    assert len(list(tmp_path.glob("finetune-*"))) == 2
    assert len(list(tmp_path.rglob("finetuned.safetensors"))) == 1


def test_few_labels_are_drawn_by_seed(sets, tmp_path):
    found = score(sets, tmp_path, few=2, tries=2, seed=5, select="last", batch=8)
    assert (found.bank.images, found.test.images, found.seeds) == (8, 24, (5, 6))
    assert len(found.details["tries"]) == 2
    assert found.details["standard deviation of top-1"] >= 0
    assert sum(found.class_images.values()) == 24


def test_frozen_blocks_do_not_change(sets, tmp_path):
    one = training(sets, tmp_path, plan={"frozen": 1}, drop_path=0.5)
    before = {name: value.clone() for name, value in one.vit.state_dict().items()}
    after = one.run().state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    frozen = {name for name in after if name.startswith(("blocks.0", "patch_embed", "cls_", "pos_"))}
    assert frozen & changed == set()
    assert {name.partition(".")[0] for name in changed} == {"blocks", "fc_norm", "head"}


def test_a_linear_probe_comes_first_where_asked(sets, tmp_path):
    found = score(sets, tmp_path, lp_ft=True, head_epochs=None, lr=1e-12, min_lr=0.0, epochs=1)
    assert found.details["recipe"]["head_epochs"] == 100
    assert found.metrics["top-1"] >= 0.9  # the encoder has not moved, the head has
    assert score(sets, tmp_path, lr=1e-12, min_lr=0.0, epochs=1).metrics["top-1"] <= 0.75


def test_the_average_of_the_weights_is_tested(sets, tmp_path):
    one = training(sets, tmp_path, ema=0.9)
    network = one.run()
    assert network is one.ema.module
    assert not torch.equal(network.head.weight, one.vit.head.weight)


def test_other_image_sizes_resize_the_positions(sets, tmp_path):
    found = score(sets, tmp_path, subject().resized(48), epochs=1)
    assert found.bank.image_size == 48
    weights = load_file(next(tmp_path.rglob("finetuned.safetensors")))
    assert weights["pos_embed"].shape == (1, 10, 32)


def test_damaged_and_unlabelled_images_are_counted(sets, tmp_path):
    images = {f"{n}": image(n, 40, 40, "jpeg") for n in range(12)} | {"bad": b"no image"}
    tar = write_tar(tmp_path / "a.tar", images, {f"{n}": n % 4 for n in range(10)} | {"bad": 0})
    learnt = open_images([str(tar)], tmp_path)
    found = score((learnt, sets[1]), tmp_path, shared_keys="allow", batch=4)
    assert (found.bank.images, found.bank.left_out) == (10, {"unlabelled": 2, "damaged": 1})
    assert found.bank.first_reasons["damaged"].startswith("a.tar/bad ")
    bad = write_tar(tmp_path / "b.tar", {"bad": b"no image"})
    with pytest.raises(SourceError, match=r"b.tar' can be decoded \(the first: b.tar/bad .*: give other"):
        score((sets[0], open_images([str(bad)], tmp_path)), tmp_path, epochs=1)
    pixels = torch.ones(3, 2, 2)
    batch, indices, faults = collate([(4, None, "x"), (7, pixels, ""), (9, None, "y")])
    assert (batch.shape, indices, faults) == ((3, 3, 2, 2), [7, 7, 7], {4: "x", 9: "y"})
    assert collate([(4, None, "x")]) == (None, [], {4: "x"})


def test_a_loss_that_is_not_finite_ends_the_training(sets, tmp_path):
    with pytest.raises(DivergedError, match=r"the loss is .* with lr 1e.30: give a smaller --set lr="):
        score(sets, tmp_path, lr=1e30)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 41}, "batch is 41, but there are 40 images to learn from: give --set batch=40 or less"),
        ({"batch": 9, "mixup": 0.8}, "in parts of 9 images, but mixup and CutMix need an even number: give"),
        (
            {"batch": 9, "accumulate": 2},
            "1 ranks that accumulate 2 parts need a multiple of 2: give ",
        ),
        ({"warmup_epochs": 2.0}, "warmup_epochs is 2, but there are 2 epochs: give fewer"),
        ({"freeze": 3}, "freeze is 3, but this network has 2 blocks: give that many or fewer"),
        ({"few": 1, "lr": (0.1, 0.2), "batch": 4}, "class 0 has one image, but a tenth of the images"),
        ({"few": 1, "select": "train", "batch": 4}, "class 0 has one image, but a tenth of the images"),
    ],
)
def test_settings_that_do_not_fit_are_refused(sets, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        score(sets, tmp_path, **settings)


def test_data_that_do_not_fit_are_refused(sets, tmp_path):
    learnt, tested = sets
    with pytest.raises(ConfigError, match="all 10 images to learn from are of class 0: give images of two"):
        score((learnt.subset(range(0, 40, 4)), tested), tmp_path)
    with pytest.raises(ConfigError, match="24 keys are in the data to learn from and in the test data"):
        score((tested, tested), tmp_path)
    bare = ImageSet("bare", "tars", tuple(replace(one, label=None) for one in tested.images))
    with pytest.raises(ConfigError, match="no image of 'bare' has a label: give tars with a KEY"):
        score((learnt, bare), tmp_path)
    network = subject(class_token=False, global_pool="avg")
    with pytest.raises(ConfigError, match="this network has no CLS token: give --set pool=mean"):
        score(sets, tmp_path, network, pool="cls")
    views = replace(task(sets, tmp_path), data=None)
    with pytest.raises(ConfigError, match="finetune cuts its own crops, which views of a cache do not allow"):
        Finetune().run(views)
    with pytest.raises(ConfigError, match="finetune needs other images to test with: give --test-shards"):
        Finetune().run(replace(task(sets, tmp_path), test=None))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("preset=best", "configuration key 'preset' is 'best': input should be 'auto', 'maskalign', 'mae'"),
        ("lr=[]", "configuration key 'lr' is .*: numbers greater than 0 are needed, such as 3e-4"),
        ("layer_decay=0", "configuration key 'layer_decay' is 0"),
    ],
)
def test_unknown_values_are_refused_by_name(assignment, message):
    with pytest.raises(ConfigError, match=message):
        load_config(Finetune, None, [assignment])
    assert load_config(Finetune, None, ["lr=1e-3"]).lr == (1e-3,)


RECIPE = """
student.model = "vit_tiny_patch16_224"
student.options = {depth = 2, embed_dim = 32, num_heads = 2}
"""


@pytest.mark.faults  # too slow for every run
def test_two_ranks_learn_what_one_process_learns(sets, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    settings = {**QUICK, "lr": "[0.02]", "augment": "''", "epochs": 3}
    arguments = [
        "finetune", "--untrained", "--config", recipe, "--image-size", SIDE, "--shards", sets[0].address,
        "--test-shards", sets[1].address, "--device", "cpu", "--workers", "0",
        *(part for key, value in settings.items() for part in ("--set", f"{key}={value}")),
    ]  # fmt: skip
    files = tmp_path / "alone.json", tmp_path / "together.json"
    call(app, *arguments, "--out", files[0], code=0)
    output = under_torchrun("-m", "stages.evaluate_student", *arguments, "--out", files[1])
    alone, together = (json.loads(file.read_text())[0] for file in files)
    losses = [[row["loss"] for row in each["details"]["epochs"]] for each in (alone, together)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert together["test"] == alone["test"]
    assert together["metrics"]["top-1"] == pytest.approx(alone["metrics"]["top-1"], abs=0.1)
    assert output.count("images of 4 classes, 40 to learn from") == 1  # only the main rank prints


def test_a_small_set_is_pooled_as_the_network_was_pretrained():
    kinds = {
        kind: choose_pool("auto", subject(kind), 800) for kind in ("run", "untrained", "teacher", "model")
    }
    assert kinds == {"run": "mean", "untrained": "mean", "teacher": "cls", "model": "cls"}
    assert choose_pool("auto", subject("teacher"), 5_000) == "mean"
    assert choose_pool("auto", subject("model", global_pool="avg"), 800) == "mean"
