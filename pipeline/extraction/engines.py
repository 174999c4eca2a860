"""Where an extraction runs: in this process, one of any number, or on the actors of a Ray cluster."""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.extraction.options import ExtractionOptions
from pipeline.extraction.tally import Extracted
from pipeline.optional import optional_library
from pipeline.runtime.launch import this_process


@dataclass(frozen=True)
class RayLimits:
    """Actors that must be ready before work begins, and the most that are asked for; None: one per GPU.

    `workers` are the decoding processes of an actor; None: the cores of a GPU, or none without GPUs.
    `device` is auto, cuda or cpu.
    """

    min_workers: int = 1
    max_workers: int | None = None
    workers: int | None = None
    device: str = "auto"


def chosen_engine(
    engine: str, least: int | None, most: int | None, workers: int | None, device: str, dry_run: bool
) -> RayLimits | None:
    """Check the options of an engine; return the limits of `ray`, None for `local`; raises ConfigError."""
    if engine not in ("local", "ray"):
        raise ConfigError(f"--engine {engine!r} is unknown; give local or ray")
    if engine == "local":
        if least or most:
            raise ConfigError("--min-workers and --max-workers need --engine ray: add it, or leave them out")
        return None
    limits, processes = RayLimits(least or 1, most, workers, device), this_process().world_size
    if dry_run:
        raise ConfigError("--dry-run measures this machine: leave out --engine ray")
    if processes > 1:
        raise ConfigError(
            f"--engine ray starts its own actors, but this is one of {processes} processes: start it once"
        )
    if most is not None and most < limits.min_workers:
        raise ConfigError(f"--max-workers {most} is less than --min-workers {limits.min_workers}: raise it")
    if ":" in device:
        raise ConfigError(f"--device {device!r}: Ray chooses the GPU of an actor; give --device cuda")
    return limits


def extract(options: ExtractionOptions, limits: RayLimits | None, say: Callable[[str], object]) -> Extracted:
    """Extract what is missing on the chosen engine; `say` gets one line for a person.

    Raises MaskAlignError.
    """
    if limits is None:
        from pipeline.extraction.job import run_extraction

        extractor, missing = run_extraction(options)
        return Extracted(extractor.tally, extractor.timing, extractor.encoder.compiler_fault, missing)
    optional_library("--engine ray", "ray", "'maskalign[ray]'")
    from pipeline.extraction.ray_engine import extract_on_ray

    return extract_on_ray(options, limits, say)
