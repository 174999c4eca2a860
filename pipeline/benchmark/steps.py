"""Training steps side by side: on resident data, fed by the stream, with the teacher in the loop, and the published algorithm's."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, repeat

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.benchmark.in_loop import teacher_targets, whole_view_batch
from pipeline.benchmark.machine import MatrixProduct
from pipeline.benchmark.measure import Figure, WaitMeter, ratio, take_turns, wait_for
from pipeline.benchmark.reference import ReferenceStep, ReferenceStudent
from pipeline.benchmark.workbench import Workbench
from pipeline.cache.reader import Cache
from pipeline.objectives.objective import Batch
from pipeline.stream.batches import BatchStream, micro_batches
from pipeline.training.distributed import Ranks
from pipeline.training.job import TrainingJob, build_step, cached_targets
from pipeline.training.optimiser import build_schedule
from pipeline.training.trainer import Trainer

_REFERENCE_BATCH = 128  # the published batch of a GPU
_FEW = 3
_COUNTED = 2  # samples whose operations are counted


@dataclass(frozen=True)
class Turn:
    """What one variant did in one round: images a second, the share of the time that it waited for data, and what starting took."""

    rate: float
    wait_share: float = 0.0
    opening: float = 0.0
    first_batch: float = 0.0


def measure_steps(bench: Workbench) -> Iterator[Figure]:
    """Yield the figures of the training step."""
    job, effort, device = bench.job, bench.options.effort, bench.options.device
    resident, views = resident_batch(job), whole_view_batch(job)
    cached, in_loop = (
        _trainer(job, cached_targets(job)),
        _trainer(job, teacher_targets(job, bench.teacher)),
    )
    few = max(min(_FEW, effort.steps), effort.steps // 4)  # steps of the slow ones
    variants: dict[str, Callable[[], Turn]] = {
        "resident": partial(_take_steps, cached, repeat(resident), effort.steps, device),
        "streamed": partial(_streamed_turn, bench, cached),
        "teacher_in_loop": partial(_take_steps, in_loop, repeat(views), few, device),
    }
    if bench.teacher.has_cls:  # the published algorithm knows no other
        variants["reference"] = partial(
            _reference_turn, _reference_step(bench), views["views"][:_REFERENCE_BATCH], few
        )
    product = MatrixProduct(device)
    variants["peak"] = lambda: Turn(product.rate())
    turns = take_turns(variants, effort.rounds)
    yield (
        peak := Figure(
            "peak.matrix", tuple(turn.rate for turn in turns.pop("peak")), "TFLOP/s", product.title
        )
    )
    yield from _rates(turns, min(len(views["views"]), _REFERENCE_BATCH))
    yield from _start_up(turns["streamed"])
    yield from _shares(turns["resident"], peak, count_operations(cached.model, resident))
    if device.type == "cuda":
        yield _memory(cached, resident)


def _trainer(job: TrainingJob, targets: nn.Module) -> Trainer:
    """Build the loop whose steps are measured: compiled where training would be."""
    model = build_step(job, targets).train()
    schedule = build_schedule(job.optimiser, job.config.optim, job.steps, job.warmup)
    return Trainer(
        model,
        job.objective,
        job.optimiser,
        schedule,
        job.config,
        Ranks(),
        job.device,
        job.spec.steps_per_epoch,
        _ignore,
        _ignore,
    )


def _ignore(_: object) -> None:
    """Log and save nothing."""


def resident_batch(job: TrainingJob) -> Batch:
    """Return a copy of the first batch of the stream."""
    with BatchStream(job.cache, job.spec, job.device, workers=0) as stream:
        batch = next(iter(stream))
        copied = {name: values.clone() for name, values in batch.items()}
        wait_for(job.device)
    return copied


def _take_steps(trainer: Trainer, batches: Iterator[Batch], count: int, device: torch.device) -> Turn:
    """Take `count` steps and return their rate."""
    meter, images = WaitMeter(device), 0
    wait_for(device)
    begin = time.perf_counter()
    for step in range(count):
        with meter.waiting():
            batch = next(batches)
        trainer.step(batch, step)
        images += len(batch["patches"])
    wait_for(device)
    seconds = time.perf_counter() - begin
    return Turn(images / seconds, meter.seconds() / seconds)


def _streamed_turn(bench: Workbench, trainer: Trainer) -> Turn:
    """Open the cache and its stream anew, warm up, and take the steps of a round: between its turns no worker is at work."""
    effort, job = bench.options.effort, bench.job
    begin = time.perf_counter()
    cache = Cache(job.cache.address)
    cache.finished(None, allow_partial=False)
    opening = time.perf_counter() - begin
    with BatchStream(cache, job.spec, job.device, bench.options.workers) as stream:
        batches = iter(stream)
        first = next(batches)
        wait_for(job.device)
        first_batch = time.perf_counter() - begin
        trainer.step(first, 0)
        _take_steps(trainer, batches, effort.warm_up, job.device)
        turn = _take_steps(trainer, batches, effort.steps, job.device)
    return Turn(turn.rate, turn.wait_share, opening, first_batch)


def _reference_step(bench: Workbench) -> ReferenceStep:
    schema, config = bench.cache.schema, bench.config
    student = ReferenceStudent(
        config.student,
        schema.view.image_size,
        schema.view.patch_size,
        len(bench.teacher.levels),
        bench.teacher.width,
    )
    return ReferenceStep(
        student.to(bench.options.device), bench.teacher, config.mask.visible_count(schema.patches)
    )


def _reference_turn(reference: ReferenceStep, pixels: torch.Tensor, count: int) -> Turn:
    wait_for(pixels.device)
    begin = time.perf_counter()
    for _ in range(count):
        reference.step(pixels)
    wait_for(pixels.device)
    return Turn(count * len(pixels) / (time.perf_counter() - begin))


def _rates(turns: dict[str, list[Turn]], reference_batch: int) -> Iterator[Figure]:
    titles = {
        "resident": "step on resident data",
        "streamed": "step fed by the stream",
        "teacher_in_loop": "step with the teacher in the loop",
        "reference": f"step of the published algorithm, batch {reference_batch}",
    }
    rates = {name: [turn.rate for turn in found] for name, found in turns.items()}
    for name, values in rates.items():
        yield Figure(f"step.{name}", tuple(values), "images/s", titles[name])
    yield ratio("ratio.streamed_to_resident", rates["streamed"], rates["resident"], "streamed / resident")
    yield ratio(
        "ratio.cached_to_teacher_in_loop",
        rates["resident"],
        rates["teacher_in_loop"],
        "cached / teacher in the loop",
    )
    if "reference" in rates:
        yield ratio(
            "ratio.step_to_reference", rates["resident"], rates["reference"], "resident / published algorithm"
        )
    yield Figure(
        "step.wait_share",
        tuple(100 * turn.wait_share for turn in turns["streamed"]),
        "%",
        "share of the step that waits for data",
    )


def _start_up(turns: list[Turn]) -> Iterator[Figure]:
    yield Figure(
        "start.open", tuple(turn.opening for turn in turns), "s", "start-up: cache opened, units listed"
    )
    yield Figure(
        "start.first_batch",
        tuple(turn.first_batch for turn in turns),
        "s",
        "start-up: first batch on the device",
    )


def _shares(turns: list[Turn], peak: Figure, operations: float) -> Iterator[Figure]:
    reached = tuple(turn.rate * operations / 1e12 for turn in turns)
    yield Figure("step.operations", (operations / 1e9,), "GFLOP", "operations of an image's step")
    yield Figure("step.throughput", reached, "TFLOP/s", "step on resident data")
    shares = tuple(100 * one / most for one, most in zip(reached, peak.values, strict=True))
    yield Figure("step.peak_share", shares, "%", "share of the matrix peak")


def count_operations(model: nn.Module, batch: Batch) -> float:
    """Count the floating-point operations of an image's forward and backward pass, attention included."""
    few = next(islice(micro_batches(batch, max(1, len(batch["patches"]) // _COUNTED)), 1))
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):  # whose products it knows on every device
        model.forward(few)[0].backward()
    model.zero_grad()
    return float(counter.get_total_flops() / len(few["patches"]))


def _memory(trainer: Trainer, batch: Batch) -> Figure:
    """Return the megabytes of GPU memory that an image takes while its step runs, beyond weights, optimiser and data; gradients count."""
    wait_for(trainer.device)
    torch.cuda.reset_peak_memory_stats(trainer.device)
    before = torch.cuda.memory_allocated(trainer.device)
    trainer.step(batch, 0)
    wait_for(trainer.device)
    grown = torch.cuda.max_memory_allocated(trainer.device) - before
    return Figure("step.memory", (grown / len(batch["patches"]) / 1e6,), "MB/image", "GPU memory of the step")
