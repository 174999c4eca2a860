"""The CLIP that comes with the project is small, real, and knows images that it has not seen."""

import pytest

from pipeline.demo.clip import TEACHER_DIR, ClipRecipe, load_clip, train_clip, zero_shot_accuracy
from pipeline.errors import ConfigError
from pipeline.teacher.load import load_teacher


def test_weights_fit_the_repository():
    assert sum(path.stat().st_size for path in TEACHER_DIR.iterdir()) < 8_000_000


def test_zero_shot_accuracy_of_the_stored_weights():
    assert zero_shot_accuracy(load_clip(TEACHER_DIR), count=300) > 0.9


def test_it_is_a_teacher():
    teacher = load_teacher(f"open_clip:local-dir:{TEACHER_DIR}", image_size=64, patch_size=8, levels="5")
    assert (teacher.facts.trained, teacher.grid, teacher.levels) == (True, 8, (1, 2, 3, 4, 5))


def test_training_writes_a_clip_that_loads(tmp_path):
    lines: list[str] = []
    accuracy = train_clip(
        ClipRecipe(images=64, steps=2, batch_size=8, warmup=1, test_images=50),
        tmp_path / "clip",
        lines.append,
    )
    assert 0 <= accuracy < 0.6
    assert sorted(path.name for path in (tmp_path / "clip").iterdir()) == [
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]
    # weights are stored in half precision
    assert zero_shot_accuracy(load_clip(tmp_path / "clip"), count=100) < 0.5


def test_folder_without_clip(tmp_path):
    with pytest.raises(ConfigError, match="holds no CLIP"):
        load_clip(tmp_path)
