"""Run an evaluation. A new one is a file with a section that is an `Evaluation`, and its entry here."""

import time
from datetime import UTC, datetime
from typing import Any

from pipeline.evaluation.attention.attention import Attention
from pipeline.evaluation.detection.detect import Detect
from pipeline.evaluation.exporting.export import Export
from pipeline.evaluation.finetuning.finetune import Finetune
from pipeline.evaluation.knn import Knn
from pipeline.evaluation.probes.attentive import Attentive
from pipeline.evaluation.probes.probe import Probe
from pipeline.evaluation.robustness import Robustness
from pipeline.evaluation.segmentation.segment import Segment
from pipeline.evaluation.task import Evaluation, Task
from pipeline.evaluation.zero_shot import ZeroShot
from pipeline.report.scores import Score

_ALL = (Knn, Probe, Attentive, Finetune, Segment, Detect, Attention, ZeroShot, Robustness, Export)
EVALUATIONS: dict[str, type[Any]] = {one.name: one for one in _ALL}


def run_evaluation(evaluation: Evaluation, task: Task) -> list[Score]:
    """Evaluate a network; returns a Score for each representation.

    Raises ConfigError for settings that do not fit the data, CacheError or SourceError for data that cannot
    be read.
    """
    begin = time.perf_counter()
    outcomes = evaluation.run(task)
    seconds = round(time.perf_counter() - begin, 1)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    own, scores = task.subject.own_patch_size, []
    shown = own if getattr(evaluation, "crops_fit", False) else task.subject.patch_size
    for outcome in outcomes:
        given, notes = outcome.test.image_size, outcome.notes
        seen = given * own // shown
        if shown != own:
            notes += (
                f"images of {given} pixels were resized to {seen} after the crop, since the network's "
                f"patches have {own} pixels and not {shown}; to compare with published scores give --shards "
                f"and --patch-size {own}",
            )
        scores.append(
            Score(
                **dict(outcome.model_copy(update={"notes": notes})),
                subject=task.subject.facts.model_copy(update={"patch_size": shown, "input_size": seen}),
                evaluation=evaluation.name,
                protocol=evaluation.protocol,
                options=evaluation.model_dump(mode="json"),
                date=date,
                seconds=seconds,
                device=str(task.subject.device),
            )
        )
    return scores
