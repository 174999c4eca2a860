"""Tiny networks, images and stored features for tests of evaluations."""

import io
from dataclasses import dataclass, replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tars import write_tar

from pipeline.evaluation import fitting, resuming
from pipeline.evaluation.data import LabelledImages
from pipeline.evaluation.features import Features
from pipeline.evaluation.images import ImageSet, open_images
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.task import Task
from pipeline.report.scores import DataFacts, SubjectFacts


def tiny_subject(seed=0, image_size=32, kind="model", **options):
    """A ViT of two blocks and width 32, on patches of 8 pixels."""
    torch.manual_seed(seed)
    sizes = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": image_size, "patch_size": 8}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **(sizes | options))
    return Subject(SubjectFacts(kind=kind, name=f"tiny {seed}", weights=f"{seed:064d}"), vit.eval(), 8)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def square(seed, label, side=48):
    """A square of one of some colours on a noisy ground, and its mask: the colour is the class."""
    rng = np.random.default_rng([seed, label])
    colour = np.random.default_rng(label).integers(0, 256, 3)
    pixels = rng.integers(90, 160, (side, side, 3), np.uint8)
    mask = np.zeros((side, side), np.uint8)
    top, left = rng.integers(6, side // 2, 2)
    inside = (slice(top, top + side // 3), slice(left, left + side // 3))
    pixels[inside] = colour
    mask[inside] = 1
    return pixels, mask


def squares(path, seed, count, classes=3):
    """Write a tar of squares with labels and masks; returns the images in it."""
    members = {}
    for index in range(count):
        pixels, mask = square(seed * 1000 + index, index % classes)
        key = f"{seed}_{index:03d}"
        members |= {
            f"{key}.png": png(pixels),
            f"{key}.cls": str(index % classes).encode(),
            f"{key}.seg.png": png(mask),
        }
    write_tar(path, {}, members=members)
    return LabelledImages(open_images([str(path)], path.parent))


def named(images, names):
    """Images with other names of their classes, if any are given."""
    return replace(images, class_names=names) if names else images


def task(folder, subject, data, test=None, **changes):
    return Task(subject, data, test, folder / "features", folder / "evaluation", batch_size=8, **changes)


def continued(monkeypatch, run, step):
    """Kill `run(log)` at a step, its state written after each, and return the second run's result."""

    def killed(line):
        if line.startswith(f"step {step} of"):
            raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "_SECONDS_BETWEEN_LINES", -1.0)
    monkeypatch.setattr(resuming, "_SECONDS_BETWEEN_STATES", -1.0)
    with pytest.raises(KeyboardInterrupt):
        run(killed)
    lines = []
    result = run(lines.append)
    assert next(line for line in lines if line.startswith("step")).startswith(f"step {step} of")
    return result


def stored(folder, values, labels, parts=1):
    """Features as a store has them: {name: (n, C)} of images with labels (n,), named after the folder."""
    folder.mkdir(parents=True)
    labels, counts = torch.as_tensor(labels), []
    values = {name: torch.as_tensor(each).half() for name, each in values.items()}
    for number, rows in enumerate(torch.arange(len(labels)).tensor_split(parts)):
        save_file({name: each[rows] for name, each in values.items()}, folder / f"{number:05d}.safetensors")
        counts.append(len(rows))
    facts = DataFacts(
        address=folder.name, kind="tars", image_size=32, images=len(labels), classes=len(labels.unique()),
        left_out={}, first_reasons={}, digest=folder.name,
    )  # fmt: skip
    widths = {name: each.shape[1] for name, each in values.items()}
    keys = [f"{folder.name}-{index}" for index in range(len(labels))]
    return Features(folder, widths, counts, labels, keys, [folder.name] * len(labels), facts)


@dataclass(frozen=True)
class FeatureTask(Task):
    """A task whose features are given."""

    given: tuple = ()

    def features(self, *_keys, **_how):
        return self.given


def feature_task(bank, test):
    """A task on stored features alone."""
    nothing = LabelledImages(ImageSet("", "folder", ()))
    folder = bank.folder.parent
    return FeatureTask(tiny_subject(), nothing, nothing, folder, folder, given=(bank, test))
