"""A workbench on the small cache of all tests."""

from importlib.resources import files
from pathlib import Path

import pytest
import torch

from pipeline.benchmark.options import choose_options
from pipeline.benchmark.workbench import Workbench
from pipeline.config import load_config
from pipeline.training.config import RunConfig


@pytest.fixture
def bench(small_cache_path, tmp_path):
    """Reads the small cache and its tars, and writes to `tmp_path`."""
    numbers = {"workers": 1, "batch_size": 16, "steps": 1, "rounds": 1}
    own = {"shards": str(small_cache_path.parent / "tars"), "cache": str(small_cache_path)}
    options = choose_options("tiny", device=torch.device("cpu"), cores=2, quick=True, **numbers, **own)
    recipe = load_config(RunConfig, Path(str(files("stages") / "recipes" / "vit_tiny.toml")))
    return Workbench(options, recipe, tmp_path, lambda _: None)
