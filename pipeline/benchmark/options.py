"""What a benchmark measures, with how much of it, and the defaults that follow from recipe and machine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from pipeline.errors import ConfigError
from pipeline.storage.address import is_url

PARTS = ("step", "loader", "reads", "overhead", "decode", "teacher", "extraction", "disk")
SCALING = "scaling"  # a part that takes minutes, and only comes when it is asked for


@dataclass(frozen=True)
class Recipe:
    """A recipe of stages/recipes, the untrained teacher that stands for its own, and its batch on a GPU and on a CPU."""

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
class Effort:
    """How much is measured: rounds, training steps of a round and before it, and images."""

    rounds: int
    steps: int
    warm_up: int
    images: int

    @property
    def short_rounds(self) -> int:
        """Rounds of what takes a fraction of a second."""
        return min(9, 3 * self.rounds)


@dataclass(frozen=True)
class BenchOptions:
    """The options of the benchmark, with their defaults filled in."""

    recipe: str
    teacher: str | None  # as given; without it that of the recipe or of the cache
    device: torch.device
    workers: int
    threads: int  # of torch, on a CPU: the cores that the workers leave
    batch_size: int
    effort: Effort
    parts: tuple[str, ...]
    shards: str | None
    cache: str | None

    @property
    def crew(self) -> str:
        """How a table calls the workers."""
        return "1 worker" if self.workers == 1 else f"{self.workers} workers"

    @property
    def extracts(self) -> bool:
        """Whether the cache is made by the teacher: for large ones on a CPU that would take hours, so their features are made up."""
        return self.recipe == "tiny" or self.device.type == "cuda"


def choose_options(
    *,
    recipe: str,
    device: torch.device,
    cores: int,
    teacher: str | None = None,
    workers: int | None = None,
    batch_size: int | None = None,
    steps: int | None = None,
    rounds: int | None = None,
    images: int | None = None,
    only: Sequence[str] = (),
    quick: bool = False,
    shards: str | None = None,
    cache: str | None = None,
) -> BenchOptions:
    """Fill in what was not given; raises ConfigError for an unknown recipe or part, and for raw reads of a cache behind a URL."""
    if recipe not in RECIPES:
        raise ConfigError(f"--recipe {recipe!r} is unknown: give {', '.join(RECIPES)}")
    if unknown := [part for part in only if part not in (*PARTS, SCALING)]:
        raise ConfigError(
            f"--only {unknown[0]!r} is no part of the benchmark: give {', '.join((*PARTS, SCALING))}"
        )
    remote = cache is not None and is_url(cache)
    if remote and "reads" in only:
        raise ConfigError(
            f"--only reads compares with raw reads from a disk, and --cache {cache!r} is on none: leave it out"
        )
    chosen, gpu = RECIPES[recipe], device.type == "cuda"
    batch = batch_size or (chosen.gpu_batch if gpu else chosen.cpu_batch // (2 if quick else 1))
    given = {"rounds": rounds, "steps": steps, "images": images}
    count = workers if workers is not None else max(1, cores - 2 if gpu else cores // 8)
    return BenchOptions(
        recipe=recipe,
        teacher=teacher,
        device=device,
        workers=count,
        threads=max(1, cores - count),
        batch_size=batch,
        effort=replace(
            _effort(recipe, gpu, quick, batch), **{name: value for name, value in given.items() if value}
        ),
        parts=tuple(
            part for part in (*PARTS, SCALING) if part in (only or PARTS) and not (remote and part == "reads")
        ),
        shards=shards,
        cache=cache,
    )


def _effort(recipe: str, gpu: bool, quick: bool, batch: int) -> Effort:
    """Return how much is measured by default: a GPU takes thousands of images a second, a CPU tens of them."""
    if gpu:
        rounds, steps, warm_up = (3, 20, 5) if quick else (5, 200, 20)
    elif recipe == "tiny":
        rounds, steps, warm_up = (3, 4, 2) if quick else (5, 12, 6)
    else:
        rounds, steps, warm_up = (2, 1, 1) if quick else (3, 2, 1)
    few = quick or not (gpu or recipe == "tiny")
    return Effort(rounds, steps, warm_up, max(4 * batch, 128 if few else 512))
