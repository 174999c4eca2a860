"""Targets against plain formulas, and their two sources against each other."""

import pytest
import torch
from torch.nn import functional as F

from pipeline.cache.encoding import TargetDecoder, whiten
from pipeline.objectives.needs import Needs
from pipeline.training.targets import CachedTargets, TeacherOutput, TeacherTargets, make_target


@pytest.fixture
def hidden():
    """Hidden states (3, 4, 32) with their whitening and its statistics."""
    states = 5 + 3 * torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    std = (states.var(-1, correction=0) + 1e-5).sqrt()
    return states, F.layer_norm(states, (32,), eps=1e-5), states.mean(-1), std


def test_each_target_is_its_function_of_the_hidden_states(hidden):
    states, *stored = hidden
    post_norm = torch.stack([torch.linspace(0.5, 2, 32), torch.linspace(-1, 1, 32)]).double()
    projection = torch.randn(32, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    normed = F.layer_norm(states, (32,), *post_norm, eps=1e-5)
    expected = {
        "none": states,
        "l2": states / states.norm(dim=-1, keepdim=True),
        "post_norm": F.layer_norm(normed, (32,)),
        "projected": normed @ projection,
    }
    for kind, target in expected.items():
        found = make_target(*stored, kind, TeacherOutput(post_norm, projection=projection))
        torch.testing.assert_close(found, target, rtol=1e-10, atol=1e-10)
    assert make_target(*stored, "whiten") is stored[0]


def test_half_precision_is_restored_in_single(hidden):
    states, *stored = hidden
    raw = make_target(*(values.half() for values in stored), "none")
    assert raw.dtype == torch.float32
    torch.testing.assert_close(raw, states.float(), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("kind", ["whiten", "none", "post_norm", "projected"])
def test_a_teacher_in_the_loop_gives_what_a_cache_would(kind):
    """Three levels of CLS and six patches: all levels at the two visible, the last at the four hidden."""
    states = [5 + torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    visible, hidden = torch.tensor([[0, 4], [1, 5]]), torch.tensor([[1, 2, 3, 5], [0, 2, 3, 4]])
    whitened, mean, std = whiten(torch.stack(states, dim=1))
    stored = torch.cat([whitened, mean[..., None], std[..., None]], dim=-1)
    batch = {"views": torch.zeros(2), "visible": visible, "hidden": hidden}
    tokens = {"visible": torch.nn.functional.pad(visible + 1, (1, 0)), "hidden": hidden + 1}
    for part, levels in (("visible", [0, 1, 2]), ("hidden", [2])):
        values = torch.stack([rows[levels][:, tokens[part][image]] for image, rows in enumerate(stored)])
        batch |= {f"{part}_codes": values[..., :8], f"{part}_stats": values[..., 8:]}
    decoder = TargetDecoder(torch.zeros(3, 8), torch.ones(3, 8), "float16")
    post_norm = torch.stack([torch.linspace(0.5, 2, 8), torch.linspace(-1, 1, 8)])
    output = TeacherOutput(post_norm, projection=torch.eye(8)[:, :5])
    cached = CachedTargets(decoder, kind, output)(batch)
    needs = Needs(visible="chosen", hidden="last", positions=True, target=kind)
    in_loop = TeacherTargets(lambda _: states, True, needs, output)(batch)
    assert [len(cached.visible), len(cached.hidden)] == [3, 1]
    torch.testing.assert_close(cached.visible, in_loop.visible)
    torch.testing.assert_close(cached.hidden, in_loop.hidden)


def test_a_teacher_does_not_run_for_an_objective_without_targets():
    needs = Needs(visible="none", pixels="all", positions=True)
    found = TeacherTargets(None, True, needs)({"views": torch.zeros(2)})
    assert (found.visible, found.hidden) == ([], [])
