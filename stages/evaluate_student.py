"""evaluate-student: evaluate a run's student, an untrained one, a teacher or a timm model."""

import json
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import ConfigError
from pipeline.runtime.device_choice import choose_device
from pipeline.runtime.launch import this_process
from stages.console import CONTINUE, Command, Device, cli_errors, ending_alone, new_app, packaged, run_app

if TYPE_CHECKING:
    from pipeline.evaluation.choice import Choice
    from pipeline.evaluation.task import Evaluation
    from pipeline.report.scores import Score

app = new_app()

Name = Annotated[str, typer.Argument(help="What is evaluated, such as knn; several with commas.")]
Run = Annotated[Path | None, typer.Option(help="Evaluate the student of this run.")]
Untrained = Annotated[
    bool,
    typer.Option("--untrained", help="Evaluate a student before its first step: of --run, or of --config."),
]
Teacher = Annotated[
    str | None, typer.Option(help="Evaluate a teacher, such as open_clip:ViT-B-16-quickgelu/openai.")
]
Model = Annotated[
    str | None, typer.Option(help="Evaluate a plain ViT of timm: NAME, timm:NAME or local-dir:PATH.")
]
Recipe = Annotated[
    Path | None,
    typer.Option("--config", callback=packaged, help="Recipe of an untrained student without a run."),
]
CacheAddress = Annotated[str | None, typer.Option("--cache", help="Learn from the views of this cache.")]
Shards = Annotated[
    list[str] | None,
    typer.Option(help="Learn from these labelled tars, or from an image folder; can be repeated."),
]
TestShards = Annotated[
    list[str] | None, typer.Option(help="Test on these; default for knn: each image against all others.")
]
ClassNames = Annotated[
    Path | None,
    typer.Option(help="Names of the classes by index, for the report: a JSON list or a text file."),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the evaluation, such as k=10."),
]
ImageSize = Annotated[
    int | None, typer.Option(min=1, help="Side of a view; default: that of the run or the cache, else 224.")
]
PatchSize = Annotated[
    int | None,
    typer.Option(
        min=1, help="Side of a patch; default: that of the run or the cache, else the network's own."
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images in a batch.")]
Workers = Annotated[int, typer.Option(min=0, help="Decoding processes for tars.")]
Report = Annotated[
    Path | None, typer.Option(help="Run that gets the scores and the report; default: --run, if trained.")
]
Out = Annotated[Path | None, typer.Option(help="Write the scores to this JSON file, and a page beside it.")]
Features = Annotated[
    Path | None,
    typer.Option(help="Folder that keeps features for the next evaluation; default: features/ of the run."),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print the keys of the evaluation and their values, and stop.")
]

_NOTHING_KEPT = (
    "nothing was kept; with --out FILE.json a long training continues when the command is run again"
)


@app.command(cls=Command)
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
    class_names: ClassNames = None,
    assignments: Assignments = None,
    image_size: ImageSize = None,
    patch_size: PatchSize = None,
    batch_size: BatchSize = 128,
    workers: Workers = 2,
    device: Device = "auto",
    report: Report = None,
    out: Out = None,
    features: Features = None,
    print_config: PrintConfig = False,
) -> None:
    """Evaluate a student, a teacher or a timm model on labelled images.

    knn: each image takes the class of its nearest neighbours, by the mean of the patch tokens and by CLS.
    probe: a linear classifier of the frozen features; attentive: one with a small attention over the tokens.
    finetune: all weights are trained with a new head; start it with torchrun for several GPUs.
    --print-config shows the keys of an evaluation; docs/evaluation.md describes each.
    """
    kept = report or out or (run and not untrained)
    advice = CONTINUE if kept else _NOTHING_KEPT
    with cli_errors(lambda: advice), tempfile.TemporaryDirectory(prefix="maskalign-evaluation-") as scratch:
        if print_config:
            for settings in _settings(evaluation.split(","), assignments or []):
                for name, value in settings.model_dump(mode="json").items():
                    typer.echo(f"{name} = {json.dumps(value)}")
            return
        from pipeline.evaluation.choice import Choice

        choice = Choice(
            Path(scratch), run, untrained, teacher, model, config, cache, shards, test_shards, class_names,
            image_size, patch_size, report, out, features,
        )  # fmt: skip
        choice.check(evaluation)
        chosen = _settings(evaluation.split(","), assignments or [])  # torch is imported from here on
        choice.refuse_unused(chosen)
        _evaluate(choice, chosen, device, (batch_size, workers), advice)


def _evaluate(
    choice: "Choice", chosen: "list[Evaluation]", device: str, load: tuple[int, int], advice: str
) -> None:
    """Run evaluations, where they can as one of several ranks, of which the main one prints and writes."""
    from pipeline.evaluation.run import run_evaluation
    from pipeline.training.distributed import joined_ranks

    processes = this_process().world_size
    for settings in chosen:
        if processes > 1 and not getattr(settings, "several_ranks", False):
            raise ConfigError(
                f"evaluation {settings.name!r} runs in one process, not in {processes}: start it without "
                "torchrun, srun or mpirun"
            )
    where = choose_device(device)
    guard = ending_alone(lambda: advice) if processes > 1 else nullcontext()
    with guard, joined_ranks(where) as ranks:
        log: Callable[[str], None] = typer.echo if ranks.is_main else lambda _line: None
        task = choice.task(where, *load, log=log, ranks=ranks)
        shown = f"{task.data.address}, tested on {task.test.address}" if task.test else task.data.address
        names = ", ".join(one.name for one in chosen)
        log(f"{names} of {task.subject.facts.name}{f': {shown}' if shown else ''}")
        found: list[Score] = []
        for settings in chosen:
            scores = run_evaluation(settings, task)
            if scores and ranks.is_main:
                found += scores
                try:
                    _print(scores)
                finally:  # also if the reader of the output is gone; a later evaluation may be stopped
                    _write(choice, found, scores)
        if found and choice.run and not (choice.updated or choice.untrained):
            message = f"warning: run {str(choice.run)!r} is read-only, and its scores stay as they are"
            typer.echo(message, err=True)


def _settings(names: list[str], assignments: list[str]) -> "list[Evaluation]":
    """Return the settings of each evaluation; raises ConfigError. Keys of several begin with their names."""
    from pipeline.config import load_config
    from pipeline.evaluation.run import EVALUATIONS

    known = ", ".join(EVALUATIONS)
    for name in names:
        if name not in EVALUATIONS:
            raise ConfigError(f"evaluation {name!r} is unknown: give one of {known}, or several as knn,probe")
    if len(names) == 1:
        return [load_config(EVALUATIONS[names[0]], None, assignments)]
    for assignment in assignments:
        if assignment.partition(".")[0] not in names:
            raise ConfigError(
                f"--set {assignment!r} does not say which of {', '.join(names)} it is for: "
                f"give it as --set {names[0]}.{assignment}"
            )
    parted = [one.partition(".") for one in assignments]
    return [
        load_config(EVALUATIONS[name], None, [rest for first, _, rest in parted if first == name])
        for name in names
    ]


def _print(scores: "list[Score]") -> None:
    """Print the scores of one evaluation, and warnings about them."""
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
    few = f" (few={few:g} of each class)" if (few := first.options.get("few")) else ""
    learnt = "" if first.bank == first.test else f", {first.bank.images:,} to learn from{few}"
    chance = f"; chance {first.chance:.1%}" if first.chance else ""  # 0 where a metric has none
    typer.echo(f"{first.test.images:,} images of {first.test.classes} classes{learnt}{chance}")


def _write(choice: "Choice", found: "list[Score]", scores: "list[Score]") -> None:
    """Write all scores so far to --out, and those of the last evaluation to its run, each with a page."""
    from pipeline.report.run_page import write_run_report
    from pipeline.report.score_sections import write_evaluation_page
    from pipeline.report.scores import add_scores, scores_json
    from pipeline.storage.files import replace_file

    if choice.out:
        replace_file(choice.out, scores_json(found))
        write_evaluation_page(choice.out.with_suffix(".html"), found, choice.plots)
    if choice.updated:
        add_scores(choice.updated, scores)
        write_run_report(choice.updated)
    elif not choice.out:
        typer.echo("the scores are not kept: give --report RUN or --out FILE.json to keep them", err=True)


main = partial(run_app, app)


if __name__ == "__main__":
    main()
