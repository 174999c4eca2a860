"""Keyed randomness: every draw is a pure function of what it is for, so there is no generator state to save or share."""

import hashlib

import numpy as np

Key = int | str


def sample_keys(source: str | None, key: str) -> tuple[str, ...]:
    """Return what tells a sample from all others in a draw: its source tar and key; the key alone in caches of schema 1.0 (None)."""
    return (key,) if source is None else (source, key)


def generator(seed: int, purpose: str, *keys: Key) -> np.random.Generator:
    """Return the generator of one draw, named by a purpose and by what distinguishes it (epoch, sample, view)."""
    digest = hashlib.blake2b(repr((seed, purpose, *keys)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def derived_seed(seed: int, purpose: str, *keys: Key) -> int:
    """Return a seed of 63 bits for a library that needs an integer."""
    digest = hashlib.blake2b(repr((seed, purpose, *keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def key_hash(key: str) -> int:
    """Return the 64-bit hash by which the cache knows a sample: BLAKE2b of the UTF-8 key, 8 bytes, little-endian."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
