"""Whether this project has become slower: ratios of one run, which hardly depend on the machine, against those of a committed run."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from pipeline.benchmark.options import Effort, choose_options
from pipeline.benchmark.run import run_benchmark
from pipeline.training.config import RunConfig

# Each by the part that measures it; all are the better the higher they are.
RATIOS = {
    "ratio.streamed_to_resident": "step",
    "ratio.cached_to_teacher_in_loop": "step",
    "ratio.step_to_reference": "step",
    "ratio.reads_to_raw": "reads",
    "ratio.decode_to_overhead": "overhead",
    "ratio.four_views_to_one": "decode",
}
LARGEST_FALL = 0.25
EFFORT = Effort(rounds=7, steps=3, warm_up=1, images=128)
_BATCH = 16


def measure_ratios(
    recipe: RunConfig, parts: set[str], tell: Callable[[str], None], effort: Effort = EFFORT
) -> dict[str, float]:
    """Return the ratios of some parts as medians: of the tiny recipe, with one thread and one worker on a CPU."""
    options = choose_options(
        recipe="tiny",
        device=torch.device("cpu"),
        cores=2,
        workers=1,
        batch_size=_BATCH,
        only=sorted(parts),
        quick=True,
    )
    figures = run_benchmark(replace(options, effort=effort), recipe, tell).figures
    return {name: figures[name].median for name, part in RATIOS.items() if part in parts}


def fallen(baseline: Mapping[str, float], found: Mapping[str, float]) -> dict[str, str]:
    """Return those ratios of a baseline that are lower by more than a quarter or missing, each with a sentence that says so."""
    worse = {}
    for name, before in baseline.items():
        now = found.get(name, 0.0)
        if now < (1 - LARGEST_FALL) * before:
            worse[name] = (
                f"{name} is {now:.3g}, {1 - now / before:.0%} below the {before:.3g} of the baseline"
            )
    return worse


def check_ratios(
    baseline: Mapping[str, float], measure: Callable[[set[str]], Mapping[str, float]], tries: int = 5
) -> list[str]:
    """Measure until nothing has fallen, at most `tries` times, each time only what had; return the sentences on what still has.

    Noise of the machine lowers a ratio once, a slower program each time: so the best of the tries counts.
    """
    best: dict[str, float] = {}
    worse = dict.fromkeys(baseline, "")
    for _ in range(tries):
        for name, value in measure({RATIOS[name] for name in worse}).items():
            best[name] = max(value, best.get(name, 0.0))
        worse = fallen(baseline, best)
        if not worse:
            break
    return list(worse.values())
