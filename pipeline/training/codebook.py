"""The codebook of a run: fitted once to a keyed sample of its cache, or taken from another run.

The main rank fits it before the first step and writes RUN/codebook.safetensors. All ranks and every resumed
run load those bytes. The metadata of the file state what the codes were fitted to.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pipeline.cache.reader import Cache
from pipeline.errors import CheckpointError, ConfigError
from pipeline.json_text import load_json
from pipeline.objectives.codes import Tokenizer
from pipeline.objectives.needs import CodebookRequest
from pipeline.objectives.objective import Objective, Setting
from pipeline.stream.samples import StreamSpec

CODEBOOK_FILE = "codebook.safetensors"
VQKD_WIDTH = 32  # channels of its codes
_SHARE_OF_MEMORY = 0.8  # for the sample; fitting needs more besides


@dataclass(frozen=True)
class Codebook:
    """A loaded codebook: the SHA-256 of its file, and its `facts` (what it was fitted to, how it is used)."""

    digest: str
    facts: dict[str, Any]


def unfitted_tokenizer(request: CodebookRequest, setting: Setting) -> Tokenizer:
    """Return the tokenizer of a request, with all codes zero."""
    if request.source == "pixels":
        return Tokenizer(request.size, 3 * setting.patch_size**2)
    encoded = VQKD_WIDTH if request.kind == "vqkd" else None
    return Tokenizer(request.size, setting.target_width(request.target), encoded)


def tokenizer_of(objective: Objective) -> Tokenizer:
    """Return the tokenizer of an objective that asked for one."""
    tokenizer = objective.tokenizer
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer


def expected_facts(
    request: CodebookRequest, cache: Cache, spec: StreamSpec, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Return what the metadata of a codebook must state to serve a run."""
    return {
        "cache": cache.digest,
        "kind": request.kind,
        "codes": request.source,
        "level": cache.schema.levels[spec.levels[-1]] if request.source == "features" else None,
        "target": request.target if request.source == "features" else None,
        **({"reconstructs": request.reconstructs} if request.reconstructs else {}),
        "size": request.size,
        "width": tokenizer.width,
    }


def refuse_codebook(
    request: CodebookRequest, cache: Cache, spec: StreamSpec, tokenizer: Tokenizer, device: torch.device
) -> None:
    """Raise ConfigError if the given codebook does not fit this run, or none can be fitted.

    To fit one, the cache must have enough tokens and the device memory for them.
    """
    channels = tokenizer.width  # in memory, for each token
    if request.reconstructs not in (None, request.target):
        channels += cache.schema.teacher.projection_width or channels
    if request.path is not None:
        facts, _ = read_codebook(request.path)
        if facts.get("kind") == "vqkd":  # older codebooks read and reconstruct one form
            facts.setdefault("reconstructs", facts.get("target"))
        expected = expected_facts(request, cache, spec, tokenizer)
        if wrong := [key for key, value in expected.items() if facts.get(key) != value]:
            differing = ", ".join(f"{key} {facts.get(key)!r}, not {expected[key]!r}" for key in wrong)
            size = f"set objective.codebook_size={facts['size']}, " if wrong == ["size"] else ""
            raise ConfigError(
                f"objective.codebook {request.path!r} does not fit this run: it has {differing}; {size}give "
                "another one, or leave objective.codebook out to fit one"
            )
    elif request.size > (most := int(chunks_of(spec)[:, 2].sum()) * cache.schema.patches):
        raise ConfigError(
            f"objective.codebook_size {request.size} is more than the {most} tokens that the cache has: "
            f"choose at most {most}, or better a tenth of that"
        )
    elif request.size > request.tokens:
        raise ConfigError(
            f"objective.codebook_size {request.size} is more than objective.codebook_tokens "
            f"{request.tokens}, which it is fitted to: raise that, or choose fewer codes"
        )
    elif request.tokens > (fitting := int(_SHARE_OF_MEMORY * memory_of(device) / 4 / channels)) < most:
        raise ConfigError(
            f"objective.codebook_tokens {request.tokens} do not fit into the memory of {str(device)!r} as "
            f"{channels} channels of float32: choose at most {fitting}"
        )


def memory_of(device: torch.device) -> int:
    """Return the bytes that are free on a GPU, or all of this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def read_codebook(where: str) -> tuple[dict[str, Any], bytes]:
    """Read the facts and the bytes of a codebook, a file or a run folder; raises ConfigError for others."""
    path = Path(where) / CODEBOOK_FILE if Path(where).is_dir() else Path(where)
    try:
        data = path.read_bytes()
        facts, _ = parse_codebook(data)
    except (OSError, ValueError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"objective.codebook {str(path)!r} is not a codebook ({reason}): "
            f"give a run folder with {CODEBOOK_FILE}, or that file"
        ) from None
    return facts, data


def parse_codebook(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return facts and tensors of a codebook's bytes; raises ValueError or SafetensorError."""
    tensors = load(data)
    header = load_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
    facts = load_json(header.get("__metadata__", {}).get("codebook", "null"))
    if not isinstance(facts, dict):
        raise ValueError("its metadata describe no codebook")
    return facts, tensors


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


def chunks_of(spec: StreamSpec) -> NDArray[np.int64]:
    """Return the chunks (n, 3) of all views of a stream: (index of the unit, chunk, rows)."""
    return np.concatenate([spec.order.chunks(view) for view in spec.order.views])
