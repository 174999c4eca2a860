"""Zero-shot: the demo's CLIP knows its classes by name, and what has no place in its space is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import caches
import pytest
import torch
import torch.nn.functional as F
from networks import task, tiny_subject
from training.training_runs import losses, trained

from pipeline.cache.encoding import whiten
from pipeline.cache.reader import Cache
from pipeline.config import load_config
from pipeline.demo.dataset import write_images
from pipeline.demo.forms import CLASSES
from pipeline.errors import ConfigError
from pipeline.evaluation.crops import LeftOut
from pipeline.evaluation.data import LabelledImages
from pipeline.evaluation.images import open_images
from pipeline.evaluation.run import run_evaluation
from pipeline.evaluation.subject import student_subject, teacher_subject
from pipeline.evaluation.zero_shot import ZeroShot, among_texts
from pipeline.teacher.geometry import teacher_images
from pipeline.teacher.load import load_teacher
from pipeline.teacher.text import load_clip
from pipeline.training.config import RunConfig
from pipeline.training.run_folder import RUN_FILE, read_run
from pipeline.training.targets import make_target

CLIP = f"open_clip:local-dir:{Path(__file__).parents[2] / 'pipeline' / 'demo' / 'teacher'}"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "test"
    write_images(folder, 11, 60)
    return LabelledImages(replace(open_images([str(folder)], folder), class_names=CLASSES))


def test_a_clip_finds_its_classes_by_name(drawn, tmp_path):
    subject = teacher_subject(CLIP, 64, 8, torch.device("cpu"))
    (score,) = run_evaluation(ZeroShot(), task(tmp_path, subject, drawn, teacher=CLIP))
    assert score.metrics["top-1"] > 0.9
    own = ZeroShot(templates=("{}",))
    (bare,) = run_evaluation(own, task(tmp_path, subject, drawn, teacher=CLIP))
    assert bare.metrics["top-1"] > 0.7


def refused(drawn, tmp_path, message, subject=None, settings=None, **changes):
    subject = subject or tiny_subject(kind="teacher")
    with pytest.raises(ConfigError, match=message):
        run_evaluation(settings or ZeroShot(), task(tmp_path, subject, drawn, **changes))


@pytest.fixture(scope="module")
def milan(tmp_path_factory):
    """A run with MILAN's published target."""
    folder = tmp_path_factory.mktemp("milan")
    cache = caches.real(folder, 1, 20, views=1, teacher=CLIP, image_size=64, patch_size=8, levels="1")
    decoder = [f"objective.decoder_{key}" for key in ("depth=1", "width=32", "heads=2")]
    return trained(cache, folder / "run", "objective.name=milan", "objective.preset=published", *decoder)


def test_a_student_of_projected_tokens_is_among_texts_already(drawn, milan, tmp_path):
    """Its loss, 2 - 2 cosine, begins near 2."""
    (first, *_, last) = (line["loss"] for line in losses(milan))
    assert 2.3 > first > last > 0
    subject = student_subject(milan, torch.device("cpu"))
    (score,) = run_evaluation(ZeroShot(), task(tmp_path, subject, drawn, run=milan, teacher=CLIP))
    assert 0 <= score.metrics["top-1"] < 0.5


def test_a_student_is_scored_with_the_head_of_its_own_steps_alone(drawn, milan, tmp_path):
    """A run that was continued and killed has a checkpoint of other steps than its student."""
    run = trained(milan.parent / "small.cache", tmp_path / "run")
    subject = student_subject(run, torch.device("cpu"))
    (score,) = run_evaluation(ZeroShot(), task(tmp_path, subject, drawn, run=run, teacher=CLIP))
    assert 0 <= score.metrics["top-1"] < 0.5
    max(run.glob("checkpoints/step_*.pt")).unlink()
    message = r"step_00000003.pt' has other weights than '.*student.safetensors'.*--resume"
    refused(drawn, tmp_path, message, subject, run=run, teacher=CLIP)


def test_a_perfect_prediction_is_where_clip_puts_the_image(drawn, milan):
    output = Cache(milan.parent / "small.cache").teacher_output()
    norm, projection = (torch.from_numpy(output[name]) for name in ("post_norm", "projection"))
    teacher = load_teacher(CLIP, image_size=64, patch_size=8, levels="1")
    pixels = next(drawn.views(64, 8, LeftOut())).pixels
    (hidden,) = teacher.features(pixels).hidden
    images = teacher_images(pixels, 64, teacher.facts.mean, teacher.facts.std)
    with torch.no_grad():
        own = load_clip(CLIP).model.encode_image(images)
    assert (own.argmax(1) != own.argmax(1)[0]).any()  # images differ, so equality means something
    for target in ("whiten", "none", "l2"):
        found = among_texts(make_target(*whiten(hidden), target)[:, 0], norm, projection)
        torch.testing.assert_close(F.normalize(found), F.normalize(own), rtol=0, atol=2e-3)


def test_students_without_a_way_to_texts_are_refused(drawn, milan, tmp_path):
    pixels = load_config(RunConfig, None, ["objective.name=mae"]).model_dump(mode="json")
    (tmp_path / RUN_FILE).write_text(json.dumps(read_run(milan) | {"config": pixels}))
    subject = tiny_subject(kind="run")
    message, unread = "'mae' does not predict the teacher's CLS", "open_clip:local-dir:nowhere"
    refused(drawn, tmp_path, message, subject, run=tmp_path, teacher=unread)
    described = read_run(milan)
    described["cache"]["teacher"] |= {"library": "timm", "name": "test_vit", "tag": "local"}
    (tmp_path / RUN_FILE).write_text(json.dumps(described))
    message = "needs a CLIP with a text tower, not 'timm:test_vit'"
    refused(drawn, tmp_path, message, subject, run=tmp_path)  # a teacher of timm from a folder


def test_what_has_no_place_among_texts_is_refused(drawn, tmp_path):
    refused(drawn, tmp_path, "kind model has no place in the space", tiny_subject())
    refused(drawn, tmp_path, "needs a CLIP with a text tower, not 'timm:test_vit'", teacher="timm:test_vit")
    nameless = LabelledImages(drawn.of.subset(range(3)).__class__("a", "tars", drawn.of.images))
    refused(nameless, tmp_path, "give --class-names FILE", teacher=CLIP)
    few = LabelledImages(replace(drawn.of, class_names=CLASSES[:3]))
    refused(few, tmp_path, "has 3 names, but there are images of class 17", teacher=CLIP)
    wrong = ZeroShot(templates=("a photo",))
    refused(drawn, tmp_path, "must have {} where the name", settings=wrong, teacher=CLIP)
    refused(drawn, tmp_path, "must have {} where the name", settings=ZeroShot(templates=()), teacher=CLIP)
    refused(drawn, tmp_path, "other weights than the teacher, so its texts are in another", teacher=CLIP)


@pytest.mark.faults
def test_other_evaluations_do_not_wait_for_open_clip():
    program = "import sys, pipeline.evaluation.run; print('open_clip' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
