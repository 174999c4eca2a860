"""The evaluations of a study: decodes labelled images once, and scores each finished run."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.cache.reader import Cache
from pipeline.config import parse_config
from pipeline.errors import ConfigError
from pipeline.evaluation.data import CacheViews, Data, LabelledImages
from pipeline.evaluation.images import open_images
from pipeline.evaluation.kept_views import KeptViews
from pipeline.evaluation.run import EVALUATIONS, run_evaluation
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.task import Evaluation, Task
from pipeline.report.scores import add_scores, read_scores
from pipeline.studies.study import Study

_MOST_KEPT = 4 << 30  # bytes of decoded views


@dataclass(frozen=True)
class Judge:
    """The settings and data of a study's evaluations; without settings nothing is scored."""

    settings: Sequence[Evaluation]
    data: Data | None
    test: Data | None
    scratch: Path
    batch_size: int = 128

    def missing(self, folder: Path, weights: str | None) -> list[Evaluation]:
        """Return the evaluations without scores in a folder for these weights and data."""
        data = self.data and (self.data.address, (self.test or self.data).address)
        there = {
            (score.evaluation, score.protocol, str(score.options))
            for score in read_scores(folder)
            if score.subject.weights == weights and (score.bank.address, score.test.address) == data
        }
        return [
            one
            for one in self.settings
            if (one.name, one.protocol, str(one.model_dump(mode="json"))) not in there
        ]

    def score(self, subject: Subject, folder: Path, say: Callable[[str], None]) -> None:
        """Run the evaluations that are missing, and add their scores to a folder; raises MaskAlignError."""
        for one in self.missing(folder, subject.facts.weights):
            assert self.data is not None
            with tempfile.TemporaryDirectory(dir=self.scratch) as store:
                task = Task(subject, self.data, self.test, Path(store), Path(store), self.batch_size)
                scores = run_evaluation(one, task)
            add_scores(folder, scores)
            found = ", ".join(f"{score.representation} {score.main_metric[1]:.1%}" for score in scores)
            name = subject.facts.name if subject.facts.kind == "untrained" else folder.name
            say(f"{name}: {one.name} {found}")


def make_judge(
    study: Study,
    cache: Cache,
    shards: Sequence[str],
    test_shards: Sequence[str],
    scratch: Path,
    workers: int = 0,
) -> Judge:
    """Open the labelled images of a study; without `shards` evaluations learn from the cache's views.

    Raises ConfigError for settings and data that do not fit, SourceError for data that cannot be read.
    """
    settings: list[Evaluation] = []
    for name, values in study.evaluations.items():
        try:
            settings.append(parse_config(EVALUATIONS[name], values))
        except ConfigError as error:
            raise ConfigError(f"[evaluations.{name}] of the study: {error}") from None
    if not settings:
        return Judge((), None, None, scratch)
    if "probe" in study.evaluations and not test_shards:
        raise ConfigError(
            "evaluation 'probe' of the study needs images to test on: give --test-shards, or only train "
            "with --set evaluations={}"
        )
    size = cache.schema.view.image_size
    learnt = open_images(list(shards), scratch) if shards else None
    known = learnt.class_names if learnt else ()
    test = open_images(list(test_shards), scratch, known) if test_shards else None
    bank: Data = CacheViews(cache, test.class_names if test else ())
    if learnt:
        bank = _kept(LabelledImages(learnt, workers), size, scratch / "learnt.views")
    tested = _kept(LabelledImages(test, workers), size, scratch / "test.views") if test else None
    return Judge(settings, bank, tested, scratch)


def _kept(data: LabelledImages, size: int, file: Path) -> Data:
    """Decode the views once and keep them, unless they take more than `_MOST_KEPT` bytes."""
    return data if len(data.of.images) * size**2 * 3 > _MOST_KEPT else KeptViews(data, size, file)
