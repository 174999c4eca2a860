"""The steps that are compared do the same work."""

import pytest
import torch

from pipeline.benchmark.reference import ReferenceStudent, reference_step
from pipeline.benchmark.steps import measure_steps, resident_batch
from pipeline.objectives.losses import distance
from pipeline.objectives.objective import MaskedView
from pipeline.student.patches import cut_patches
from pipeline.studies.teacher_in_loop import teacher_targets

MEAN, STD = (torch.tensor(values)[:, None, None] for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


@pytest.fixture(scope="module", autouse=True)
def _seeded():
    torch.manual_seed(0)


def whole_views(job):
    """Images of noise (B, S, S, 3) uint8, and their patches that a batch of the stream would show."""
    views = torch.randint(0, 256, (16, 64, 64, 3), dtype=torch.uint8)
    visible, patches = resident_batch(job)["visible"], cut_patches(views, 16)
    shown = patches.gather(1, visible[..., None].expand(-1, -1, patches.shape[-1]))
    return {"views": views, "visible": visible, "patches": shown}


def reference_student(bench):
    """An untrained student of the published algorithm."""
    return ReferenceStudent(
        bench.config.student, 64, 16, len(bench.teacher.levels), bench.teacher.facts.width
    )


def test_the_published_algorithm_predicts_as_our_student(bench):
    student, batch, reference = (
        bench.job.objective.eval(),
        whole_views(bench.job),
        reference_student(bench).eval(),
    )
    reference.vit.load_state_dict(student.encoder.vit.state_dict())
    reference.heads.load_state_dict(student.alignment.heads.state_dict())
    reference.mixture.data.copy_(student.alignment.weights)
    images = (batch["views"].permute(0, 3, 1, 2) / 255 - MEAN) / STD
    targets = teacher_targets(bench.job, bench.teacher)(batch)
    loss, _ = student(MaskedView(batch["patches"], batch["visible"]), targets)
    pairs = zip(reference(images, batch["visible"]), targets.visible, strict=True)
    expected = torch.stack([distance(*pair, "smooth_l1") for pair in pairs]).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_the_published_algorithm_learns(bench):
    step, pixels = reference_step(reference_student(bench), bench.teacher, 4), whole_views(bench.job)["views"]
    losses = [step(pixels).item() for _ in range(30)]
    assert losses[-1] < 0.98 * losses[0]  # other patches in each step change it by half a percent


@pytest.mark.bench
def test_the_figures_of_the_step_belong_together(bench):
    figures = {figure.name: figure.values for figure in measure_steps(bench)}
    (resident,) = figures["step.resident"]
    assert figures["ratio.streamed_to_resident"] == [figures["step.streamed"][0] / resident]
    assert figures["ratio.cached_to_teacher_in_loop"] == [resident / figures["step.teacher_in_loop"][0]]
    assert figures["ratio.step_to_reference"] == [resident / figures["step.reference"][0]]
    assert 0 <= figures["step.wait_share"][0] < 100
