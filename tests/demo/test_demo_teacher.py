"""The CLIP that comes with the project is small, real, and knows images that it has not seen."""

from pathlib import Path

import open_clip
import pytest
from train_demo_teacher import ClipRecipe, train_clip, zero_shot_accuracy

from pipeline.teacher.load import load_teacher

TEACHER = Path(__file__).parents[2] / "pipeline" / "demo" / "teacher"


def test_weights_fit_the_repository():
    assert sum(path.stat().st_size for path in TEACHER.iterdir()) < 8_000_000


def test_it_classifies_unseen_images_by_their_captions():
    assert zero_shot_accuracy(open_clip.create_model(f"local-dir:{TEACHER}"), count=150) > 0.9


def test_it_is_a_teacher():
    teacher = load_teacher(f"open_clip:local-dir:{TEACHER}", image_size=64, patch_size=8, levels="5")
    assert (teacher.facts.trained, teacher.levels) == (True, (1, 2, 3, 4, 5))


@pytest.mark.faults
def test_training_writes_a_clip_that_loads(tmp_path):
    recipe = ClipRecipe(images=64, steps=2, batch_size=8, warmup=1, test_images=50)
    assert 0 <= train_clip(recipe, tmp_path / "clip", print) < 0.6
    assert sorted(path.name for path in (tmp_path / "clip").iterdir()) == [
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]
    # weights are stored in half precision
    assert zero_shot_accuracy(open_clip.create_model(f"local-dir:{tmp_path / 'clip'}"), count=50) < 0.6
