"""Training steps side by side: on resident data, streamed, with the teacher in the loop, and the published."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, repeat

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.benchmark.in_loop import teacher_targets, whole_view_batch
from pipeline.benchmark.machine import matrix_rate
from pipeline.benchmark.measure import Figure, WaitMeter, ratio, take_turns, wait_for, wall_seconds
from pipeline.benchmark.reference import ReferenceStudent, reference_step
from pipeline.benchmark.workbench import Workbench
from pipeline.cache.reader import Cache
from pipeline.objectives.objective import Batch
from pipeline.stream.batches import BatchStream, micro_batches
from pipeline.training.job import TrainingJob
from pipeline.training.targets import cached_targets
from pipeline.training.trainer import Trainer

_REFERENCE_BATCH = 128  # the published batch of a GPU
_FEW = 3
_COUNTED = 2  # samples whose operations are counted
_TITLES = {
    "resident": "step on resident data",
    "streamed": "step fed by the stream",
    "teacher_in_loop": "step with the teacher in the loop",
    "reference": "step of the published algorithm",
}


@dataclass(frozen=True)
class Turn:
    """One variant in one round: images per second, share of the time spent waiting for data, start-up seconds."""

    rate: float
    wait_share: float = 0.0
    opening: float = 0.0
    first_batch: float = 0.0


def measure_steps(bench: Workbench) -> Iterator[Figure]:
    """Yield the figures of the kinds of steps among the chosen parts."""
    job, options, device = bench.job, bench.options, bench.options.device
    targets = cached_targets(job.cache, job.spec.levels, job.config.objective.target)
    resident, cached = resident_batch(job), _trainer(job, targets)
    few = max(min(_FEW, options.steps), options.steps // 10)  # steps of a round of the slow ones
    variants = {
        "peak": lambda: Turn(matrix_rate(device)),
        "resident": _repeated(bench, cached, resident, options.steps),
    }
    if "step" in options.parts:
        variants["streamed"] = partial(_streamed_turn, bench, cached)
    if {"in-loop", "reference"} & set(options.parts):
        views = whole_view_batch(job)
    if "in-loop" in options.parts:
        in_loop = _trainer(job, teacher_targets(job, bench.teacher))
        variants["teacher_in_loop"] = _repeated(bench, in_loop, views, few)
    if "reference" in options.parts and bench.teacher.facts.has_cls:  # the published algorithm needs CLS
        variants["reference"] = _reference(bench, views["views"][:_REFERENCE_BATCH], few)
    turns = take_turns(variants, options.rounds, warm_up=False)
    peak = Figure("peak.matrix", [turn.rate for turn in turns.pop("peak")], "TFLOP/s", "matrix peak")
    yield peak
    yield from _rates(turns)
    yield from _shares(turns["resident"], peak, count_operations(cached.model, resident))
    if device.type == "cuda":
        yield _memory(cached, resident)


def _trainer(job: TrainingJob, targets: nn.Module) -> Trainer:
    """Build a loop that logs and saves nothing, compiled where training would be."""
    return Trainer(job, job.build_step(targets).train())


def resident_batch(job: TrainingJob) -> Batch:
    """Return a copy of the first batch of the stream."""
    with BatchStream(job.cache, job.spec, job.device, workers=0) as stream:
        batch = next(iter(stream))
        copied = {name: values.clone() for name, values in batch.items()}
        wait_for(job.device)
    return copied


def _repeated(bench: Workbench, trainer: Trainer, batch: Batch, count: int) -> Callable[[], Turn]:
    """Warm up on one batch; return what takes `count` more steps on it."""
    _take_steps(trainer, repeat(batch), bench.options.warm_up)
    return partial(_take_steps, trainer, repeat(batch), count)


def _take_steps(trainer: Trainer, batches: Iterator[Batch], count: int) -> Turn:
    """Take `count` steps and return their rate."""
    meter, images = WaitMeter(trainer.job.device), 0
    wait_for(trainer.job.device)
    begin = time.perf_counter()
    for step in range(count):
        with meter.waiting():
            batch = next(batches)
        trainer.step(batch, step)
        images += len(batch["patches"])
    wait_for(trainer.job.device)
    seconds = time.perf_counter() - begin
    return Turn(images / seconds, meter.seconds() / seconds)


def _streamed_turn(bench: Workbench, trainer: Trainer) -> Turn:
    """Open the cache, start workers, warm up, and take the steps of a round; then end the workers."""
    options, job = bench.options, bench.job
    begin = time.perf_counter()
    cache = Cache(job.cache.address)
    cache.finished(None, allow_partial=False)
    opening = time.perf_counter() - begin
    with BatchStream(cache, job.spec, job.device, options.workers) as stream:
        batches = iter(stream)
        first = next(batches)
        wait_for(job.device)
        first_batch = time.perf_counter() - begin
        trainer.step(first, 0)
        _take_steps(trainer, batches, options.warm_up)
        turn = _take_steps(trainer, batches, options.steps)
    return Turn(turn.rate, turn.wait_share, opening, first_batch)


def _reference(bench: Workbench, pixels: Tensor, count: int) -> Callable[[], Turn]:
    """Return what takes `count` steps of the published algorithm on views (B, S, S, 3), after a warm-up."""
    schema, config, teacher = bench.cache.schema, bench.config, bench.teacher
    sizes = (schema.view.image_size, schema.view.patch_size, len(teacher.levels), teacher.facts.width)
    student = ReferenceStudent(config.student, *sizes).to(bench.options.device)
    step = reference_step(student, teacher, config.mask.visible_count(schema.patches))
    step(pixels)

    def turn() -> Turn:
        seconds = wall_seconds(lambda: [step(pixels) for _ in range(count)], pixels.device)
        return Turn(count * len(pixels) / seconds)

    return turn


def _rates(turns: dict[str, list[Turn]]) -> Iterator[Figure]:
    """Yield the rate of each kind of step and its ratio to the one on resident data, round by round."""
    rates = {
        name: Figure(f"step.{name}", [turn.rate for turn in found], "images/s", _TITLES[name])
        for name, found in turns.items()
    }
    yield from rates.values()
    resident = rates["resident"]
    if "streamed" in rates:
        yield ratio("ratio.streamed_to_resident", rates["streamed"], resident, "streamed / resident")
        streamed = turns["streamed"]
        waits = [100 * turn.wait_share for turn in streamed]
        yield Figure("step.wait_share", waits, "%", "share of the step that waits for data")
        opening, first = [turn.opening for turn in streamed], [turn.first_batch for turn in streamed]
        yield Figure("start.open", opening, "s", "start-up: cache opened, units listed")
        yield Figure("start.first_batch", first, "s", "start-up: first batch on the device")
    if "teacher_in_loop" in rates:
        title = "cached / teacher in the loop"
        yield ratio("ratio.cached_to_teacher_in_loop", resident, rates["teacher_in_loop"], title)
    if "reference" in rates:
        yield ratio("ratio.step_to_reference", resident, rates["reference"], "resident / published algorithm")


def _shares(turns: list[Turn], peak: Figure, operations: float) -> Iterator[Figure]:
    yield Figure("step.operations", [operations / 1e9], "GFLOP", "operations of an image's step")
    reached = [turn.rate * operations / 1e12 for turn in turns]
    yield Figure("step.throughput", reached, "TFLOP/s", "step on resident data")
    shares = [100 * one / most for one, most in zip(reached, peak.values, strict=True)]
    yield Figure("step.peak_share", shares, "%", "share of the matrix peak")


def count_operations(model: nn.Module, batch: Batch) -> float:
    """Count the floating-point operations of an image's forward and backward pass, attention included."""
    few = next(islice(micro_batches(batch, max(1, len(batch["patches"]) // _COUNTED)), 1))
    # The counter knows the products of this attention on every device.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.forward(few)[0].backward()
    model.zero_grad()
    return float(counter.get_total_flops() / len(few["patches"]))


def _memory(trainer: Trainer, batch: Batch) -> Figure:
    """Return the GPU memory of a step per image beyond weights, optimiser and data; gradients count."""
    wait_for(trainer.job.device)
    torch.cuda.reset_peak_memory_stats(trainer.job.device)
    before = torch.cuda.memory_allocated(trainer.job.device)
    trainer.step(batch, 0)
    wait_for(trainer.job.device)
    grown = torch.cuda.max_memory_allocated(trainer.job.device) - before
    return Figure("step.memory", [grown / len(batch["patches"]) / 1e6], "MB/image", "GPU memory of the step")
