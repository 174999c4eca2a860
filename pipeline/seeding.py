"""Keyed randomness: a draw is a pure function of its purpose and keys; no generator has a state to save."""

import hashlib

import numpy as np

Key = int | str


def sample_keys(source: str | None, key: str) -> tuple[str, ...]:
    """Return what identifies a sample in a draw: source tar and key; in caches of schema 1.0 the key."""
    return (key,) if source is None else (source, key)


def generator(seed: int, purpose: str, *keys: Key) -> np.random.Generator:
    """Return the generator of one draw, named by a purpose and keys such as epoch, sample and view."""
    digest = hashlib.blake2b(repr((seed, purpose, *keys)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def derived_seed(seed: int, purpose: str, *keys: Key) -> int:
    """Return a seed of 63 bits for a library that needs an integer."""
    digest = hashlib.blake2b(repr((seed, purpose, *keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def key_hash(key: str) -> int:
    """Return the 64-bit hash of a key in the cache: BLAKE2b of its UTF-8, 8 bytes, little-endian."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
