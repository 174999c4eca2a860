"""The report of a run, from its folder, its cache and its student."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache.join import decode_crop, read_joined
from pipeline.cache.reader import Cache
from pipeline.errors import CheckpointError
from pipeline.report.page import MaskedImage, RunReport, Score, render_page, with_scores
from pipeline.storage.files import replace_file
from pipeline.stream.masks import MaskSource
from pipeline.training.job import TrainingJob, describe_run
from pipeline.training.run_folder import read_metrics

REPORT_FILE = "report.html"
SCORES_FILE = "scores.json"
_IMAGES = 6


def write_report(job: TrainingJob) -> Path:
    """Write report.html and return its path."""
    alignment = job.objective.figures().get("alignment")
    levels = [job.cache.schema.levels[place] for place in job.spec.levels]
    described = describe_run(job)
    teacher = job.cache.schema.teacher
    trained = "" if teacher.trained else " (untrained)"
    report = RunReport(
        title=f"{job.config.objective.name}: {job.config.student.model} from {teacher.name}",
        config=described["config"],
        facts={
            "teacher": f"{teacher.library} {teacher.name}, {teacher.tag}{trained}, weights {teacher.weights_sha256[:12]}",
            "cache": f"{Path(job.cache.address).name}, {described['pinned']['units']}",
            "device": described["device"],
            **described["versions"],
        },
        metrics=read_metrics(job.run),
        alignment=None if alignment is None else np.array(alignment),
        levels=levels,
        mode=getattr(job.config.objective, "mode", ""),
        images=list(_masked_images(job, job.cache)),
        scores=_scores(job.run),
    )
    path = job.run / REPORT_FILE
    replace_file(path, render_page(report).encode())
    return path


def note_score(run: Path, subject: str, mean: float, cls: float | None) -> None:
    """Note an evaluation in scores.json and in the report of a run; raises CheckpointError if there is no report."""
    page = read_report(run)
    values = {**_read_scores(run), subject: {"mean": mean, "cls": cls}}
    replace_file(run / SCORES_FILE, (json.dumps(values, indent=2) + "\n").encode())
    replace_file(run / REPORT_FILE, with_scores(page, _scores(run)).encode())


def read_report(run: Path) -> str:
    """Return the report of a run; raises CheckpointError if there is none."""
    try:
        return (run / REPORT_FILE).read_text(encoding="utf-8")
    except OSError:
        raise CheckpointError(
            f"{str(run)!r} has no {REPORT_FILE}: give a run that train-student finished"
        ) from None


def _scores(run: Path) -> list[Score]:
    return [Score(subject, values["mean"], values["cls"]) for subject, values in _read_scores(run).items()]


def _read_scores(run: Path) -> dict[str, Any]:
    path = run / SCORES_FILE
    scores: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    return scores


def _masked_images(job: TrainingJob, cache: Cache) -> Iterator[MaskedImage]:
    """Yield the first images of the pinned units with the masks of epoch 0."""
    schema, commit = cache.schema, cache.pinned_commit(job.spec.order.units[0])
    masks = MaskSource(schema, job.config.mask, job.config.train.seed)
    shown = ["attention"] if schema.teacher.has_importance else []
    block = read_joined(cache, commit, 0, sorted({*masks.arrays, *shown}))
    visible = masks.draw(block.arrays, block.source, block.keys, commit.view, epoch=0).visible
    for row, (key, crop) in enumerate(zip(block.keys[:_IMAGES], block.crops[:_IMAGES], strict=True)):
        importance = block.arrays["attention"][row] if shown else None
        yield MaskedImage(
            decode_crop(cache, crop, key), visible[row], schema.view.patch_size, importance, key
        )
