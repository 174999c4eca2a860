"""The codebook of a run: fitted once to a keyed sample of its cache, or taken from another run.

The main rank fits it before the first step and writes RUN/codebook.safetensors; all ranks load those bytes,
and so does a resumed run. The file's metadata say what the codes are of.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline.cache.layout import feature_array
from pipeline.cache.reader import Cache
from pipeline.errors import CheckpointError, ConfigError
from pipeline.objectives.codes import Tokenizer
from pipeline.objectives.needs import CodebookRequest
from pipeline.objectives.objective import Objective, Setting
from pipeline.runtime.ordered import ordered_map
from pipeline.seeding import generator
from pipeline.stream.samples import StreamSpec
from pipeline.training.kmeans import random_start, spherical_kmeans, use_of_codes
from pipeline.training.targets import cached_targets

CODEBOOK_FILE = "codebook.safetensors"
# Neighbours in a cache may be alike, so a chunk of 64 images gives only some of them.
_LEAST_OF_CHUNK = 16


@dataclass(frozen=True)
class Codebook:
    """A loaded codebook: the SHA-256 of its file, and its `facts` (what it is of, how it is used)."""

    digest: str
    facts: dict[str, Any]


def unfitted_tokenizer(request: CodebookRequest, setting: Setting) -> Tokenizer:
    """Return the tokenizer that a request stands for, whose codes are zero."""
    return Tokenizer(request.size, setting.target_width(request.target))


def tokenizer_of(objective: Objective) -> Tokenizer:
    """Return the tokenizer of an objective that asked for one."""
    tokenizer = objective.tokenizer
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer


def expected_facts(
    request: CodebookRequest, cache: Cache, spec: StreamSpec, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Return what the metadata of a codebook must say so that it serves a run."""
    return {
        "cache": cache.digest,
        "kind": request.kind,
        "codes": request.source,
        "level": cache.schema.levels[spec.levels[-1]],
        "target": request.target,
        "size": request.size,
        "width": tokenizer.width,
    }


def refuse_codebook(request: CodebookRequest, cache: Cache, spec: StreamSpec, tokenizer: Tokenizer) -> None:
    """Raise ConfigError if the codebook to take does not serve this run, or the cache has too few tokens."""
    if request.path is not None:
        facts, _ = read_codebook(codebook_at(request.path))
        expected = expected_facts(request, cache, spec, tokenizer)
        if wrong := [key for key, value in expected.items() if facts.get(key) != value]:
            differing = ", ".join(f"{key} {facts.get(key)!r}, not {expected[key]!r}" for key in wrong)
            raise ConfigError(
                f"objective.codebook {request.path!r} does not fit this run: it has {differing}; give "
                "another run's, or leave objective.codebook out to fit one"
            )
    elif request.size > (most := _rows(spec) * cache.schema.patches):
        raise ConfigError(
            f"objective.codebook_size {request.size} is more than the {most} tokens that the cache has: "
            f"choose at most {most}, better a tenth of it"
        )
    elif request.size > request.tokens:
        raise ConfigError(
            f"objective.codebook_size {request.size} is more than objective.codebook_tokens "
            f"{request.tokens}, which it is fitted to: raise that, or choose fewer codes"
        )


def codebook_at(path: str | Path) -> Path:
    """Return the codebook's file of a run folder, or the file itself."""
    return Path(path) / CODEBOOK_FILE if Path(path).is_dir() else Path(path)


def read_codebook(path: Path) -> tuple[dict[str, Any], bytes]:
    """Read the facts of a codebook and its bytes; raises ConfigError if it is none."""
    try:
        data = path.read_bytes()
        facts, _ = parse_codebook(data)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"{str(path)!r} is not a codebook ({error}): give a run folder with {CODEBOOK_FILE}"
        ) from None
    return facts, data


def parse_codebook(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return facts and tensors of a codebook's bytes; raises ValueError or SafetensorError."""
    tensors = load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    facts = json.loads(header.get("__metadata__", {}).get("codebook", "null"))
    if not isinstance(facts, dict):
        raise ValueError("its metadata name no codebook")
    return facts, tensors


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


def load_codebook(data: bytes, tokenizer: Tokenizer) -> Codebook:
    """Load the bytes of a codebook's file into a tokenizer; raises CheckpointError if they do not fit it."""
    try:
        facts, tensors = parse_codebook(data)
        tokenizer.load_state_dict(tensors)
    except (ValueError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{CODEBOOK_FILE} of this run is damaged ({str(error).partition(chr(10))[0]}): restore it, or "
            "use a new --run"
        ) from None
    return Codebook(hashlib.sha256(data).hexdigest(), facts)


def sample_tokens(
    request: CodebookRequest, cache: Cache, spec: StreamSpec, seed: int, device: torch.device
) -> Tensor:
    """Return the patch tokens (V, N, D') float32 of about `request.tokens / N` views drawn from the cache."""
    patches, cls = cache.schema.patches, int(cache.schema.teacher.has_cls)
    level, filled = spec.levels[-1], 0
    views = min(_rows(spec), -(-request.tokens // patches))
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
    chunks = _chunks(spec)
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


def _chunks(spec: StreamSpec) -> NDArray[np.int64]:
    return np.concatenate([spec.order.chunks(view) for view in spec.order.views])


def _rows(spec: StreamSpec) -> int:
    return int(_chunks(spec)[:, 2].sum())
