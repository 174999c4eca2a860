"""The probe: logistic regression against scikit-learn, a head grid against heads alone, LARS by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import continued, feature_task, squares, stored, task, tiny_subject
from sklearn.linear_model import LogisticRegression
from torch import nn

from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.evaluation import logistic
from pipeline.evaluation.data import LabelledImages
from pipeline.evaluation.draws import stratified_folds
from pipeline.evaluation.logistic import fit_logistic, objective, rate_c
from pipeline.evaluation.probes import crop_training
from pipeline.evaluation.probes.head_grid import HeadGrid
from pipeline.evaluation.probes.lars import Lars
from pipeline.evaluation.probes.probe import Probe
from pipeline.evaluation.probes.published_probe import NormedLinear


def blobs(seed, count, classes=4, width=12, noise=1.5):
    """Points around class centres, in channels of very different length and far from 0; labels 0, 3, 6 ..."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(classes, width))
    index = np.arange(count) % classes
    points = (centres[index] + rng.normal(0, noise, (count, width))) * np.geomspace(0.05, 20, width) + 3
    return torch.from_numpy(points).float(), torch.from_numpy(index)


def scikit_learns(features, targets, c):
    model = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-9, max_iter=1000)
    return model.fit(features.double().numpy(), targets.numpy())


@pytest.mark.parametrize("c", [1e-6, 1e-3, 0.1, 10, 1e3])
def test_the_loss_is_scikit_learns(c):
    features, targets = blobs(0, 120)
    found = fit_logistic(features, targets, 4, c)
    other = scikit_learns(features, targets, c)
    weights = (torch.from_numpy(other.coef_), torch.from_numpy(other.intercept_))
    assert found.loss == pytest.approx(float(objective(features, targets, *weights, c)[0]), abs=1e-6)
    probabilities = torch.from_numpy(other.predict_proba(features.double().numpy()))
    torch.testing.assert_close(found.scores(features).softmax(1), probabilities, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("chunk", [40, 1 << 22])
def test_the_gradient_is_autograds(monkeypatch, chunk):
    monkeypatch.setattr(logistic, "_CHUNK", chunk)
    features, targets = blobs(1, 33)
    random = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(4, 12, generator=random).double(), torch.randn(4, generator=random).double()
    loss, slope, offset = objective(features, targets, weight, bias, 0.3)
    weight.requires_grad_(), bias.requires_grad_()
    expected = F.cross_entropy(features.double() @ weight.T + bias, targets)
    expected = expected + weight.square().sum() / (2 * 0.3 * 33)
    expected.backward()
    for found, wanted in ((loss, expected.detach()), (slope, weight.grad), (offset, bias.grad)):
        torch.testing.assert_close(found, wanted)


def test_a_start_and_the_place_of_the_origin_change_no_optimum():
    features, targets = blobs(2, 60)
    alone = fit_logistic(features, targets, 4, 1.0)
    started = fit_logistic(features, targets, 4, 1.0, start=fit_logistic(features, targets, 4, 1e-3))
    moved = fit_logistic(features + 50, targets, 4, 1.0)
    assert started.loss == pytest.approx(alone.loss, abs=1e-9)
    assert moved.loss == pytest.approx(alone.loss, abs=1e-6)


def test_folds_share_out_each_class_and_leave_single_images_alone():
    labels = torch.tensor([0] * 20 + [4] * 7 + [9])
    folds = stratified_folds(labels, 5, 0)
    assert torch.bincount(folds[:20]).tolist() == [4] * 5
    assert set(torch.bincount(folds[20:27]).tolist()) == {1, 2}
    assert folds[27] == -1
    assert folds.equal(stratified_folds(labels, 5, 0))
    assert not folds.equal(stratified_folds(labels, 5, 1))


def test_c_is_rated_as_by_scikit_learn():
    features, targets = blobs(3, 200)
    held = stratified_folds(targets, 10, 0) == 0
    grid = (1e-4, 1e-2, 1.0)
    for one in rate_c(features, targets, 4, [held], grid):
        other = scikit_learns(features[~held], targets[~held], one["c"])
        assert one["accuracy"] == pytest.approx(
            other.score(features[held].double().numpy(), targets[held].numpy()), abs=0.051
        )
        logs = torch.from_numpy(other.predict_log_proba(features[held].double().numpy()))
        assert one["log loss"] == pytest.approx(float(F.nll_loss(logs, targets[held])), abs=1e-3)


@pytest.fixture
def probed(tmp_path):
    """Run a probe on features "cls" of 160 and 80 points."""

    def run(bank=None, test=None, **options):
        bank, test = bank or blobs(4, 600, noise=0.3), test or blobs(5, 80, noise=0.3)
        given = [
            stored(tmp_path / name / str(len(list(tmp_path.glob("*/*")))), {"cls": x, "mean": -x}, y)
            for name, (x, y) in (("bank", bank), ("test", test))
        ]
        return Probe.model_validate({"representations": ("cls",), "c": (0.01, 1.0), **options}).run(
            feature_task(*given)
        )[0]

    return run


def test_separable_classes_are_solved_and_random_labels_stay_at_chance(probed):
    solved = probed()
    assert solved.metrics["top-1"] > 0.97
    assert solved.selection == "C: best on a tenth of the training set, then fitted to all"
    features, labels = blobs(4, 600, noise=0.3)
    random = labels[torch.randperm(600, generator=torch.Generator().manual_seed(0))]
    assert 0.1 < probed(bank=(features, random)).metrics["top-1"] < 0.4


def test_the_score_is_that_of_scikit_learn_with_the_same_c(probed):
    bank, test = blobs(4, 600), blobs(5, 80)
    outcome = probed(bank, test)
    (tried,) = outcome.details["tries"]
    other = scikit_learns(bank[0].half(), bank[1], tried["C"])
    expected = other.score(test[0].half().double().numpy(), test[1].numpy())
    assert outcome.metrics["top-1"] == pytest.approx(expected, abs=0.013)
    assert [one["c"] for one in outcome.details["C"]] == [0.01, 1.0]
    best = max(outcome.details["C"], key=lambda one: (one["accuracy"], -one["log loss"]))
    assert best["c"] == tried["C"]


def test_all_classes_are_ranked_where_there_are_more_than_five(probed):
    outcome = probed(blobs(4, 600, classes=8, noise=2.5), blobs(5, 80, classes=8, noise=2.5))
    assert outcome.metrics["top-1"] < outcome.metrics["top-5"] < 1


def test_select_test_is_named_and_never_worse(probed):
    bank, test = blobs(4, 600, noise=3), blobs(5, 80, noise=3)
    grid = {"c": (1e-6, 1e-3, 1.0)}
    published = probed(bank, test, select="test", **grid)
    assert published.selection == "C: best on the test set"
    assert published.metrics["top-1"] >= probed(bank, test, **grid).metrics["top-1"] - 1e-9


def test_few_labels_are_drawn_cross_validated_and_tried_again(probed):
    outcome = probed(few=4, tries=2)
    assert (
        outcome.selection == "C: best by cross-validation in the training set (5 parts), then fitted to all"
    )
    assert outcome.seeds == (0, 1)
    each = [one["top-1"] for one in outcome.details["tries"]]
    assert outcome.details["standard deviation of top-1"] == pytest.approx(np.std(each, ddof=1))
    assert outcome.metrics["top-1"] == pytest.approx(sum(each) / 2)
    assert outcome.class_images == {"0": 20, "1": 20, "2": 20, "3": 20}
    low, high = outcome.intervals["nearest class mean"]
    assert low <= outcome.metrics["nearest class mean"] <= high


def test_one_label_for_each_class_has_a_fixed_c(probed):
    outcome = probed(few=1)
    assert outcome.selection == "C: 1, as each class has one image to learn from"
    assert outcome.details["tries"][0]["C"] == 1.0


def test_the_nearest_class_mean_is_that_of_numpy(probed):
    bank, test = blobs(4, 40), blobs(5, 80)
    known, asked = (each[0].half().double().numpy() for each in (bank, test))
    means = np.stack([known[bank[1].numpy() == label].mean(0) for label in range(4)])
    nearest = np.linalg.norm(asked[:, None] - means, axis=2).argmin(1)
    outcome = probed(bank, test, few=0.999)
    assert outcome.metrics["nearest class mean"] == pytest.approx((nearest == test[1].numpy()).mean())


def test_classes_that_cannot_be_learnt_are_noted(probed):
    features, labels = blobs(5, 80)
    outcome = probed(test=(features, labels.where(labels != 2, 11)), select="test")
    assert outcome.notes == (
        "20 test images are of classes that the images to learn from do not have, such as class 11: "
        "they cannot be right",
    )


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["epochs=3"], "epochs is an option of kind grid or published, not of kind logistic"),
        (["kind=grid", "c=1.0"], "c is an option of kind logistic, not of kind grid"),
        (["kind=published", "lr=[0.1, 0.2]"], "lr is a list: kind published has one, such as 0.025"),
        (["kind=grid", "lr=[0.1, -1.0]"], r"'lr' is \[0.1, -1.0\]: numbers greater than 0 are needed"),
        (["few=1.5"], "'few' is 1.5: a whole number of images of each class or a share below 1 is needed"),
        (["c=[]"], r"c is \[\]: give one value or more"),
        (["representations=[]"], r"representations is \[\]: give one value or more"),
        (["c=all"], r"'c' is 'all': input should be '10\^linspace\(-6, 5, 45\)' or a valid"),
        (["kind=logistics"], "'kind' is 'logistics': input should be 'logistic', 'grid' or 'published'"),
        (["epoch=3"], "unknown configuration key 'epoch': did you mean 'epochs'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(assignments, message):
    with pytest.raises(ConfigError, match=message):
        load_config(Probe, None, assignments)


def test_each_kind_has_the_options_and_defaults_of_its_protocol():
    logistic_options = load_config(Probe, None).model_dump(mode="json")
    assert logistic_options.keys() == {
        "kind", "representations", "select", "seed", "shared_keys", "c", "few", "tries",
    }  # fmt: skip
    assert logistic_options["c"] == "10^linspace(-6, 5, 45)"
    assert load_config(Probe, None).c_grid == pytest.approx(np.logspace(-6, 5, 45))
    grid = load_config(Probe, None, ["kind=grid", "epochs=3"]).model_dump(mode="json")
    assert (grid["epochs"], grid["batch"], len(grid["lr"]), len(grid["representations"])) == (3, 1024, 13, 4)
    published = load_config(Probe, None, ["kind=published"]).model_dump(mode="json")
    assert (published["epochs"], published["batch"], published["lr"]) == (90, 16384, [0.025])
    assert "few" not in published
    assert load_config(Probe, None, ["c=0.5"]).c == (0.5,)


def test_what_cannot_be_learnt_or_tested_is_refused(probed, tmp_path):
    with pytest.raises(ConfigError, match=r"all labelled images of '.*' are of class 3: give images of"):
        probed(bank=(torch.ones(10, 12), torch.full((10,), 3)))
    with pytest.raises(ConfigError, match="representation 'last4' is not available: this network has cls"):
        probed(representations=("cls", "last4"))
    data = squares(tmp_path / "a.tar", 0, 6)
    other = squares(tmp_path / "b.tar", 1, 6)
    alone = LabelledImages(data.of.subset([0, 3]))  # two of class 0
    with pytest.raises(ConfigError, match=r"all labelled images of .* are of class 0: give images of"):
        Probe().run(task(tmp_path, tiny_subject(), alone, other))
    assert not (tmp_path / "features").exists()
    one_each = LabelledImages(data.of.subset([0, 1, 2]))
    with pytest.raises(ConfigError, match=r"no image of .* can be held out to choose a head, since"):
        heads(tmp_path, (one_each, other), **GRID)
    with pytest.raises(ConfigError, match="probe needs other images to test with: give --test-shards"):
        Probe().run(task(tmp_path, tiny_subject(), data))
    with pytest.raises(
        ConfigError, match=r"6 keys are in the data to learn from .* not be both learnt and tested"
    ):
        Probe().run(task(tmp_path, tiny_subject(), data, data))


# heads on random crops


def steps_of(grid, rates, steps=30):
    """Train by the shared loss on one batch, as head_grid does."""
    features, targets = blobs(6, 64)
    features = (features - features.mean(0)) / features.std(0)
    optimiser = torch.optim.SGD(grid.parameters(), lr=1.0, momentum=0.9)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rates(step)
        optimiser.zero_grad()
        grid.loss(features, targets, 0.5).backward()
        optimiser.step()
    return features, targets


def falling(step):
    return 1 - step / 30


def test_a_column_of_the_grid_equals_the_head_trained_alone():
    grid = HeadGrid("cls", 12, 4, (0.01, 0.1, 0.5), seed=3)
    alone = HeadGrid("cls", 12, 4, (0.1,), seed=3)
    plain = nn.Linear(12, 4)
    with torch.no_grad():
        plain.weight.copy_(alone.weight[0])
        plain.bias.zero_()
    features, targets = steps_of(grid, falling)
    steps_of(alone, falling)
    optimiser = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for step in range(30):
        optimiser.param_groups[0]["lr"] = 0.1 * 0.5 * falling(step)
        optimiser.zero_grad()
        F.cross_entropy(plain(features), targets).backward()
        optimiser.step()
    for column in (grid.weight[1], alone.weight[0]):
        torch.testing.assert_close(column, plain.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grid(features)[:, 1], plain(features), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(grid.weight[2], plain.weight, atol=0.01)


def test_a_head_that_diverges_harms_no_other():
    grid, alone = HeadGrid("cls", 12, 4, (0.1, 1e30), seed=3), HeadGrid("cls", 12, 4, (0.1,), seed=3)
    steps_of(grid, falling)
    steps_of(alone, falling)
    assert not grid.weight[1].isfinite().all() or grid.weight[1].abs().max() > 1e20
    torch.testing.assert_close(grid.weight[0], alone.weight[0], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squares")
    return squares(folder / "a.tar", 1, 45), squares(folder / "b.tar", 2, 30)


def heads(folder, images, workers=0, log=lambda _line: None, **options):
    learnt, tested = images
    given = task(folder, tiny_subject(), learnt, tested, workers=workers, log=log)
    return Probe.model_validate({"epochs": 8.0, **options}).run(given)


GRID = {"kind": "grid", "representations": ("mean", "cls+mean"), "lr": (1e-4, 5.0)}


def test_the_grid_reports_every_head_and_what_chose_the_best(images, tmp_path):
    outcomes = heads(tmp_path, images, **GRID, epochs=12.0, seed=1)
    assert [one.representation for one in outcomes] == ["mean", "cls+mean"]
    for one in outcomes:
        details = one.details
        assert [head["lr"] for head in details["heads"]] == [1e-4, 5.0]
        best = max(details["heads"], key=lambda head: head["top-1"])
        assert best["lr"] == details["lr"]
        assert one.selection == "learning rate of 2: best on a tenth of the training set, not trained on"
        assert details["batch"] == 32
        assert details["steps"] == 15  # 12 epochs of 41 images
        assert (one.bank.images, one.test.images) == (45, 30)
        assert one.notes[0].endswith("images chose among the heads: another seed may choose another")
        assert details["lr"] == 5.0
        assert one.metrics["top-1"] > 0.8  # the colours are learnt; chance is 1/3


def test_select_test_trains_on_all_and_reports_the_best_head(images, tmp_path):
    (outcome,) = heads(tmp_path, images, **GRID | {"representations": ("mean",)}, select="test")
    assert outcome.selection == "learning rate of 2: best on the test set"
    assert outcome.metrics["top-1"] == pytest.approx(max(one["top-1"] for one in outcome.details["heads"]))


def test_workers_change_no_number(images, tmp_path):
    options = {"kind": "grid", "representations": ("mean",), "lr": (1.0,), "epochs": 1.0}
    alone, shared = (heads(tmp_path / str(workers), images, workers, **options) for workers in (0, 2))
    assert alone == shared


# The third step is the first of an epoch, after which the published probe ranks the test set.
@pytest.mark.parametrize(("kind", "steps"), [("grid", [3]), ("published", [3, 4])])
def test_a_probe_that_is_killed_ends_with_the_same_numbers(images, tmp_path, monkeypatch, kind, steps):
    options = {"kind": kind, "representations": ("mean",), "lr": (1.0,), "epochs": 3.0, "select": "test"}
    whole = heads(tmp_path, images, **options)
    for step in steps:
        again = continued(monkeypatch, lambda log: heads(tmp_path, images, log=log, **options), step)
        assert again == whole
    assert not list((tmp_path / "evaluation").glob("*.state"))
    assert heads(tmp_path, images, **options, seed=1) != whole


def test_the_published_probe_ends_with_its_last_epoch_and_learns(images, tmp_path):
    options = {"kind": "published", "representations": ("mean",), "epochs": 4.0}
    (last,) = heads(tmp_path, images, **options)
    assert last.selection == "none: last epoch"
    assert last.notes[0].startswith("the recipe is for ImageNet: its 6 steps here can move a head by ")
    (best,) = heads(tmp_path, images, **options, select="test")
    assert best.selection == "epoch: best of 6 on the test set"
    assert best.details["epochs"][-1] == last.metrics["top-1"]
    assert best.metrics["top-1"] == max(best.details["epochs"])
    (more,) = heads(tmp_path, images, **options | {"lr": (3000.0,), "batch": 4, "epochs": 8.0})
    assert more.metrics["top-1"] > 0.6  # the colours are learnt; chance is 1/3


def test_a_batch_is_at_most_a_tenth_of_the_training_set_and_comes_in_parts(images, tmp_path):
    learnt, tested = images
    given = task(tmp_path, tiny_subject(), learnt, tested)
    bank, _ = given.features("refuse")
    options = Probe(kind="published", epochs=2, batch=9999)
    plan = crop_training.plan_crops(options, given, bank, hold_out=False)
    assert (plan.batch, plan.steps, plan.scale) == (32, 3, 32 / 256)
    sizes, seen = [], []
    for step in plan.batches(given, 32):
        parts = list(step)
        sizes.append([len(pixels) for pixels, _ in parts])
        seen += torch.cat([targets for _, targets in parts]).tolist()
    assert sizes == [[8, 8, 8, 8]] * 3
    assert sorted(seen[:45]) == sorted(bank.labels.tolist())


def test_lars_is_that_of_mae_by_hand():
    weight, bias = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.ones(3)
    found = [nn.Parameter(weight.clone()), nn.Parameter(bias.clone())]
    optimiser = Lars(found, lr=0.5, weight_decay=0.1)
    momentum = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for step in range(4):
        gradients = [torch.full_like(weight, 0.3) + step, torch.full_like(bias, -0.2)]
        for value, gradient in zip(found, gradients, strict=True):
            value.grad = gradient.clone()
        optimiser.step()
        decayed = gradients[0] + 0.1 * weight
        momentum[0] = 0.9 * momentum[0] + decayed * 0.001 * weight.norm() / decayed.norm()
        momentum[1] = 0.9 * momentum[1] + gradients[1]
        weight, bias = weight - 0.5 * momentum[0], bias - 0.5 * momentum[1]
    torch.testing.assert_close(found[0].detach(), weight)
    torch.testing.assert_close(found[1].detach(), bias)


def test_the_published_head_standardises_and_tests_by_running_statistics():
    torch.manual_seed(0)
    head = NormedLinear(12, 4)
    features, _ = blobs(0, 200)
    standard = (features - features.mean(0)) / features.std(0, correction=0)
    torch.testing.assert_close(head(features), head.linear(standard), rtol=1e-3, atol=1e-3)
    assert float(head.linear.weight.detach().std()) == pytest.approx(0.01, rel=0.3)
    assert [name for name, _ in head.named_parameters()] == ["linear.weight", "linear.bias"]
    one = head.eval()(features[:1])
    torch.testing.assert_close(one, head(features)[:1])
