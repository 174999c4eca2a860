"""Both stages and the evaluations as functions for one's own code: what the commands do, without printing."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from pipeline.config import parse_config, read_settings
from pipeline.errors import ConfigError, SourceError
from pipeline.extraction.options import Compile, ExtractionOptions, Precision, source_options
from pipeline.library.cache import Cache
from pipeline.runtime.device_choice import choose_device
from pipeline.runtime.launch import share_of_work, usable_cores
from pipeline.training.run_folder import Resume, continues, read_run
from pipeline.training.sections import let_epochs_count

if TYPE_CHECKING:
    import torch

    from pipeline.cache import reader
    from pipeline.cache.schema import Compressor, Encoding
    from pipeline.report.scores import Score
    from pipeline.teacher.module import ModuleTeacher
    from pipeline.training.config import RunConfig
    from pipeline.training.distributed import Ranks
    from pipeline.training.run import Result
    from pipeline.views.codec import ViewFormat
    from pipeline.views.masking import RankStrategy

Place = str | Path
Say = Callable[[str], None]
Settings = Mapping[str, Any]


class ExtractionChoices(TypedDict, total=False):
    """The options of extract-teacher, with its defaults."""

    levels: str
    views: int
    encoding: "Encoding"
    compressor: "Compressor"
    keep: float
    keep_rank: "RankStrategy"
    view_format: "ViewFormat"
    image_size: int
    patch_size: int
    crop_scale: tuple[float, float]
    flip: float
    seed: int
    batch_size: int
    workers: int
    precision: Precision
    compile: Compile
    max_bad: float
    limit: int
    views_from: Place | Cache


def run_extraction(
    shards: Place | Sequence[Place],
    cache: Place,
    teacher: "str | ModuleTeacher",
    *,
    device: "str | torch.device" = "auto",
    **options: Unpack[ExtractionChoices],
) -> Cache:
    """Run a teacher over source tars, or with `views_from` over a cache's views; return the new cache.

    The same call again continues an unfinished cache, with more tars or views it extends it. Under torchrun
    or srun each process takes its share, so units may be missing when it returns. Raises SourceError that
    names the tars that failed, after all others are done; ConfigError for options that do not fit.
    """
    from pipeline.extraction.job import run_extraction as extract

    if unknown := sorted(set(options) - set(ExtractionChoices.__annotations__)):
        known = ", ".join(ExtractionChoices.__annotations__)
        raise ConfigError(f"run_extraction has no option {unknown[0]!r}: known are {known}")
    given: dict[str, Any] = {"workers": usable_cores(), **options}
    if (other := given.get("views_from")) is not None:
        given["views_from"] = other.address if isinstance(other, Cache) else str(other)
    if not isinstance(teacher, str):
        given.setdefault("compile", "off")  # of an unknown network
    rank, processes = share_of_work()
    given |= source_options(_addresses(shards), str(cache), given.get("views_from"), options)
    given |= {"device": choose_device(device), "rank": rank, "processes": processes}
    checked = ExtractionOptions(cache=str(cache), teacher=teacher, **given)
    extractor, _ = extract(checked)
    for source, reason in extractor.tally.failed.items():
        count = len(extractor.tally.failed)
        raise SourceError(
            f"{count} of {len(checked.tars)} tars failed, the first is {source!r} ({reason}): make them "
            "again, then make the same call"
        )
    return Cache(cache)


def run_training(
    cache: Cache | Place | Sequence[Cache | Place],
    run: Place,
    recipe: "Place | Settings | RunConfig | None" = None,
    settings: Settings | None = None,
    *,
    resume: Resume = "never",
    device: "str | torch.device" = "auto",
    say: Say = lambda _: None,
) -> "Result":
    """Train a student on a cache, export it to `run`/student and write the report, as train-student does.

    Several caches of the same views are several teachers; the first gives order, crops and masks.
    `recipe` is a TOML file, its values, or a configuration; None is the paper's recipe for B. `settings`
    change keys as --set does: {"optim.epochs": 100}. `resume` is "never", "always" or "auto". `say` gets
    messages for a person. Under torchrun every process makes the same call. Raises MaskAlignError.
    """
    from pipeline.training.config import RunConfig
    from pipeline.training.distributed import joined_ranks

    given = [cache] if isinstance(cache, Cache | str | Path) else cache
    if not given:
        raise ConfigError("no cache is named: give one, or a list of them")
    caches = [each if isinstance(each, Cache) else Cache(each) for each in given]
    folder, where = Path(run), choose_device(device)

    def read_config() -> RunConfig:
        if isinstance(recipe, RunConfig):
            values: dict[str, Any] = recipe.model_dump(mode="json")
        elif isinstance(recipe, Mapping):
            values = with_settings({}, recipe)
        else:
            earlier = read_run(folder)["config"] if continues(folder, resume) else None
            values = read_settings(None if recipe is None else Path(recipe), base=earlier)
        assigned = settings or {}
        tables = ((name, table) for name, table in assigned.items() if isinstance(table, Mapping))
        keys = [*assigned, *(f"{name}.{key}" for name, table in tables for key in table)]
        return parse_config(RunConfig, let_epochs_count(with_settings(values, assigned), keys))

    with joined_ranks(where) as ranks:
        return train_and_report(
            caches, folder, read_config, resume=resume, ranks=ranks, device=where, say=say
        )


def train_and_report(
    caches: "Sequence[reader.Cache]",
    run: Path,
    read_config: "Callable[[], RunConfig]",
    *,
    resume: Resume,
    ranks: "Ranks",
    device: "torch.device",
    say: Say,
) -> "Result":
    """Train on caches, with evaluations on the way where the configuration asks for them; write the report.

    The main rank reads the configuration: on a network file system, other machines may see an older state of
    the folder. Raises MaskAlignError.
    """
    from pipeline.report.run_page import write_run_report
    from pipeline.training.run import run_training as train

    with tempfile.TemporaryDirectory(prefix="maskalign-views-") as scratch:
        config, evaluate = ranks.decide(read_config), None
        with ranks.together():
            if config.evaluate.every_epochs and ranks.is_main:
                from pipeline.evaluation.while_training import training_evaluation

                side = caches[0].schema.view.image_size
                evaluate = training_evaluation(config.evaluate, side, Path(scratch), say)
        choices: dict[str, Any] = {"resume": resume, "ranks": ranks, "device": device, "others": caches[1:]}
        result = train(caches[0], run, config, **choices, say=say, evaluate=evaluate)
        if ranks.is_main:
            write_run_report(run)
    return result


def run_evaluation(
    evaluation: str,
    settings: Settings | None = None,
    *,
    run: Place | None = None,
    untrained: bool = False,
    teacher: str | None = None,
    model: str | None = None,
    cache: Place | None = None,
    shards: Place | Sequence[Place] | None = None,
    test_shards: Place | Sequence[Place] | None = None,
    image_size: int | None = None,
    patch_size: int | None = None,
    batch_size: int = 128,
    workers: int = 2,
    device: "str | torch.device" = "auto",
    say: Say = lambda _: None,
) -> "list[Score]":
    """Evaluate a student (`run`), a teacher or a timm model on labelled images, as evaluate-student does.

    Give the data to learn from as `cache` or as `shards`. `settings` change its keys: {"k": 10}. Sizes in
    pixels are those of the run or cache, else 224 and the network's own patches.
    Scores of a trained student also go to its run's report. Raises MaskAlignError.
    """
    from pipeline.evaluation.choice import Choice
    from pipeline.evaluation.run import EVALUATIONS
    from pipeline.evaluation.run import run_evaluation as evaluate
    from pipeline.report.run_page import write_run_report
    from pipeline.report.scores import add_scores

    if evaluation not in EVALUATIONS:
        raise ConfigError(f"evaluation {evaluation!r} is unknown: give one of {', '.join(EVALUATIONS)}")
    chosen = parse_config(EVALUATIONS[evaluation], with_settings({}, settings or {}))
    with tempfile.TemporaryDirectory(prefix="maskalign-evaluation-") as scratch:
        choice = Choice(
            Path(scratch),
            run=None if run is None else Path(run),
            untrained=untrained,
            teacher=teacher,
            model=model,
            cache=None if cache is None else str(cache),
            shards=None if shards is None else _addresses(shards),
            test_shards=None if test_shards is None else _addresses(test_shards),
            image_size=image_size,
            patch_size=patch_size,
        )
        choice.check(evaluation)
        choice.refuse_unused([chosen])
        scores = evaluate(chosen, choice.task(choose_device(device), batch_size, workers, log=say))
        if choice.updated and scores:
            add_scores(choice.updated, scores)
            write_run_report(choice.updated)
    return scores


def with_settings(values: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Return nested values, changed by settings with dotted names or by section; raises ConfigError.

    A section's other keys stay, but for those of the objective, which depend on its name.
    """
    changed = dict(values)
    for name, value in settings.items():
        *sections, key = name.split(".")
        table = changed
        for section in sections:
            if not isinstance(inner := table.get(section, {}), Mapping):
                raise ConfigError(f"setting {name!r}: {section!r} is a value, not a section")
            table[section] = table = dict(inner)  # a copy: the caller keeps what it gave
        kept = table.get(key) if not sections and key != "objective" else None
        table[key] = {**kept, **value} if isinstance(kept, Mapping) and isinstance(value, Mapping) else value
    return changed


def _addresses(places: Place | Sequence[Place]) -> list[str]:
    return [str(place) for place in ([places] if isinstance(places, Place) else places)]
