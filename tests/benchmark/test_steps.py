"""The steps that are compared do the same work: with the teacher in the loop, from the cache, and as the paper has it."""

from dataclasses import replace

import pytest
import torch

from pipeline.benchmark.in_loop import teacher_targets, whole_view_batch
from pipeline.benchmark.reference import ReferenceStudent, reference_step
from pipeline.benchmark.steps import count_operations, measure_steps, resident_batch
from pipeline.objectives.losses import distance
from pipeline.objectives.objective import MaskedView, TrainingStep
from pipeline.training.targets import cached_targets


@pytest.fixture(scope="module", autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_a_teacher_in_the_loop_gives_what_the_cache_has(bench):
    """The first batch of the stream and the whole views hold nearly the same images, in another order."""
    job = replace(bench.job, spec=replace(bench.job.spec, batch_size=128))
    views, resident = whole_view_batch(job), resident_batch(job)
    in_loop = torch.stack(teacher_targets(job, bench.teacher)(views).visible, dim=1)
    cached = torch.stack(cached_targets(job.cache, job.spec.levels, "whiten")(resident).visible, dim=1)
    ours, theirs = ([row.numpy().tobytes() for row in batch["patches"]] for batch in (views, resident))
    shared = [(ours.index(row), index) for index, row in enumerate(theirs) if row in ours]
    assert len(shared) >= 116  # of 140 images both have 128
    of_views, of_stream = (list(column) for column in zip(*shared, strict=True))
    assert torch.nn.functional.cosine_similarity(in_loop[of_views], cached[of_stream], dim=-1).min() > 0.999


def test_the_published_algorithm_predicts_as_our_student(bench):
    student, teacher, batch = bench.job.objective.eval(), bench.teacher, whole_view_batch(bench.job)
    reference = ReferenceStudent(
        bench.config.student, 64, 16, len(teacher.levels), teacher.facts.width
    ).eval()
    reference.vit.load_state_dict(student.encoder.vit.state_dict())
    reference.heads.load_state_dict(student.alignment.heads.state_dict())
    reference.mixture.data.copy_(student.alignment.weights)
    mean, std = (
        torch.tensor(values)[:, None, None] for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    images = (batch["views"].permute(0, 3, 1, 2) / 255 - mean) / std
    targets = teacher_targets(bench.job, teacher)(batch)
    loss, _ = student(MaskedView(batch["patches"], batch["visible"]), targets)
    pairs = zip(reference(images, batch["visible"]), targets.visible, strict=True)
    expected = torch.stack([distance(*pair, "smooth_l1") for pair in pairs]).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_the_published_algorithm_learns(bench):
    teacher, pixels = bench.teacher, whole_view_batch(bench.job)["views"]
    step = reference_step(
        ReferenceStudent(bench.config.student, 64, 16, len(teacher.levels), teacher.facts.width),
        teacher,
        count=4,
    )
    losses = [step(pixels).item() for _ in range(12)]
    assert losses[-1] < losses[0]


def test_operations_are_counted_as_by_hand(bench):
    """Three times the forward pass's products, except in the first layer: pixels need no gradient."""
    model, batch = (
        TrainingStep(bench.job.objective, cached_targets(bench.cache, bench.job.spec.levels, "whiten")),
        resident_batch(bench.job),
    )
    width, blocks, visible = 192, 4, batch["visible"].shape[1]
    tokens, levels, target = visible + 1, 3, 64
    block = tokens * 12 * width**2 + 2 * tokens**2 * width
    forward = blocks * block + levels * tokens * width * target
    by_hand = 2 * (3 * forward + 2 * visible * 768 * width)
    assert count_operations(model, batch) == pytest.approx(by_hand, rel=0.01)


@pytest.mark.bench
def test_the_figures_of_the_step_belong_together(bench):
    figures = {figure.name: figure.values for figure in measure_steps(bench)}
    (resident,) = figures["step.resident"]
    assert figures["ratio.streamed_to_resident"] == [figures["step.streamed"][0] / resident]
    assert figures["ratio.cached_to_teacher_in_loop"] == [resident / figures["step.teacher_in_loop"][0]]
    assert figures["ratio.step_to_reference"] == [resident / figures["step.reference"][0]]
    assert 0 <= figures["step.wait_share"][0] < 100
    assert figures["start.first_batch"] > figures["start.open"]
