"""The card of an exported network, in the form of Hugging Face: what run.json and scores.json say of it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.cache.card import markdown_table
from pipeline.cache.reader import Cache
from pipeline.config import dump_toml, parse_config
from pipeline.errors import MaskAlignError
from pipeline.evaluation.exporting.exported import Written, preprocessing
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.task import Task
from pipeline.report.scores import Score, read_scores
from pipeline.training.config import RunConfig
from pipeline.training.run_folder import caches_of, read_run

_KINDS = {
    "run": "A vision transformer that MaskAlign pretrained on the features of a teacher.",
    "untrained": "A vision transformer as MaskAlign starts it, before its first step: it has learnt nothing.",
    "teacher": "The vision tower of a teacher.",
    "model": "A vision transformer of timm.",
}
_HEAD = {
    "pipeline_tag": "image-feature-extraction",
    "tags": ["maskalign", "vision-transformer", "image-feature-extraction"],
}


def model_card(task: Task, written: Written, license_name: str, datasets: Sequence[str]) -> str:
    """Return README.md; raises CheckpointError for a run or scores that cannot be read."""
    subject = task.subject
    run = read_run(task.run) if task.run else None
    scores = read_scores(task.run) if task.run else ()
    title = task.run.resolve().name if task.run and subject.facts.kind == "run" else subject.facts.name
    current = [score for score in scores if score.subject.weights == subject.facts.weights]
    parameters = sum(value.numel() for value in subject.vit.parameters())
    count = f"{parameters / 1e6:.1f} M" if parameters >= 1e5 else f"{parameters:,}"
    height, width = subject.vit.patch_embed.img_size
    sizes = (
        f"It has {subject.depth} blocks of width {subject.width} ({count} parameters) and takes images of "
        f"{height} x {width} pixels in patches of {subject.vit.patch_embed.patch_size[0]}. It has no "
        "classifier."
    )
    kind, recipe = _KINDS[subject.facts.kind], []
    if run and subject.facts.kind == "run" and (lesson := run.get("lesson")):
        kind = f"A vision transformer that MaskAlign trained on {lesson}."
    if run:  # without the section that does not change the result
        sections = dump_toml(parse_config(RunConfig, run["config"])).split("\n\n")
        toml = "\n\n".join(one.strip() for one in sections if not one.startswith("[evaluate]"))
        summary = "<summary>Recipe of train-student</summary>"
        recipe = [f"<details>{summary}\n\n```toml\n{toml}\n```\n\n</details>"]
    # JSON's strings and lists are YAML's
    head = {"license": license_name, "library_name": written.library, **_HEAD}
    head |= {"datasets": list(datasets)} if datasets else {}
    parts = [
        "\n".join(["---", *(f"{name}: {json.dumps(value)}" for name, value in head.items()), "---"]),
        f"# {title}\n\n{kind} {sizes}",
        f"## Load it\n\n```python\n{written.code}\n```\n\n{_outputs(subject, written)}",
        f"## Origin\n\n{markdown_table(('', ''), tuple(_origin(subject, run)))}",
        *recipe,
        f"## Scores\n\n{_scores(current)}",
    ]
    return "\n\n".join(parts) + "\n"


def _outputs(subject: Subject, written: Written) -> str:
    """Say what goes in and what comes out."""
    prepared = preprocessing(subject)
    side = prepared["input_size"][1]
    mean, std = (", ".join(f"{value:g}" for value in prepared[name]) for name in ("mean", "std"))
    text = (
        "FOLDER is the folder of this card. Images are normalised outside of the network: RGB, the shorter "
        f"side resized to {round(side / prepared['crop_pct'])} pixels (bicubic), the middle {side} x {side} "
        f"cut out, values from 0 to 1, minus the mean ({mean}), divided by the std ({std}).\n\n"
        f"{written.outputs}"
    )
    return f"{text} {written.notes}".rstrip()


def _origin(subject: Subject, run: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    facts = subject.facts
    yield "weights, SHA-256", facts.weights
    if run is None:
        return
    images = run["config"]["train"]["global_batch"]
    yield "steps", f"{facts.step or 0:,} of {run['steps']:,}, each of {images:,} images"
    for cache in caches_of(run):
        if not run.get("lesson"):
            teacher = cache["teacher"]
            untrained = "" if teacher.get("trained", True) else " (untrained)"
            yield "teacher", f"{teacher['library']} {teacher['name']}, {teacher['tag']}{untrained}"
            yield "teacher's weights, SHA-256", teacher["weights_sha256"]
        yield "cache", PurePosixPath(cache["path"]).name
        yield "digest of the cache", cache["digest"]
    names: list[str] = []  # of the source tars
    with suppress(MaskAlignError):  # the cache may be gone
        opened = Cache(run["cache"]["path"])
        if opened.digest == run["cache"]["digest"]:
            names = sorted({unit.source for unit in opened.units})
    if names:
        many = f"{names[0]} to {names[-1]} ({len(names):,} tars)"
        yield "images", many if len(names) > 2 else ", ".join(names)
    made = [f"{name} {run[name]}" for name in ("maskalign", "commit") if run.get(name)]
    yield "trained by", ", ".join(made) or "train-student"


def _scores(scores: Sequence[Score]) -> str:
    if not scores:
        return "No evaluation of these weights is recorded."
    head = ("evaluation", "representation", "metric", "value", "95% interval", "chance", "tested on")
    rows = []
    for score in scores:
        protocol, test = f"{score.evaluation} ({score.protocol})", score.test
        names = ", ".join(Path(part).name for part in test.address.split(", "))
        data = f"{names}: {test.images:,} images of {test.classes} classes, {test.image_size} pixels"
        chance = f"{score.chance:.1%}"  # of the first metric
        for name, value in score.metrics.items():
            low, high = score.intervals.get(name, (0.0, 0.0))
            interval = f"{low:.1%} to {high:.1%}" if high > low else ""
            rows.append((protocol, score.representation, name, f"{value:.1%}", interval, chance, data))
            chance = ""
    return f"Measured by `evaluate-student` on these weights.\n\n{markdown_table(head, rows)}"
