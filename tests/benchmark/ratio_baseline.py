"""Ratios of one run, which hardly depend on the machine, against the committed ones of baseline.json."""

import json
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import torch

from pipeline.benchmark.objectives import OBJECTIVES
from pipeline.benchmark.options import choose_options
from pipeline.benchmark.run import run_benchmark
from pipeline.config import load_config
from pipeline.training.config import RunConfig

BASELINE = Path(__file__).with_name("baseline.json")
RECIPE = Path(str(files("stages") / "recipes" / "vit_tiny.toml"))
# Each by the part that measures it; all are better the higher they are.
RATIOS = {
    "ratio.streamed_to_resident": "step",
    "ratio.cached_to_teacher_in_loop": "in-loop",
    "ratio.step_to_reference": "reference",
    "ratio.reads_to_raw": "reads",
    "ratio.decode_to_overhead": "overhead",
    "ratio.four_views_to_one": "decode",
    **{f"ratio.{name}_to_plain": "objectives" for name in OBJECTIVES},
}
LARGEST_FALL = 0.25
EFFORT = {"rounds": 7, "steps": 3, "warm_up": 1, "images": 128}


def committed_ratios():
    """{name: ratio} of the baseline."""
    return json.loads(BASELINE.read_text(encoding="utf-8"))["ratios"]


def measured_ratios(parts, effort=EFFORT):
    """{name: median} of some parts: the tiny recipe with one thread and one worker on a CPU."""
    options = choose_options(
        "tiny", device=torch.device("cpu"), cores=2, workers=1, batch_size=16, only=sorted(parts)
    )
    figures = run_benchmark(
        replace(options, **effort),
        load_config(RunConfig, RECIPE),
        lambda line: print(line, file=sys.stderr),
    ).figures
    return {name: figures[name].median for name, part in RATIOS.items() if part in parts}


def regressions(baseline, found):
    """{name: sentence} of the ratios that are missing or lower than the baseline by more than a quarter."""
    lower = {
        name: before for name, before in baseline.items() if found.get(name, 0) < (1 - LARGEST_FALL) * before
    }
    return {
        name: f"{name} is {found.get(name, 0):.3g}, {1 - found.get(name, 0) / before:.0%} below {before:.3g}"
        for name, before in lower.items()
    }


def check_ratios(baseline, measure, tries=5):
    """Sentences on the regressions that remain when each is measured up to five times and the best counts.

    Noise lowers a ratio once, a slower program each time.
    """
    best, worse = {}, dict.fromkeys(baseline, "")
    for _ in range(tries):
        for name, value in measure({RATIOS[name] for name in worse}).items():
            best[name] = max(value, best.get(name, 0))
        worse = regressions(baseline, best)
        if not worse:
            break
    return list(worse.values())
