"""What a benchmark measures and how often; the defaults depend on the recipe and the machine."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.errors import ConfigError
from pipeline.storage.address import is_url

# Each kind of step is compared with a step on resident data.
STEPS = ("step", "in-loop", "reference")
PARTS = (
    *STEPS,
    "loader",
    "reads",
    "overhead",
    "teachers",
    "decode",
    "teacher",
    "extraction",
    "disk",
    "embedding",
    "objectives",
)


@dataclass(frozen=True)
class Recipe:
    """A recipe of stages/recipes, an untrained teacher of its teacher's shape, and batches."""

    file: str
    teacher: str
    gpu_batch: int
    cpu_batch: int


RECIPES = {
    "tiny": Recipe("vit_tiny.toml", "timm:test_vit.random", 1024, 32),
    "s": Recipe("vit_s16.toml", "open_clip:ViT-B-16-quickgelu/random", 2048, 8),
    "b": Recipe("vit_b16.toml", "open_clip:ViT-B-16-quickgelu/random", 1024, 8),
    "l": Recipe("vit_l16.toml", "open_clip:ViT-L-14-quickgelu/random", 512, 8),
}


@dataclass(frozen=True)
class BenchOptions:
    """The options of one benchmark, complete; `teacher` None means that of the cache or of the recipe."""

    recipe: str
    device: torch.device
    teacher: str | None
    shards: str | None
    cache: str | None
    parts: tuple[str, ...]
    threads: int  # of torch on a CPU: the cores that the workers leave
    warm_up: int  # steps before those of a round
    workers: int
    batch_size: int
    rounds: int
    steps: int
    images: int

    @property
    def short_rounds(self) -> int:
        """Rounds of a measurement that takes a fraction of a second."""
        return min(9, 3 * self.rounds)

    @property
    def workers_text(self) -> str:
        """The workers as a table names them."""
        return "1 worker" if self.workers == 1 else f"{self.workers} workers"


def choose_options(
    recipe: str,
    *,
    device: torch.device,
    cores: int,
    teacher: str | None = None,
    shards: str | None = None,
    cache: str | None = None,
    only: Sequence[str] | None = None,
    quick: bool = False,
    **given: int | None,
) -> BenchOptions:
    """Complete the options; `given` are workers, batch_size, rounds, steps, images. Raises ConfigError."""
    if recipe not in RECIPES:
        raise ConfigError(f"--recipe {recipe!r} is unknown: give {', '.join(RECIPES)}")
    if unknown := [part for part in only or () if part not in PARTS]:
        raise ConfigError(f"--only {unknown[0]!r} is not a part: give {', '.join(PARTS)}")
    remote = cache is not None and is_url(cache)
    if remote and "reads" in (only or ()):
        raise ConfigError(f"--only reads needs a cache on a disk, not {cache!r}: leave it out")
    chosen, gpu = RECIPES[recipe], device.type == "cuda"
    large = gpu or recipe == "tiny"
    if gpu:  # it takes thousands of images a second, a CPU tens of them
        rounds, steps, warm_up = (3, 20, 5) if quick else (5, 200, 20)
    elif large:
        rounds, steps, warm_up = (3, 4, 2) if quick else (5, 12, 6)
    else:
        rounds, steps, warm_up = (2, 1, 1) if quick else (3, 2, 1)
    batch = chosen.gpu_batch if gpu else chosen.cpu_batch // (2 if quick else 1)
    defaults = {
        "workers": max(1, cores - 2 if gpu else cores // 8),
        "batch_size": batch,
        "rounds": rounds,
        "steps": steps,
        "images": max(4 * (given.get("batch_size") or batch), 512 if large and not quick else 128),
    }
    numbers = defaults | {name: value for name, value in given.items() if value is not None}
    parts = tuple(part for part in PARTS if part in (only or PARTS) and not (remote and part == "reads"))
    threads = max(1, cores - numbers["workers"])
    return BenchOptions(recipe, device, teacher, shards, cache, parts, threads, warm_up, **numbers)
