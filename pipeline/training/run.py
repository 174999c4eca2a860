"""A run from start to end: the main rank's decisions, the loop, and the files in the run folder."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.cache.reader import Cache
from pipeline.errors import printable
from pipeline.json_text import json_bytes
from pipeline.number_text import digits
from pipeline.progress import ProgressDisplay
from pipeline.provenance import provenance, utc_now
from pipeline.storage.files import replace_file
from pipeline.stream.batches import BatchStream
from pipeline.stream.labels import have_few_classes, sampled_labels
from pipeline.student.export import export_student
from pipeline.training.begin import begin_or_continue, refuse_other_units
from pipeline.training.checkpoint import choose_checkpoint, load_checkpoint
from pipeline.training.codebook import refuse_codebook, tokenizer_of
from pipeline.training.codebook_fit import ready_codebook
from pipeline.training.config import RunConfig
from pipeline.training.damage import DamageRecord, note_damage
from pipeline.training.distributed import Ranks
from pipeline.training.evaluating import Evaluate, Evaluating
from pipeline.training.job import REFERENCE_BATCH, TrainingJob, build_job, describe_job
from pipeline.training.metrics import MetricsLog, read_metrics
from pipeline.training.phi_s_fit import ready_standards
from pipeline.training.run_folder import (
    CHECKPOINTS,
    RUN_FILE,
    Resume,
    continues,
    flat_config,
    held_run_folder,
    read_run,
    refuse_differences,
    storage_errors,
)
from pipeline.training.trainer import Metrics, Trainer

_LIBRARIES = ("torch", "timm", "zarr", "webdataset", "numpy")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """The end of a run: after how many of its steps, in how many seconds, by which signal (0: none).

    `damage` says what was left out of a damaged cache, "" if nothing was.
    """

    done: int
    steps: int
    seconds: float
    images_per_second: float
    loss: float | None
    stopped_by: int
    damage: str = ""


def run_training(
    cache: Cache,
    run: Path,
    config: RunConfig,
    *,
    resume: Resume = "never",
    ranks: Ranks | None = None,
    device: torch.device | None = None,
    say: Say = lambda _: None,
    evaluate: Evaluate | None = None,
    build: Callable[..., TrainingJob] = build_job,
    others: Sequence[Cache] = (),
) -> Result:
    """Train a student, or continue its run, and export it; every rank calls this with the same arguments.

    `say` gets messages for a person, on the main rank only; a warning begins with "warning:". `evaluate`
    scores the encoder when `config.evaluate` says; the main rank needs it then. `build` makes the job, called
    as `build_job` is. `others` are further teachers' caches. Raises MaskAlignError, the same on all ranks.
    """
    ranks, device = ranks or Ranks(), device or torch.device("cpu")
    resumed, units, lanes, lost = ranks.decide(
        lambda: begin_or_continue((cache, *others), run, config, resume)
    )
    with ranks.together():
        job = build(config, cache, run, ranks, device, units, lanes, others)
        if config.data.on_damage == "skip" or lost:
            job.damage = DamageRecord((cache, *others), job.spec.order.units, config.data.max_damaged, lost)
            job.damage.refuse_too_much()
        if resumed and ranks.is_main:  # also before the first checkpoint, which holds more
            refuse_other_units(run, job.pinned)
        request = config.objective.codebook_request
        if request and not resumed and ranks.is_main:
            refuse_codebook(request, cache, job.spec, tokenizer_of(job.objective), device)
    with ExitStack() as held:
        with ranks.together():
            if ranks.is_main:
                held.enter_context(held_run_folder(run))
                continues(run, "always" if resumed else "never")  # another process may have been quicker
        job.codebook = ready_codebook(job, resumed, say)
        job.standards = ready_standards(job, resumed, say)
        first = load_newest(job) if resumed else 0
        start = {**provenance(*_LIBRARIES), "ranks": ranks.world_size, "first_step": first}
        with ranks.together(), storage_errors(run):
            if ranks.is_main:
                _write_start(job, start)
            messages = describe_start(job, first) if ranks.is_main else []
        for message in messages:
            say(message)
        begin = time.perf_counter()
        evaluating = Evaluating(job, evaluate, say)
        done, stopped_by = run_job(job, first, say, lambda: _write_start(job, start), evaluating)
        seconds = time.perf_counter() - begin - evaluating.seconds
        if ranks.is_main:
            export_student(job.objective.encoder, config.student, run)
            _write_start(job, {**start, "ended": utc_now(), "last_step": done})
        logged = read_metrics(run)[-1:] if ranks.is_main else []
    rate = (done - first) * config.train.global_batch / seconds
    damage = job.damage.summary if job.damage else ""
    return Result(done, job.steps, seconds, rate, logged[0]["loss"] if logged else None, stopped_by, damage)


def load_newest(job: TrainingJob) -> int:
    """Load the newest checkpoint, the same file on all ranks; return its step, 0 if there is none."""
    chosen = job.ranks.decide(lambda: choose_checkpoint(job.run / CHECKPOINTS))
    if chosen is None:
        return 0
    with job.ranks.together():
        checkpoint = load_checkpoint(chosen)
        refuse_differences(checkpoint.pinned, job.pinned)
        job.objective.load_state_dict(checkpoint.student)
        job.optimiser.load_state_dict(checkpoint.optimiser)
        if checkpoint.scaler:
            job.scaler.load_state_dict(checkpoint.scaler)
    return checkpoint.step


def run_job(
    job: TrainingJob,
    first: int,
    say: Say = lambda _: None,
    changed: Callable[[], None] = lambda: None,
    evaluating: Evaluating | None = None,
) -> tuple[int, int]:
    """Train from step `first` on; return after which step it ended, and by which signal (0: none).

    `changed` is called when the job has changed: the step could not be compiled, or damage was found.
    """
    epoch, step = divmod(first, job.spec.steps_per_epoch)
    images = job.config.train.global_batch
    with ExitStack() as stack:
        display = metrics = None
        with job.ranks.together(), storage_errors(job.run):
            if job.ranks.is_main:
                cache = {"cache.path": printable(job.cache.address), "cache.digest": job.cache.digest}
                tracked = {**flat_config(job.config.recorded()), **cache, "steps": job.steps}
                metrics = MetricsLog(job.run, first, say, job.config.log, tracked)
                stack.callback(metrics.close)
                display = stack.enter_context(
                    ProgressDisplay("train-student", job.steps * images, first * images)
                )
            batches = BatchStream(job.cache, job.spec, job.device, job.config.data.workers, epoch, step)
            stack.enter_context(batches)

        def log(line: Metrics) -> None:
            if job.damage:
                line["replaced_samples"] = note_damage(job.damage, job.ranks, batches.damage, say, changed)
            if metrics and display:
                metrics.seconds += line["data_seconds"] + line["step_seconds"]
                metrics.write({**line, "seconds": metrics.seconds})
                waiting = (
                    f", waiting for data {line['wait_share']:.0%}" if line["wait_share"] >= 0.005 else ""
                )
                display.update(line["step"] * images, f"loss {line['loss']:.4f}{waiting}")

        evaluate = partial((evaluating or Evaluating(job)).after, log=metrics)
        trainer = Trainer(job, job.build_step(), log, say, changed, evaluate)
        evaluate(first)  # the untrained encoder, or what a killed run did not come to
        done = trainer.run(iter(batches), first, job.steps)
    return done, trainer.stopped_by


def describe_start(job: TrainingJob, first: int) -> list[str]:
    """Describe what is about to be trained, after warnings of damage and of a cache sorted by class."""
    config, optim = job.config, job.config.optim
    millions = sum(parameter.numel() for parameter in job.objective.encoder.parameters()) / 1e6
    rate = optim.base_lr * config.train.global_batch / REFERENCE_BATCH
    how = f"{job.precision}, {'compiled' if job.compiled else 'not compiled'}"
    order = job.spec.order
    dealt = f" in {order.lanes} lanes" if order.lanes != job.ranks.world_size else ""
    begin = (
        f"continuing after step {first:,} of {job.steps:,}" if first else f"training for {job.steps:,} steps"
    )
    names = [cache.schema.teacher.name for cache in job.caches]
    teachers = f" from teachers {' and '.join(names)}" if job.others else ""
    description = (
        f"{begin} of {config.train.global_batch:,} images{dealt}: {config.student.model} ({digits(millions)} "
        f"M parameters), objective {config.objective.name}{teachers}, learning rate {rate:.3g}, "
        f"on {job.ranks.world_size} x {job.device_name} ({how})"
    )
    found = job.damage.summary if job.damage else ""
    warnings = [f"warning: {found}; run.json names them"] if found else []
    if not have_few_classes(sampled_labels(job.cache, order, job.spec.skip_damage)):
        return [*warnings, description]
    warning = (
        f"warning: neighbours in cache {printable(job.cache.address)!r} are often of one class, and a batch "
        f"comes from data.window_blocks={order.window_blocks} chunks of neighbours: shuffle the images among "
        "the source tars, or raise data.window_blocks"
    )
    return [*warnings, warning, description]


def _write_start(job: TrainingJob, start: dict[str, Any]) -> None:
    """Write run.json: what the run depends on, and where and when each of its starts was."""
    earlier = read_run(job.run).get("starts", []) if (job.run / RUN_FILE).exists() else []
    starts = [*(each for each in earlier if each["began"] != start["began"]), start]
    values = {**describe_job(job), **start, "began": starts[0]["began"], "starts": starts}
    replace_file(job.run / RUN_FILE, json_bytes(values))
