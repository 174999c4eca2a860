"""Starting a training, alone in its file so that a fresh interpreter imports what training needs and nothing else, in its order."""

import multiprocessing
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.runtime.workers import start_early

if TYPE_CHECKING:
    from pipeline.training.config import RunConfig


def seconds_to_first_batch(address: str, config: "RunConfig") -> float:
    """Return how long a fresh interpreter takes to the first batch of a training on a cache, and to its end."""
    begin = time.perf_counter()
    process = multiprocessing.get_context("spawn").Process(
        target=_take_first_batch, args=(address, config.model_dump(mode="json"))
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    return time.perf_counter() - begin


def _take_first_batch(address: str, config: dict[str, object]) -> None:
    start_early()
    import torch

    from pipeline.cache.reader import Cache
    from pipeline.stream.batches import BatchStream
    from pipeline.training.config import RunConfig
    from pipeline.training.distributed import Ranks
    from pipeline.training.job import build_job

    read, cpu = RunConfig.model_validate(config, strict=False), torch.device("cpu")
    job = build_job(read, Cache(address), Path("no-run"), Ranks(), cpu)
    with BatchStream(job.cache, job.spec, cpu, read.data.workers) as stream:
        list(islice(stream, 1))
