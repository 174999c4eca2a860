"""Compares training steps: resident data, streamed data, teacher in the loop, published algorithm."""

from collections.abc import Callable, Iterator
from itertools import islice, repeat

import torch

from pipeline.benchmark.measure import Figure, matrix_rate, ratio, take_turns, wait_for, wall_seconds
from pipeline.benchmark.reference import ReferenceStudent, reference_step
from pipeline.benchmark.workbench import Workbench
from pipeline.objectives.objective import Batch
from pipeline.stream.batches import BatchStream
from pipeline.studies.teacher_in_loop import teacher_targets
from pipeline.training.job import TrainingJob
from pipeline.training.targets import cached_targets
from pipeline.training.trainer import Trainer

_REFERENCE_BATCH = 128  # the published batch of a GPU
_FEW = 3
_TITLES = {
    "resident": "step on resident data",
    "streamed": "step fed by the stream",
    "teacher_in_loop": "step with the teacher in the loop",
    "reference": "step of the published algorithm",
}


def measure_steps(bench: Workbench) -> Iterator[Figure]:
    """Yield the figures of each kind of step that was chosen."""
    job, options, device = bench.job, bench.options, bench.options.device
    few = max(min(_FEW, options.steps), options.steps // 10)  # steps of a round of the slow ones
    targets = cached_targets(job.cache, job.spec.levels, job.spec.needs.target)
    cached, resident = Trainer(job, job.build_step(targets).train()), resident_batch(job)
    size = (options.batch_size, job.cache.schema.view.image_size, job.cache.schema.view.image_size, 3)
    views = torch.randint(0, 256, size, dtype=torch.uint8).to(device)  # speed does not depend on values
    waits: list[float] = []  # shares of the rounds of "streamed", in percent
    variants: dict[str, Callable[[], float]] = {
        "peak": lambda: matrix_rate(device),
        "resident": repeated(cached, resident, options.warm_up, options.steps),
    }

    def streamed_rate() -> float:  # with the start and the end of the workers
        with BatchStream(job.cache, job.spec, job.device, options.workers) as stream:
            batches = iter(stream)
            _rate(cached, batches, 1 + options.warm_up)
            blocked = stream.blocked_seconds
            rate = _rate(cached, batches, options.steps)
            seconds = options.steps * options.batch_size / rate
            waits.append(100 * (stream.blocked_seconds - blocked) / seconds)
            return rate

    if "step" in options.parts:
        variants["streamed"] = streamed_rate
    if "in-loop" in options.parts:
        in_loop = Trainer(job, job.build_step(teacher_targets(job, bench.teacher)).train())
        batch = {**resident, "views": views}
        variants["teacher_in_loop"] = repeated(in_loop, batch, options.warm_up, few)
    if "reference" in options.parts and bench.teacher.facts.has_cls:  # the published algorithm needs CLS
        schema, teacher, pixels = bench.cache.schema, bench.teacher, views[:_REFERENCE_BATCH]
        sizes = (schema.view.image_size, schema.view.patch_size, len(teacher.levels), teacher.facts.width)
        student = ReferenceStudent(bench.config.student, *sizes).to(device)
        step = reference_step(student, teacher, bench.config.mask.visible_count(schema.patches))
        step(pixels)  # a warm-up
        variants["reference"] = lambda: (
            few * len(pixels) / wall_seconds(lambda: [step(pixels) for _ in range(few)], pixels.device)
        )
    yield from _figures(take_turns(variants, options.rounds, warm_up=False), waits, job.operations)
    if device.type == "cuda":
        yield _memory(cached, resident)


def resident_batch(job: TrainingJob) -> Batch:
    """Return a copy of the first batch of the stream."""
    with BatchStream(job.cache, job.spec, job.device, workers=0) as stream:
        copied = {name: values.clone() for name, values in next(iter(stream)).items()}
        wait_for(job.device)
    return copied


def repeated(trainer: Trainer, batch: Batch, warm_up: int, count: int) -> Callable[[], float]:
    """Take some steps on one batch; return what takes `count` more and gives their rate."""
    _rate(trainer, repeat(batch), warm_up)
    return lambda: _rate(trainer, repeat(batch), count)


def _rate(trainer: Trainer, batches: Iterator[Batch], count: int) -> float:
    """Take `count` steps and return the images per second."""
    job = trainer.job
    seconds = wall_seconds(
        lambda: [trainer.step(batch, step) for step, batch in enumerate(islice(batches, count))], job.device
    )
    return count * job.spec.batch_size / seconds


def _figures(found: dict[str, list[float]], waits: list[float], operations: int) -> Iterator[Figure]:
    """Yield the rate of each kind of step and its ratio to the one on resident data, round by round.

    `found` also has the matrix peak. The last figure is the share of it that steps on resident data reach.
    """
    peak = Figure("peak.matrix", found.pop("peak"), "TFLOP/s", "matrix peak")
    yield peak
    rates = {name: Figure(f"step.{name}", each, "images/s", _TITLES[name]) for name, each in found.items()}
    yield from rates.values()
    resident = rates["resident"]
    if "streamed" in rates:
        yield ratio("ratio.streamed_to_resident", rates["streamed"], resident, "streamed / resident")
        yield Figure("step.wait_share", waits, "%", "share of the step that waits for data")
    if "teacher_in_loop" in rates:
        title = "cached / teacher in the loop"
        yield ratio("ratio.cached_to_teacher_in_loop", resident, rates["teacher_in_loop"], title)
    if "reference" in rates:
        title = "resident / published algorithm"
        yield ratio("ratio.step_to_reference", resident, rates["reference"], title)
    yield Figure("step.operations", [operations / 1e9], "GFLOP", "operations of an image's step")
    reached = [rate * operations / 1e12 for rate in resident.values]
    yield Figure("step.throughput", reached, "TFLOP/s", "step on resident data")
    shares = [100 * one / most for one, most in zip(reached, peak.values, strict=True)]
    yield Figure("step.peak_share", shares, "%", "share of the matrix peak")


def _memory(trainer: Trainer, batch: Batch) -> Figure:
    """Return the GPU memory of a step per image beyond weights, optimiser and data; gradients count."""
    device = trainer.job.device
    wait_for(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    wall_seconds(lambda: trainer.step(batch, 0), device)
    grown = torch.cuda.max_memory_allocated(device) - before
    return Figure("step.memory", [grown / len(batch["patches"]) / 1e6], "MB/image", "GPU memory of the step")
