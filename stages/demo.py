"""The demo: makes images, runs both stages by their commands, and compares student and teacher."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import ConfigError, MaskAlignError
from pipeline.json_text import json_bytes
from pipeline.provenance import cpu_name, provenance
from stages.console import cli_errors, run_command

_MARKER = ".maskalign-demo"
_TEACHER = f"open_clip:local-dir:{files('pipeline.demo') / 'teacher'}"
_EXTRACTION = "--views 2 --crop-scale 0.5 1 --batch-size 64 --image-size 64 --patch-size 8"
_FROZEN = "knn,probe,attentive,segment"
# The published schedules are for a million photographs; on 2,000 drawn images these take seconds.
_SETTINGS = (
    "probe.c=[10.0] attentive.epochs=4 attentive.batch=128 attentive.lr=[30.0] "
    "attentive.shown=1 segment.size=64 segment.crop=[64,64] segment.stride=[64,64] segment.scale=[1.0,1.0] "
    "segment.distort=false segment.steps=45 segment.batch=32 segment.lr=0.02 segment.warmup=5 "
    "segment.classes=19"
)
_ON_LABELS = ("objective.name=supervised", "optim.base_lr=0.005")  # it hardly learns at the student's rate
_COLUMNS = {
    "k-NN": ("knn", "mean", "top-1"),
    "k-NN, CLS": ("knn", "cls", "top-1"),
    "probe": ("probe", "mean", "top-1"),
    "attentive": ("attentive", None, "top-1"),
    "mIoU": ("segment", None, "mIoU"),
}
_ROWS = ("teacher", "untrained", "trained on labels", "student")


def demo(
    folder: Annotated[
        Path, typer.Option(help="Everything is written here; an earlier demo is replaced.")
    ] = Path("demo"),
    images: Annotated[int, typer.Option(min=1, help="Training images.")] = 4000,
    test_images: Annotated[int, typer.Option(min=1, help="Test images.")] = 1000,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a key of recipes/demo.toml; [objective] and data.levels only for the student.",
        ),
    ] = None,
) -> None:
    """Pretrain a small student from a small CLIP teacher on generated images, in minutes on a CPU."""
    with cli_errors():
        _clear(folder)
        result: dict[str, Any] = {
            **provenance("torch"),
            "cpu": f"{len(os.sched_getaffinity(0))} cores of {cpu_name()}",
            "seconds": {},
            "scores": {},
        }
        for part, work in _parts(folder, images, test_images, assignments or []).items():
            begin = time.perf_counter()
            result["scores"] |= (work() or {}).get("scores", {})
            result["seconds"][part] = round(time.perf_counter() - begin, 1)
        (folder / "result.json").write_bytes(json_bytes(result))
        head = f"on {test_images:,} unseen images"
        typer.echo(f"\n{head:<22}{''.join(f'{name:>12}' for name in _COLUMNS)}")
        for row in _ROWS:
            found = result["scores"].get(row, {})
            cells = (f"{found[name]:>12.1%}" if name in found else f"{'':>12}" for name in _COLUMNS)
            typer.echo(f"{row:<22}{''.join(cells)}")
        typer.echo(
            f"\n{sum(result['seconds'].values()):.0f} s in all; {folder / 'result.json'} has the figures, "
            f"open {folder / 'run' / 'report.html'} in a browser"
        )


def _parts(folder: Path, train: int, test: int, assignments: list[str]) -> dict[str, Callable[[], Any]]:
    """Return what the demo does, in order, by the names of the times in result.json."""
    from pipeline.demo.dataset import TEST_SEED, TRAIN_SEED, write_images
    from pipeline.demo.forms import CLASSES

    cache, tars = folder / "demo.cache", folder / "images"

    def draw() -> None:
        typer.echo(f"drawing {train:,} images to learn from and {test:,} to test with")
        (folder / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
        write_images(tars / "train", TRAIN_SEED, train)
        write_images(tars / "test", TEST_SEED, test, boxes=True)

    shared = [one for one in assignments if not one.startswith(("objective.", "data.levels"))]
    on_labels = (*shared, *_ON_LABELS, f"objective.classes={len(CLASSES)}")

    def train_student(run: str, changes: Sequence[str]) -> None:
        recipe = files("stages") / "recipes" / "demo.toml"
        words = [word for change in changes for word in ("--set", change)]
        _command("train_student", "--cache", cache, "--run", folder / run, "--config", recipe, *words)

    to_cache = (tars / "train", "--cache", cache, "--teacher", _TEACHER, *_EXTRACTION.split())
    return {
        "images": draw,
        "extract": lambda: _command("extract_teacher", *to_cache),
        "train": partial(train_student, "run", assignments),
        "train on labels": partial(train_student, "supervised", on_labels),
        **{f"evaluate {subject}": partial(_evaluate, folder, subject) for subject in _ROWS},
    }


def _clear(folder: Path) -> None:
    """Remove an earlier demo; raises ConfigError for a folder that has other things in it."""
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not (folder / _MARKER).exists())
    ):
        raise ConfigError(f"--folder {str(folder)!r} is not an earlier demo: give a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()
    for part in ("images", "demo.cache", "run", "supervised", "scores"):
        shutil.rmtree(folder / part, ignore_errors=True)
    (folder / "result.json").unlink(missing_ok=True)


def _evaluate(folder: Path, subject: str) -> dict[str, Any]:
    """Evaluate a network on the test images, learning from the labels of half the training images."""
    run, out = folder / "run", folder / "scores" / f"{subject.replace(' ', '-')}.json"
    judged: dict[str, tuple[object, ...]] = {
        "teacher": ("--teacher", _TEACHER, "--report", run),
        "untrained": ("--run", run, "--untrained", "--report", run),
        "trained on labels": ("--run", folder / "supervised"),
        "student": ("--run", run),
    }
    out.parent.mkdir(exist_ok=True)
    tars = sorted((folder / "images" / "train").iterdir())
    shards = [word for tar in tars[: max(1, len(tars) // 2)] for word in ("--shards", tar)]
    data = (*shards, "--test-shards", folder / "images" / "test", "--class-names", folder / "classes.txt")
    sizes = ("--image-size", 64, "--patch-size", 8, "--workers", 1)
    changes = [word for setting in _SETTINGS.split() for word in ("--set", setting)]
    _command("evaluate_student", _FROZEN, *judged[subject], *data, *sizes, *changes, "--out", out)
    scores = json.loads(out.read_text(encoding="utf-8"))
    found = {
        name: next(
            (
                score["metrics"][metric]
                for score in scores
                if score["evaluation"] == evaluation and representation in (None, score["representation"])
            ),
            None,
        )
        for name, (evaluation, representation, metric) in _COLUMNS.items()
    }
    return {"scores": {subject: {name: value for name, value in found.items() if value is not None}}}


def _command(stage: str, *arguments: object) -> None:
    """Run a stage as a person would; raises MaskAlignError if it fails."""
    words = [str(argument) for argument in arguments]
    typer.echo(f"\n$ {stage.replace('_', '-')} {shlex.join(words)}")
    if subprocess.run([sys.executable, "-m", f"stages.{stage}", *words], check=False).returncode:
        raise MaskAlignError(f"the demo stopped: {stage.replace('_', '-')} failed; the lines above say why")


main = partial(run_command, demo)

if __name__ == "__main__":
    main()
