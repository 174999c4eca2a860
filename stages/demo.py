"""The demo: makes images, runs both stages through their command lines, and compares untrained student, trained student and teacher."""

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from pipeline.errors import ConfigError, MaskAlignError
from stages.console import cli_errors, run_command

_TEACHER_VIEW = ("--image-size", "64", "--patch-size", "8")
_MARKER = ".maskalign-demo"
_SUBJECTS = ("teacher", "untrained", "student")

Result = TypeVar("Result")


def demo(
    folder: Annotated[
        Path, typer.Option(help="Everything is written here; an earlier demo is replaced.")
    ] = Path("demo"),
    images: Annotated[int, typer.Option(min=1, help="Training images.")] = 4000,
    test_images: Annotated[int, typer.Option(min=1, help="Test images.")] = 1000,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of recipes/demo.toml."),
    ] = None,
) -> None:
    """Pretrain a small student from a small CLIP teacher on generated images, in minutes on a CPU."""
    with cli_errors():
        seconds: dict[str, float] = {}
        _clear(folder)
        _timed(seconds, "images", partial(_make_images, folder, images, test_images))
        _timed(seconds, "extract", partial(_extract, folder))
        _timed(seconds, "train", partial(_train, folder, assignments or []))
        result: dict[str, Any] = {}
        for subject in _SUBJECTS:
            scores = _timed(seconds, f"evaluate_{subject}", partial(_evaluate, folder, subject))
            result |= {f"{subject}_knn": scores["mean"], f"{subject}_knn_cls": scores["cls"]}
        result["seconds"] = {part: round(taken, 1) for part, taken in seconds.items()}
        (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        _show(folder, result, sum(seconds.values()))


def _clear(folder: Path) -> None:
    """Remove an earlier demo, and nothing that is not one; raises ConfigError for a folder that has other things in it."""
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not (folder / _MARKER).exists())
    ):
        raise ConfigError(
            f"--folder {str(folder)!r} exists and is no earlier demo: give a new or empty folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()
    for part in ("images", "demo.cache", "run", "knn"):
        shutil.rmtree(folder / part, ignore_errors=True)
    (folder / "result.json").unlink(missing_ok=True)


def _timed(seconds: dict[str, float], part: str, work: Callable[[], Result]) -> Result:
    begin = time.perf_counter()
    result = work()
    seconds[part] = time.perf_counter() - begin
    return result


def _make_images(folder: Path, train: int, test: int) -> None:
    from pipeline.demo.dataset import TEST_SEED, TRAIN_SEED, write_images

    typer.echo(f"drawing {train} images to learn from and {test} to test with")
    write_images(folder / "images" / "train", TRAIN_SEED, train)
    write_images(folder / "images" / "test", TEST_SEED, test)


def _extract(folder: Path) -> None:
    options = (
        "--teacher",
        _teacher(),
        "--views",
        "2",
        "--crop-scale",
        "0.5",
        "1",
        "--batch-size",
        "64",
        *_TEACHER_VIEW,
    )
    _command(
        "extract_teacher", str(folder / "images" / "train"), "--cache", str(folder / "demo.cache"), *options
    )


def _train(folder: Path, assignments: list[str]) -> None:
    recipe = str(files("stages") / "recipes" / "demo.toml")
    changes = [part for assignment in assignments for part in ("--set", assignment)]
    _command(
        "train_student",
        "--cache",
        str(folder / "demo.cache"),
        "--run",
        str(folder / "run"),
        "--config",
        recipe,
        *changes,
    )


def _evaluate(folder: Path, subject: str) -> dict[str, float]:
    """Classify the test images by their neighbours among the cache's views."""
    run = ("--run", str(folder / "run"))
    judged = {"teacher": ("--teacher", _teacher()), "untrained": (*run, "--untrained"), "student": run}[
        subject
    ]
    out = folder / "knn" / f"{subject}.json"
    out.parent.mkdir(exist_ok=True)
    queries = ("--test-shards", str(folder / "images" / "test"), "--workers", "0")
    results = ("--report", str(folder / "run"), "--out", str(out))
    _command("evaluate_student", "knn", *judged, "--cache", str(folder / "demo.cache"), *queries, *results)
    scores: dict[str, float] = json.loads(out.read_text(encoding="utf-8"))
    return scores


def _teacher() -> str:
    return f"open_clip:local-dir:{files('pipeline.demo') / 'teacher'}"


def _command(stage: str, *arguments: str) -> None:
    """Run a stage as a person would, and stop with it if it fails."""
    typer.echo(f"\n$ {stage.replace('_', '-')} {shlex.join(arguments)}")
    if subprocess.run([sys.executable, "-m", f"stages.{stage}", *arguments], check=False).returncode:
        raise MaskAlignError(f"the demo stopped: {stage.replace('_', '-')} failed, as it says above")


def _show(folder: Path, result: Mapping[str, Any], seconds: float) -> None:
    typer.echo("\nk-NN accuracy on unseen images      mean patch token     CLS")
    for subject in _SUBJECTS:
        typer.echo(f"{subject:<38}{result[f'{subject}_knn']:>16.1%}{result[f'{subject}_knn_cls']:>8.1%}")
    typer.echo(
        f"\n{seconds:.0f} s in all; {folder / 'result.json'} has the figures, open {folder / 'run' / 'report.html'} in a browser"
    )


def main() -> None:
    """Entry point."""
    run_command(demo)


if __name__ == "__main__":
    main()
