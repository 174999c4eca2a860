"""The demo: makes images, runs both stages by their commands, and compares student and teacher."""

import json
import os
import platform
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
from pipeline.provenance import provenance
from stages.console import cli_errors, run_command

_MARKER = ".maskalign-demo"
_SUBJECTS = ("teacher", "untrained", "student")
_EXTRACTION = "--views 2 --crop-scale 0.5 1 --batch-size 64 --image-size 64 --patch-size 8"

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
        result = {**provenance("torch"), "cpu": _cpu()}
        _timed(seconds, "images", partial(_make_images, folder, images, test_images))
        _timed(seconds, "extract", partial(_extract, folder))
        _timed(seconds, "train", partial(_train, folder, assignments or []))
        for subject in _SUBJECTS:
            result |= _timed(seconds, f"evaluate_{subject}", partial(_evaluate, folder, subject))
        result["seconds"] = {part: round(taken, 1) for part, taken in seconds.items()}
        (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        _show(folder, result)


def _clear(folder: Path) -> None:
    """Remove an earlier demo; raises ConfigError for a folder that has other things in it."""
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not (folder / _MARKER).exists())
    ):
        raise ConfigError(f"--folder {str(folder)!r} is not an earlier demo: give a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()
    for part in ("images", "demo.cache", "run", "knn"):
        shutil.rmtree(folder / part, ignore_errors=True)
    (folder / "result.json").unlink(missing_ok=True)


def _cpu() -> str:
    """Return the processor's name, and how many cores this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{len(os.sched_getaffinity(0))} cores of {next(named, platform.machine())}"


def _timed(seconds: dict[str, float], part: str, work: Callable[[], Result]) -> Result:
    begin = time.perf_counter()
    result = work()
    seconds[part] = time.perf_counter() - begin
    return result


def _make_images(folder: Path, train: int, test: int) -> None:
    from pipeline.demo.dataset import TEST_SEED, TRAIN_SEED, write_images

    typer.echo(f"drawing {train:,} images to learn from and {test:,} to test with")
    write_images(folder / "images" / "train", TRAIN_SEED, train)
    write_images(folder / "images" / "test", TEST_SEED, test)


def _extract(folder: Path) -> None:
    cache, tars = folder / "demo.cache", folder / "images" / "train"
    _command("extract_teacher", tars, "--cache", cache, "--teacher", _teacher(), *_EXTRACTION.split())


def _train(folder: Path, assignments: list[str]) -> None:
    recipe = files("stages") / "recipes" / "demo.toml"
    changes = [part for assignment in assignments for part in ("--set", assignment)]
    data = ("--cache", folder / "demo.cache", "--run", folder / "run")
    _command("train_student", *data, "--config", recipe, *changes)


def _evaluate(folder: Path, subject: str) -> dict[str, float]:
    """Classify the test images by their neighbours among the cache's views, by mean and by CLS."""
    run, out = folder / "run", folder / "knn" / f"{subject}.json"
    judged: dict[str, tuple[object, ...]] = {
        "teacher": ("--teacher", _teacher()),
        "untrained": ("--run", run, "--untrained"),
        "student": ("--run", run),
    }
    out.parent.mkdir(exist_ok=True)
    data = ("--cache", folder / "demo.cache", "--test-shards", folder / "images" / "test", "--workers", 0)
    _command("evaluate_student", "knn", *judged[subject], *data, "--report", run, "--out", out)
    names = {"mean": f"{subject}_knn", "cls": f"{subject}_knn_cls"}
    scores = json.loads(out.read_text(encoding="utf-8"))
    return {names[score["representation"]]: score["metrics"]["top-1"] for score in scores}


def _teacher() -> str:
    return f"open_clip:local-dir:{files('pipeline.demo') / 'teacher'}"


def _command(stage: str, *arguments: object) -> None:
    """Run a stage as a person would; raises MaskAlignError if it fails."""
    words = [str(argument) for argument in arguments]
    typer.echo(f"\n$ {stage.replace('_', '-')} {shlex.join(words)}")
    if subprocess.run([sys.executable, "-m", f"stages.{stage}", *words], check=False).returncode:
        raise MaskAlignError(f"the demo stopped: {stage.replace('_', '-')} failed; the lines above say why")


def _show(folder: Path, result: Mapping[str, Any]) -> None:
    typer.echo("\nk-NN accuracy on unseen images      mean patch token     CLS")
    for subject in _SUBJECTS:
        typer.echo(f"{subject:<38}{result[f'{subject}_knn']:>16.1%}{result[f'{subject}_knn_cls']:>8.1%}")
    typer.echo(
        f"\n{sum(result['seconds'].values()):.0f} s in all; {folder / 'result.json'} has the figures, "
        f"open {folder / 'run' / 'report.html'} in a browser"
    )


def main() -> None:
    """Entry point."""
    run_command(demo)


if __name__ == "__main__":
    main()
