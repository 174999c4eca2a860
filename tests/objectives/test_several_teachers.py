"""MaskAlign with several teachers, and PHI-S, against plain computations."""

import pytest
import torch
from plain import draw, view_of
from student_fixtures import TINY

from pipeline.errors import ConfigError
from pipeline.objectives.alignment import matched_blocks
from pipeline.objectives.maskalign import MaskAlign
from pipeline.objectives.objective import Setting, Targets
from pipeline.student.config import StudentConfig
from pipeline.training.phi_s import Moments, PhiStandardisation, hadamard_matrix, phi_s

WIDTHS = (20, 36)
USUAL = (192, 384, 512, 640, 768, 1024, 1152, 1280, 1408, 1536, 1664)


@pytest.fixture
def both(tiny_objective):
    """Three levels of a teacher with CLS, and two of one without, which is wider and deeper."""
    other = Setting(32, 8, (3, 8), 9, WIDTHS[1], False, teacher_name="b")
    return tiny_objective(MaskAlign(), facts={"teacher_name": "a", "others": (other,)})


def targets():
    return [*draw(3, 2, 7, WIDTHS[0]), *draw(2, 2, 6, WIDTHS[1])]


def test_each_teacher_counts_equally_whatever_its_levels(both, images, visible):
    loss, per_level = both(view_of(images, visible), Targets(targets(), []))
    torch.testing.assert_close(loss.detach(), (per_level[:3].mean() + per_level[3:].mean()) / 2)
    assert both.parts == ("a level 1", "a level 4", "a level 5", "b level 3", "b level 8")


def test_each_level_is_the_one_of_its_teacher_alone(both, images, visible):
    """The same encoder, mixture and heads give the same losses with one teacher at a time."""
    _, per_level = both(view_of(images, visible), Targets(targets(), []))
    parts = {0: (slice(0, 3), (1, 4, 5), 6, True), 1: (slice(3, 5), (3, 8), 9, False)}
    for at, (which, levels, depth, has_cls) in parts.items():
        student = StudentConfig(model="vit_tiny_patch16_224", options=TINY, drop_path=0.0)
        alone = MaskAlign().build(student, Setting(32, 8, levels, depth, WIDTHS[at], has_cls))
        alone.encoder.load_state_dict(both.encoder.state_dict())
        alone.alignment.weights.data = both.alignment.weights.data[which].clone()
        for ours, theirs in zip(alone.alignment.heads, list(both.alignment.heads)[which], strict=True):
            ours.load_state_dict(theirs.state_dict())
        _, found = alone(view_of(images, visible), Targets(targets()[which], []))
        torch.testing.assert_close(found, per_level[which])


def test_levels_are_matched_by_the_depth_of_their_own_teacher(both):
    matched = [*matched_blocks((1, 4, 5), 6, 3), *matched_blocks((3, 8), 9, 3)]
    assert both.alignment.weights.argmax(1).tolist() == matched
    assert [head.out_features for head in both.alignment.heads] == [20, 20, 20, 36, 36]


def test_figures_have_a_matrix_for_each_teacher(both):
    weights = both.alignment.weights.tolist()
    assert both.figures() == {"alignment a": weights[:3], "alignment b": weights[3:]}


def test_teachers_of_one_name_are_numbered(tiny_objective):
    other = Setting(32, 8, (5,), 6, 20, True, teacher_name="a")
    built = tiny_objective(MaskAlign(), levels=(5,), facts={"teacher_name": "a", "others": (other,)})
    assert built.parts == ("a (1) level 5", "a (2) level 5")


@pytest.mark.parametrize("size", [1, 2, 4, 12, 20, 64, *USUAL])
def test_a_hadamard_matrix_is_orthogonal_with_entries_of_one_size(size):
    matrix = hadamard_matrix(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64))
    torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, size**-0.5))


@pytest.mark.parametrize("size", [3, 6, 70])
def test_a_width_without_hadamard_matrix_is_refused(size):
    told = f"the target's {size} channels, and none is known here: set objective.balance=equal"
    with pytest.raises(ConfigError, match=told):
        hadamard_matrix(size)


def test_phi_s_gives_all_channels_variance_one_and_keeps_distances():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(24, 24, generator=generator) * torch.logspace(1, -2, 24)
    values = torch.randn(500, 24, generator=generator) @ mixing + torch.randn(24, generator=generator) * 3
    moments = Moments()
    for part in values.split(128):
        moments.add(part)
    standard = PhiStandardisation(1, 24)
    standard.mean[0], standard.matrix[0] = phi_s(*moments.result())
    found = standard(0, values)
    torch.testing.assert_close(found.mean(0), torch.zeros(24), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.var(0, unbiased=False), torch.ones(24), atol=1e-3, rtol=1e-3)
    alpha = values.var(0, unbiased=False).mean().sqrt()
    torch.testing.assert_close(
        torch.cdist(found, found), torch.cdist(values, values) / alpha, atol=1e-2, rtol=1e-3
    )
