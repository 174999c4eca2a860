"""Digests of metadata, and sealed files: canonical JSON objects with the SHA-256 of their rest inside."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.json_text import load_json

# A quote inside a JSON string is escaped, so only a key looks like this.
_SEAL = re.compile(rb'[{,]"digest":"([0-9a-f]{64})",')


def parse_json(data: bytes) -> dict[str, Any]:
    """Return the JSON object that some bytes are; raises ValueError for anything else, however nested."""
    values = load_json(data)
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    return values


def canonical_json(values: Mapping[str, Any]) -> bytes:
    """Return the one JSON text of some values over which digests are taken: sorted keys, no spaces, ASCII."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest_of(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the canonical JSON of `values` without their own `digest`."""
    others = {key: value for key, value in values.items() if key != "digest"}
    return hashlib.sha256(canonical_json(others)).hexdigest()


def digest_of_arrays(*arrays: NDArray[np.float32]) -> str:
    """Return the SHA-256 of the bytes of some arrays in turn: float32, little-endian, C order."""
    digest = hashlib.sha256()
    for values in arrays:
        digest.update(np.ascontiguousarray(values, "<f4").data)
    return digest.hexdigest()


def sealed(values: Mapping[str, Any]) -> bytes:
    """Return the bytes of a sealed file; some key must sort after `digest`."""
    return canonical_json({**values, "digest": digest_of(values)}) + b"\n"


def seal_of(data: bytes) -> str:
    """Return the digest of a sealed file's bytes without parsing them; raises ValueError if it is wrong."""
    found = _SEAL.search(data)
    if found and data.endswith(b"\n"):
        digest = found[1].decode()
        if hashlib.sha256(data[: found.start() + 1] + data[found.end() : -1]).hexdigest() == digest:
            return digest
    raise ValueError("the file does not match its digest")
