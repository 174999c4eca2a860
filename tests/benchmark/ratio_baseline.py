"""The committed ratios, and how they are measured in this project's tests."""

import json
import sys
from importlib.resources import files
from pathlib import Path

from pipeline.benchmark.baseline import EFFORT, measure_ratios
from pipeline.config import load_config
from pipeline.training.config import RunConfig

BASELINE = Path(__file__).with_name("baseline.json")
RECIPE = Path(str(files("stages") / "recipes" / "vit_tiny.toml"))


def committed_ratios():
    """{name: ratio} of the baseline."""
    return json.loads(BASELINE.read_text(encoding="utf-8"))["ratios"]


def measured_ratios(parts, effort=EFFORT):
    """{name: ratio} of some parts, now."""
    return measure_ratios(
        load_config(RunConfig, RECIPE), parts, lambda line: print(line, file=sys.stderr), effort
    )
