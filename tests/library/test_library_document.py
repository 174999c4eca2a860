"""Every example of docs/library.md and the notebook run, at reduced size."""

import json
import os
import re
from pathlib import Path

import caches
import matplotlib
import pytest
import torch
from tars import make_tars
from tiny_clip import write_clip
from training.training_runs import TINY, trained
from transformers import Dinov2Config, Dinov2Model

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/library.md").read_text(encoding="utf-8")
NOTEBOOK = json.loads((ROOT / "notebooks/a_cache_and_a_run.ipynb").read_text(encoding="utf-8"))
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SMALL_STUDENT = '{"model": "vit_tiny_patch16_224", "options": {"depth": 2, "embed_dim": 32, "num_heads": 2}}'
SMALL_RUN = (
    f'"student": {SMALL_STUDENT}, "data.workers": 0, "optim": {{"steps": 2, "warmup_steps": 1}}, '
    '"train.global_batch": 8'
)
REDUCED = {
    '"vit_small_patch16_224", num_classes=0': '"test_vit", num_classes=0, img_size=64',
    "width=384": "width=64",
    "range(100)": "range(2)",
    "batch_size=256": "batch_size=4",
    "num_workers=8": "num_workers=1",
    "num_workers=2": "num_workers=1",
    "batched(64)": "batched(4)",
    '"optim.epochs": 100': SMALL_RUN,
    '"mask.strategy": "random"': f'"mask.strategy": "random", {SMALL_RUN}',
    "{000000..001281}": "{0000..0001}",
    "open_clip:ViT-B-16-quickgelu/openai": "open_clip:local-dir:clip",
    "facebook/dinov2-base": "dinov2",
    '{"k": 20}': '{"k": 2}',
    'levels="5"': 'levels="2", image_size=64, workers=0',
    'levels="7,11"': 'levels="1,2", image_size=64, workers=0',
    "torch.nn.Linear(student.embed_dim, 768)": "torch.nn.Linear(student.embed_dim, 32)",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the tars, models and the cache that the examples name, in small."""
    folder = tmp_path_factory.mktemp("library")
    write_clip(folder / "clip", layers=12)
    tars = make_tars(folder, 2, 10)
    Dinov2Model(
        Dinov2Config(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=224, patch_size=14
        )
    ).save_pretrained(folder / "dinov2")
    teacher = f"open_clip:local-dir:{folder / 'clip'}"
    caches.real(folder, shards=tars, name="in1k.cache", teacher=teacher, levels="7,11")
    return folder


def run(code, folder):
    """Run an example in a folder, as a script of its own would."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        torch.manual_seed(0)
        exec(compile(code, "example", "exec"), {"__name__": "__main__"})
    finally:
        os.chdir(before)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_of_the_page_run(number, place):
    code = EXAMPLES[number]
    for name, small in REDUCED.items():
        code = code.replace(name, small)
    run(code, place)


def test_every_reduction_is_used():
    assert [name for name in REDUCED if not any(name in example for example in EXAMPLES)] == []


def test_a_training_loop_needs_fewer_than_20_lines():
    (loop,) = [example for example in EXAMPLES if "loss.backward()" in example]
    assert len([line for line in loop.splitlines() if line]) < 20


def test_the_notebook_is_stored_without_outputs():
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert [cell["id"] for cell in code if cell["outputs"] or cell["execution_count"]] == []


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_the_notebook_runs(place, small_cache_path):
    trained(small_cache_path, place / "run", tiny=TINY)
    cells = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    code = "\n".join(cells).replace("../demo/demo.cache", str(small_cache_path)).replace("../demo/run", "run")
    assert str(small_cache_path) in code
    matplotlib.use("agg")
    run(code, place)
    import matplotlib.pyplot as plt

    assert len(plt.get_fignums()) > 0
    plt.close("all")
