"""k-NN and logistic regression of a run's encoder while it trains, on a bounded number of labelled images."""

import copy
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.config import parse_config
from pipeline.errors import ConfigError
from pipeline.evaluation.data import LabelledImages
from pipeline.evaluation.draws import draw_few
from pipeline.evaluation.images import ImageSet, open_images
from pipeline.evaluation.kept_views import KeptViews
from pipeline.evaluation.run import EVALUATIONS
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.task import Task
from pipeline.report.scores import SubjectFacts
from pipeline.seeding import generator
from pipeline.student.encoder import MaskedEncoder
from pipeline.training.evaluating import Evaluate
from pipeline.training.sections import EvaluateConfig

_HELD_OUT = 0.2  # of each class, without test_shards
_BATCH = 64
_FEW_C = [0.01, 0.1, 1.0, 10.0]  # of logistic regression; the whole grid costs many times more


def training_evaluation(
    config: EvaluateConfig,
    image_size: int,
    scratch: Path,
    say: Callable[[str], None] = lambda _: None,
) -> Evaluate:
    """Decode the images, and return what scores an encoder on them.

    `scratch` is a folder for views and features, which must stay. Raises ConfigError or SourceError for data
    that cannot be used, so call it before training begins; `say` gets warnings about images left out.
    """
    learnt, test = _sets(config, scratch)
    workers = min(config.workers, len(os.sched_getaffinity(0)))
    data, asked = (
        KeptViews(LabelledImages(one, workers), image_size, scratch / f"{name}.views")
        for name, one in (("learnt", learnt), ("test", test))
    )
    _check(config, data, asked)
    for one in (data, asked):
        for kind, count in one.left_out.counts.items():
            say(
                f"warning: {count} {kind} images of {one.address} are left out of evaluations; "
                f"the first: {one.left_out.first[kind]}"
            )
    options: dict[str, dict[str, Any]] = {"knn": {"k": [config.k]}, "probe": {"c": _FEW_C}}
    settings = [
        parse_config(EVALUATIONS[name], {**options[name], "shared_keys": "allow"})
        for name in config.evaluations
    ]

    def evaluate(encoder: MaskedEncoder, step: int) -> list[dict[str, Any]]:
        facts = SubjectFacts(kind="run", name="student", weights=f"after step {step}", step=step)
        # a copy: evaluation mode must not reach the network that is trained
        subject = Subject(facts, copy.deepcopy(encoder.vit).eval(), encoder.patch_size)
        store = Path(tempfile.mkdtemp(prefix="features.", dir=scratch))
        try:
            task = Task(subject, data, asked, store, store, batch_size=_BATCH)
            found = [(one.name, outcome) for one in settings for outcome in one.run(task)]
        finally:
            shutil.rmtree(store, ignore_errors=True)
        return [
            {
                "evaluation": name,
                "representation": outcome.representation,
                "metric": metric,
                "value": value,
                "interval": outcome.intervals.get(metric),
                "chance": outcome.chance,
            }
            for name, outcome in found
            for metric, value in [outcome.main_metric]
        ]

    return evaluate


def _sets(config: EvaluateConfig, scratch: Path) -> tuple[ImageSet, ImageSet]:
    """Return the images to learn from and to test on, drawn by a fixed seed; raises ConfigError."""
    learnt = open_images(config.shards, scratch)
    if config.test_shards:
        test = open_images(config.test_shards, scratch, learnt.class_names)
        sizes = {one.key: one.image.size for one in learnt.images}
        shared = [one.key for one in test.images if sizes.get(one.key) == one.image.size]
        if shared:
            raise ConfigError(
                f"{len(shared)} images are in evaluate.shards and in evaluate.test_shards, such as "
                f"{shared[0]!r}: give other test images, or leave evaluate.test_shards out to hold some out"
            )
        return _drawn(learnt, config.images), _drawn(test, config.test_images)
    drawn = _drawn(learnt, config.images + config.test_images)
    labelled = [index for index, one in enumerate(drawn.images) if one.label is not None]
    labels = torch.tensor([drawn.images[index].label for index in labelled], dtype=torch.int64)
    held = {labelled[index] for index in draw_few(labels, _HELD_OUT, 0).tolist()} if labelled else set()
    kept = [index for index in range(len(drawn.images)) if index not in held]
    return drawn.subset(kept), drawn.subset(sorted(held))


def _drawn(images: ImageSet, count: int) -> ImageSet:
    """Return at most `count` images, in their order."""
    if len(images.images) <= count:
        return images
    order = generator(0, "images to evaluate with", len(images.images)).permutation(len(images.images))
    return images.subset(sorted(order[:count].tolist()))


def _check(config: EvaluateConfig, data: KeptViews, test: KeptViews) -> None:
    """Raise ConfigError for data that an evaluation would refuse."""
    for name, one in (("shards", data), ("test_shards" if config.test_shards else "shards", test)):
        if not one.names:
            reasons = "; ".join(one.left_out.first.values()) or "it has none"
            raise ConfigError(
                f"evaluate.{name} {one.address!r} has too few whole and labelled images ({reasons}): "
                "name tars with a KEY.cls beside each image, or a folder with a subfolder for each class"
            )
    classes = {label for _, _, label in data.names}
    if len(classes) < 2:
        raise ConfigError(
            f"evaluate.shards {data.address!r} has images of class {classes.pop()} alone: "
            "give images of two classes or more"
        )
    if "knn" in config.evaluations and config.k > len(data.names):
        raise ConfigError(
            f"evaluate.k is {config.k}, but {data.address!r} has {len(data.names)} images to learn from: "
            "set a smaller one, or give more images"
        )
