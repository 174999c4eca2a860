"""Run an evaluation. A new one is a file with a Section of `name`, `protocol` and `run`, and its entry."""

import time
from datetime import UTC, datetime

from pipeline.evaluation.data import Data
from pipeline.evaluation.knn import Knn
from pipeline.evaluation.subject import Subject
from pipeline.report.scores import Score

Evaluation = Knn
EVALUATIONS: dict[str, type[Evaluation]] = {"knn": Knn}


def run_evaluation(
    evaluation: Evaluation, subject: Subject, data: Data, test: Data | None = None, *, batch_size: int = 128
) -> list[Score]:
    """Evaluate a subject on labelled data; returns a Score for each representation.

    `data` is what may be learnt from (of k-NN, the bank); without `test` the evaluation holds out parts of
    it. Raises ConfigError for settings that do not fit the data, CacheError or SourceError for data that
    cannot be read.
    """
    begin = time.perf_counter()
    outcomes = evaluation.run(subject, data, test, batch_size)
    seconds = round(time.perf_counter() - begin, 1)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return [
        Score(
            **dict(outcome),
            subject=subject.facts,
            evaluation=evaluation.name,
            protocol=evaluation.protocol,
            options=evaluation.model_dump(mode="json"),
            date=date,
            seconds=seconds,
            device=str(subject.device),
        )
        for outcome in outcomes
    ]
