"""The demo: makes images, runs both stages by their commands, and compares student and teacher."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import ConfigError, MaskAlignError
from pipeline.provenance import cpu_name, provenance
from stages.console import cli_errors, run_command

_MARKER = ".maskalign-demo"
_SUBJECTS = ("teacher", "untrained", "student")
_EXTRACTION = "--views 2 --crop-scale 0.5 1 --batch-size 64 --image-size 64 --patch-size 8"


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
        _clear(folder)
        result: dict[str, Any] = {
            **provenance("torch"),
            "cpu": f"{len(os.sched_getaffinity(0))} cores of {cpu_name()}",
            "seconds": {},
        }
        for part, work in _parts(folder, images, test_images, assignments or []).items():
            begin = time.perf_counter()
            result |= work() or {}
            result["seconds"][part] = round(time.perf_counter() - begin, 1)
        (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        _show(folder, result)


def _parts(folder: Path, train: int, test: int, assignments: list[str]) -> dict[str, Callable[[], Any]]:
    """Return what the demo does, in order, by the names of the times in result.json."""
    from pipeline.demo.dataset import TEST_SEED, TRAIN_SEED, write_images

    cache, run, tars = folder / "demo.cache", folder / "run", folder / "images"
    recipe = files("stages") / "recipes" / "demo.toml"
    changes = [part for assignment in assignments for part in ("--set", assignment)]

    def draw() -> None:
        typer.echo(f"drawing {train:,} images to learn from and {test:,} to test with")
        write_images(tars / "train", TRAIN_SEED, train)
        write_images(tars / "test", TEST_SEED, test, boxes=True)

    to_cache = (tars / "train", "--cache", cache, "--teacher", _teacher(), *_EXTRACTION.split())
    return {
        "images": draw,
        "extract": lambda: _command("extract_teacher", *to_cache),
        "train": lambda: _command(
            "train_student", "--cache", cache, "--run", run, "--config", recipe, *changes
        ),
        **{f"evaluate_{subject}": partial(_evaluate, folder, subject) for subject in _SUBJECTS},
    }


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
