"""Attention: measures against plain loops in numpy, and the comparison of networks with its plots."""

import numpy as np
import pytest
import torch
from networks import png, square, squares, task, tiny_subject
from PIL import Image
from scipy.stats import spearmanr
from tars import write_tar
from training.training_runs import trained

from pipeline.errors import ConfigError
from pipeline.evaluation.attention import measures
from pipeline.evaluation.attention.attention import Attention
from pipeline.evaluation.crops import LeftOut
from pipeline.evaluation.data import LabelledImages
from pipeline.evaluation.images import open_images
from pipeline.evaluation.run import run_evaluation
from pipeline.evaluation.subject import block_attention, student_subject
from pipeline.seeding import generator
from pipeline.views.masking import draw_around_blocks


@pytest.fixture
def maps():
    random = torch.Generator().manual_seed(0)
    return torch.rand(2, 5, 12, generator=random).softmax(-1)


def test_distance_is_the_mean_way_to_what_a_patch_attends_to():
    weights = torch.rand(1, 2, 7, 7, generator=torch.Generator().manual_seed(1)).softmax(-1)
    found = measures.attention_distance(weights, (2, 3), 1, 8)
    for head in range(2):
        total = 0.0
        for query in range(6):
            row = weights[0, head, 1 + query, 1:].numpy()
            ways = [np.hypot(query // 3 - key // 3, query % 3 - key % 3) * 8 for key in range(6)]
            total += (row / row.sum() * ways).sum() / 6
        assert found[0, head].item() == pytest.approx(total, rel=1e-5)


def test_entropy_lies_between_none_and_that_of_equal_weights():
    equal, single = torch.full((1, 1, 8), 1 / 8), torch.eye(8)[None, :1]
    assert measures.entropy(equal).item() == pytest.approx(np.log(8))
    assert measures.entropy(single).item() == pytest.approx(0, abs=1e-6)


def test_agreement_of_maps(maps):
    a, b = maps
    assert measures.divergence(a, a).abs().max() < 1e-6
    expected = [(q * np.log(q / p)).sum() for p, q in zip(a.numpy(), b.numpy(), strict=True)]
    np.testing.assert_allclose(measures.divergence(a, b), expected, rtol=1e-5)
    ranks = [spearmanr(p, q).statistic for p, q in zip(a.numpy(), b.numpy(), strict=True)]
    np.testing.assert_allclose(measures.rank_correlation(a, b), ranks, rtol=1e-5)
    tops = [
        len({*np.argsort(p)[-4:]} & {*np.argsort(q)[-4:]}) / 4
        for p, q in zip(a.numpy(), b.numpy(), strict=True)
    ]
    np.testing.assert_allclose(measures.top_overlap(a, b), tops)


def test_the_mask_of_a_map_is_the_fewest_patches_with_most_of_its_mass():
    weights = torch.tensor([[0.1, 0.5, 0.3, 0.1]])
    assert measures.mass_mask(weights).tolist() == [[False, True, True, False]]
    mass, jaccard = measures.inside(weights, torch.tensor([[0.0, 1.0, 0.0, 0.0]]))
    assert (mass.item(), jaccard.item()) == (0.5, 0.5)


def test_artefacts_are_tokens_of_three_times_the_median_norm():
    tokens = torch.ones(1, 10, 4)
    tokens[0, 3] *= 3.5
    assert measures.artefact_share(tokens).item() == pytest.approx(0.1)


def test_cka_is_one_up_to_rotation_and_scale_and_small_for_noise():
    random = np.random.default_rng(0)
    features, noise = (torch.from_numpy(random.normal(size=(400, 6))) for _ in range(2))
    rotation = torch.from_numpy(np.linalg.qr(random.normal(size=(6, 6)))[0])
    found = measures.linear_cka([features, noise[:, :5]], [noise, features @ rotation * 3 + 1])
    assert found.shape == (2, 2)
    assert found[0, 1] == pytest.approx(1)
    assert found[1, 0] > 0.5  # the same channels but one
    assert max(found[0, 0], found[1, 1]) < 0.1


def test_colours_separate_two_kinds_of_patches():
    tokens = (
        torch.zeros(1, 2, 4, 5) + torch.rand(1, 2, 4, 5, generator=torch.Generator().manual_seed(0)) * 0.01
    )
    tokens[:, :, 2:] += 1
    colours = measures.principal_colours(tokens)
    assert colours.shape == (1, 2, 4, 3)
    assert (colours[..., 2:, 0] - colours[..., :2, 0]).abs().min() > 0.8


def test_networks_are_compared_on_the_same_images(tmp_path):
    data = squares(tmp_path / "a.tar", 0, 10)
    settings = Attention(images=9, shown=3, teacher="timm:test_vit.random")
    (score,) = run_evaluation(settings, task(tmp_path, tiny_subject(), data))
    assert score.test.images == 9
    assert 0 <= score.metrics["overlap of top 30% with the teacher"] <= 1
    assert score.chance == 0.3
    for table in ("attention distance in pixels", "entropy of CLS in nats"):
        rows = score.details[f"{table}, by block and head"]
        assert [row["block"] for row in rows] == [0, 1, *range(6)]  # of both networks
        assert list(rows[0]) == ["network", "block", "head 0", "head 1"]
    cka = score.details["CKA with the teacher's blocks"]
    assert [list(row) for row in cka] == [["block", *(f"teacher's {block}" for block in range(6))]] * 2
    with Image.open(tmp_path / "evaluation" / score.plots[0].file) as plot:
        assert plot.width > 7 * 100
        assert plot.height > 3 * 100


def test_heads_of_an_earlier_block_are_measured_on_its_own_input(tmp_path):
    """One image, the first block: distance and entropy by hand."""
    subject, data = tiny_subject(), squares(tmp_path / "a.tar", 0, 1)
    (score,) = run_evaluation(Attention(), task(tmp_path, subject, data))
    pixels = next(data.views(32, 1, LeftOut())).pixels
    with torch.no_grad():
        weights = block_attention(subject.vit.blocks[0], next(subject.hidden(pixels)))
    of_cls = weights[0, :, 0, 1:] / weights[0, :, 0, 1:].sum(-1, keepdim=True)
    entropies = -(of_cls * of_cls.log()).sum(-1)
    first = score.details["entropy of CLS in nats, by block and head"][0]
    assert [first["head 0"], first["head 1"]] == pytest.approx(entropies.tolist(), rel=1e-5)
    ways = measures.attention_distance(weights, (4, 4), 1, 8)[0].tolist()
    first = score.details["attention distance in pixels, by block and head"][0]
    assert [first["head 0"], first["head 1"]] == pytest.approx(ways, rel=1e-5)


def test_a_teacher_is_compared_with_another_under_its_own_name(tmp_path):
    data, own = squares(tmp_path / "a.tar", 0, 4), tiny_subject(kind="teacher")
    (alone,) = run_evaluation(Attention(), task(tmp_path, own, data))
    (beside,) = run_evaluation(Attention(teacher="timm:test_vit.random"), task(tmp_path, own, data))
    table = "entropy of CLS in nats, by block and head"
    assert [row["network"] for row in beside.details[table]] == ["network"] * 2 + ["teacher"] * 6
    assert [list(row.values())[1:] for row in beside.details[table][:2]] == [
        list(row.values())[1:] for row in alone.details[table]
    ]
    assert (beside.chance, next(iter(beside.metrics))) == (0.3, "overlap of top 30% with the teacher")
    assert next(iter(alone.metrics)) == "attention inside masks"
    shares = [(square(index, index % 3)[1] > 0).mean() for index in range(4)]
    assert alone.chance == pytest.approx(np.mean(shares), abs=0.05)
    assert alone.metrics["attention inside masks"] == pytest.approx(np.mean(shares), abs=0.2)


def test_plots_show_the_patches_that_the_runs_own_mask_leaves(small_cache_path, tmp_path):
    run = trained(small_cache_path, tmp_path / "run", "mask.strategy=block", "mask.ratio=0.8")
    subject, data = student_subject(run, torch.device("cpu")), squares(tmp_path / "a.tar", 0, 1)
    (score,) = run_evaluation(Attention(), task(tmp_path, subject, data, run=run))
    with Image.open(tmp_path / "evaluation" / score.plots[0].file) as plot:
        panel = np.asarray(plot.crop((116, 36, 228, 148)))[..., :3]
    patches = panel.reshape(4, 28, 4, 28, 3).swapaxes(1, 2).reshape(16, -1)
    expected = draw_around_blocks(4, 3, generator(0, "shown mask", "0_000"))
    assert np.flatnonzero((patches != 120).any(1)).tolist() == expected.tolist()


def test_a_teacher_that_is_not_a_plain_vit_is_refused(tmp_path):
    data = squares(tmp_path / "a.tar", 0, 2)
    with pytest.raises(ConfigError, match="is a ResNet, not a plain ViT"):
        run_evaluation(Attention(teacher="timm:resnet18"), task(tmp_path, tiny_subject(), data))


def test_masks_that_do_not_fit_are_noted_and_values_must_be_there(tmp_path):
    pixels, mask = square(0, 0)
    members = {"a.png": png(pixels), "a.seg.png": png(mask), "b.png": png(pixels), "b.seg.png": b"no mask"}
    members |= {"c.png": png(pixels), "c.seg.png": png(mask[:9])}
    write_tar(tmp_path / "a.tar", {}, members=members)
    data = LabelledImages(open_images([str(tmp_path / "a.tar")], tmp_path))
    (score,) = run_evaluation(Attention(), task(tmp_path, tiny_subject(), data))
    assert "masks: 2, first a.tar/b has" in score.notes[0]
    assert 0 < score.metrics["attention inside masks"] < 1
    with pytest.raises(ConfigError, match=r"foreground is \[9\], but no mask \(KEY.seg.png\)"):
        run_evaluation(Attention(foreground=(9,)), task(tmp_path, tiny_subject(), data))
