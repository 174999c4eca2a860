"""Attentive probes: heads by hand and against torch, gradients over parts, colours that are learnt."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import continued, squares, task, tiny_subject
from PIL import Image

from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.evaluation.probes.attentive import Attentive
from pipeline.evaluation.probes.attentive_heads import CapiHead, EfficientHead, largest_divisor
from pipeline.evaluation.probes.token_heads import accumulated_loss, tokens


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(head):
    """Give a head weights that are far from its first ones."""
    with torch.no_grad():
        for number, weight in enumerate(head.parameters()):
            weight.copy_(drawn(*weight.shape, seed=number))
    return head


def test_one_query_with_identity_values_is_attention_by_hand():
    head, seen = filled(EfficientHead(8, 3, 1)), drawn(4, 5, 8)
    with torch.no_grad():
        head.values.weight.copy_(torch.eye(8))
    by_hand = []
    for image in seen:
        weights = np.exp((image @ head.queries[0]).detach().numpy() / 8**0.5)
        by_hand.append(torch.from_numpy((weights / weights.sum()).astype(np.float32)) @ image)
    torch.testing.assert_close(head.pooled(seen).detach(), torch.stack(by_hand), rtol=1e-4, atol=1e-5)


def test_each_query_averages_its_own_slice_of_the_values():
    head, seen = filled(EfficientHead(8, 3, 4)), drawn(2, 5, 8)
    values, maps, pooled = head.values(seen), head.maps(seen), head.pooled(seen)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 4))
    for query in range(4):
        part = slice(2 * query, 2 * query + 2)
        torch.testing.assert_close(pooled[:, part], (maps[:, query, :, None] * values[..., part]).sum(1))
    standard = (pooled - pooled.mean(0)) / (pooled.var(0, correction=0) + 1e-6).sqrt()
    torch.testing.assert_close(head(seen), head.linear(standard), rtol=1e-4, atol=1e-4)


def test_capis_head_is_torchs_attention_with_a_learned_query():
    head, seen = filled(CapiHead(8, 3, 2)), drawn(4, 5, 8)
    keys, values = F.linear(seen, head.keys_values.weight, head.keys_values.bias).chunk(2, dim=-1)
    pooled = []
    for number in range(2):
        part = slice(4 * number, 4 * number + 4)
        weights = (keys[..., part] @ head.query[number] / 2).softmax(-1)
        torch.testing.assert_close(head.maps(seen)[:, number], weights)
        pooled.append((weights[..., None] * values[..., part]).sum(1))
    torch.testing.assert_close(head(seen), head.linear(torch.cat(pooled, 1)), rtol=1e-4, atol=1e-4)


def test_first_weights_are_those_of_the_papers():
    torch.manual_seed(0)
    efficient, capi = EfficientHead(192, 10, 32), CapiHead(192, 10, 3)
    stds = {
        "queries": (efficient.queries, 0.02),
        "linear": (efficient.linear.weight, 0.01),
        "capi": (capi.keys_values.weight, 0.02),
    }
    for name, (weight, std) in stds.items():
        assert float(weight.detach().std()) == pytest.approx(std, rel=0.1), name
    without = [weight for name, weight in efficient.named_parameters() if not name.startswith("linear")]
    assert sum(map(torch.numel, without)) == 192**2 + 32 * 192


def test_queries_divide_the_width():
    asked = [(192, 32), (384, 32), (48, 32), (7, 4), (8, 99), (32, 0)]
    assert [largest_divisor(*one) for one in asked] == [32, 32, 24, 1, 8, 1]


def test_gradients_over_parts_are_those_of_the_whole_batch():
    subject, head = tiny_subject(), filled(CapiHead(32, 3, 1))
    pixels = torch.randint(0, 256, (6, 32, 32, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    targets = torch.tensor([0, 1, 2, 2, 1, 0])
    expected = F.cross_entropy(head(tokens(subject, pixels, True)), targets)
    gradients = torch.autograd.grad(expected, list(head.parameters()))
    parts = ((pixels[rows], targets[rows]) for rows in ([0], [1, 2, 3], [4, 5]))
    loss = accumulated_loss(subject, [head], parts, 6, with_cls=True)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    for weight, gradient in zip(head.parameters(), gradients, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-3, atol=1e-5)


def test_tokens_are_cls_and_patches_without_registers():
    subject = tiny_subject(reg_tokens=3)
    pixels = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    found = subject.tokens(pixels)
    assert torch.equal(tokens(subject, pixels, False), found.patches.flatten(1, 2))
    assert torch.equal(tokens(subject, pixels, True)[:, 0], found.cls)
    assert not tokens(subject, pixels, True).requires_grad


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squares")
    return squares(folder / "a.tar", 1, 45), squares(folder / "b.tar", 2, 30)


def probed(folder, images, subject=None, log=lambda _line: None, **options):
    learnt, tested = images
    given = task(folder, subject or tiny_subject(), learnt, tested, log=log)
    (outcome,) = Attentive.model_validate({"epochs": 2.0, "shown": 0, **options}).run(given)
    return outcome


@pytest.mark.parametrize(
    "options",
    [{"queries": 16, "lr": 30.0, "shown": 2}, {"kind": "capi", "lr": 0.05, "weight_decay": 0.0}],
    ids=["efficient", "capi"],
)
def test_colours_are_learnt_and_queries_shown_where_asked(images, tmp_path, options):
    outcome = probed(tmp_path, images, epochs=20.0, **options)
    assert outcome.metrics["top-1"] > 0.6  # chance is 1/3
    assert outcome.representation == "cls+patches"
    assert len(outcome.plots) == ("shown" in options)
    for plot in outcome.plots:
        with Image.open(tmp_path / "evaluation" / plot.file) as sheet:
            assert sheet.size[0] > 10 * 100  # image, mean, 8 queries


@pytest.mark.parametrize("select", ["train", "test"])
def test_every_head_is_reported_and_the_best_is_tested(images, tmp_path, select):
    outcome = probed(tmp_path, images, kind="capi", lr=(1e-4, 0.05), weight_decay=(0.0, 0.1), select=select)
    heads = outcome.details["heads"]
    assert [(one["lr"], one["weight decay"]) for one in heads] == [
        (1e-4, 0.0), (1e-4, 0.1), (0.05, 0.0), (0.05, 0.1),
    ]  # fmt: skip
    where = "the test set" if select == "test" else "a tenth of the training set"
    assert outcome.selection == f"head of 4: best on {where}"
    if select == "test":
        assert outcome.metrics["top-1"] == max(one["top-1"] for one in heads)
    assert outcome.details["parameters without classifier"] == 32 + 32 * 64 + 64


@pytest.mark.parametrize("kind", ["efficient", "capi"])
def test_a_probe_that_is_killed_ends_with_the_same_numbers(images, tmp_path, monkeypatch, kind):
    options = {"kind": kind, "lr": (0.1, 1.0), "epochs": 3.0}
    whole = probed(tmp_path, images, **options)
    assert continued(monkeypatch, lambda log: probed(tmp_path, images, log=log, **options), 3) == whole
    assert not list((tmp_path / "evaluation").glob("*.state"))
    assert probed(tmp_path, images, **options, seed=1) != whole


def test_networks_without_cls_and_odd_widths_are_noted(images, tmp_path):
    flat = tiny_subject(class_token=False, global_pool="avg", embed_dim=24)
    outcome = probed(tmp_path, images, subject=flat)
    assert outcome.representation == "patches"
    assert outcome.notes[0].endswith("images chose among the heads: another seed may choose another")
    assert outcome.notes[1] == "this network has no CLS: patches alone are seen"
    assert outcome.notes[2].startswith("the recipe is for ImageNet: its 3 steps here can move a head by 0.0")
    assert outcome.notes[3:] == ("24 queries instead of 32, which do not divide width 24",)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["kind=capi", "queries=3"], "queries is an option of kind efficient, not of kind capi"),
        (["lr=[]"], r"lr is \[\]: give one value or more"),
        (["weight_decay=-1.0"], r"'weight_decay' is -1.0: numbers of at least 0 are needed"),
        (["queries=0"], "'queries' is 0: input should be greater than or equal to 1"),
        (["kind=cap"], "'kind' is 'cap': input should be 'efficient' or 'capi'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(assignments, message):
    with pytest.raises(ConfigError, match=message):
        load_config(Attentive, None, assignments)


def test_defaults_are_those_of_the_protocols():
    efficient = load_config(Attentive, None).model_dump(mode="json")
    assert (efficient["queries"], efficient["epochs"], efficient["batch"]) == (32, 90, 4096)
    capi = load_config(Attentive, None, ["kind=capi"]).model_dump(mode="json")
    assert (len(capi["lr"]), capi["weight_decay"], "queries" in capi) == (10, [5e-4, 1e-3, 5e-2], False)


def test_what_cannot_be_tested_is_refused(images, tmp_path):
    with pytest.raises(ConfigError, match="attentive needs other images to test with: give --test-shards"):
        Attentive().run(task(tmp_path, tiny_subject(), images[0]))
