"""The report of a run, from its folder, its cache and its student."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.cache.files import replace_file
from pipeline.cache.reader import Cache
from pipeline.config import parse_config
from pipeline.report.page import MaskedPicture, RunReport, Score, render_page
from pipeline.seeding import generator
from pipeline.stream.join import decode_crop, read_joined
from pipeline.student.masking import draw_visible, visible_count
from pipeline.training.config import RunConfig
from pipeline.training.distributed import Ranks
from pipeline.training.job import TrainingJob, build_job, describe_run
from pipeline.training.run_folder import read_metrics, read_run

REPORT_FILE = "report.html"
SCORES_FILE = "scores.json"
_PICTURES = 6


def write_report(job: TrainingJob) -> Path:
    """Write report.html and return its path."""
    levels = [job.cache.schema.levels[place] for place in job.spec.levels]
    described = describe_run(job)
    teacher = job.cache.schema.teacher
    trained = "" if teacher.trained else " (untrained)"
    report = RunReport(
        title=f"MaskAlign: {job.config.student.model} from {teacher.name}",
        config=described["config"],
        facts={
            "teacher": f"{teacher.library} {teacher.name}, {teacher.tag}{trained}, weights {teacher.weights_sha256[:12]}",
            "cache": f"{job.cache.path.name}, {described['pinned']['units']}",
            "device": described["device"],
            **described["versions"],
        },
        metrics=read_metrics(job.run),
        alignment=job.student.alignment.weights.detach().float().cpu().numpy(),
        levels=levels,
        mode=job.config.alignment.mode,
        pictures=list(_masked_pictures(job, job.cache)),
        scores=[Score(subject, values["mean"], values["cls"]) for subject, values in _read_scores(job.run).items()],
    )
    path = job.run / REPORT_FILE
    replace_file(path, render_page(report).encode())
    return path


def note_score(run: Path, subject: str, mean: float, cls: float | None) -> Path:
    """Note an evaluation in scores.json and write the report anew; raises CheckpointError or CacheError if the run cannot be opened."""
    job = _reopened(run)
    scores = {**_read_scores(run), subject: {"mean": mean, "cls": cls}}
    replace_file(run / SCORES_FILE, (json.dumps(scores, indent=2) + "\n").encode())
    return write_report(job)


def _read_scores(run: Path) -> dict[str, Any]:
    path = run / SCORES_FILE
    scores: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    return scores


def _reopened(run: Path) -> TrainingJob:
    """Return the job of a run as its newest checkpoint left it."""
    values = read_run(run)
    ranks = Ranks(world_size=values["pinned"]["ranks"])
    job = build_job(parse_config(RunConfig, values["config"]), Cache(Path(values["cache"]["path"])), run, ranks, torch.device("cpu"))
    job.load_checkpoint()
    return job


def _masked_pictures(job: TrainingJob, cache: Cache) -> Iterator[MaskedPicture]:
    """Yield the first pictures of the pinned units with the masks of epoch 0."""
    schema, mask = cache.schema, job.config.mask
    names = ["attention"] if schema.teacher.has_importance else []
    block = read_joined(cache, job.spec.order.commits[0], 0, names)
    grid, count = schema.view.image_size // schema.view.patch_size, visible_count(schema.patches, mask.ratio)
    for row, (key, crop) in enumerate(zip(block.keys[:_PICTURES], block.crops[:_PICTURES], strict=True)):
        importance = block.arrays["attention"][row] if names else None
        visible = draw_visible(mask.strategy, importance, grid, count, generator(job.config.train.seed, "mask", 0, key))
        yield MaskedPicture(decode_crop(cache, crop, key), visible, schema.view.patch_size, importance, key)
