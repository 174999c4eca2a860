"""Makes the codebook ready before the first step: fits it on the main rank's device, or loads it."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import save

from pipeline.number_text import digits
from pipeline.objectives.needs import CodebookRequest
from pipeline.seeding import generator
from pipeline.training.begin import kept_file
from pipeline.training.codebook import (
    CODEBOOK_FILE,
    Codebook,
    expected_facts,
    load_codebook,
    read_codebook,
    tokenizer_of,
)
from pipeline.training.codebook_sample import sample_tokens
from pipeline.training.job import TrainingJob
from pipeline.training.kmeans import ROUNDS, random_start, spherical_kmeans, use_of_codes
from pipeline.training.run_folder import read_run, refuse_differences
from pipeline.training.vqkd import fit_vqkd

_VIEWS_AT_ONCE = 256


def ready_codebook(job: TrainingJob, resumed: bool, say: Callable[[str], None]) -> Codebook | None:
    """Load the run's codebook, if its objective has one, on all ranks; a new run copies or fits it first."""
    request = job.config.objective.codebook_request
    if request is None:
        return None

    def make() -> bytes:
        if request.path is not None:
            return read_codebook(request.path)[1]
        say(f"fitting {request.size:,} codes ({request.kind} of {request.source}), before training")
        return make_codebook(job, request, say)

    data = kept_file(job.run / CODEBOOK_FILE, resumed, job.ranks, make)
    if job.device.type == "cuda":  # the sample must not count as peak memory of a step
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(job.device)
    with job.ranks.together():
        found = load_codebook(data, tokenizer_of(job.objective))
        if resumed and job.ranks.is_main:  # all ranks have the same bytes; others may not see run.json
            refuse_differences(read_run(job.run)["pinned"], {"codebook": found.digest})
    return found


def make_codebook(
    job: TrainingJob, request: CodebookRequest, say: Callable[[str], None] = lambda _: None
) -> bytes:
    """Fit the tokenizer of a job to a sample of its cache; return the bytes of the codebook's file.

    Raises CacheError if the cache cannot be read.
    """
    seed, tokenizer = job.config.train.seed, tokenizer_of(job.objective)
    values = sample_tokens(job, request)
    tokens = values.shape[0] * values.shape[1]
    say(f"codebook: {tokens:,} tokens, {digits(values.nbytes / 1e9)} GB on {job.device}")
    facts: dict[str, Any] = {"seed": seed, "tokens": tokens, "start": "random", "rounds": ROUNDS}
    if request.kind == "vqkd":
        predicted = values
        if request.reconstructs and request.reconstructs != request.target:
            predicted = sample_tokens(job, replace(request, target=request.reconstructs))
        facts |= fit_vqkd(tokenizer, values, predicted, request, seed, say)
    else:
        points = values.flatten(0, 1)
        start = random_start(points, request.size, generator(seed, "codebook start"))
        tokenizer.codes.copy_(spherical_kmeans(points, start))
    facts |= expected_facts(request, job.cache, job.spec, tokenizer)
    taken = [tokenizer(views) for views in values.split(_VIEWS_AT_ONCE)]  # type: ignore[no-untyped-call]
    facts |= use_of_codes(torch.cat(taken), request.size)
    tensors = {name: value.cpu().contiguous() for name, value in tokenizer.state_dict().items()}
    return save(tensors, {"codebook": json.dumps(facts)})
