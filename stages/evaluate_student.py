"""evaluate-student: evaluate a run's student, an untrained one, a teacher or a timm model."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import ConfigError
from stages.console import choose_device, cli_errors, new_app, run_app

if TYPE_CHECKING:
    import torch

    from pipeline.cache.reader import Cache
    from pipeline.evaluation.run import Evaluation
    from pipeline.evaluation.subject import Subject
    from pipeline.report.scores import Score

app = new_app()

Name = Annotated[str, typer.Argument(help="What is evaluated: knn.")]
Run = Annotated[Path | None, typer.Option(help="Evaluate the student of this run.")]
Untrained = Annotated[
    bool,
    typer.Option("--untrained", help="Evaluate a student before its first step: of --run, or of --config."),
]
Teacher = Annotated[
    str | None, typer.Option(help="Evaluate a teacher, such as open_clip:ViT-B-16-quickgelu/openai.")
]
Model = Annotated[str | None, typer.Option(help="Evaluate a plain ViT of timm: its name, or local-dir:PATH.")]
Recipe = Annotated[
    Path | None, typer.Option("--config", help="Recipe of an untrained student without a run.")
]
CacheAddress = Annotated[str | None, typer.Option("--cache", help="Learn from the views of this cache.")]
Shards = Annotated[str | None, typer.Option(help="Learn from the centre squares of these labelled tars.")]
TestShards = Annotated[
    str | None, typer.Option(help="Test on these labelled tars; default: each image against all others.")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the evaluation, such as k=10."),
]
ImageSize = Annotated[int, typer.Option(min=1, help="Side of a view, if neither a cache nor a run gives it.")]
PatchSize = Annotated[
    int, typer.Option(min=1, help="Side of a patch, if neither a cache nor a run gives it.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images in a batch.")]
Workers = Annotated[int, typer.Option(min=0, help="Decoding processes for tars.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Report = Annotated[
    Path | None, typer.Option(help="Run that gets the scores and the report; default: --run, if trained.")
]
Out = Annotated[Path | None, typer.Option(help="Write the scores to this JSON file, too.")]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print the keys of the evaluation and their values, and stop.")
]


@dataclass(frozen=True)
class _Choice:
    """The network and the data that the options choose."""

    run: Path | None
    untrained: bool
    teacher: str | None
    model: str | None
    config: Path | None
    cache: str | None
    shards: str | None
    report: Path | None
    out: Path | None

    def refuse_contradictions(self) -> None:
        """Raise ConfigError for options that do not go together, before anything is imported or read."""
        judged = [self.teacher is not None, self.model is not None, self.run is not None or self.untrained]
        if sum(judged) != 1:
            raise ConfigError(
                "give one to evaluate: --run, --untrained with --run or --config, --teacher or --model"
            )
        if self.config is not None and (self.run is not None or not self.untrained):
            raise ConfigError(
                "--config is for an untrained student without a run: leave it out, or add --untrained"
            )
        if (self.cache is None) == (self.shards is None):
            raise ConfigError("give the data to learn from either as --cache DIR or as --shards SHARDS")
        if self.report and self.run and not self.untrained and self.report.resolve() != self.run.resolve():
            raise ConfigError(
                "--report differs from --run: a student's score belongs to its own run; leave --report out"
            )
        if self.out and not os.access(self.out.parent, os.W_OK):
            raise ConfigError(f"--out {str(self.out)!r}: its folder does not exist or is not writable")


@app.command()
def evaluate_student(
    evaluation: Name,
    run: Run = None,
    untrained: Untrained = False,
    teacher: Teacher = None,
    model: Model = None,
    config: Recipe = None,
    cache: CacheAddress = None,
    shards: Shards = None,
    test_shards: TestShards = None,
    assignments: Assignments = None,
    image_size: ImageSize = 224,
    patch_size: PatchSize = 16,
    batch_size: BatchSize = 128,
    workers: Workers = 2,
    device: Device = "auto",
    report: Report = None,
    out: Out = None,
    print_config: PrintConfig = False,
) -> None:
    """Evaluate the features of a student, a teacher or a timm model on labelled images.

    knn: each image takes the class of its nearest neighbours, by the mean of the patch tokens and by CLS. Its
    keys are k, temperature and shared_keys.
    """
    with cli_errors():
        if print_config:
            for name, value in _settings(evaluation, assignments).model_dump().items():
                typer.echo(f"{name} = {json.dumps(value)}")
            return
        choice = _Choice(run, untrained, teacher, model, config, cache, shards, report, out)
        choice.refuse_contradictions()
        opened, sizes = _opened(choice, (image_size, patch_size))
        from pipeline.views.source_tars import resolve_tars

        tars = {spec: resolve_tars(spec) for spec in (shards, test_shards) if spec is not None}
        settings = _settings(evaluation, assignments)  # torch is imported from here on
        from pipeline.evaluation.data import CacheViews, LabelledTars
        from pipeline.evaluation.run import run_evaluation

        subject = _subject(choice, sizes, choose_device(device))
        data = {spec: LabelledTars(spec, found, sizes[0], workers) for spec, found in tars.items()}
        learnt, test = CacheViews(opened) if opened else data[shards or ""], data.get(test_shards or "")
        where = f"of {test.address}" if test else "against all others"
        typer.echo(f"{evaluation} of {subject.facts.name}: images {where}, learning from {learnt.address}")
        _report(choice, run_evaluation(settings, subject, learnt, test, batch_size=batch_size))


def _opened(choice: _Choice, asked: tuple[int, int]) -> tuple["Cache | None", tuple[int, int]]:
    """Return the cache, and the image and patch size of the run, else of the cache, else of the options."""
    from pipeline.cache.reader import Cache
    from pipeline.training.run_folder import read_run

    if choice.report:
        read_run(choice.report)
    view = read_run(choice.run)["view"] if choice.run else None
    cache = Cache(choice.cache) if choice.cache else None
    stored = (cache.schema.view.image_size, cache.schema.view.patch_size) if cache else asked
    sizes = (view["image_size"], view["patch_size"]) if view else stored
    if cache and sizes != stored:
        raise ConfigError(
            f"run {str(choice.run)!r} takes views of {sizes[0]} pixels in patches of {sizes[1]}: cache "
            f"{cache.address!r} has {stored[0]} in {stored[1]}; give a cache of the run's sizes, or --shards"
        )
    return cache, sizes


def _settings(evaluation: str, assignments: list[str] | None) -> "Evaluation":
    from pipeline.config import load_config
    from pipeline.evaluation.run import EVALUATIONS

    if evaluation not in EVALUATIONS:
        raise ConfigError(f"evaluation {evaluation!r} is unknown: give one of {', '.join(EVALUATIONS)}")
    return load_config(EVALUATIONS[evaluation], None, assignments or [])


def _subject(choice: _Choice, sizes: tuple[int, int], device: "torch.device") -> "Subject":
    from pipeline.config import load_config
    from pipeline.evaluation import subject
    from pipeline.training.config import RunConfig

    if choice.teacher is not None:
        return subject.teacher_subject(choice.teacher, *sizes, device)
    if choice.model is not None:
        return subject.teacher_subject(f"timm:{choice.model}", *sizes, device, kind="model")
    if choice.run and not choice.untrained:
        return subject.student_subject(choice.run, device)
    config = subject.read_run_config(choice.run)[0] if choice.run else load_config(RunConfig, choice.config)
    return subject.untrained_subject(config, *sizes, device)


def _report(choice: _Choice, scores: list["Score"]) -> None:
    """Print the scores and warnings about them, and write them where the options say."""
    from pipeline.report.run_page import write_run_report
    from pipeline.report.scores import add_scores, scores_json

    first = scores[0]
    for facts in (first.bank,) if first.test == first.bank else (first.bank, first.test):
        for kind, count in facts.left_out.items():
            typer.echo(
                f"warning: {count} {kind} of {count + facts.images} images of {facts.address} are left out; "
                f"the first: {facts.first_reasons[kind]}",
                err=True,
            )
    for note in first.notes:
        typer.echo(f"warning: {note}", err=True)
    for score in scores:
        metrics = ", ".join(f"{name} {value:.1%}" for name, value in score.metrics.items())
        typer.echo(f"{score.representation:<5} {metrics}")
    typer.echo(
        f"{first.test.images:,} images of {first.test.classes} classes, {first.bank.images:,} to learn from; "
        f"chance {first.chance:.1%}"
    )
    if choice.out:
        choice.out.write_bytes(scores_json(scores))
    if noted := choice.report or (choice.run if not choice.untrained else None):
        add_scores(noted, scores)
        write_run_report(noted)


def main() -> None:
    """Entry point."""
    run_app(app)


if __name__ == "__main__":
    main()
