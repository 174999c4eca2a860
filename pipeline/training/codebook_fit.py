"""Fitting the codebook of a run: once, before the first step, on the main rank's device."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from pipeline.cache.layout import feature_array
from pipeline.cache.reader import Cache
from pipeline.errors import CheckpointError
from pipeline.objectives.codes import Tokenizer
from pipeline.objectives.needs import CodebookRequest
from pipeline.runtime.ordered import ordered_map
from pipeline.seeding import generator
from pipeline.storage.files import replace_file
from pipeline.stream.samples import StreamSpec
from pipeline.training.codebook import (
    CODEBOOK_FILE,
    Codebook,
    chunks_of,
    codebook_at,
    expected_facts,
    load_codebook,
    read_codebook,
    rows_of,
    tokenizer_of,
)
from pipeline.training.job import TrainingJob
from pipeline.training.kmeans import random_start, spherical_kmeans, use_of_codes
from pipeline.training.run_folder import read_run, refuse_differences, storage_errors
from pipeline.training.targets import cached_targets

# Neighbours in a cache may be alike, so a chunk of 64 images gives only some of them.
_LEAST_OF_CHUNK = 16


def ready_codebook(job: TrainingJob, resumed: bool, say: Callable[[str], None]) -> Codebook | None:
    """Load the run's codebook, if its objective has one, on all ranks; a new run takes or fits it first."""
    request = job.config.objective.codebook_request
    if request is None:
        return None
    tokenizer, file = tokenizer_of(job.objective), job.run / CODEBOOK_FILE

    def decide() -> bytes:
        with storage_errors(job.run):
            if resumed and not file.exists():
                raise CheckpointError(
                    f"run {str(job.run)!r} has lost {CODEBOOK_FILE}: restore it, or use a new --run"
                )
            if resumed:
                return file.read_bytes()
            if request.path is not None:
                data = read_codebook(codebook_at(request.path))[1]
            else:
                say(f"fitting {request.size:,} codes to the cache")
                data = make_codebook(request, job.cache, job.spec, tokenizer, job.config.train.seed)
            replace_file(file, data)
            return data

    data = job.ranks.decide(decide)
    with job.ranks.together():
        found = load_codebook(data, tokenizer)
        if resumed:
            refuse_differences(read_run(job.run)["pinned"], {"codebook": found.digest})
    return found


def make_codebook(
    request: CodebookRequest, cache: Cache, spec: StreamSpec, tokenizer: Tokenizer, seed: int
) -> bytes:
    """Fit a tokenizer to a sample of the cache, on its own device; return the bytes of the codebook's file.

    Raises CacheError if the cache cannot be read.
    """
    values = sample_tokens(request, cache, spec, seed, tokenizer.codes.device)
    points = values.flatten(0, 1)
    start = random_start(points, request.size, generator(seed, "codebook start"))
    tokenizer.codes.copy_(spherical_kmeans(points, start))
    facts = {
        **expected_facts(request, cache, spec, tokenizer),
        "seed": seed,
        "tokens": len(points),
        **use_of_codes(tokenizer(values), request.size),
    }
    tensors = {name: value.cpu().contiguous() for name, value in tokenizer.state_dict().items()}
    return save(tensors, {"codebook": json.dumps(facts)})


def sample_tokens(
    request: CodebookRequest, cache: Cache, spec: StreamSpec, seed: int, device: torch.device
) -> Tensor:
    """Return the patch tokens (V, N, D') float32 of about `request.tokens / N` views drawn from the cache."""
    patches, cls = cache.schema.patches, int(cache.schema.teacher.has_cls)
    level, filled = spec.levels[-1], 0
    views = min(rows_of(spec), -(-request.tokens // patches))
    targets = cached_targets(cache, (level,), request.target).to(device)
    names = [feature_array(cache.schema.levels[level]), "stats"]
    picks = list(_draw_rows(spec, views, generator(seed, "codebook sample")))
    values: Tensor | None = None
    for rows, arrays in ordered_map(partial(_read_rows, cache, spec, names), picks, 2):
        codes, stats = (arrays[name][rows] for name in names)
        found = targets(
            {
                "hidden_codes": torch.from_numpy(codes[:, None, cls:]).to(device),
                "hidden_stats": torch.from_numpy(stats[:, [level], cls:]).to(device),
            }
        ).hidden[0]
        if values is None:
            values = found.new_empty(views, *found.shape[1:], dtype=torch.float32)
        values[filled : filled + len(rows)] = found
        filled += len(rows)
    assert values is not None
    assert filled == views
    return values


Pick = tuple[list[int], NDArray[np.int64]]  # (index of the unit, chunk, rows), and the rows that are taken


def _read_rows(
    cache: Cache, spec: StreamSpec, names: list[str], pick: Pick
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    (unit, chunk, _), rows = pick
    return rows, cache.read_chunk(cache.pinned_commit(spec.order.units[unit]), chunk, names)


def _draw_rows(spec: StreamSpec, count: int, rng: np.random.Generator) -> Iterator[Pick]:
    """Yield chunks in random order, and random rows of each, as equally many of each as may be."""
    chunks = chunks_of(spec)
    most = next(
        rows
        for rows in range(_LEAST_OF_CHUNK, int(chunks[:, 2].max()) + _LEAST_OF_CHUNK + 1)
        if np.minimum(chunks[:, 2], rows).sum() >= count
    )
    for chunk in rng.permutation(chunks):
        taken = min(count, most, int(chunk[2]))
        if taken:
            yield chunk.tolist(), np.sort(rng.permutation(int(chunk[2]))[:taken])
        count -= taken
