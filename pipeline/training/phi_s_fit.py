"""Fits PHI-S to a keyed sample of a run's caches before the first step, or loads what the run began with.

As for a codebook, the main rank writes RUN/phi_s.safetensors and sends its bytes to all ranks.
"""

import hashlib
import json
from collections.abc import Callable

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline.errors import CacheError, CheckpointError
from pipeline.training.begin import kept_file
from pipeline.training.codebook import chunks_of
from pipeline.training.codebook_sample import drawn_rows, sampled_targets
from pipeline.training.job import TrainingJob
from pipeline.training.phi_s import Moments, PhiStandardisation, Standards, phi_s
from pipeline.training.run_folder import read_run, refuse_differences

PHI_S_FILE = "phi_s.safetensors"
_VIEWS = 2048  # of the caches, with about 200 tokens each: many more than the channels of any teacher


def ready_standards(job: TrainingJob, resumed: bool, say: Callable[[str], None]) -> Standards | None:
    """Return the standardisations of a run's teachers, if its objective asks for them, on all ranks."""
    if not job.config.objective.standardises:
        return None

    def make() -> bytes:
        count = len(job.caches)
        say(f"fitting PHI-S to the targets of {count} teacher{'s' * (count > 1)}, before training")
        return fit_standards(job)

    data = kept_file(job.run / PHI_S_FILE, resumed, job.ranks, make)
    with job.ranks.together():
        found = load_standards(data, len(job.caches))
        if resumed and job.ranks.is_main:
            refuse_differences(read_run(job.run)["pinned"], {"phi-s": found.digest})
    return found


def load_standards(data: bytes, teachers: int) -> Standards:
    """Return the standardisations in the bytes of their file; raises CheckpointError if it is damaged."""
    try:
        tensors, found = load(data), []
        for at in range(teachers):
            mean, matrix = tensors[f"{at}.mean"], tensors[f"{at}.matrix"]
            found.append(PhiStandardisation(*mean.shape))
            found[-1].load_state_dict({"mean": mean, "matrix": matrix})
    except (SafetensorError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{PHI_S_FILE} of this run is damaged ({str(error).partition(chr(10))[0]}): restore it, or use a "
            "new --run"
        ) from None
    return Standards(found, hashlib.sha256(data).hexdigest())


def fit_standards(job: TrainingJob) -> bytes:
    """Fit every level of every teacher to the same views; return the bytes of their file.

    Raises CacheError if a cache cannot be read, or its targets do not vary.
    """
    tensors: dict[str, Tensor] = {}
    views = min(_VIEWS, int(chunks_of(job.spec)[:, 2].sum()))
    for at, targets in enumerate(job.teacher_targets()):
        levels = job.spec.others[at - 1].levels if at else job.spec.levels
        moments, picks = [Moments() for _ in levels], drawn_rows(job.spec, views, job.config.train.seed)
        for sampled in sampled_targets(job, at, levels, targets.to(job.device), picks):
            for each, values in zip(moments, sampled, strict=True):
                each.add(values.float().flatten(0, 1))
        maps = []
        for level, each in enumerate(moments):
            mean, covariance = each.result()
            if not covariance.diagonal().sum() > 0:
                raise CacheError(
                    f"PHI-S cannot be fitted: level {level} of cache {job.caches[at].address!r} is the same "
                    "for all tokens; set objective.balance=equal"
                )
            maps.append(phi_s(mean, covariance))
        means, matrices = zip(*maps, strict=True)
        tensors |= {f"{at}.mean": torch.stack(means), f"{at}.matrix": torch.stack(matrices)}
    facts = {"caches": [cache.digest for cache in job.caches], "views": views, "seed": job.config.train.seed}
    return save(tensors, {"phi_s": json.dumps(facts)})
