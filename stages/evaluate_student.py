"""evaluate-student: judge a run's student, the untrained student or a teacher by its frozen features."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import ConfigError
from stages.console import choose_device, cli_errors, new_app, run_app

if TYPE_CHECKING:
    import torch

    from pipeline.cache.reader import Cache
    from pipeline.evaluation.embedding import EmbeddedViews, Embedder

app = new_app()


@app.callback()
def evaluate() -> None:
    """Judge a run's student, the untrained student or a teacher by its frozen features."""


@app.command()
def knn(
    run: Annotated[Path | None, typer.Option(help="Run whose student is judged.")] = None,
    untrained: Annotated[
        bool,
        typer.Option(
            "--untrained", help="Judge the student before its first step: of --run, or of --config."
        ),
    ] = False,
    teacher: Annotated[
        str | None, typer.Option(help="Judge a teacher instead, such as open_clip:ViT-B-16-quickgelu/openai.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Recipe of an untrained student without a run.")] = None,
    cache: Annotated[str | None, typer.Option(help="Neighbours are the views of this cache.")] = None,
    shards: Annotated[
        str | None, typer.Option(help="Neighbours are the centre views of these labelled tars.")
    ] = None,
    test_shards: Annotated[
        str | None,
        typer.Option(help="Queries are of these labelled tars; default: each image against all others."),
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="Neighbours that vote.")] = 20,
    temperature: Annotated[
        float, typer.Option(min=1e-6, help="Votes are weighted by exp(cosine / temperature).")
    ] = 0.07,
    image_size: Annotated[
        int, typer.Option(min=1, help="Side of a view where neither a cache nor a run says it.")
    ] = 224,
    patch_size: Annotated[
        int, typer.Option(min=1, help="Side of a patch where neither a cache nor a run says it.")
    ] = 16,
    batch_size: Annotated[int, typer.Option(min=1, help="Views in a batch.")] = 128,
    workers: Annotated[int, typer.Option(min=0, help="Decoding processes for tars.")] = 2,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    report: Annotated[
        Path | None,
        typer.Option(help="Run in whose report the result is noted, too; default: --run, if trained."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the result to this JSON file, too.")] = None,
) -> None:
    """Classify by the k nearest neighbours in cosine similarity, on mean patch tokens after the final norm and on CLS."""
    with cli_errors():
        from pipeline.cache.reader import Cache
        from pipeline.training.summary import note_score, read_report

        _refuse_choice(run, untrained, teacher, config, cache, shards)
        noted = report or (run if not untrained else None)
        if report:
            read_report(report)
        chosen, opened = choose_device(device), Cache(cache) if cache else None
        sizes = _sizes(opened, run, (image_size, patch_size))
        embedder = _embedder(run, untrained, teacher, config, sizes, chosen)
        bank, queries = _embedded(
            opened, shards, test_shards, embedder, sizes[0], chosen, batch_size, workers
        )
        result = {
            "k": k,
            "neighbours": len(bank.labels),
            "queries": len(queries.labels),
            **_accuracies(bank, queries, k, temperature),
        }
        cls = f", CLS {result['cls']:.1%}" if "cls" in result else ""
        count = f"k {k}, {result['queries']} queries, {result['neighbours']} neighbours"
        typer.echo(f"k-NN accuracy: mean patch token {result['mean']:.1%}{cls} ({count})")
        if out:
            out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        if noted:
            note_score(noted, _subject(teacher, untrained), result["mean"], result.get("cls"))


def _subject(teacher: str | None, untrained: bool) -> str:
    if teacher is not None:
        name = teacher.rstrip("/").rpartition("/")[2] if "local-dir:" in teacher else teacher
        return f"teacher {name}".removesuffix(" teacher")
    return "untrained student" if untrained else "student"


def _refuse_choice(
    run: Path | None,
    untrained: bool,
    teacher: str | None,
    config: Path | None,
    cache: str | None,
    shards: str | None,
) -> None:
    if (teacher is not None) + (run is not None or untrained) != 1:
        raise ConfigError(
            "give one to judge: --run DIR, --untrained (with --run or --config), or --teacher SPEC"
        )
    if config is not None and (run is not None or teacher is not None):
        raise ConfigError(
            "--config is for an untrained student without a run: leave it out, or leave out --run and --teacher"
        )
    if (cache is None) == (shards is None):
        raise ConfigError("give the neighbours either as --cache DIR or as --shards SHARDS")


def _sizes(cache: "Cache | None", run: Path | None, asked: tuple[int, int]) -> tuple[int, int]:
    """Return image and patch size, as the run, else the cache, else the options say; raises ConfigError if run and cache differ."""
    from pipeline.training.run_folder import read_run

    stored = (cache.schema.view.image_size, cache.schema.view.patch_size) if cache else asked
    if run is None:
        return stored
    view = read_run(run)["view"]
    of_run = (view["image_size"], view["patch_size"])
    if cache and stored != of_run:
        raise ConfigError(
            f"run {str(run)!r} takes views of {of_run[0]} pixels in patches of {of_run[1]}, cache {cache.address!r} has {stored[0]} "
            f"in {stored[1]}: give a cache of the run's sizes, or --shards"
        )
    return of_run


def _embedder(
    run: Path | None,
    untrained: bool,
    teacher: str | None,
    config: Path | None,
    sizes: tuple[int, int],
    device: "torch.device",
) -> "Embedder":
    from pipeline.config import load_config, parse_config
    from pipeline.evaluation.embedding import student_embedder, teacher_embedder
    from pipeline.training.config import RunConfig
    from pipeline.training.run_folder import read_run

    if teacher is not None:
        return teacher_embedder(teacher, *sizes, device)
    configured = parse_config(RunConfig, read_run(run)["config"]) if run else load_config(RunConfig, config)
    return student_embedder(configured, None if untrained else run, *sizes, device)


def _embedded(
    cache: "Cache | None",
    shards: str | None,
    test_shards: str | None,
    embedder: "Embedder",
    image_size: int,
    device: "torch.device",
    batch_size: int,
    workers: int,
) -> tuple["EmbeddedViews", "EmbeddedViews"]:
    """Return neighbours and queries, which are the same views if no test tars are given."""
    from pipeline.evaluation.embedding import embed_views
    from pipeline.evaluation.views import cached_views, centre_views
    from pipeline.views.decoder import Decoder
    from pipeline.views.source_tars import resolve_tars

    decoder = Decoder(workers if shards or test_shards else 0, image_size)
    try:
        views = (
            cached_views(cache) if cache else centre_views(resolve_tars(shards or ""), image_size, decoder)
        )
        bank = embed_views(views, embedder, device, batch_size)
        if test_shards is None:
            return bank, bank
        return bank, embed_views(
            centre_views(resolve_tars(test_shards), image_size, decoder), embedder, device, batch_size
        )
    finally:
        decoder.close()


def _accuracies(
    bank: "EmbeddedViews", queries: "EmbeddedViews", k: int, temperature: float
) -> dict[str, float]:
    from pipeline.evaluation.knn import knn_accuracy

    own = (bank.images, queries.images) if queries is bank else (None, None)
    pairs = {"mean": (bank.mean, queries.mean), "cls": (bank.cls, queries.cls)}
    return {
        name: knn_accuracy(
            neighbours,
            bank.labels,
            asked,
            queries.labels,
            k=k,
            temperature=temperature,
            bank_groups=own[0],
            query_groups=own[1],
        )
        for name, (neighbours, asked) in pairs.items()
        if neighbours is not None and asked is not None
    }


def main() -> None:
    """Entry point."""
    run_app(app)


if __name__ == "__main__":
    main()
