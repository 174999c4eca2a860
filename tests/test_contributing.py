"""The examples of CONTRIBUTING.md, applied to a copy of the project, run together in both stages."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PROGRAM = """
import sys
from pathlib import Path
import caches
from training.training_runs import trained
from transformers import ViTConfig, ViTModel

here = Path(sys.argv[1])
size = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 128}
model = ViTModel(ViTConfig(**size, image_size=64, patch_size=16), add_pooling_layer=False)
model.save_pretrained(here / "vit")
teacher = f"transformers:local-dir:{here / 'vit'}"
kept = {"encoding": "int6", "keep": 0.5, "keep_rank": "centre"}
cache = caches.real(here, tars=1, images_per_tar=24, teacher=teacher, levels="2", views=1, **kept)
trained(cache, here / "run", "objective.name=cls", "mask.strategy=centre", "mask.ratio=0.6")
"""


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A copy of the project with all examples applied."""
    copy = tmp_path_factory.mktemp("examples") / "copy"
    unneeded = shutil.ignore_patterns("__pycache__", "golden")
    for folder in ("maskalign", "pipeline", "stages", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=unneeded)
    shutil.copy(ROOT / "pyproject.toml", copy)
    examples = re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 4
    for example in examples:
        command = ["git", "apply", "-"]
        result = subprocess.run(command, cwd=copy, input=example, capture_output=True, text=True)
        assert result.returncode == 0, f"{result.stderr}{example}"
    return copy


def test_the_examples_keep_the_style(changed):
    for command in (["check", "."], ["format", "--check", "."]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *command], cwd=changed, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout


@pytest.mark.faults  # too slow for every run
def test_both_stages_run_with_all_examples(changed, tmp_path):
    command = [sys.executable, "-c", PROGRAM, tmp_path]
    paths = {"PYTHONPATH": f"{changed}:{changed / 'tests'}", "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=paths, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 6
